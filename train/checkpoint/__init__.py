"""Resumable states: whole or not there."""
