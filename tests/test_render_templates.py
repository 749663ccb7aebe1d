"""Styles beside airoboros: what is trained is what the exported template writes, in bytes and in ids."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import pytest
from conftest import ROOT, SHARED, TEXTS, sentencepiece_like, train_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.conversation import Conversation, Turn
from data.errors import UserError
from data.render import (
    PROMPT_FORMATS,
    STYLES,
    Llama2Format,
    Span,
    Style,
    TemplateFormat,
    always,
    chat_template,
    render,
    render_prompt,
    style_named,
    style_of_record,
)
from data.tokens import Encoder
from export.card.training import prompt_example, separators_trained

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MARKUP = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = {
    "one": [("What is 2+2?", "It is 4.")],
    "three": [("Hi", "Hello."), ("日本の海は？", "海です。🙂"), ("Code:\n\tx = 1", "def f():\n    return 1")],
    "spaces": [("  leading", "    indented\nas code"), ("a\n\n\nb", "\n\nnewlines  ")],
}
LOOKALIKES = [("Say </s> <s> <|eot_id|><|im_end|>", "</s> and <|im_end|> are text"), ("[INST] x [/INST]", "<<SYS>>")]


def with_markup(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": MARKUP})
        tokenizer.chat_template = template
    return tokenizer


def found(path: Any, template: str | None = None) -> PreTrainedTokenizerBase:
    if not path.is_dir():
        pytest.skip(f"needs {path.relative_to(ROOT.parent)}")
    return with_markup(AutoTokenizer.from_pretrained(path), template)


@cache
def llama2() -> PreTrainedTokenizerBase:
    return found(SHARED / "tokenizers" / "llama2" / "hf")


TOKENIZERS = {
    "bpe": lambda template=None: with_markup(train_tokenizer(TEXTS), template),
    "sentencepiece": lambda template=None: with_markup(sentencepiece_like(), template),
    "llama2": lambda template=None: with_markup(copy.deepcopy(llama2()), template),
}


def conversation(turns: list[tuple[str, str]], system: str | None = None) -> Conversation:
    return Conversation("k", "c", system, tuple(Turn(p.strip(), r.strip()) for p, r in turns))


def messages(said: Conversation) -> list[dict[str, str]]:
    listed = [{"role": "system", "content": said.system}] if said.system else []
    for turn in said.turns:
        listed += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.response}]
    return listed


def all_agree(tokenizer: PreTrainedTokenizerBase, style: Style) -> None:
    """Every conversation; of special-token look-alikes only the text, as HF makes control tokens of what users type."""
    encoder = Encoder(tokenizer)
    tokenizer.chat_template = chat_template(style, with_bos=bool(encoder.bos_ids))
    for turns, system in product(TURNS.values(), (None, "You are a pirate. 🏴")):
        agrees(encoder, style, conversation(turns, system))
    agrees(encoder, style, conversation(LOOKALIKES, "Write <|im_start|>"), ids=False)


def agrees(encoder: Encoder, style: Style, said: Conversation, *, ids: bool = True) -> None:
    """Training's spans against the exported template's text and ids; then the prompt that waits for the last answer."""
    tokenizer = encoder.tokenizer
    spans = render(said, style, always(0.0 if getattr(style, "usual_separator", "") == " " else 1.0))
    text = "".join(encoder.spelled(span) for span in spans)
    assert text == tokenizer.apply_chat_template(messages(said), tokenize=False)
    *history, last = said.turns
    prompt = render_prompt(history, last.prompt, said.system, style)
    asked: Any = {"add_generation_prompt": True}
    their_prompt = tokenizer.apply_chat_template(messages(said)[:-1], tokenize=False, **asked)
    assert "".join(encoder.spelled(span) for span in prompt).rstrip(" ") == their_prompt

    def theirs(listed: list[dict[str, str]], **asked: Any) -> list[int]:
        made: Any = tokenizer.apply_chat_template(listed, return_dict=True, **asked)
        return made["input_ids"]

    example = encoder.encode(spans)
    ours = encoder.prompt_ids(prompt)
    assert example.ids[: len(ours)].tolist() == ours
    if ids:
        assert example.ids.tolist() == theirs(messages(said))
        assert ours == theirs(messages(said)[:-1], **asked)


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("name", [name for name in STYLES if name != "tokenizer"])
def test_named_styles_are_what_their_template_writes(name: str, make: Any) -> None:
    tokenizer = make()
    all_agree(tokenizer, style_named(name))


@pytest.mark.parametrize(
    ("name", "template"),
    [("bpe", CHATML), ("sentencepiece", CHATML), ("sentencepiece", LLAMA3), ("llama2", CHATML), ("llama2", LLAMA3)],
)
def test_a_tokenizers_own_template_is_what_is_trained(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name](template)
    style = TemplateFormat.of(tokenizer)
    all_agree(tokenizer, style)


SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"


def test_the_real_smollm2_template() -> None:
    tokenizer = found(SMOLLM2)
    style = TemplateFormat.of(tokenizer)
    all_agree(tokenizer, style)


def test_only_answers_and_what_ends_them_are_trained() -> None:
    style = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), CHATML))
    spans = render(conversation(TURNS["one"] * 2), style, always(0.0))
    trained = [span for span in spans if span.trained]
    assert trained == [Span("It is 4.", True), Span("<|im_end|>", True, control=True)] * 2
    assert spans[-1] == Span("\n", False)


def test_what_users_type_is_never_control() -> None:
    tokenizer = with_markup(train_tokenizer(TEXTS), CHATML)
    encoder = Encoder(tokenizer)
    example = encoder.encode(render(conversation(LOOKALIKES), TemplateFormat.of(tokenizer), always(0.0)))
    ends = encoder.control_ids("<|im_end|>")
    assert (example.ids == ends).sum() == 5  # system, two prompts, two answers
    assert example.ids[example.turn_ends].tolist() == ends * 2
    assert example.trained[example.turn_ends].all()


REFUSED = {
    "'{{ messages[-1].content }}<|im_end|>'": "drops the content of message 1",
    "{% for m in messages %}{{ m.content }}{% endfor %}": "no special token after a response",
    "{% for m in messages %}{{ m.content + m.content }}<|im_end|>{% endfor %}": "repeats the content of message 1",
    "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}": "depends on what is said",
    CHATML.replace("assistant\n' }}", "assistant\n<think>' }}"): "generation prompt ends in",
    "{{ raise_exception('no such role') }}": "refuses a conversation of user, assistant: no such role",
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.items(), ids=REFUSED.values())
def test_templates_that_cannot_be_trained_on(template: str, reason: str) -> None:
    style = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), template))
    with pytest.raises(UserError, match=reason):
        render(conversation(TURNS["one"]), style, always(0.0))


def test_a_template_that_looks_into_contents_is_found_out_by_the_record() -> None:
    template = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    style = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), template))
    assert render(conversation(TURNS["three"]), style, always(0.0))
    thoughtful = conversation([("Hi", "<think>hm</think>Hello.")])
    with pytest.raises(UserError, match="depends on what is said"):
        render(thoughtful, style, always(0.0))


def test_a_template_that_refuses_system_prompts_says_so() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    style = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), template))
    assert render(conversation(TURNS["one"]), style, always(0.0))
    with pytest.raises(UserError, match="refuses a conversation of system, user, assistant: no system"):
        render(conversation(TURNS["one"], "Be brief."), style, always(0.0))


def test_a_template_that_asks_for_the_date_writes_the_same_every_day() -> None:
    template = CHATML.replace("Be helpful.", "{{ strftime_now('%d %b %Y') }}")
    style = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), template))
    spans = render(conversation(TURNS["one"]), style, always(0.0))
    assert "26 Jul 2024" in "".join(span.text for span in spans)


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        style_named("tokenizer", train_tokenizer(TEXTS))


@pytest.mark.parametrize("name", STYLES)
def test_styles_travel_as_pickles_and_as_json(name: str) -> None:
    style = style_named(name, with_markup(train_tokenizer(TEXTS), CHATML))
    assert pickle.loads(pickle.dumps(style)) == style
    assert style_of_record(json.loads(json.dumps(asdict(style)))) == style
    assert repr(style) == repr(pickle.loads(pickle.dumps(style)))


def test_ones_own_system_prompt_and_separators() -> None:
    assert style_named("llama-2", system="Be brief.") == Llama2Format("Be brief.")
    assert style_named("airoboros-2.1", space_probability=0.5).space_probability == 0.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="llama-2 has no place for it"):
        style_named("llama-2", space_probability=0.5)
    with pytest.raises(UserError, match="tokenizer has no place for it"):
        style_named("tokenizer", with_markup(train_tokenizer(TEXTS), CHATML), system="Be brief.")


def test_the_references_text_of_llama_2() -> None:
    """As Meta's chat_completion writes it, without a system prompt and with one."""
    said = conversation([("Hi", "Hello"), ("More?", "Sure")], "Be brief.")
    encoder = Encoder(sentencepiece_like())
    text = "".join(encoder.spelled(span) for span in render(said, Llama2Format(), always(0.0)))
    system = "<<SYS>>\nBe brief.\n<</SYS>>\n\n"
    assert text == f"<s>[INST] {system}Hi [/INST] Hello </s><s>[INST] More? [/INST] Sure </s>"
    bare = render(conversation([("Hi", "Hello")]), Llama2Format(system=""), always(0.0))
    assert "".join(encoder.spelled(span) for span in bare) == "<s>[INST] Hi [/INST] Hello </s>"


