"""Prompts, files and outputs: small ones that travel inside messages, and larger ones that are pulled in pieces."""

import functools
import random

from koubou_common.messages.limits import CHUNK_BYTES, KIB

_LARGE = 0.15  # of the bodies
_SIZES = (300 * KIB, CHUNK_BYTES, CHUNK_BYTES + 1, CHUNK_BYTES + 100 * KIB)  # more than goes inside; one piece, two


@functools.cache
def _filling() -> bytes:
    return random.Random(0).randbytes(CHUNK_BYTES + 128 * KIB)


def a_text(tag: str, draws: random.Random) -> bytes:
    """Bytes that only this tag stands for."""
    said = f"{tag}\n".encode()
    if draws.random() >= _LARGE:
        return said
    return said + _filling()[: draws.choice(_SIZES) - len(said)]


def output_of(uid: str, draws: random.Random) -> bytes:
    """What the model says in an attempt."""
    return a_text(f"output of {uid}", draws)
