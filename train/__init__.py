"""A config and rows in, an adapter out."""

import logging
import os

# bitsandbytes reports, on import, that an optional inference kernel is missing; training does not use it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Read by GNU OpenMP when torch is imported: a thread that waits for work spins for a few microseconds and then sleeps.
# By default it spins for milliseconds, which gains nothing on an idle machine and made a step three times slower on a
# busy one (2 cores that others use too: 27 s against 8 s). Sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs a third.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
