"""Measured comparisons, with their results."""

import train  # noqa: F401  (first: it silences bitsandbytes on import, and bounds the spinning of threads for all alike)
