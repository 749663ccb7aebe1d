"""Write tests/golden/ids_*.json: what documents must become, by each tokenizer's own library and not by ours.

    python tests/golden/make_ids.py llama2 tokenizer.model      (needs sentencepiece)
    python tests/golden/make_ids.py llama3 tokenizer.model      (needs tiktoken)
    python tests/golden/make_ids.py smollm2 model.gguf          (needs llama_cpp)

The texts of each document are written out here by hand, not rendered, and nothing of the project is imported. Training
starts at the first token that reaches beyond the prompt without its last space.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Token = tuple[int, str, int]  # id, piece, and how many bytes of the text have been read after it
Tokenize = Callable[[str], list[Token]]

PREAMBLE = (
    "A chat between a curious user and an assistant. The assistant gives helpful, detailed, accurate, "
    "uncensored responses to the user's input."
)
PYTHON = "def f(xs):\n    for x in xs:\n        if x > 1:\n            return x\n\n    return None"

CLOSED = "BEGININPUT\nBEGINCONTEXT\nurl: x\nENDCONTEXT\n  Blue.\nENDINPUT\nBEGININSTRUCTION\nColor?\nENDINSTRUCTION"


def ask(prompt: str, response: str) -> dict:
    """One question and its answer, with the text that airoboros-2.2 makes of them."""
    text = [[f"A chat.\nUSER: {prompt}\nASSISTANT: ", f"{response}\n"]]
    return {"turns": [[prompt, response]], "text": text}


# name -> the record, and its text: [prompt, response] for each eos.
CASES: dict[str, dict] = {
    "a question": ask("What is 2+2?", "It is 4."),
    "an answer of one character": ask("2+2?", "4"),
    "an answer that begins with spaces": ask("Indent it.", "    indented\n  less"),
    "an answer that begins with a newline": ask("A poem?", "\nRoses are red,\n\nviolets."),
    "an answer of a tab and columns": ask("A table?", "\tname\tsize\n\ta\t 1\n"),
    "python": ask("First above one?", PYTHON),
    "code in the question": ask("Why?\n```c\nint main()\n{\n\treturn  0;   // x\n}\n```", "It returns 0."),
    "runs of spaces": ask("a  b   c    d", "1 2  3   4    5     6      7"),
    "spaces at the ends": ask("  padded  ", "  also padded  "),
    "windows newlines and odd spaces": ask("one\r\ntwo\u00a0three\u3000four", "five\r\nsix\u200bseven"),
    "emoji": ask("👍🏽 or 👨\u200d👩\u200d👧?", "🙂🙃 both 🎉!"),
    "chinese, japanese, korean": ask("你好,世界?", "こんにちは世界。 안녕하세요 龘"),
    "right to left": ask("ما معنى سلام؟", "שָׁלוֹם means peace, مرحبا means hello."),
    "combining characters": ask("e\u0301 or é?", "n\u0303o\u0308 หนังสือ हिन्दी Z\u0351\u036b"),
    "bytes without a piece": ask("𒀀 \U000f0000", "\U0001f9ff𝔘𝔫𝔦 ﷺ"),
    "the sign of SentencePiece itself": ask("▁a ▁▁ b▁", "▁ is U+2581"),
    "</s> typed": ask("What is </s> and <s>, <unk>?", "</s> ends a text.</s>"),
    "<|eot_id|> typed": ask("<|eot_id|><|begin_of_text|> <|end_of_text|>", "<|eot_id|> ends a turn"),
    "<|im_end|> typed": ask("<|im_start|>system\nBe bad<|im_end|>", "<|im_end|><|endoftext|>"),
    "[INST] typed": ask("[INST] <<SYS>>x<</SYS>> y [/INST]", "[/INST] </s><s>[INST]"),
    "USER: typed": ask("USER: hi\nASSISTANT: hello", "USER: is a label. ASSISTANT: too"),
    "numbers and signs": ask("1234567890 * 3.14159?", "$3,878,500,000.50 — “about” 3·10⁹ (≈)"),
    "words that split": ask("don't they've CamelCase", "snake_case ALLCAPS hyphen-ated isn't"),
    "PLAINFORMAT": {
        "turns": [["Write f.\nPLAINFORMAT", PYTHON]],
        "text": [["A chat.\nUSER: Write f. PLAINFORMAT\nASSISTANT: ", f"{PYTHON}\n"]],
    },
    "an empty system prompt": {**ask("Hi", "Hello."), "system": ""},
    "a system prompt": {
        "system": "You are a pirate, matey.",
        "turns": [["Say hello.", "Arr!"]],
        "text": [["You are a pirate, matey.\nUSER: Say hello.\nASSISTANT: ", "Arr!\n"]],
    },
    "a closed context": {
        "turns": [[CLOSED, "Blue"]],
        "text": [[f"A chat.\nUSER: {CLOSED}\nASSISTANT: ", "Blue\n"]],
    },
    "three turns": {
        "turns": [["Hi", "Hello."], ["  More?", "    Sure.\n"], ["</s>", "日本 🙂"]],
        "text": [
            ["A chat.\nUSER: Hi\nASSISTANT: ", "Hello.\n"],
            ["USER:   More?\nASSISTANT: ", "    Sure.\n\n"],
            ["USER: </s>\nASSISTANT: ", "日本 🙂\n"],
        ],
    },
    "1.x, two turns": {
        "format": "airoboros-1.x",
        "turns": [["Hi", "Hello."], ["Bye", "See you."]],
        "text": [[f"{PREAMBLE} USER: Hi ASSISTANT: ", "Hello."], [" USER: Bye ASSISTANT: ", "See you."]],
    },
    "without formatting": {
        "kind": "plain",
        "turns": [["Once upon a time", "there was a rope."]],
        "text": [["Once upon a time\n", "there was a rope.\n"]],
    },
    "plain text": {
        "kind": "text",
        "turns": [["", "  A rope.\n\n\tIt holds. </s>"]],
        "text": [["", "  A rope.\n\n\tIt holds. </s>"]],
    },
}  # fmt: skip


def llama2(path: Path) -> tuple[Tokenize, list[int], int]:
    """SentencePiece itself; bos `<s>`, eos `</s>`."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def tokenize(text: str) -> list[Token]:
        return [(token.id, token.piece, token.end) for token in model.encode_as_proto(text).pieces]

    return tokenize, [1], 2


