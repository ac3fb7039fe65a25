"""Wait for a condition instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

_POLL_S = 0.01


def eventually(probe: Callable[[], Value], timeout_s: float = 10.0, what: str = "") -> Value:
    """Return the first truthy value of `probe`; AssertionError with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or probe}")
        time.sleep(_POLL_S)
