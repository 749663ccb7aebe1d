from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, TEXTS, sentencepiece_like, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.conversation import Conversation, Turn
from data.formats.parse import parse_record
from data.render import BEGIN, END, PROMPT_FORMATS, Span, always, render, render_prompt
from data.tokens import NO_END, Encoder, Example, chunks, common_prefix_length, cut

FORMAT = PROMPT_FORMATS["airoboros-2.2"]
ENCODERS = {"bpe": Encoder(train_tokenizer(TEXTS)), "sentencepiece": Encoder(sentencepiece_like())}
RESPONSES = ["It is 4.", "4", "    indented", "Ωμέγα 日本 🙂", "</s> is text", "def f():\n    return 1"]


def conversation(*turns: tuple[str, str], system: str | None = None) -> Conversation:
    return Conversation("k", "c", system, tuple(Turn(*turn) for turn in turns))


def encode(encoder: Encoder, *turns: tuple[str, str]) -> Example:
    return encoder.encode(render(conversation(*turns), FORMAT, always(0.0)))


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("response", RESPONSES)
def test_inference_sees_the_ids_that_were_trained(encoder: Encoder, response: str) -> None:
    """The prompt's ids are the untrained beginning of the document, so the first trained token comes next."""
    example = encode(encoder, ("What is 2+2?", response))
    prompt = encoder.prompt_ids(render_prompt([], "What is 2+2?", None, FORMAT))
    assert example.ids[: len(prompt)].tolist() == prompt
    assert not example.trained[: len(prompt)].any()
    assert example.trained[len(prompt) :].all()


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_every_assistant_turn_is_trained_up_to_its_eos(encoder: Encoder) -> None:
    example = encode(encoder, ("Hi", "Hello."), ("More?", "Sure."))
    ends = np.flatnonzero(example.ids == encoder.eos_id)
    assert len(ends) == 2
    assert example.trained[ends].all()
    assert ends[1] == len(example) - 1
    second = encoder.prompt_ids(render_prompt([Turn("Hi", "Hello.")], "More?", None, FORMAT))
    assert example.ids[: len(second)].tolist() == second
    assert not example.trained[ends[0] + 1 : len(second)].any()


def test_text_never_becomes_a_control_token() -> None:
    encoder = ENCODERS["bpe"]
    example = encode(encoder, ("Say </s> and <s>.", "</s></s>"))
    assert (example.ids == encoder.eos_id).sum() == 1
    assert example.ids[-1] == encoder.eos_id


def test_bos_only_where_the_tokenizer_adds_one() -> None:
    assert ENCODERS["bpe"].bos_ids == []
    assert ENCODERS["sentencepiece"].bos_ids == [1]
    assert encode(ENCODERS["sentencepiece"], ("a", "b")).ids[0] == 1


def test_newline_and_space_are_kept_apart() -> None:
    for encoder in ENCODERS.values():
        assert encoder.text_ids("a\nb") != encoder.text_ids("a b")


