"""The model card: everything that is known about a run, as the README.md that readers of such models expect."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.errors import UserError
from data.secrets import redact
from evals.card_text import markdown
from export.artefact import Artefact
from export.card import tables, training
from export.card.facts import Facts, Options, gather, read_json
from export.card.gaps import limits, warnings
from export.card.licence import Licence
from export.card.merge import bases_table, hashes_table
from export.card.metadata import metadata, with_metadata
from train.files import write_whole
from train.rope.spelling import spellings

NAME = "README.md"
RECORD = "card.json"
# Where a card speaks of its own place on the hub; `scripts.publish` writes the real names there.
REPO = "USER/MODEL"
GGUF_REPO = f"{REPO}-GGUF"
TEMPLATES = Path(__file__).parent / "templates"
LONGEST_LINE = 600  # characters of a spelling; factor lists run to hundreds of numbers


def write_card(run: Path, options: Options, output: Path | None) -> tuple[Facts, Path]:
    """Write the card of a finished run; without `output` to its README.md, with a record of what it was made from.

    Raises:
        UserError: the run is not finished, its README.md was edited since it was written, or it cannot be written.
    """
    facts = gather(run, options)
    text = render(facts)
    if output is not None:
        _write_elsewhere(output, text)
        return facts, output
    path = run / NAME
    if path.is_file() and path.read_text() != text:
        _require_unedited(run)
    write_whole(path, text)
    record = {"options": asdict(options), "inputs": inputs_of(run), "sha256": _sha256(text)}
    write_whole(run / RECORD, json.dumps(record, indent=2) + "\n")
    return facts, path


def render(facts: Facts) -> str:
    """The whole text, metadata first, without secrets (data/secrets.py)."""
    return redact(with_metadata(metadata(facts), _body(facts)))


def inputs_of(run: Path) -> dict[str, str]:
    """sha256 of everything that a card is made from, by path within the run."""
    patterns = (
        "*.json",
        "*.yaml",
        "metrics.jsonl",
        "stages/*/*.json*",
        "merged*/m*.json",
        "evals/*.json",
        "evals/*.png",
    )
    variants = ("gptq-*/variant.json", "awq-*/variant.json", "gguf/*.json")
    found = {path for pattern in (*patterns, *variants) for path in run.glob(pattern)} - {run / RECORD}
    return {path.relative_to(run).as_posix(): _sha256(path.read_bytes()) for path in sorted(found)}


def changed_since(run: Path) -> list[str] | None:
    """What a card was made from that is no longer so; None where no card was written."""
    record = read_json(run / RECORD)
    if record is None or not (run / NAME).is_file():
        return None
    then, now = record["inputs"], inputs_of(run)
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def placed(card: str, repo: str, gguf_repo: str) -> str:
    """The card with the names of its repositories."""
    return card.replace(GGUF_REPO, gguf_repo).replace(REPO, repo)


def _require_unedited(run: Path) -> None:
    written = (read_json(run / RECORD) or {}).get("sha256")
    if _sha256((run / NAME).read_text()) != written:
        todo = "move it away to have it written anew, or pass --output to write elsewhere and take over what you need"
        raise UserError(str(run / NAME), "was edited, or not written by this command", todo)


def _write_elsewhere(output: Path, text: str) -> None:
    try:
        if output.is_dir():
            raise IsADirectoryError("it is a directory")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text)
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise UserError(str(output), found, "give --output the path of a file") from None


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _body(facts: Facts) -> str:
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md.jinja").render(_context(facts))
    # The author's home directory is nobody's business.
    shown = text.replace(f"{facts.run.absolute()}/", "").replace(f"{Path.home()}/", "~/")
    return _single_blank_lines(shown)


def _single_blank_lines(text: str) -> str:
    """No two blank lines in a row: templates leave them where a part is empty."""
    lines: list[str] = []
    for line in map(str.rstrip, text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _context(facts: Facts) -> dict[str, Any]:
    """All that the templates name."""
    manifest = facts.merge.manifest if facts.merge else None
    data = [stage.data for stage in facts.stages if stage.data]
    return {
        "facts": facts,
        "warnings": warnings(facts),
        "limits": limits(facts),
        "repo": REPO,
        "gguf_repo": GGUF_REPO,
        "base_link": _base_link(facts),
        "kept": sum(found["total"]["kept"] for found in data),
        "window": facts.spec.max_position_embeddings,
        "gigabytes": tables.gigabytes,
        "licence": _licence,
        "parity": facts.merge.record["parity"] if facts.merge else None,
        "manifest": manifest,
        "hashes": hashes_table(facts),
        "bases": bases_table(facts.bases),
        **_prompt_context(facts),
        **_context_length(facts),
        **_files_context(facts),
        **_run_context(facts),
        **_training_context(facts),
    }


def _prompt_context(facts: Facts) -> dict[str, Any]:
    separators = training.separators_trained(facts.prompt_format)
    prompts = [(name, training.prompt_example(facts.prompt_format, name, facts.eos)) for name in separators or [""]]
    usual = "a space" if separators.get("space", 0.0) > 0.5 else "a newline"
    drawn = training.separators_drawn(facts.stages[-1])
    return {"separators": separators, "prompts": prompts, "usual": usual, "drawn": drawn}


def _context_length(facts: Facts) -> dict[str, Any]:
    said = [
        {"program": s.program, "note": s.note, "lines": [_shortened(line) for line in s.lines]}
        for s in spellings(facts.spec)
    ]
    report, what = None, ""
    if facts.report:
        report = sections(_report_card(facts))
        what = "\n".join(f"- **{m['name']}**: {m['what']}" for m in facts.report["models"])
    method, positions = training.extension(facts.spec), training.trained_positions(facts)
    return {"spellings": said, "report": report, "what": what, "method": method, "positions": positions}


def _report_card(facts: Facts) -> str:
    try:
        return markdown(facts.report or {})
    except (KeyError, TypeError, IndexError) as error:
        where, todo = facts.run / "evals" / "report.json", f"measure again: python -m scripts.evaluate {facts.run}"
        found = f"of another version of this program ({type(error).__name__}: {error})"
        raise UserError(str(where), found, todo) from None


def sections(text: str) -> dict[str, str]:
    """The parts of a Markdown text by the title of their second-level heading."""
    parts = text.split("\n## ")[1:]
    return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


def _files_context(facts: Facts) -> dict[str, Any]:
    config = facts.merge.config if facts.merge else None
    gguf, window = facts.of_method("gguf"), facts.spec.max_position_embeddings
    common = tables.common_tokens(facts.artefacts)
    grades = "; ".join(f'"{word}": a KL of up to {share:g} of the bound' for share, word in tables.GRADES)
    marked = f"{tables.MARK}: a KL beyond the bound."
    return {
        "gptq_table": tables.gptq_table(facts.of_method("gptq"), common),
        "awq_table": tables.awq_table(facts.of_method("awq"), common),
        "gguf_table": tables.gguf_table(gguf, config, window, common),
        "refusals": tables.refusals(facts.artefacts),
        "losses": tables.losses_table(facts.artefacts, common),
        "other_tokens": tables.on_other_tokens(facts.artefacts, common),
        "machines": tables.machines(facts.artefacts),
        "strangers": tables.strangers_table(facts.artefacts),
        "rule": f"The use case in the tables follows from the largest of these by a rule. {grades}. {marked}",
    }


def _run_context(facts: Facts) -> dict[str, Any]:
    gguf = facts.of_method("gguf")
    # The smallest that was measured and is within its bound: what most people want to try first.
    within = [a for a in gguf if a.losses and not a.beyond_bound]
    chosen = min(within or gguf[:1], key=lambda a: a.size, default=None)
    files = tables.gguf_files(chosen) if chosen else []
    exllama = [a.name for a in facts.artefacts if _loads(a, "ExLlama")]
    seen = {p.program for a in facts.artefacts for p in a.loads_in if p.loads and p.seen}
    hf = [a for a in facts.artefacts if a.method != "gguf"]
    return {
        "branch": next((a.name for a in hf if _loads(a, "transformers")), None),
        "vllm": {m: next((a.name for a in facts.of_method(m) if _loads(a, "vLLM")), None) for m in ("gptq", "awq")},
        "seen": seen,
        "gguf_file": files[0] if files else None,
        "gguf_download": " ".join(files),
        "loading": tables.loading(facts.artefacts),
        "exllama": [f"`{name}`" for name in exllama],
        "exllama_branch": exllama[0] if exllama else None,
    }


def _training_context(facts: Facts) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "settings": tables.listing(("setting", "value"), training.training_rows(facts, stage)),
            "sources": training.sources(stage),
            "data": tables.data_table(stage),
        }
        for stage in facts.stages
    ]
    return {
        "stages": stages,
        "config_yaml": facts.config_yaml.rstrip(),
        "hardware": training.hardware(facts),
        "software": training.software(facts),
    }


def _loads(artefact: Artefact, program: str) -> bool:
    return any(p.loads and p.program.startswith(program) for p in artefact.loads_in)


def _base_link(facts: Facts) -> str:
    name = facts.base_model
    return f"[{name}](https://huggingface.co/{name})" if name else f"`{facts.base}`"


def _licence(licence: Licence) -> str:
    return f"{licence.name}, {licence.source}" if licence.name else f"**unknown**; {licence.source}"


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:LONGEST_LINE]} ... ({len(line):,} characters; all of it is in the files)"
