"""A config and rows in, an adapter out."""

import logging

# bitsandbytes reports, on import, that an optional inference kernel is missing; training does not use it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