@given(a=st.lists(st.integers(0, 3)), b=st.lists(st.integers(0, 3)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix_length(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_a_cut_takes_the_end_of_the_answer_and_leaves_nothing_where_none_is_left() -> None:
    example = encode(ENCODERS["bpe"], ("What is 2+2?", "It is 4, and it always was."))
    first_trained = int(example.trained.argmax())
    shorter = cut(example, first_trained + 3)
    assert shorter.trained.sum() == 3
    assert shorter.ids.tolist() == example.ids[: first_trained + 3].tolist()
    assert len(cut(example, first_trained)) == 0
    assert cut(example, len(example)) is example


def test_long_text_is_cut_into_chunks_that_lose_at_most_one_token() -> None:
    encoder = ENCODERS["sentencepiece"]
    whole = encoder.encode((BEGIN, Span("rope " * 50, trained=True)))
    pieces = chunks(whole, itertools.repeat(16))
    assert np.concatenate([piece.ids for piece in pieces]).tolist() == whole.ids[: sum(map(len, pieces))].tolist()
    assert len(whole) - sum(map(len, pieces)) <= 1
    assert all(not piece.trained[0] and piece.trained[1:].all() for piece in pieces)


# --- a block of documents in one call, against the rules said one by one ---

PIECES = [
    "A chat.",
    "\nUSER: ",
    "</s>",
    "<s>",
    " ",
    "  ",
    "\n",
    "ASSISTANT: ",
    "Hello there",
    "日本",
    "🙂",
    "def f():\n    x",
    ":",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
SPANS = st.one_of(
    st.builds(Span, TEXT, st.booleans()),
    st.sampled_from([BEGIN, END, Span("</s>", trained=True, control=True), Span("<s>", trained=False, control=True)]),
)


def one_by_one(encoder: Encoder, spans: Sequence[Span]) -> Example:
    """The rules, slowly: text between control tokens in one go; training from where the prompt alone would end."""
    ids: list[int] = []
    trained: list[bool] = []
    starts: list[int] = []
    ends: list[int] = []
    index = 0
    while index < len(spans):
        if spans[index].control:
            control = encoder.control_ids(spans[index].text)
            if spans[index].trained and ends and ends[-1] == NO_END:
                ends[-1] = len(ids)
            ids += control
            trained += [spans[index].trained] * len(control)
            index += 1
            continue
        texts = list(itertools.takewhile(lambda span: not span.control, spans[index:]))
        prompt = list(itertools.takewhile(lambda span: not span.trained, texts))
        response = list(itertools.takewhile(lambda span: span.trained, texts[len(prompt) :]))
        before, after = ("".join(span.text for span in part) for part in (prompt, response))
        together, seen = encoder.text_ids(before + after), encoder.text_ids(before.rstrip(" "))
        first = common_prefix_length(together, seen) if response else len(together)
        if response:
            starts.append(len(ids) + first)
            ends.append(NO_END)
        ids += together
        trained += [False] * first + [True] * (len(together) - first)
        index += len(prompt) + len(response)
    if trained:
        trained[0] = False
    return Example(*(np.asarray(values) for values in (ids, trained, starts, ends)))


def same(a: Example, b: Example) -> bool:
    fields = ("ids", "trained", "turn_starts", "turn_ends")
    return all(getattr(a, name).tolist() == getattr(b, name).tolist() for name in fields)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@given(documents=st.lists(st.lists(SPANS, max_size=7), max_size=4))
def test_a_block_is_encoded_as_its_documents_are(encoder: Encoder, documents: list[list[Span]]) -> None:
    block = encoder.encode_all(documents)
    assert [len(example) for example in block] == [len(example.trained) for example in block]
    assert all(map(same, block, [one_by_one(encoder, spans) for spans in documents]))
    assert all(map(same, block, [encoder.encode(spans) for spans in documents]))


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_turns_are_counted(encoder: Encoder) -> None:
    example = encode(encoder, ("Hi", "4"), ("More?", "Sure, and a good morning to you!"))
    assert example.turn_ends.tolist() == np.flatnonzero(example.ids == encoder.eos_id).tolist()
    turns = zip(example.turn_starts, example.turn_ends, strict=True)
    lengths = [int(example.trained[start:end].sum()) for start, end in turns]
    assert example.response_lengths().tolist() == lengths
    cut = example.first(int(example.turn_ends[1]))
    assert cut.turn_ends.tolist() == [example.turn_ends[0], NO_END]
    assert cut.response_lengths().tolist() == lengths
    assert len(example.first(int(example.turn_starts[1])).turn_ends) == 1


def test_an_encoder_travels_without_transformers(tmp_path: Path) -> None:
    """A worker unpickles it and encodes the same ids, and imports neither torch nor transformers for that."""
    encoder = ENCODERS["sentencepiece"]
    spans = (BEGIN, Span("USER: Say </s>. ASSISTANT: ", False), Span("</s>", True), END)
    (tmp_path / "job").write_bytes(pickle.dumps((encoder, spans)))
    code = (
        "import pickle, sys; from pathlib import Path; "
        "encoder, spans = pickle.loads(Path(sys.argv[1]).read_bytes()); "
        "print(encoder.encode(spans).ids.tolist(), encoder.fingerprint, {'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"{encoder.encode(spans).ids.tolist()} {encoder.fingerprint} set()"


def test_truncation_and_padding_of_a_tokenizer_do_not_act() -> None:
    tokenizer = train_tokenizer(TEXTS)
    ids = Encoder(tokenizer).text_ids(TEXTS[0])
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    encoder = Encoder(tokenizer)
    assert encoder.text_ids(TEXTS[0]) == ids
    assert [len(example) for example in encoder.encode_all([[Span("a", True)], [Span(TEXTS[0], True)]])] == [
        1,
        len(ids),
    ]


class SlowTokenizer:
    """As much of a tokenizer without a Rust backend as an Encoder asks for: one id a character."""

    bos_token, eos_token = None, "</s>"
    bos_token_id, eos_token_id = None, 7

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {7: AddedToken("</s>", special=True)}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) + 10 for character in text]}


def test_a_slow_tokenizer_is_asked_itself() -> None:
    encoder = Encoder(SlowTokenizer())  # type: ignore[arg-type]
    example = encoder.encode(render(conversation(("Hi", "You")), FORMAT, always(0.0)))
    assert example.ids[example.trained].tolist() == [ord(c) + 10 for c in " You\n"] + [7]
    assert same(pickle.loads(pickle.dumps(encoder)).encode([Span("a", True)]), encoder.encode([Span("a", True)]))


# --- real tokenizers, where they are at hand ---

LLAMA2 = SHARED / "tokenizers" / "llama2" / "hf"
needs_llama2 = pytest.mark.skipif(not LLAMA2.is_dir(), reason="needs shared/tokenizers")


@pytest.fixture(scope="module")
def llama2() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(LLAMA2)


@needs_llama2
@pytest.mark.parametrize("response", RESPONSES)
def test_seam_on_the_real_llama2_tokenizer(llama2: PreTrainedTokenizerBase, response: str) -> None:
    test_inference_sees_the_ids_that_were_trained(Encoder(llama2), response)


@needs_llama2
def test_the_first_word_keeps_its_space(llama2: PreTrainedTokenizerBase) -> None:
    example = encode(Encoder(llama2), ("Hi", "Hello."))
    assert llama2.convert_ids_to_tokens(example.ids[example.trained].tolist())[:2] == ["▁Hello", "."]


@needs_llama2
def test_ids_of_the_lineage_where_its_seam_is_sane(llama2: PreTrainedTokenizerBase) -> None:
    """It tokenized prompt and response apart: same ids but for the lone space piece that it left between them."""
    published = json.loads((SHARED / "conformance" / "collator_tokens.json").read_text())
    encoder = Encoder(llama2)
    compared = 0
    for output in published["outputs"]:
        example = published["examples"].get(output["record"], {"input": ""})
        sane = output["impl"] == "jondurbin-head" and not output.get("kw", {}).get("train_on_source")
        if not sane or output["model_max_len"] != 2048 or not example["input"].endswith("ASSISTANT: "):
            continue
        spans = (BEGIN, Span(example["input"], False), Span(example["output"], True), END)
        theirs, ours = output["input_ids"], encoder.encode(spans).ids.tolist()
        start = next(i for i, label in enumerate(output["labels"]) if label != -100)
        assert theirs[start - 1] == 29871
        assert ours == theirs[: start - 1] + theirs[start:]
        compared += 1
    assert compared >= 10


@pytest.mark.skipif(not (SHARED / "airoboros").is_dir(), reason="needs shared/airoboros")
def test_genuine_records_round_trip() -> None:
    encoder = ENCODERS["bpe"]
    for line in (SHARED / "airoboros" / "genuine-2.2-three-rows.jsonl").read_text().splitlines():
        record = parse_record(json.loads(line))
        example = encoder.encode(render(record, FORMAT, always(0.0)))
        decoded = encoder.tokenizer.decode(example.ids[example.trained][:-1].tolist())
        assert decoded == " " + record.turns[0].response + "\n"
