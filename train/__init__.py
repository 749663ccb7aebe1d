"""A config and rows in, an adapter out."""

import logging
import os

# bitsandbytes reports, on import, that an optional inference kernel is missing; training does not use it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Read by OpenMP when torch is imported: threads that wait for work sleep instead of spinning. On an idle machine it
# costs nothing measurable; on a busy one, spinning threads made a step up to ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
