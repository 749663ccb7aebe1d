"""What goes where, that only what was recorded and checked goes there, that it resumes, and that no token leaks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hub_stand_in import OWNER, TOKEN, Answer, Hub, running_hub
from huggingface_hub import HfApi, ModelCard
from shipped_run import AWQ_NAME, GPTQ_NAME, add_variants, shipped_run, stranger

import scripts.publish
from data.errors import UserError
from data.hashing import sha256_of
from export.artefact import read_artefact, record_of
from export.card.card import write_card
from export.card.facts import Options, merge_of
from export.hub.publish import Destination, plan, upload_of
from export.hub.upload import batches, deliver, git_hash, redacted
from export.merge.manifest import read_manifest

# huggingface_hub 2.4 (lfs.py) hands files to httpx2 by a name that it deprecated; gone when it follows.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = f"{OWNER}/tiny"
SMALL = 40_000  # bytes of a commit: the tiny model's weights go alone, the rest together


@pytest.fixture(scope="module")
def shipped(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shipped_run(tiny_model, records, tmp_path_factory.mktemp("runs") / "tiny")
    add_variants(path)
    (path / "evals").mkdir()
    (path / "evals" / "quantization.png").write_bytes(b"a picture")
    (path / "NOTICE.txt").write_text("Keep this.\n")
    write_card(path, Options(), None)
    return path


@pytest.fixture
def run(shipped: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shipped, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and a library that talks to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as hub:
        yield hub


def planned(run: Path, *, repo: str = REPO, gguf_repo: str | None = None, force: bool = False):
    return plan(run, repo, gguf_repo, force=force, say=lambda _: None)


def send(run: Path, hub: Hub, say=lambda _: None, **options):
    return deliver(planned(run), HfApi(endpoint=hub.url), private=False, say=say, commit_bytes=SMALL, **options)


def change(run: Path, name: str, method: str, **changes: object) -> None:
    replace(read_artefact(record_of(run, name, method)), **changes).save(run)
    write_card(run, Options(), None)


# --- what goes where ---


def test_everything_has_its_place(run: Path) -> None:
    found = planned(run)
    assert [(d.repo, d.branch) for d in found] == [
        (REPO, "main"), (REPO, GPTQ_NAME), (REPO, AWQ_NAME), (f"{REPO}-GGUF", "main"),
    ]  # fmt: skip
    paths = [{file.path for file in d.files} for d in found]
    about = {"README.md", "evals/quantization.png", "NOTICE.txt"}
    assert paths[0] == {path.name for path in (run / "merged").iterdir()} | about
    assert {"manifest.json", "merge.json", "rope.json", "config.json", "model.safetensors"} <= paths[0]
    assert paths[1] == paths[2] == {"model.safetensors", "variant.json"} | about
    assert paths[3] == {"run-Q4_K_M.gguf", "run-Q2_K.gguf", "Q4_K_M.json", "Q2_K.json"} | about


def test_gguf_files_may_go_to_the_same_or_another_repository(run: Path) -> None:
    together = planned(run, gguf_repo=REPO)
    assert len(together) == 3
    assert {"run-Q2_K.gguf", "model.safetensors"} <= {file.path for file in together[0].files}
    assert [file.path for file in together[0].files].count("README.md") == 1
    assert planned(run, gguf_repo="other/files")[-1].repo == "other/files"


def test_the_cards_name_their_repositories(run: Path) -> None:
    cards = {d.repo: next(f.source for f in d.files if f.path == "README.md") for d in planned(run)}
    main, gguf = (ModelCard(content.decode()) for content in cards.values() if isinstance(content, bytes))
    assert f'name = "{REPO}"' in main.text
    assert f"hf download {REPO}-GGUF run-Q4_K_M.gguf" in main.text
    assert gguf.data.to_dict()["base_model"] == REPO
    assert "USER/MODEL" not in main.text + gguf.text


# --- sending ---


def test_the_hub_has_what_the_run_has(run: Path, hub: Hub) -> None:
    sent = send(run, hub)
    assert sent.kept == 0
    for destination in planned(run):
        there = hub.files(destination.repo, destination.branch)
        del there[".gitattributes"]
        assert {p: hashlib.sha256(c).hexdigest() for p, c in there.items()} == {
            file.path: file.sha256 for file in destination.files
        }
    assert "model.safetensors" in hub.files(REPO, GPTQ_NAME)
    assert "config.json" not in hub.files(REPO, GPTQ_NAME), "a branch begins empty, not with the merged model"
    assert not hub.repos[REPO].private


def test_a_second_time_sends_nothing(run: Path, hub: Hub) -> None:
    first = send(run, hub)
    before = list(hub.requests)
    second = send(run, hub)
    assert (second.files, second.size, second.kept) == (0, 0, first.files)
    assert not [path for _, path in hub.requests[len(before) :] if "/commit/" in path or "/upload/" in path]


def test_only_what_changed_is_sent_again(run: Path, hub: Hub) -> None:
    send(run, hub)
    write_card(run, Options(author="A. Nauthor"), None)
    assert send(run, hub).files == 4, "the card, in each place"
    assert b"A. Nauthor" in hub.files(REPO)["README.md"]


@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
def test_an_interrupted_upload_goes_on(run: Path, hub: Hub, allowed: int) -> None:
    commits = 0

    def fails(method: str, path: str, token: str) -> Answer | None:
        nonlocal commits
        commits += "/commit/" in path
        return (500, {"error": "out of order"}) if "/commit/" in path and commits > allowed else None

    hub.fail = fails
    with pytest.raises(UserError, match=r"the hub refused \(500\): out of order"):
        send(run, hub)
    arrived = sum(len(c[-1]["tree"]) - 1 for r in hub.repos.values() for c in r.branches.values())
    hub.fail = lambda method, path, token: None
    sent = send(run, hub)
    assert sent.kept == arrived
    assert (arrived == 0) == (allowed == 0)
    large = {f.sha256 for d in planned(run) for f in d.files if f.path.endswith((".safetensors", ".gguf"))}
    assert sorted(hub.puts) == sorted(large), "each large file is sent once, whether its commit failed or not"
    assert sent.files + sent.kept == sum(len(d.files) for d in planned(run))


def test_a_large_file_that_fails_is_named_and_sent_later(run: Path, hub: Hub) -> None:
    hub.fail = lambda method, path, token: (400, {"error": "no room"}) if method == "PUT" else None
    with pytest.raises(UserError, match=r"the hub refused \(400\): no room"):
        send(run, hub)
    assert hub.puts == []
    hub.fail = lambda method, path, token: None
    assert send(run, hub).kept == 0


def test_branches_that_come_later_do_not_hold_the_merged_model(run: Path, hub: Hub) -> None:
    shutil.move(run / AWQ_NAME, run.parent / AWQ_NAME)
    write_card(run, Options(), None)
    send(run, hub)
    assert AWQ_NAME not in hub.repos[REPO].branches
    shutil.move(run.parent / AWQ_NAME, run / AWQ_NAME)
    write_card(run, Options(), None)
    send(run, hub)
    assert "config.json" in hub.files(REPO)
    assert "config.json" not in hub.files(REPO, AWQ_NAME)


def test_files_of_others_are_left_alone_and_named(run: Path, hub: Hub) -> None:
    api = HfApi(endpoint=hub.url)
    theirs = Destination(REPO, "main", (upload_of(b"old", "pytorch_model.bin"),))
    deliver([theirs], api, private=True, say=lambda _: None)
    assert hub.repos[REPO].private
    said: list[str] = []
    send(run, hub, say=said.append)
    assert f"{REPO} (main): there, but not of this run, and left alone: pytorch_model.bin" in said
    assert hub.files(REPO)["pytorch_model.bin"] == b"old"


def test_large_files_go_first_and_the_card_last() -> None:
    files = [upload_of(b"x" * size, str(size)) for size in (3, 50, 200, 10, 40)]
    groups = [[f.size for f in group] for group in batches(files, 100)]
    assert groups == [[200], [50, 40, 10], [3]]
    assert list(batches([], 100)) == []


def test_gits_name_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    asked = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert git_hash(path) == git_hash(b"hello\n") == asked.stdout.strip()


# --- what is refused ---


def refused(run: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message):
        planned(run, **options)


def test_names_that_are_none(run: Path) -> None:
    for name in ("tiny", "a/b/c", "a b/c", "-a/..b", ""):
        refused(run, "is no name of a repository", repo=name)
    refused(run, "--gguf-repo: 'nothing'", gguf_repo="nothing")


def test_nothing_to_publish(run: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "not a run directory")
    (run / "README.md").unlink()
    refused(run, "there is no card\n  -> write it first: python -m scripts.card")
    (run / "merged" / "manifest.json").unlink()
    refused(run, r"no manifest\.json")
    shutil.rmtree(run / "merged")
    refused(run, "nothing to publish: it is not merged")


def test_a_merge_of_an_older_adapter_is_neither_published_nor_described(run: Path) -> None:
    with (run / "adapter" / "adapter_model.safetensors").open("ab") as adapter:
        adapter.write(b" ")
    refused(run, "merged: was merged from another adapter than the run has now", force=True)
    with pytest.raises(UserError, match=r"was merged from another adapter.*\n.*merge again"):
        write_card(run, Options(), None)
    shutil.copytree(run / "merged", run / "merged-unverified")
    path = run / "merged-unverified" / "merge.json"
    record = {
        **json.loads(path.read_text()),
        "adapter_sha256": sha256_of(run / "adapter" / "adapter_model.safetensors"),
    }
    path.write_text(json.dumps(record))
    found = merge_of(run)
    assert found is not None
    assert found.name == "merged-unverified"


def test_a_card_that_is_older_than_what_it_describes(run: Path) -> None:
    (run / "evals" / "report.json").write_text("{}")
    refused(run, r"was written before these changed: evals/report\.json\n  -> write it again")


def test_an_unverified_merge_needs_force_and_a_card_that_says_so(run: Path) -> None:
    (run / "merged").rename(run / "merged-unverified")
    path = run / "merged-unverified" / "merge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "verified": False}))
    refused(run, "was not verified")
    refused(run, "merge.json has changed|was written before these changed", force=True)


def test_forced_it_is_published_with_the_warning(run: Path) -> None:
    for name, method in ((GPTQ_NAME, "gptq"), (AWQ_NAME, "awq"), ("Q4_K_M", "gguf"), ("Q2_K", "gguf")):
        change(run, name, method, merge_verified=False)
    refused(run, "was made from a merge that was not verified")
    card = next(f.source for f in planned(run, force=True)[0].files if f.path == "README.md")
    assert b"**This merge was NOT verified**" in card  # type: ignore[operator]
    text = (run / "README.md").read_text().replace("This merge was NOT verified", "All is well")
    (run / "README.md").write_text(text)
    refused(run, "does not say that the merge was not verified", force=True)


def test_a_variant_that_failed_or_is_of_another_merge(run: Path) -> None:
    change(run, "Q2_K", "gguf", stranger=stranger("llama.cpp", ok=False))
    refused(run, "Q2_K: failed a check when it was loaded back")
    change(run, "Q2_K", "gguf", stranger=None, merged_sha256="0" * 64)
    refused(run, "Q2_K: was made from another merge")
    assert len(planned(run, force=True)) == 4


@pytest.mark.parametrize("file", ["merged/model.safetensors", "merged/rope.json", f"{GPTQ_NAME}/model.safetensors"])
def test_files_that_changed_since_they_were_recorded(run: Path, file: str) -> None:
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(run, f"not what was recorded: {Path(file).name} has changed", force=True)
    (run / file).unlink()
    refused(run, f"{Path(file).name} is missing")


def test_merged_files_are_those_of_the_manifest(run: Path) -> None:
    (run / "merged" / "notes.txt").write_text("mine")
    assert "notes.txt" not in {f.path for f in planned(run)[0].files}
    assert len(read_manifest(run / "merged").files) + 4 == len(planned(run)[0].files)


# --- what the hub refuses ---


@pytest.mark.parametrize(
    ("status", "said", "todo"),
    [
        (401, "Invalid credentials", "hf auth login"),
        (403, "You don't have the rights", f"write permission for {OWNER}"),
        (404, "Not found", "see that the name is right"),
        (402, "Storage is full", "wait a little"),
    ],
)
def test_each_refusal_is_one_clear_message(run: Path, hub: Hub, status: int, said: str, todo: str) -> None:
    hub.fail = lambda method, path, token: (status, {"error": f"{said} ({token})"})
    with pytest.raises(UserError) as caught:
        send(run, hub)
    message = str(caught.value)
    assert message.startswith(f"{REPO}: the hub refused ({status}): {said}")
    assert todo in message
    assert TOKEN not in message


def test_another_persons_name(run: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"refused \(403\): .*rights to create a model under \"stranger\""):
        deliver(planned(run, repo="stranger/x"), HfApi(endpoint=hub.url), private=False, say=lambda _: None)
    assert hub.repos == {}


def test_a_network_that_is_down(run: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: the upload broke off .*refused.*\n  -> see that the network"):
        deliver(planned(run), HfApi(endpoint="http://127.0.0.1:9"), private=False, say=lambda _: None)


def test_offline_mode(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode is on\n  -> unset HF_HUB_OFFLINE"):
        send(run, hub)
    assert hub.requests == []


# --- the token ---


def test_a_token_never_leaves_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-one")
    assert redacted("Bearer odd-one and odd-one") == "Bearer (token) and (token)"
    assert redacted("another: hf_abcdefghijklmnop, and Bearer xyz!") == "another: (token), and Bearer (token)"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("export.hub.upload.get_token", lambda: None)
    assert redacted("nothing here") == "nothing here"


def test_no_token_in_what_is_said_or_logged(run: Path, hub: Hub, caplog: pytest.LogCaptureFixture, capfd) -> None:
    said: list[str] = []
    hub.fail = lambda method, path, token: (400, {"error": f"echo {token}"}) if "/commit/" in path else None
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        send(run, hub, say=said.append)
    out, err = capfd.readouterr()
    for text in (str(caught.value), out, err, "".join(said), caplog.text):
        assert TOKEN not in text
    assert "echo (token)" in str(caught.value)


# --- the command ---


def command(run: Path, *arguments: object, hub: Hub | None = None, token: str | None = TOKEN, home: Path | None = None):
    """The whole program in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home or run.parent), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9"} | ({"HF_TOKEN": token} if token else {})
    told = [sys.executable, "-m", "scripts.publish", str(run), *map(str, arguments)]
    return subprocess.run(told, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_dry_run_lists_and_sends_nothing(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["publish", str(run), "--repo", REPO])
    monkeypatch.setattr("export.hub.upload.get_token", lambda: None)
    assert scripts.publish.main() == 0
    out = capsys.readouterr().out
    assert hub.requests == []
    assert f"{REPO}, branch {GPTQ_NAME}: 5 files" in out
    assert f"{REPO}-GGUF, branch main: 7 files" in out
    files = sum(len(d.files) for d in planned(run))
    assert f"in all {files} files" in out
    assert "this was a dry run; add --really to send it" in out


@pytest.mark.program
def test_the_whole_command(run: Path, hub: Hub) -> None:
    real = command(run, "--repo", REPO, "--really", "--private", hub=hub)
    assert real.returncode == 0, real.stderr
    assert hub.repos[REPO].private
    assert set(hub.repos) == {REPO, f"{REPO}-GGUF"}
    assert f"{hub.url}/{REPO}" in real.stdout
    assert real.stderr == ""


@pytest.mark.program
def test_a_hub_that_echoes_the_token(run: Path, hub: Hub, tmp_path: Path) -> None:
    hub.fail = lambda method, path, token: (403, {"error": f"the token {token} may not write"})
    result = command(run, "--repo", REPO, "--really", hub=hub, home=tmp_path / "home")
    assert result.returncode == 2
    assert "error: " in result.stderr
    assert "the token (token) may not write" in result.stderr
    assert TOKEN not in result.stdout + result.stderr
    for path in (*run.rglob("*"), *(tmp_path / "home").rglob("*")):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_no_token_is_said_before_anything_is_read(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("export.hub.upload.get_token", lambda: None)
    monkeypatch.setattr(sys, "argv", ["publish", str(run), "--repo", REPO, "--really"])
    assert scripts.publish.main() == 2
    out, err = capsys.readouterr()
    assert "error: HF_TOKEN: no token for the hub" in err
    assert out == ""
