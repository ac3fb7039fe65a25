"""The made-up text models: deterministic Markdown and code, labelled as simulated, in tokens of 3.5 bytes."""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from .engine import Ask, Piece
from .markers import Marks, Shape, read_marks, target_of
from .structured import json_for

LABEL: Final = "[SIMULATED]"
BYTES_PER_TOKEN: Final = 3.5
_VOCABULARY: Final = 150_000
_THINK_TOKENS: Final = {"low": 48, "medium": 160, "high": 480}  # assumed: what an easy task costs
_CODE_SUFFIXES: Final = frozenset(
    {".py", ".c", ".go", ".h", ".js", ".rs", ".sh", ".sql", ".toml", ".ts", ".yaml", ".yml"}
)
_SUBJECTS: Final = (
    "The queue",
    "A worker",
    "The broker",
    "Each attempt",
    "This module",
    "The caller",
    "A lease",
    "The spool",
)
_VERBS: Final = ("keeps", "returns", "checks", "sends", "stores", "reads", "releases", "orders")
_OBJECTS: Final = ("one record", "the next task", "its own state", "every message", "the whole batch", "a durable copy")
_NAMES: Final = ("collect", "resolve", "measure", "enqueue", "settle", "review", "restore", "compare")


@dataclass(frozen=True, slots=True)
class TextModel:
    """An engine without a network: what it says is a hash of model, seed and prompt, dressed as text."""

    def prompt_tokens(self, text: str) -> list[int]:
        return self.tokenize(text)

    def tokenize(self, text: str) -> list[int]:
        return [int.from_bytes(piece) % _VOCABULARY for piece in pieces_of(text)]

    def reply(self, ask: Ask) -> Iterator[Piece]:
        marks = read_marks(ask.prompt)
        dice = random.Random(
            hashlib.sha256(f"{ask.model}\0{ask.seed}\0{ask.prompt}".encode("utf-8", "replace")).digest()
        )
        if ask.think:
            count = _THINK_TOKENS[ask.think] if marks.think_tokens is None else marks.think_tokens
            for data in _exactly(f"{LABEL} thinking: ", count, dice):
                yield Piece(data, thinking=True)
        for data in _answer(ask, marks, dice):
            yield Piece(data)


def count_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) * 2 // 7)


def pieces_of(text: str) -> list[bytes]:
    """Tokens of 3 and 4 bytes by turns; a letter is never cut (its token is longer, the next one shorter or empty)."""
    raw = text.encode("utf-8", "replace")
    ends = [min(7 * number // 2, len(raw)) for number in range(1, count_tokens(text) + 1)]
    if not raw.isascii():
        ends = [_letter_end(raw, end) for end in ends]
    return [raw[start:end] for start, end in itertools.pairwise([0, *ends])]


def _letter_end(raw: bytes, end: int) -> int:
    while end < len(raw) and raw[end] & 0xC0 == 0x80:
        end += 1
    return end


def _answer(ask: Ask, marks: Marks, dice: random.Random) -> Iterator[bytes]:
    if ask.format is not None:
        yield from pieces_of(json_for(ask.format, LABEL))
        return
    if marks.shape is Shape.EMPTY:
        return
    if marks.shape is Shape.RAW:
        yield from pieces_of(marks.raw)
        return
    header = _header(ask)
    if marks.shape is Shape.REPEAT:
        yield from pieces_of(header)
        yield from itertools.repeat(b"again ", 200)
        return
    if marks.shape is Shape.ENDLESS:
        yield from pieces_of(header)
        for sentence in _sentences(dice):
            yield from pieces_of(sentence)
    if marks.length_tokens is not None:
        yield from _exactly(header, marks.length_tokens, dice)
        return
    yield from pieces_of(_shaped(marks.shape, header, target_of(ask.prompt), dice))


def _header(ask: Ask) -> str:
    digest = hashlib.sha256(ask.prompt.encode("utf-8", "replace")).hexdigest()[:12]
    about = f" for {target}" if (target := target_of(ask.prompt)) else ""
    return f"{LABEL} {ask.model} made this up{about}, seed {ask.seed}, prompt sha256 {digest}\n"


def _shaped(shape: Shape, header: str, target: str, dice: random.Random) -> str:
    suffix = PurePosixPath(target).suffix
    wants_code = shape is Shape.CODE or (shape is not Shape.MARKDOWN and suffix in _CODE_SUFFIXES)
    body = _code(dice) if wants_code else _markdown(dice)
    language = "python" if wants_code else "markdown"
    match shape:
        case Shape.FENCED:
            return f"```{language}\n{header}{body}```\n"
        case Shape.CHATTY:
            return f"{LABEL} Here is the file:\n\n```{language}\n{header}{body}```\n\nI hope this helps!\n"
        case Shape.BLOCKS:
            return (
                f"{header}First part:\n\n```{language}\n{body}```\n\nSecond part:\n\n```{language}\n{_code(dice)}```\n"
            )
        case _:
            return f"{header}\n{body}"


def _markdown(dice: random.Random) -> str:
    sections = []
    for title in dice.sample(("Purpose", "How it works", "Limits", "Failure", "Use"), 3):
        sentences = itertools.islice(_sentences(dice), dice.randint(2, 4))
        sections.append(f"## {title}\n\n{''.join(sentences).strip()}\n")
    return "\n".join(sections)


def _code(dice: random.Random) -> str:
    functions = []
    for name in dice.sample(_NAMES, 3):
        limit = dice.randint(2, 99)
        functions.append(
            f"def {name}(items: list[str]) -> list[str]:\n"
            f'    """{next(_sentences(dice)).strip()}"""\n'
            f"    return [item for item in items if len(item) < {limit}]\n"
        )
    return "\n\n".join(functions)


def _sentences(dice: random.Random) -> Iterator[str]:
    while True:
        yield f"{dice.choice(_SUBJECTS)} {dice.choice(_VERBS)} {dice.choice(_OBJECTS)}. "


def _exactly(beginning: str, tokens: int, dice: random.Random) -> list[bytes]:
    size_bytes = 7 * tokens // 2
    text = beginning
    sentences = _sentences(dice)
    while len(text) < size_bytes:
        text += next(sentences)
    whole_letters = text.encode("utf-8", "replace")[:size_bytes].decode(errors="ignore")
    return pieces_of(whole_letters + "." * (size_bytes - len(whole_letters.encode())))
