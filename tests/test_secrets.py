"""Tokens, keys and passwords, planted wherever one may lie: none is in what a run writes, says or sends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from conftest import settings, write_jsonl

import train.__main__
from data.errors import UserError, exits_on_user_error
from data.secrets import find, is_secret_name, known, redact, redact_known, redacted
from data.tokens import Encoder
from export.card.card import render
from export.hub.upload import redacted as redacted_answer
from train.config import Config
from train.config.read import load_config, validate
from train.recipe import open_data
from train.run.console import Board
from train.run.directory import Run
from train.session import run_training
from train.track.trackers import Trackers

# Put together here, so that no scanner takes this file for a leak.
HF = "hf_" + "aB3dE6gH9j" * 3
WANDB = "0123456789abcdef" * 2 + "01234567"
PASSWORD = 'pa"ss wörd/1'
AWS = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
LOGIN = "hf_" + "zY8xW5vU2t" * 3
NETRC = "correcthorsebatterystaple"
ALL = (HF, WANDB, PASSWORD, AWS, LOGIN, NETRC)

SHAPED = {
    "a Hugging Face token": HF,
    "a GitHub token": "ghp_" + "aB3dE6gH9j" * 4,
    "a GitLab token": "glpat-" + "aB3dE6gH9j" * 2,
    "an API key": "sk-proj-" + "aB3dE6gH9j" * 3 + "_x-Y",
    "a Google API key": "AIza" + "aB3dE6gH9j" * 3 + "aB3dE",
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a Slack token": "xoxb-" + "1234567890-abcdef",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    "a password in a URL": "https://bob:swordfish@example.org/data.jsonl",
    "a signed URL": "https://example.org/file?X-Amz-Signature=0a1b2c3d4e5f&expires=1",
    "a bearer token": "Authorization: Bearer 0a1b2c3d4e5f",
}
PLAIN = (
    "https://example.org:8080/a?b=c",
    "ssh://git@github.com/someone/ropewalk",
    "runs/sk-learn-tutorial-conversations-2023/data.jsonl",
    "the tokenizer has no eos token: it is the key to a basic question of authorization",
    "meta-llama/Llama-2-7b-hf at 01c7f73d771dfac7d292323805ebc428287df4f9",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "step 3/5  loss 1.2345  lr 1.00e-03",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One secret in every place that is looked at, and no others."""
    for name in known():
        assert name not in ALL
    monkeypatch.setenv("HF_TOKEN", HF)
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(LOGIN + "\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    (tmp_path / "home" / "netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


def leaks(text: str | bytes) -> list[str]:
    """Which of the planted secrets are in a text, in any spelling."""
    content = text if isinstance(text, bytes) else text.encode()
    forms = {
        secret: {secret.encode(), json.dumps(secret)[1:-1].encode(), repr(secret)[1:-1].encode()} for secret in ALL
    }
    return [secret for secret, spelt in forms.items() if any(form in content for form in spelt)]


def test_what_is_in_use_is_known_by_where_it_is_from() -> None:
    expected = {
        HF: "HF_TOKEN",
        WANDB: "WANDB_API_KEY",
        PASSWORD: "MLFLOW_TRACKING_PASSWORD",
        AWS: "AWS_SECRET_ACCESS_KEY",
        LOGIN: "the hub's token",
        NETRC: "a password of netrc",
    }
    assert expected.items() <= known().items()
    for secret, name in expected.items():
        assert find(f"it is {secret}!") == f"the value of {name}"
        assert redact(f"it is {secret}!") == f"it is ({name})!"
        assert redact_known(json.dumps({"key": secret})) == json.dumps({"key": f"({name})"})


@pytest.mark.parametrize("what", SHAPED)
def test_what_only_looks_like_a_secret_is_masked_too(what: str, monkeypatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    text = f"before {SHAPED[what]} after"
    assert find(text) == what
    masked = redact(text)
    assert f"({what})" in masked
    assert find(masked) is None
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert redact(masked) == masked
    assert redact_known(text) == text  # a record may hold it


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_stays(text: str) -> None:
    assert find(text) is None
    assert redact(text) == text


@pytest.mark.parametrize("value", ["true", "12345", "password", "1234567890", ""])
def test_short_and_common_values_mask_nothing(value: str, monkeypatch) -> None:
    monkeypatch.setenv("SOME_SECRET", value)
    assert "SOME_SECRET" not in known().values()


def test_a_file_that_is_there_is_no_secret_but_a_key_may_begin_like_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "key-file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in (str(tmp_path / "key-file"), "~/key-file", "./key-file"):
        monkeypatch.setenv("SOME_SECRET", value)
        assert "SOME_SECRET" not in known().values()
    for value in (f"/{AWS}", f"~{AWS}", f"./{AWS}", f"/{AWS * 10}"):
        monkeypatch.setenv("SOME_SECRET", value)
        assert redact(f"it is {value}!") == "it is (SOME_SECRET)!"


def test_a_value_of_letters_is_masked_as_a_word_only(monkeypatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "swordfish")
    assert redact("swordfish and swordfishes") == "(DB_PASSWORD) and swordfishes"


def test_names_that_say_secret() -> None:
    secret = (
        "HF_TOKEN WANDB_API_KEY AWS_ACCESS_KEY_ID MY_SECRET MLFLOW_TRACKING_PASSWORD api_key token hub_token DB_PASS "
        "DB_PWD S3_ACCESSKEY KEYPASS PRIVATE_KEY_PEM HF_TOKEN_2 AZURE_STORAGE_CONNECTION_STRING SLACK_WEBHOOK_URL key"
    )
    assert all(is_secret_name(name) for name in secret.split())
    plain = (
        "TOKENIZERS_PARALLELISM HF_TOKEN_PATH AWS_REGION eos_token SSH_ASKPASS PATH KEYBOARD max_tokens tokens_seen "
        "MONKEY MONKEY_2 HOTKEY PWD OLDPWD BYPASS DATABASE_URL KEYSTORE_PATH"
    )
    assert not any(is_secret_name(name) for name in plain.split())


def test_nested_content_is_masked_and_numbers_stay() -> None:
    assert redacted({"a": [HF, 1, 2.5, None], "b": {"c": ("x", WANDB)}}) == {
        "a": ["(HF_TOKEN)", 1, 2.5, None],
        "b": {"c": ["x", "(WANDB_API_KEY)"]},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.revision", HF),
        ("model.name_or_path", f"https://bob:{WANDB}@example.org/model"),
        ("data.system_prompt", f"key {SHAPED['an API key']}"),
        ("lora.target_modules", ["q_proj", NETRC]),
        ("run_dir", f"runs/{LOGIN}"),
    ],
)
def test_a_secret_in_a_config_is_refused_by_its_key(
    key: str, value: object, tiny_model: Path, records: Path, tmp_path: Path
) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run")
    *sections, last = key.split(".")
    inner = wanted
    for section in sections:
        inner = inner[section]
    inner[last] = value
    with pytest.raises(UserError, match="a secret does not belong into a config") as caught:
        validate(wanted, "tiny.yaml")
    assert f"\n     {key}" in str(caught.value)
    assert "environment" in caught.value.todo
    assert not leaks(str(caught.value))
    assert SHAPED["an API key"] not in str(caught.value)


def test_a_setting_that_asks_for_a_secret_is_answered(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_model, records, tmp_path / "run") | {"hub_token": "not-known-anywhere-1"}
    with pytest.raises(UserError, match="hub_token: unknown key; no secret belongs into a config") as caught:
        validate(wanted, "tiny.yaml")
    assert "not-known" not in str(caught.value)


def test_an_override_with_a_secret_is_shown_nowhere(
    tiny_model: Path, records: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(tiny_model, records, tmp_path / "run")))
    for override in (
        f"model.revision={HF}",
        f"nonsense={WANDB}",
        f"{AWS}",
        f"train.learning_rate={PASSWORD}",
        f"--x={HF}",
    ):
        monkeypatch.setattr(sys, "argv", ["train", str(config), override])
        try:
            code = train.__main__.main()
        except SystemExit as ended:  # argparse, of an option that there is none of
            code = ended.code
        said = capsys.readouterr()
        assert code == 2, override
        assert "error: " in said.err
        assert not leaks(said.out + said.err), override
    assert not (tmp_path / "run").exists()


