"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

ORDER = ["data", "train", "evals", "export", "scripts"]
SOURCES = [path for package in [*ORDER, "benchmarks"] for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = set(ORDER[: ORDER.index(package) + 1]) if package in ORDER else set(ORDER)
    assert imported_packages(path) & set(ORDER) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_no_file_is_a_drawer() -> None:
    assert not {"utils.py", "common.py", "helpers.py", "misc.py"} & {path.name for path in SOURCES}


def test_nothing_shadows_a_package() -> None:
    """`scripts/train.py` run by path, or a package `tests/data`, would hide the real ones."""
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")} | {path.name for path in (ROOT / "tests").iterdir()}
    assert not set(ORDER) & names
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_nothing_needs_a_place_outside_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if Path(name).suffix in {".py", ".sh", ".yaml", ".toml", ".md"} and not name.startswith("tests/"):
            assert "/work/" not in (ROOT / name).read_text(), name


def test_every_script_has_a_first_line_for_the_list() -> None:
    for path in (ROOT / "scripts").glob("[a-z]*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        assert first.startswith((f"python -m scripts.{path.stem}", f"python3 -m scripts.{path.stem}")), path


EXPORT_ORDER = ["files", "artefact", "merge", "gguf", "proof", "quantize", "card", "hub"]


@pytest.mark.parametrize("path", sorted((ROOT / "export").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_within_export_imports_go_one_way_too(path: Path) -> None:
    """From the merge to the hub, as the data goes; `files` and `artefact` are what they hand on."""
    room = path.relative_to(ROOT / "export").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    tree = ast.parse(path.read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    rooms = {module.split(".")[1] for module in modules if module.startswith("export.")}
    assert rooms <= set(EXPORT_ORDER[: EXPORT_ORDER.index(room) + 1])
