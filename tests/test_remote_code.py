"""Nothing that comes with a model, a tokenizer, an adapter or a dataset is run: planted code leaves no trace."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, settings
from safetensors.torch import load_file

from data.errors import UserError
from data.read.hub import hub_input
from evals.load import load_dense
from train.config import Config, Model
from train.config.model import Quantization
from train.config.read import validate
from train.model.adapter import load_adapter
from train.model.base import load_base, load_model_config, load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def plant(folder: Path, file: str, auto_map: object, **changes: object) -> Path:
    """Python files that leave a mark when they are imported, and a config that asks for them."""
    mark = folder / "it-was-run"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').write('run')\n")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map} | changes))
    return mark


MODEL_MAP = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.mark.parametrize("changes", [{}, {"model_type": "evil"}], ids=["a known type", "a type of its own"])
def test_a_base_with_its_own_code_is_one_message(model: Path, changes: dict) -> None:
    mark = plant(model, "config.json", MODEL_MAP, **changes)
    with pytest.raises(UserError, match=r"own code \(configuration_evil\.Evil, modeling_evil\.Evil\)") as caught:
        load_model_config(Model(name_or_path=str(model), max_length=64))
    assert "trust_remote_code is off" in caught.value.todo
    with pytest.raises(UserError, match="asks to run its own code"):
        load_base(Model(name_or_path=str(model), max_length=64), Quantization(), CPU)
    assert not mark.exists()


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": [None, "tokenization_evil.Evil"]}, ["tokenization_evil.Evil"]])
def test_a_tokenizer_with_its_own_code_is_one_message(model: Path, auto_map: object) -> None:
    mark = plant(model, "tokenizer_config.json", auto_map, tokenizer_class="EvilTokenizer")
    with pytest.raises(UserError, match=r"tokenizer_config\.json asks to run its own code \(tokenization_evil\.Evil\)"):
        load_tokenizer(str(model))
    assert not mark.exists()


def test_a_measured_model_runs_no_code_of_its_own_and_asks_nobody(model: Path, monkeypatch) -> None:
    """transformers would ask on a terminal whether to run the code of a type that it does not know."""
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    mark = plant(model, "config.json", MODEL_MAP, model_type="evil")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_dense(model, CPU)
    assert not mark.exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def test_pickled_weights_are_not_read(model: Path) -> None:
    mark = model / "it-was-run"
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil(mark)}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights as safetensors; pickled ones") as caught:
        load_base(Model(name_or_path=str(model), max_length=64), Quantization(), CPU)
    assert "save_pretrained" in caught.value.todo
    assert not mark.exists()


def test_safetensors_beside_pickled_weights_are_what_is_read(model: Path) -> None:
    mark = model / "it-was-run"
    torch.save({"model.embed_tokens.weight": Evil(mark)}, model / "pytorch_model.bin")
    base = load_base(Model(name_or_path=str(model), max_length=64), Quantization(), CPU)
    read = base.model.get_input_embeddings().weight
    assert torch.equal(read.float(), load_file(model / "model.safetensors")["model.embed_tokens.weight"].float())
    assert not mark.exists()


def test_a_pickled_adapter_is_not_read(tiny_model: Path, tmp_path: Path) -> None:
    mark, folder = tmp_path / "it-was-run", tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}))
    torch.save({"q_proj": Evil(mark)}, folder / "adapter_model.bin")
    base = load_base(Model(name_or_path=str(tiny_model), max_length=64), Quantization(), CPU)
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; pickled weights are not read"):
        load_adapter(base, folder)
    assert not mark.exists()


def test_a_dataset_with_a_script_is_one_message(monkeypatch) -> None:
    def load_dataset(*_args: object, **_options: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found evil.py")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match="no code that comes with a dataset is run"):
        hub_input("someone/evil", None, "train", None)


def test_the_installed_datasets_runs_no_script(tmp_path: Path) -> None:
    """What the message above stands on."""
    import datasets

    mark = tmp_path / "it-was-run"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('run')\n")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(tmp_path / "evil" / "evil.py"))
    assert not mark.exists()


@pytest.mark.parametrize("place", ["model", "lora", "train", None])
def test_asking_for_trust_is_answered(place: str | None, tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run")
    (wanted[place] if place else wanted)["trust_remote_code"] = True
    with pytest.raises(UserError, match=r"trust_remote_code: unknown key; it is off: no code that comes with a model"):
        validate(wanted, "a config")


def test_a_config_without_it_is_valid(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    assert isinstance(validate(settings(tiny_model, records, tmp_path / "run"), "a config"), Config)


AUTOS = {"AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"}
# Only what this project has just written or ships: no place that a user names.
OWN = {"scripts/demo_model.py", "export/proof/strangers/transformers_check.py"}


def test_nobody_trusts_code_that_comes_with_a_model() -> None:
    """Every load of a place that the user names says so; nothing says the contrary."""
    said = 0
    for path in (
        path for room in ("data", "train", "evals", "export", "scripts") for path in (ROOT / room).rglob("*.py")
    ):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        assert "trust_remote_code=True" not in text, name
        assert '"trust_remote_code": True' not in text, name
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        loads = [call for call in calls if _loads(call)]
        if loads and name not in OWN:
            assert "trust_remote_code" in text, name
            said += 1
    assert said >= 4


def _loads(call: ast.Call) -> bool:
    function = call.func
    is_load = isinstance(function, ast.Attribute) and function.attr == "from_pretrained"
    return is_load and isinstance(function.value, ast.Name) and function.value.id in AUTOS | {"auto"}