def test_a_broken_config_is_not_quoted_with_its_secret(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "broken.yaml").write_text(f"model:\n  token: '{HF}\n")
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "broken.yaml")])
    assert train.__main__.main() == 2
    said = capsys.readouterr()
    assert "not a YAML file" in said.err
    assert not leaks(said.out + said.err)


def failing(error: Exception):
    @exits_on_user_error
    def command() -> int:
        print(f"about to use {WANDB}")
        print(f"and {AWS}", file=sys.stderr)
        try:
            raise ConnectionError(f"GET https://user:{NETRC}@host failed with {HF}")
        except ConnectionError as cause:
            raise error from cause

    return command


@pytest.mark.parametrize(("error", "code"), [(UserError(HF, PASSWORD, LOGIN), 2), (RuntimeError(f"{HF} {LOGIN}"), 1)])
def test_messages_and_tracebacks_hold_no_secret(error: Exception, code: int, capsys) -> None:
    assert failing(error)() == code
    said = capsys.readouterr()
    assert not leaks(said.out + said.err)
    assert "about to use (WANDB_API_KEY)" in said.out
    assert "and (AWS_SECRET_ACCESS_KEY)" in said.err
    assert ("Traceback" in said.err) == (code == 1)
    assert sys.stdout.write.__self__ is sys.stdout  # the streams are what they were


