"""python -m export.proof.loss_worker JOB.json    measure one model in a process of its own (loss.LossJob)."""

from __future__ import annotations

import sys
from pathlib import Path

from data.errors import exits_on_user_error
from export.proof.loss import do, read_job
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Do the job whose file is named on the command line."""
    quiet_libraries()
    do(read_job(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
