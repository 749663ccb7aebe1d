"""An adapter in, directories that other programs load out."""

import train  # noqa: F401  (first: it silences what bitsandbytes says on import)
