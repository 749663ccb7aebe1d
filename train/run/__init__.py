"""The run directory: what was asked for, on what it ran, and what came of it."""