def test_what_a_run_says_and_writes_as_json_holds_no_secret(tmp_path: Path, capsys) -> None:
    board = Board(visible=True)
    board.say(f"with {HF}", f"{SHAPED['a password in a URL']}")
    board.warn(f"wandb is off: {WANDB}")
    Run(tmp_path).write_json("plan.json", {"a": [AWS], "b": {"c": PASSWORD}, "bytes": 12345678})
    said, written = capsys.readouterr().out, (tmp_path / "plan.json").read_text()
    assert not leaks(said + written)
    assert "swordfish" not in said
    assert json.loads(written)["bytes"] == 12345678


def test_a_whole_run_leaves_no_secret_behind(
    tiny_model: Path, records: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """With a tracker that fails with one in its message, and one in a variable that is recorded."""
    monkeypatch.setenv("MKL_CBWR", AWS)
    monkeypatch.setenv("UNRELATED", NETRC)
    whole = TensorBoardTracker.log

    def log(self, values: dict, step: int | None = None, **options: object) -> None:
        whole(self, values, step=step, **options)
        raise ConnectionError(f"upload to https://user:{PASSWORD}@host refused the key {WANDB} of {HF}")

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    wanted = settings(tiny_model, records, tmp_path / "run", max_steps=2) | {"report_to": ["tensorboard"]}
    run_training(Config.model_validate(wanted), Accelerator(cpu=True))
    said = capsys.readouterr()
    assert "(WANDB_API_KEY)" in said.out
    assert not leaks(said.out + said.err)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "metrics.jsonl"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert {path.name: leaks(path.read_bytes()) for path in files if leaks(path.read_bytes())} == {}
    assert "(AWS_SECRET_ACCESS_KEY)" in (tmp_path / "run" / "environment.json").read_text()


def test_wandb_records_nothing_that_is_printed(tmp_path: Path, monkeypatch, capsys) -> None:
    """Its capture would take the text before it is masked."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Accelerator(cpu=True)
    wanted = {"model": {"name_or_path": "m"}, "data": {"sources": ["d.jsonl"]}, "run_dir": str(tmp_path / "run")}
    trackers = Trackers(Run(tmp_path / "run"), pytest.fail)

    @exits_on_user_error
    def command() -> int:
        trackers.start(Config.model_validate(wanted | {"report_to": ["wandb"]}), 0)
        print(f"a library says {WANDB}")
        print(f"and {AWS}", file=sys.stderr)
        trackers.log({"step": 1, "loss": 1.0})
        trackers.finish()
        return 0

    assert command() == 0
    said = capsys.readouterr()
    assert not leaks(said.out + said.err)
    files = [path for path in (tmp_path / "run" / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert {path.name: leaks(path.read_bytes()) for path in files if leaks(path.read_bytes())} == {}


def test_a_record_is_data_and_is_not_touched(tiny_model: Path, tmp_path: Path, tokenizer) -> None:
    """What looks like a key in it is trained on as it stands."""
    text = f"Use {SHAPED['an API key']} at {SHAPED['a password in a URL']}"
    records = write_jsonl(tmp_path / "records.jsonl", [{"instruction": "How?", "response": text}] * 2)
    wanted = settings(tiny_model, records, tmp_path / "run")
    wanted["model"]["max_length"] = 256
    wanted["data"]["validation_fraction"] = 0.0
    dataset = open_data(Config.model_validate(wanted), Encoder(tokenizer), tmp_path / "cache")
    batch = dataset[0].batch(range(1))
    assert text in tokenizer.decode(batch.input_ids[0])


def test_the_card_and_what_the_hub_says_hold_no_secret(monkeypatch) -> None:
    monkeypatch.setattr("export.card.card.metadata", lambda facts: {"license": "mit"})
    monkeypatch.setattr("export.card.card._body", lambda facts: f"# A model\n\nmade with {HF} and {WANDB}\n")
    monkeypatch.setattr("export.card.card.with_metadata", lambda found, body: f"---\n{found}\n---\n{body}")
    card = render(None)  # type: ignore[arg-type]
    assert "# A model\n\nmade with (HF_TOKEN) and (WANDB_API_KEY)" in card
    assert not leaks(redacted_answer(f"refused {HF}, {WANDB} and Bearer {LOGIN}"))


def test_a_config_without_secrets_is_read_as_ever(tiny_model: Path, records: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(tiny_model, records, tmp_path / "run")))
    assert load_config(tmp_path / "tiny.yaml", ["train.seed=3"]).train.seed == 3
