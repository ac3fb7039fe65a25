"""What a model is to its server: text into tokens, a prompt into an answer token by token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from .gojson import Json


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: its bytes, and whether the model is still thinking aloud."""

    data: bytes
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """What the model sees of a request."""

    model: str
    prompt: str
    tokens: list[int]
    seed: int
    think: str  # "" = do not think, else "low", "medium", "high"
    format: Json = None


class Engine(Protocol):
    def prompt_tokens(self, text: str) -> list[int]:
        """The prompt as the model reads it, its begin token included."""

    def tokenize(self, text: str) -> list[int]:
        """Without a begin token: what the answer's `context` holds."""

    def reply(self, ask: Ask) -> Iterator[Piece]:
        """The answer; its end is the model's own end token. May never end."""
