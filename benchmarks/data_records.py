"""python -m benchmarks.data_records    any number of distinct records, made from real ones by exchanging words.

The first are the real ones as they are; after them come copies, in which one word in twenty is another word of the same
texts and the instruction begins with the record's number. Record n depends on nothing but the real records and n. Only
records that every program of benchmarks/data.py can express go in: one turn, no system prompt of its own, formatted.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.errors import UserError, exits_on_user_error

SAMPLE = Path("data/sample/instructions.jsonl")
FIELDS = ("category", "instruction", "response")
EXCHANGED = 20  # one word in so many
_SPACE = re.compile(r"(\s+)")

Record = dict[str, str]


@exits_on_user_error
def main() -> int:
    """Write the records that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_records", description=__doc__)
    parser.add_argument("--records", type=int, required=True, help="how many")
    parser.add_argument("--from", dest="source", type=Path, default=SAMPLE, help="JSON Lines of real records")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    write(read(arguments.source), arguments.records, arguments.out)
    return 0


def read(path: Path) -> list[Record]:
    """The real records of a file that can go in.

    Raises:
        UserError: there is no such file, or no such record in it.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(str(path), str(error), "give JSON Lines of airoboros instruction records") from error
    records = [{field: record.get(field) or "none" for field in FIELDS} for record in found if usable(record)]
    if not records:
        raise UserError(str(path), "no usable record", "give records with `instruction` and `response`, of one turn")
    return records


def usable(record: dict[str, object]) -> bool:
    """Whether a record is one formatted turn without a system prompt."""
    own = record.get("system") or record.get("skip_prompt_formatting")
    texts = [record.get("instruction"), record.get("response")]
    return not own and all(isinstance(text, str) and text.strip() and "</s>" not in text for text in texts)


def write(real: Sequence[Record], count: int, out: Path) -> None:
    """Write `count` records; the file appears when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8") as lines:
        for record in made(real, count):
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    part.replace(out)


def made(real: Sequence[Record], count: int) -> Iterator[Record]:
    """The real records, then perturbed copies of them, `count` in all."""
    words = [word for record in real[:2000] for word in record["response"].split()]
    for number in range(count):
        record = real[number % len(real)]
        yield record if number < len(real) else perturbed(record, number, words)


def perturbed(record: Record, number: int, words: Sequence[str]) -> Record:
    """A copy with some words exchanged and the number in front: no two numbers give the same."""
    draw = random.Random(number)
    return {
        **record,
        "instruction": f"{number}. {exchanged(record['instruction'], draw, words)}",
        "response": exchanged(record["response"], draw, words),
    }


def exchanged(text: str, draw: random.Random, words: Sequence[str]) -> str:
    """The text with one word in EXCHANGED drawn anew; its white space stays."""
    parts = _SPACE.split(text)
    for _ in range(max(1, len(parts) // 2 // EXCHANGED)):
        place = draw.randrange(0, len(parts), 2)
        parts[place] = draw.choice(words) if parts[place] else parts[place]
    return "".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
