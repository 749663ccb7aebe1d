"""Measured comparisons, with their results."""
