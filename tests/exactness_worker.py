"""Trains one config after another on the processes that `accelerate launch` started: for tests/test_exactness.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from train.config import Config
from train.ranks.processes import start_processes
from train.session import run_training

if __name__ == "__main__":
    accelerator = start_processes()
    for path in sys.argv[1:]:
        run_training(Config.model_validate(json.loads(Path(path).read_text())), accelerator)
    accelerator.end_training()
