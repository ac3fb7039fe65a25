"""What the model said, made into a file: which part of the text is the output. Pure; nothing is executed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd"})
_MARKDOWN_INFOS = frozenset({"markdown", "md"})
_CHAT_LINES_MAX = 3  # "Here is the file:" before, "Let me know ..." after (design, section 8)
_CHAT_LINE_CHARS_MAX = 160  # a longer line is prose that somebody may want to read
# At most three blanks, three or more of one character, then the info string (none of them in it, for `).
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})(?P<info>.*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """The output inside the raw text: `offset` and `length` count bytes of its UTF-8."""

    offset: int
    length: int
    chatty: bool
    flags: tuple[str, ...]  # "fence_removed", "block_taken", "chatty", "empty"


def extract(raw: str, target: str) -> Answer:
    """The part of `raw` that is the file `target`; "" is no target, the text is left untouched.

    A fence with nothing in it gives length 0 and the flag "empty": the caller fails it.
    """
    if not target:
        return _answer(raw, 0, len(raw))
    lines = _lines(raw)
    blocks, unclosed = _blocks(lines)
    start, end = _edges(raw)
    if len(blocks) == 1 and not unclosed:
        block = blocks[0]
        around = [line.text.strip() for line in (*lines[: block.first], *lines[block.last + 1 :])]
        chat = [text for text in around if text]
        if not chat and (not _is_markdown(target) or block.language in _MARKDOWN_INFOS):
            return _answer(raw, *_inside(lines, block), "fence_removed")
        if not _is_markdown(target) and _is_short(chat):
            return _answer(raw, *_inside(lines, block), "block_taken")
    if (blocks or unclosed) and not _is_markdown(target):
        return _answer(raw, start, end, "chatty")
    return _answer(raw, start, end)


def same_as_printed(raw: str, printed: bytes) -> bool:
    """Whether gemini-repo-cli printed just what the model said: it strips the text and ends the line."""
    return printed.replace(b"\r\n", b"\n").strip(b"\n") == (
        raw.strip().replace("\r\n", "\n").encode("utf-8", "replace").strip(b"\n")
    )


@dataclass(frozen=True, slots=True)
class _Line:
    text: str  # without its end
    start: int  # in characters of the whole text
    end: int  # where its text ends


@dataclass(frozen=True, slots=True)
class _Block:
    """The line numbers of a block's two fences, and the first word of its info string."""

    first: int
    last: int
    language: str


def _answer(raw: str, start: int, end: int, *flags: str) -> Answer:
    offset = len(raw[:start].encode("utf-8", "replace"))
    length = len(raw[start:end].encode("utf-8", "replace"))
    if raw.strip() and not raw[start:end].strip():
        return Answer(offset, 0, chatty=False, flags=(*flags, "empty"))
    return Answer(offset, length, chatty="chatty" in flags, flags=flags)


def _lines(raw: str) -> list[_Line]:
    lines: list[_Line] = []
    start = 0
    # Only \n ends a line: str.splitlines would also cut at form feeds and U+2028 inside the text.
    for part in raw.split("\n"):
        text = part.removesuffix("\r")
        lines.append(_Line(text, start, start + len(text)))
        start += len(part) + 1
    return lines


def _blocks(lines: Sequence[_Line]) -> tuple[list[_Block], bool]:
    """The outermost fenced blocks, and whether the text ends inside one.

    A fence with an info string inside a block opens a nested one: models quote documents that way.
    """
    blocks: list[_Block] = []
    open_marks: list[str] = []  # of the open fences, outermost first
    first, language = 0, ""
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line.text)
        if fence is None or ("`" in fence["marks"] and "`" in fence["info"]):
            continue
        marks, info = fence["marks"], fence["info"].strip()
        if not open_marks:
            words = info.split()
            first, language = number, words[0].lower() if words else ""
            open_marks.append(marks)
        elif not marks.startswith(open_marks[-1]):
            continue  # shorter or of the other character: text of the block
        elif info:
            open_marks.append(marks)
        else:
            open_marks.pop()
            if not open_marks:
                blocks.append(_Block(first, number, language))
    return blocks, bool(open_marks)


def _inside(lines: Sequence[_Line], block: _Block) -> tuple[int, int]:
    """From the line after the opening fence to the end of the one before the closing fence."""
    start = lines[block.first + 1].start
    return start, max(start, lines[block.last - 1].end) if block.last - block.first > 1 else start


def _edges(raw: str) -> tuple[int, int]:
    """Without blank lines at the head and space at the tail; the first line keeps its indentation."""
    end = len(raw.rstrip())
    head = len(raw) - len(raw.lstrip())
    return (raw.rfind("\n", 0, head) + 1, end) if end else (0, len(raw))


def _is_short(chat: Sequence[str]) -> bool:
    return len(chat) <= _CHAT_LINES_MAX and all(len(text) <= _CHAT_LINE_CHARS_MAX for text in chat)


def _is_markdown(target: str) -> bool:
    return PurePosixPath(target.replace("\\", "/")).suffix.lower() in _MARKDOWN_SUFFIXES
