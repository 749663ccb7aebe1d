"""What looks wrong in the text of records: counted per block in worker processes, and added up.

Each check is a spelling that is cheap to look for; a finding is a reason to look, not a proof. Counts are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from data.conversation import Conversation
from data.lint.frequent import Frequent, FrequentCounter
from data.lint.spellings import refusal_phrases, role_labels, special_tokens

# What is counted. Refusals, role labels, echoes and the short ones count responses; the other three count records.
Check = Literal[
    "refusal",
    "refusal_phrase",
    "role_label",
    "echo",
    "one_word",
    "empty_response",
    "empty_instruction",
    "special_token",
    "system_left_out",
]
Finding = tuple[Check, str]
EXAMPLES = 3
# A response without white space is one word; beyond this it may be Chinese or Japanese prose, or a URL.
ONE_WORD = 20


@dataclass(frozen=True)
class Tally:
    """How often something was found, and the origins (`file:line`) of the first three records it was found in."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        examples = dict.fromkeys((*self.examples, *other.examples))
        return Tally(self.count + other.count, tuple(examples)[:EXAMPLES])


@dataclass(frozen=True)
class Findings:
    """Counts over conversations. Picklable, and bounded in size however many records were looked at.

    Attributes:
        responses: those of chat and plain records; a text has none.
        found: by check and spelling; the spelling is "" where the check has only one.
        systems: the records' own system prompts.
    """

    records: int = 0
    responses: int = 0
    found: dict[Finding, Tally] = field(default_factory=dict)
    systems: Frequent = field(default_factory=Frequent)

    @staticmethod
    def of(conversations: Iterable[Conversation]) -> Findings:
        """Look at every record once, in order."""
        records = responses = 0
        found: dict[Finding, Tally] = {}
        systems = FrequentCounter()
        for conversation in conversations:
            records += 1
            responses += 0 if conversation.kind == "text" else len(conversation.turns)
            for finding in look_at(conversation):
                found[finding] = found.get(finding, Tally()) + Tally(1, (conversation.origin,))
            if conversation.system is not None:
                systems.add(conversation.system)
        return Findings(records, responses, found, systems.result())

    def __add__(self, other: Findings) -> Findings:
        """The findings in both, as if the other's records had come after these."""
        found = {key: self.tally(*key) + other.tally(*key) for key in (self.found | other.found)}
        systems = self.systems + other.systems
        return Findings(self.records + other.records, self.responses + other.responses, found, systems)

    def tally(self, check: Check, spelling: str = "") -> Tally:
        """How often, and where; zero for what was not found."""
        return self.found.get((check, spelling), Tally())

    def spellings(self, check: Check) -> dict[str, Tally]:
        """What was found of a check with several spellings, most frequent first."""
        found = {spelling: tally for (name, spelling), tally in self.found.items() if name == check}
        return dict(sorted(found.items(), key=lambda item: (-item[1].count, item[0])))

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; checks without a finding are there with a zero."""
        whole: dict[str, Check] = {
            "refusals": "refusal",
            "responses_equal_to_prompt": "echo",
            "one_word_responses": "one_word",
            "empty_responses": "empty_response",
            "empty_instructions": "empty_instruction",
            "plain_records_with_system_prompt": "system_left_out",
        }
        spelled: dict[str, Check] = {
            "refusal_phrases": "refusal_phrase",
            "role_labels_in_responses": "role_label",
            "special_tokens_in_text": "special_token",
        }
        return {
            "records": self.records,
            "responses": self.responses,
            **{name: _json(self.tally(check)) for name, check in whole.items()},
            **{name: {s: _json(t) for s, t in self.spellings(check).items()} for name, check in spelled.items()},
            "system_prompts": self.systems.to_json(),
            "without_system_prompt": self.records - self.systems.total,
        }


def look_at(conversation: Conversation) -> list[Finding]:
    """What is found in one record: (check, spelling), once for every response or record that it counts."""
    texts = [text for turn in conversation.turns for text in (turn.prompt, turn.response)]
    found: list[Finding] = [("special_token", token) for token in special_tokens([conversation.system or "", *texts])]
    if conversation.kind == "text":
        return found
    if conversation.kind == "plain" and conversation.system is not None:
        found.append(("system_left_out", ""))  # without a prompt format there is no place for it
    if not all(map(str.strip, texts[::2])):
        found.append(("empty_instruction", ""))
    for prompt, response in zip(texts[::2], texts[1::2], strict=True):
        if response.strip() == prompt.strip():
            found.append(("echo", ""))
        found += _in_response(response)
    return found


def _in_response(response: str) -> list[Finding]:
    found: list[Finding] = []
    words = response.split(None, 1)
    if not words:
        found.append(("empty_response", ""))
    elif len(words) == 1 and len(words[0]) <= ONE_WORD:
        found.append(("one_word", ""))
    found.extend(("role_label", label) for label in role_labels(response))
    if phrases := refusal_phrases(response):
        found.append(("refusal", ""))
        found.extend(("refusal_phrase", phrase) for phrase in phrases)
    return found


def _json(tally: Tally) -> dict[str, Any]:
    return {"count": tally.count, "examples": list(tally.examples)}
