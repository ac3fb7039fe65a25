"""The tasks of a power cut's run: a prompt says what its answer is, so that every byte can be checked later."""

import hashlib
import random
import re
import secrets

MODEL = "no-model"
LARGE_BYTES = 300_000  # does not fit a message: travels in pieces, and is stored in rows of its own

_FORM = re.compile(r"pause (\d+) ms, answer (\d+) bytes, ")


def a_prompt(dice: random.Random, *, is_large: bool, has_large_answer: bool) -> str:
    """Another one every time, also across runs."""
    answer_bytes = LARGE_BYTES if has_large_answer else dice.randint(64, 2_000)
    text = f"pause {dice.randint(0, 40)} ms, answer {answer_bytes} bytes, {secrets.token_hex(16)} "
    return text.ljust(LARGE_BYTES if is_large else dice.randint(100, 2_000), ".")


def answer_to(prompt: str) -> bytes:
    """What the agent says to it."""
    found = _FORM.match(prompt)
    assert found is not None, prompt[:80]
    return hashlib.sha256(prompt.encode()).hexdigest().encode().ljust(int(found[2]), b"+")


def pause_of(prompt: str) -> float:
    """Seconds that the agent works on it."""
    found = _FORM.match(prompt)
    assert found is not None, prompt[:80]
    return int(found[1]) / 1_000