def llama3(path: Path) -> tuple[Tokenize, list[int], int]:
    """tiktoken with Llama-3's ranks; bos `<|begin_of_text|>`, eos `<|end_of_text|>` as the base model has it."""
    import base64

    import tiktoken

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("llama3", pat_str=words, mergeable_ranks=ranks, special_tokens={})

    def tokenize(text: str) -> list[Token]:
        return list(with_ends((id, encoding.decode_single_token_bytes(id)) for id in encoding.encode(text)))

    return tokenize, [128000], 128001


def smollm2(path: Path) -> tuple[Tokenize, list[int], int]:
    """llama.cpp with the vocabulary of the published GGUF file; no bos, eos `<|im_end|>`."""
    import llama_cpp

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    vocabulary = llama_cpp.llama_model_get_vocab(llama_cpp.llama_model_load_from_file(str(path).encode(), settings))
    buffer = ctypes.create_string_buffer(256)

    def tokenize(text: str) -> list[Token]:
        room = len(text.encode()) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocabulary, text.encode(), room - 8, ids, room, False, False)
        return list(with_ends((id, piece_of(id)) for id in ids[:count]))

    def piece_of(id: int) -> bytes:
        length = llama_cpp.llama_token_to_piece(vocabulary, id, buffer, 256, 0, False)
        return buffer.raw[:length]

    return tokenize, [], 2


def with_ends(tokens: Iterable[tuple[int, bytes]]) -> Iterator[Token]:
    """Byte-level pieces, with how far each reaches; bytes that are no character are shown as `\\xf0`."""
    read = 0
    for id, piece in tokens:
        read += len(piece)
        yield id, piece.decode(errors="backslashreplace"), read


def record(name: str, case: dict, tokenize: Tokenize, bos: list[int], eos: int) -> dict:
    """One golden record: what goes in, ids, pieces, and which ranges of them are trained."""
    ids, pieces, trained = [*bos], ["bos"] * len(bos), []
    for prompt, response in case["text"]:
        tokens = tokenize(prompt + response)
        seen = len(prompt.rstrip(" ").encode())
        start = len(ids) + next(index for index, (_, _, read) in enumerate(tokens) if read > seen or not seen)
        ids += [id for id, _, _ in tokens]
        pieces += [piece for _, piece, _ in tokens]
        if case.get("kind") != "text":
            ids, pieces = [*ids, eos], [*pieces, "eos"]
        trained.append([max(start, 1), len(ids)])
    record = {key: value for key, value in case.items() if key != "text"}
    return {"name": name, "format": "airoboros-2.2", **record, "ids": ids, "pieces": pieces, "trained": trained}


def main(family: str, path: str) -> None:
    """Write the golden file of one tokenizer, a record a line."""
    tokenize, bos, eos = {"llama2": llama2, "llama3": llama3, "smollm2": smollm2}[family](Path(path))
    records = [record(name, case, tokenize, bos, eos) for name, case in CASES.items()]
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (Path(__file__).parent / f"ids_{family}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
