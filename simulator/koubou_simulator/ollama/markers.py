"""`[[sim: ...]]` in a task's prompt chooses what the simulated text models answer.

Words, separated by commas or blanks, the last of a kind wins:

    plain        a header line, then Markdown or code by the target's suffix (the default)
    code markdown  that kind whatever the target is
    fenced       the whole answer is one fenced block (the mark stands inside it)
    chatty       a line of chat, one fenced block, a line of chat
    blocks       prose and two fenced blocks: nothing a program could take for one file
    empty        no text, a proper end
    repeat       one token over and over: Ollama gives up after 31 of them, done:false
    endless      never ends by itself
    length=N     the answer is N tokens long
    think=N      N tokens of thinking before it, where the model thinks
    fault=KIND   this request meets that fault (faults.py)
    raw=TEXT     exactly TEXT (to the closing brackets; \\n and \\t are understood)

Only the user's own words are searched: in a prompt of gemini-repo-cli the part before its repository
instruction, so that a file which mentions a marker, such as this one, chooses nothing.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Shape(StrEnum):
    PLAIN = "plain"
    CODE = "code"
    MARKDOWN = "markdown"
    FENCED = "fenced"
    CHATTY = "chatty"
    BLOCKS = "blocks"
    EMPTY = "empty"
    REPEAT = "repeat"
    ENDLESS = "endless"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Marks:
    shape: Shape = Shape.PLAIN
    length_tokens: int | None = None
    think_tokens: int | None = None
    raw: str = ""
    fault: str = ""


_MARKER = re.compile(r"\[\[sim:(.*?)\]\]", re.DOTALL)
_RAW = re.compile(r"(?:^|[\s,])raw=(.*)\Z", re.DOTALL)
_END_OF_TASK = "--- Repo-Level Instruction ---"
_TARGET = re.compile(r"Generate the complete content for the file: (\S+)\n")
_ESCAPES: Final = {"\\n": "\n", "\\t": "\t"}


def read_marks(prompt: str) -> Marks:
    shape, length, think, raw, fault = Shape.PLAIN, None, None, "", ""
    for marker in _MARKER.finditer(prompt.split(_END_OF_TASK, 1)[0]):
        words = marker[1].strip()
        given = _RAW.search(words)
        if given:
            shape, raw = Shape.RAW, re.sub(r"\\[nt]", lambda escape: _ESCAPES[escape[0]], given[1])
            words = words[: given.start()]
        for word in re.split(r"[,\s]+", words):
            name, _, value = word.partition("=")
            if name == "length" and value.isdecimal():
                length = int(value)
            elif name == "think" and value.isdecimal():
                think = int(value)
            elif name == "fault":
                fault = value
            elif name in set(Shape) and name != Shape.RAW:
                shape = Shape(name)
    return Marks(shape, length, think, raw, fault)


def target_of(prompt: str) -> str:
    """The file a gemini-repo-cli prompt asks for; empty if it is another kind of prompt."""
    found = _TARGET.findall(prompt)
    return found[-1] if found else ""
