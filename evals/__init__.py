"""Measures any causal LM: adapter, merged or quantized."""

import train  # noqa: F401  (first: it silences what bitsandbytes says on import)
