"""What can be made to go wrong, when, and how often."""

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, get_args

from .gojson import Json
from .models import normal_name


class FaultKind(StrEnum):
    # The connection and the bytes on it.
    REFUSE = "refuse"  # nothing listens for delay_s (0: until removed)
    HANG = "hang"  # accepted, never answered
    HEADERS_HANG = "headers_hang"  # headers, then nothing
    DRIP = "drip"  # one byte every delay_s
    RESET = "reset"  # RST after `after` bytes of the reply
    EOF = "eof"  # the connection closes after `after` bytes of the reply
    # Replies that Ollama itself would not give.
    INVALID_JSON = "invalid_json"
    HTML = "html"
    REDIRECT = "redirect"  # `status` (302, 307) to `text`
    ERROR = "error"  # `status` with `text`; the next five are shorthands with Ollama's words
    NOT_FOUND = "not_found"
    CONTEXT = "context"
    CANCELED = "canceled"
    BUSY = "busy"
    CRASHED = "crashed"  # 500, and the model is unloaded
    # Endings of an answer.
    DONE_FALSE = "done_false"  # breaks off after `after` tokens
    EMPTY = "empty"
    NULL_RESPONSE = "null_response"
    LENGTH = "length"  # cut after `after` tokens
    STREAM_ERROR = "stream_error"  # an error line with `text` after `after` tokens
    KILL = "kill"  # the runner dies after `after` tokens
    STALL = "stall"  # no token after the first `after`
    # The model and its memory.
    SLOW_LOAD = "slow_load"  # delay_s more
    LOAD_FAILURE = "load_failure"  # `text`
    FOREIGN_CLIENT = "foreign_client"  # somebody else loads the model with `num_ctx`, now
    RESTART = "restart"  # the server restarts, now: nothing listens for delay_s
    # States: they hold until removed.
    EVICT_DEADLOCK = "evict_deadlock"
    CPU_FALLBACK = "cpu_fallback"
    CLOCK_SKEW = "clock_skew"  # expires_at is delay_s off
    CLOUD_MODEL = "cloud_model"  # `model` is listed as a remote one


