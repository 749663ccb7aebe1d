"""Weights are read one at a time and written in shards of a chosen size, in memory bounded by a shard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import UserError
from export.merge.shards import Weight, cut, parse_size, shard_names, weights_of, write_index


def weight(name: str, *shape: int) -> Weight:
    return Weight(name, shape, Path("model.safetensors"), name)


def test_shards_are_filled_in_order_up_to_the_size() -> None:
    weights = [weight("a", 4), weight("b", 6), weight("c", 1), weight("d", 40), weight("e", 2)]
    shards = [[w.name for w in shard] for shard in cut(weights, 2, 20)]
    assert shards == [["a", "b"], ["c"], ["d"], ["e"]]
    assert cut(weights, 2, 10**9) == [weights]


def test_names_are_those_that_transformers_looks_for() -> None:
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(3)[1:] == ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


def test_the_index_counts_the_bytes_of_the_weights(tmp_path: Path) -> None:
    write_index(tmp_path, [[weight("a", 4, 2)]], 2)
    assert not list(tmp_path.iterdir())
    write_index(tmp_path, [[weight("a", 4, 2), weight("b", 1)], [weight("c", 3)]], 2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2 * (8 + 1 + 3)}
    assert index["weight_map"]["b"] == "model-00001-of-00002.safetensors"
    assert index["weight_map"]["c"] == "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-5GB", "0GB", "5TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_base_without_safetensors_or_with_half_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        weights_of(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        weights_of(tmp_path)


def test_stored_rotary_frequencies_stay_behind(tmp_path: Path) -> None:
    """Old checkpoints have them; config.json says what they are, and after scaling these would be others."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({"a": torch.ones(3, 2), name: torch.ones(8)}, tmp_path / "model.safetensors")
    assert [(w.name, w.shape) for w in weights_of(tmp_path)] == [("a", (3, 2))]


ROWS, COLUMNS = 1024, 2048  # weights of 4.2 MB each in bfloat16
ROOM = 110_000_000  # bytes that the process may have beside Python and its libraries
IMPORTS = """
import resource, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from export.merge.weights import merge_shards
from export.merge.updates import Delta
from train.config import Quantization
"""
# What RLIMIT_DATA counts, before anything is merged.
USED = (
    IMPORTS
    + """
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")))
"""
)
MERGE = (
    IMPORTS
    + """
base, folder, shard_size, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
a, b = torch.full((1, {columns}), 0.25), torch.full(({rows}, 1), 2.0)
names = [f"model.layers.{{n}}.mlp.up_proj.weight" for n in range({count})]
updates = {{name: Delta(a, b, 0.5) for name in names[::10]}}
wanted = base, updates, frozenset(names[:10]), Quantization(), "dequantized", torch.bfloat16, folder
print(len(list(merge_shards(*wanted, torch.device("cpu"), max_shard_size=shard_size))))
"""
)


def write_large(path: Path, block: torch.Tensor, count: int) -> None:
    """One safetensors file of `count` weights, each the same block, without ever holding more than that."""
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(count)]
    size = block.nbytes
    entries = {
        name: {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in names:
            file.write(block.view(torch.uint8).numpy().data)


@pytest.mark.program
def test_a_model_three_times_larger_than_the_memory_merges(tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    merged.mkdir()
    block = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()

    def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    limit = int(python(USED).stdout) + ROOM
    count = 3 * limit // block.nbytes + 1
    write_large(base / "model.safetensors", block, count)
    assert (base / "model.safetensors").stat().st_size > 3 * limit

    def run(shard_size: int) -> subprocess.CompletedProcess[str]:
        return python(MERGE.format(columns=COLUMNS, rows=ROWS, count=count), base, merged, shard_size, limit)

    try:
        whole = run(10**10)
        assert whole.returncode != 0
        assert "allocate memory" in whole.stderr or "MemoryError" in whole.stderr
        done = run(30_000_000)
        assert done.returncode == 0, done.stderr
        index = json.loads((merged / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) == int(done.stdout) == -(-count // 7)
        assert index["metadata"]["total_size"] == count * block.nbytes
        for n, expected in ((20, block + torch.tensor(0.25)), (21, block)):
            name = f"model.layers.{n}.mlp.up_proj.weight"
            with safe_open(merged / index["weight_map"][name], framework="pt") as tensors:
                torch.testing.assert_close(tensors.get_tensor(name).float(), expected.float(), rtol=0.01, atol=0)
    finally:
        shutil.rmtree(base)
        shutil.rmtree(merged)


def test_a_shard_can_be_read_by_everyone(tmp_path: Path) -> None:
    from export.merge.shards import write_shard

    write_shard(tmp_path / "model.safetensors", {"a": torch.ones(2)})
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.ones(2))