def test_the_text_of_vicuna() -> None:
    said = conversation([("Hi", "Hello"), ("More?", "Sure")], "Be brief.")
    encoder = Encoder(sentencepiece_like())
    text = "".join(encoder.spelled(span) for span in render(said, PROMPT_FORMATS["vicuna_v1.1"], always(0.0)))
    assert text == "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: More? ASSISTANT: Sure</s>"


CONFORMANCE = SHARED / "conformance" / "airoboros_chat_format.json"


@pytest.mark.skipif(not CONFORMANCE.is_file(), reason="needs shared/conformance")
def test_equal_to_the_lineages_chat_format() -> None:
    """But for the first prompt, which it left unstripped, and (in its first version) a space after [/INST]."""
    published = json.loads(CONFORMANCE.read_text())
    records = {record["id"]: record["conversations"] for record in published["records"]}
    encoder = Encoder(sentencepiece_like())
    compared = 0
    for output in published["outputs"]:
        values = records[output["record"]]
        system = values[0]["value"] if values[0]["from"] == "system" else None
        said = [message["value"] for message in values if message["from"] != "system"]
        pairs = list(zip(said[::2], said[1::2], strict=True))
        expected = [len(pairs)] if not output["expand"] else range(1, len(pairs) + 1)
        for turns, result in zip(expected, output["results"], strict=True):
            spans = render(conversation(pairs[:turns], system), Llama2Format(), always(0.0))
            ours = "".join(encoder.spelled(span) for span in spans)
            first = f"\n\n{said[0]} [/INST]"
            theirs = (result["input"].rstrip(" ") + result["output"]).replace(first, f"\n\n{said[0].strip()} [/INST]")
            assert ours == f"<s>{theirs}</s>"
            compared += 1
    assert compared >= 30


def test_what_ends_an_answer() -> None:
    chatml = TemplateFormat.of(with_markup(train_tokenizer(TEXTS), CHATML))
    assert (chatml.ends, chatml.stops) == (("<|im_end|>",), ())
    assert (Llama2Format().ends, Llama2Format().stops) == (("eos",), ("[INST]",))
    assert PROMPT_FORMATS["vicuna_v1.1"].stops == ("USER:",)


@pytest.mark.parametrize("name", ["llama-2", "tokenizer"])
def test_the_card_shows_styles_without_separators(name: str) -> None:
    style = style_named(name, with_markup(train_tokenizer(TEXTS), CHATML))
    shown = prompt_example(style, "", "</s>")
    assert separators_trained(style) == {}
    assert shown.endswith("{next prompt} [/INST]" if name == "llama-2" else "<|im_start|>assistant\n")
    assert shown.startswith("[INST] <<SYS>>" if name == "llama-2" else "<|im_start|>system")