STATES: Final = frozenset(
    {FaultKind.EVICT_DEADLOCK, FaultKind.CPU_FALLBACK, FaultKind.CLOCK_SKEW, FaultKind.CLOUD_MODEL, FaultKind.REFUSE}
)
AT_ONCE: Final = frozenset({FaultKind.FOREIGN_CLIENT, FaultKind.RESTART, FaultKind.REFUSE})
WIRE: Final = frozenset(
    {FaultKind.HANG, FaultKind.HEADERS_HANG, FaultKind.DRIP, FaultKind.RESET, FaultKind.EOF, FaultKind.INVALID_JSON,
     FaultKind.HTML, FaultKind.REDIRECT}
)  # fmt: skip
ANSWERS: Final = frozenset(
    {FaultKind.ERROR, FaultKind.NOT_FOUND, FaultKind.CONTEXT, FaultKind.CANCELED, FaultKind.BUSY, FaultKind.CRASHED}
)
ENDINGS: Final = frozenset(
    {FaultKind.DONE_FALSE, FaultKind.EMPTY, FaultKind.NULL_RESPONSE, FaultKind.LENGTH, FaultKind.STREAM_ERROR,
     FaultKind.KILL, FaultKind.STALL}
)  # fmt: skip
GENERATING: Final = ("/api/generate", "/api/chat")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong for the next `count` requests it matches (None: for all, until removed)."""

    kind: FaultKind
    model: str | None = None
    count: int | None = 1
    probability: float = 1.0
    match: str = ""  # a part of the prompt
    path: str = ""  # empty: generating requests; "*": every path but the control's
    after: int = 0  # bytes or tokens, by kind
    delay_s: float = 0.0
    status: int = 0
    text: str = ""
    num_ctx: int = 0


class Faults:
    """The faults in force; may be changed while the server runs."""

    def __init__(self, seed: int, on_change: Callable[[], None]) -> None:
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._on_change = on_change
        self._at_once: Callable[[int, Fault], None] | None = None
        self._faults: dict[int, tuple[Fault, int | None]] = {}
        self._last_id = 0

    def when_at_once(self, act: Callable[[int, Fault], None]) -> None:
        self._at_once = act

    def add(self, fault: Fault) -> int:
        """Its number, for `remove`. Raises ValueError for a kind that does not exist."""
        kind = FaultKind(fault.kind)
        with self._lock:
            self._last_id += 1
            number = self._last_id
            if kind not in AT_ONCE or kind in STATES:
                self._faults[number] = (fault, None if kind in STATES else fault.count)
        if kind in AT_ONCE and self._at_once is not None:
            self._at_once(number, fault)
        self._on_change()
        return number

    def remove(self, number: int) -> None:
        with self._lock:
            self._faults.pop(number, None)
        self._on_change()

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
        self._on_change()

    def listed(self) -> dict[int, Fault]:
        with self._lock:
            return {number: fault for number, (fault, _) in self._faults.items()}

    def take(self, kinds: frozenset[FaultKind], *, path: str, model: str = "", prompt: str = "") -> Fault | None:
        """The first matching fault, one use of it spent."""
        with self._lock:
            for number, (fault, left) in self._faults.items():
                if fault.kind not in kinds or not _matches(fault, path, model, prompt):
                    continue
                if fault.probability < 1 and self._dice.random() >= fault.probability:
                    continue
                if left is not None:
                    if left <= 1:
                        del self._faults[number]
                    else:
                        self._faults[number] = (fault, left - 1)
                return fault
        return None

    def holding(self, kind: FaultKind, model: str = "") -> Fault | None:
        """A state that holds for this model."""
        with self._lock:
            for fault, _ in self._faults.values():
                if fault.kind == kind and (not fault.model or not model or _same(fault.model, model)):
                    return fault
        return None

    def load_delay_s(self, model: str) -> float:
        fault = self.take(frozenset({FaultKind.SLOW_LOAD}), path=GENERATING[0], model=model)
        return fault.delay_s if fault else 0.0

    def load_failure(self, model: str) -> str:
        fault = self.take(frozenset({FaultKind.LOAD_FAILURE}), path=GENERATING[0], model=model)
        return (fault.text or "error loading model: [SIMULATED] the file is damaged") if fault else ""

    def eviction_hangs(self, model: str) -> bool:
        return self.holding(FaultKind.EVICT_DEADLOCK, model) is not None

    def cpu_fallback(self, model: str) -> bool:
        return self.holding(FaultKind.CPU_FALLBACK, model) is not None


def fault_from(values: Mapping[str, Json]) -> Fault:
    """From JSON. Raises ValueError with a text for a person."""
    known = {field.name: field.type for field in fields(Fault)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}: one of {', '.join(known)}")
    if values.get("kind") not in set(FaultKind):
        raise ValueError(f"unknown kind {values.get('kind')!r}: one of {', '.join(FaultKind)}")
    for name, value in values.items():
        allowed = get_args(known[name]) or (known[name],)
        allowed = (*allowed, int) if float in allowed else allowed
        if name != "kind" and (isinstance(value, bool) or not isinstance(value, allowed)):
            raise ValueError(f"{name} must not be {value!r}")
    converted = {**values, "kind": FaultKind(str(values["kind"]))}
    return Fault(**converted)  # type: ignore[arg-type]  # checked above, field by field


def _matches(fault: Fault, path: str, model: str, prompt: str) -> bool:
    if fault.path == "*":
        if path.startswith("/_sim/"):
            return False
    elif fault.path:
        if fault.path != path:
            return False
    elif path not in GENERATING:
        return False
    return (not fault.model or (bool(model) and _same(fault.model, model))) and fault.match in prompt


def _same(one: str, other: str) -> bool:
    return normal_name(one).lower() == normal_name(other).lower()
