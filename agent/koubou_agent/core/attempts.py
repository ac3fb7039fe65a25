"""The attempts an agent holds: waiting for a slot, running, or told to stop."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from koubou_common.messages import Dispatch
from koubou_common.messages.values import AbortReason, AttemptProgress

ENDED_KEPT = 1_000  # uids remembered to recognise a dispatch that the wire doubled
PHASE_WAITING = "waiting"  # its slot is still releasing


@dataclass(slots=True)
class Held:
    """One attempt between its Dispatch and its end."""

    dispatch: Dispatch
    received_s: float
    started: bool = False
    slot_wait_ms: int = 0  # from its Dispatch until it began
    phase: str = PHASE_WAITING
    tokens: int = 0
    aborted: AbortReason | None = None

    def start(self, now: float) -> None:
        """There is a slot for it."""
        self.slot_wait_ms = self.waited_ms(now)
        self.started = True
        self.phase = "fetching"

    def waited_ms(self, now: float) -> int:
        """How long it has waited for its slot."""
        return self.slot_wait_ms if self.started else max(0, int((now - self.received_s) * 1000))


class Attempts:
    """Every attempt held, in the order of their dispatch, and the uids of those that ended."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, uid: str) -> bool:
        return uid in self._held

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def get(self, uid: str) -> Held | None:
        """The attempt, if it is held."""
        return self._held.get(uid)

    def was_here(self, uid: str) -> bool:
        """Whether a dispatch of this attempt is a repetition."""
        return uid in self._held or uid in self._ended

    def add(self, dispatch: Dispatch, now: float) -> None:
        """Hold a new attempt; it waits."""
        self._held[dispatch.attempt_uid] = Held(dispatch, now)

    def end(self, uid: str) -> Held | None:
        """Let an attempt go, and remember that it was here."""
        self._ended[uid] = None
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        return self._held.pop(uid, None)

    def waiting(self) -> list[Held]:
        """Those that have not begun, first come first."""
        return [held for held in self._held.values() if not held.started]

    @property
    def started(self) -> int:
        """How many have begun."""
        return sum(held.started for held in self._held.values())

    def progress(self) -> tuple[AttemptProgress, ...]:
        """What a status says of them."""
        return tuple(AttemptProgress(uid, held.phase, held.tokens) for uid, held in self._held.items())
