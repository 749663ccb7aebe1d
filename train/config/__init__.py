"""Every setting: typed, frozen, closed, and documented once (the docstrings here are the help and the comments).

A config is YAML. `extends: other.yaml` (relative to the file) takes another's keys first; `a.b=c` on the command line
comes last. Unknown keys are errors, and every mistake is reported at once.
"""

from train.config.data import Data, DataSource
from train.config.model import Lora, Model, Quantization
from train.config.training import Train
from train.config.whole import Config, Stage

__all__ = ["Config", "Data", "DataSource", "Lora", "Model", "Quantization", "Stage", "Train"]
