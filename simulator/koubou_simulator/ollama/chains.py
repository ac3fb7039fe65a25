"""The tiny models of the recordings: chains of bytes in which the last token decides the next."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from .engine import Ask, Piece
from .structured import json_for

BEGIN: Final = 1
END: Final = 2
FIRST_BYTE: Final = 3  # token of byte b is FIRST_BYTE + b
_SPACE_MARK: Final = "\u2581"  # how this kind of tokenizer writes a space, three bytes long


@dataclass(frozen=True, slots=True)
class Chain:
    """`after[t]` follows token t; `otherwise` follows every token not named."""

    otherwise: int
    after: Mapping[int, int] = field(default_factory=dict)

    def prompt_tokens(self, text: str) -> list[int]:
        return [BEGIN, *self.tokenize(text)]

    def tokenize(self, text: str) -> list[int]:
        return [FIRST_BYTE + byte for byte in text.replace(" ", _SPACE_MARK).encode("utf-8", "replace")]

    def reply(self, ask: Ask) -> Iterator[Piece]:
        if ask.format is not None:
            yield from self._formatted(ask)
            return
        token = ask.tokens[-1]
        while (token := self.after.get(token, self.otherwise)) != END:
            yield Piece(bytes([token - FIRST_BYTE]))

    def _formatted(self, ask: Ask) -> Iterator[Piece]:
        # Without a schema the grammar allows a string without end, and a chain never chooses to close it.
        text = (
            itertools.chain(b'{"', itertools.cycle(b"Zebra"))
            if ask.format == "json"
            else json_for(ask.format, "").encode()
        )
        for byte in text:
            yield Piece(bytes([byte]))


def saying(text: bytes, then: int) -> Chain:
    """A chain that says text, no byte twice, then goes to token `then`; it begins where a prompt's last byte stands."""
    tokens = [FIRST_BYTE + byte for byte in text]
    assert len(set(tokens)) == len(tokens), "a chain visits each byte once"
    return Chain(tokens[0], dict(itertools.pairwise([*tokens, then])))


_WALK = b"abcdefghijklmnopqrstuvwxyz\n"
# The letter B is not followed back to A: every token here is named but those that lead to the beginning.
_ODD_BYTES = [FIRST_BYTE + byte for byte in (0xFF, 0x00, 0x41, 0xC3, 0x42)]

CHAINS: Final[dict[str, Chain]] = {
    "stop": saying(b"Zebra<>&\t'fin~`Q", END),
    "endless": saying(_WALK, FIRST_BYTE + ord("a")),
    "repeat": Chain(FIRST_BYTE + ord("x")),
    "mute": Chain(END),
    "utf8": saying("\u6fef\u00e9 \U0001f600!".encode(), END),
    "badbytes": Chain(_ODD_BYTES[0], dict(itertools.pairwise([*_ODD_BYTES, END]))),
    "broken": Chain(END),
    "slow": saying(_WALK, FIRST_BYTE + ord("a")),
}
