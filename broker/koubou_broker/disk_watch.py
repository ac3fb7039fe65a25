"""How much the disk still takes - all, no new tasks, nothing -, when it is tried again, and what people are told."""

from dataclasses import dataclass

from koubou_broker.batches import Probed
from koubou_broker.reserve import Reserve

PAUSE_S = (1.0, 30.0)  # between tries to write to a disk that takes nothing: the first, the longest
STEADY_S = 60.0  # without a failure: the next one begins with the shortest pause again
SAY_AGAIN_S = 60.0  # numbers alone are no news: an alert is a line in the log each time

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Said:
    kind: str
    text: str
    at_s: float


class DiskWatch:
    """Keeps the reserve; the loop tells it what failed and what a probe found."""

    def __init__(self, reserve: Reserve) -> None:
        self._reserve = reserve
        self._takes_nothing = False
        self._needs_proof = False  # since a write failed: only a task's worth that fits shows that tasks do
        self._is_roomy = True
        self._is_probing = False
        self._pause_s = 0.0
        self._probe_s = 0.0  # not before
        self._wrote_s = 0.0  # since when anything can be written again
        self._said = _Said("", "", 0.0)

    def failed(self, now_s: float) -> None:
        """A commit was refused: the reserve makes room for what is under way."""
        first_s, longest_s = PAUSE_S
        if self._reserve.give_up():
            self._pause_s = 0.0
        elif not self._pause_s or now_s - self._wrote_s > STEADY_S:
            self._pause_s = first_s
        else:
            self._pause_s = min(longest_s, self._pause_s * 2)
        self._takes_nothing = self._needs_proof = True
        self._is_roomy = self._is_probing = False
        self._probe_s = now_s + self._pause_s

    def probed(self, probed: Probed, now_s: float) -> bool:
        """What the store found; whether it can write again after it could not."""
        first_s, longest_s = PAUSE_S
        self._is_probing = False
        if not probed.can_write:
            self._pause_s = min(longest_s, max(first_s, self._pause_s * 2))
            self._probe_s = now_s + self._pause_s
            return False
        if probed.fits_task and self._is_roomy:
            self._needs_proof = False
        if not self._takes_nothing:
            return False
        self._takes_nothing = False
        self._wrote_s = now_s
        return True

    def wants_probe(self, now_s: float) -> bool:
        """Whether the store is to be asked now; asked once, until it answers."""
        wanted = self._takes_nothing or (self._needs_proof and self._is_roomy)
        if self._is_probing or not wanted or now_s < self._probe_s:
            return False
        self._is_probing = True
        self._probe_s = now_s + PAUSE_S[0]
        return True

    def look(self, now_s: float, spare_bytes: int) -> str:
        """Why no new task is taken, with numbers; "" when they are. Makes the reserve again when there is room."""
        if self._takes_nothing:
            return self._say(*self._nothing(), now_s)
        self._is_roomy = self._reserve.has_room(spare_bytes) and self._reserve.hold(spare_bytes)
        if self._is_roomy and not self._needs_proof:
            self._said = _Said("", "", now_s)
            return ""
        return self._say(*self._no_new_tasks(spare_bytes), now_s)

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether the store owes an answer."""
        return self._is_probing

    def _nothing(self) -> tuple[str, str]:
        room = self._reserve.room()
        if not room.is_writable:
            return "read-only", "the broker's disk is read-only: nothing can be stored, results wait at their agents"
        return "full", (
            f"the broker's disk is full or at a limit ({_mib(room.free_bytes)} MiB are free):"
            " nothing can be stored, results wait at their agents"
        )

    def _no_new_tasks(self, spare_bytes: int) -> tuple[str, str]:
        reserve = self._reserve
        free_bytes = reserve.room().free_bytes + spare_bytes
        needed = f"disk.min_free_bytes of {_mib(reserve.min_free_bytes)} MiB"
        if not reserve.is_held():
            needed += f" and disk.reserve_bytes of {_mib(reserve.size_bytes)} MiB, which was given up,"
        if free_bytes < reserve.needed_bytes:
            return "nearly full", (
                f"the broker's disk is nearly full: {_mib(free_bytes)} MiB are free, {needed} ask for more:"
                " no new tasks are taken, those it has go on"
            )
        return "limited", (
            f"the broker's disk was full, and is perhaps at a quota or size limit ({_mib(free_bytes)} MiB are free):"
            " no new tasks are taken before one would fit, those it has go on"
        )

    def _say(self, kind: str, text: str, now_s: float) -> str:
        if kind != self._said.kind or now_s - self._said.at_s >= SAY_AGAIN_S:
            self._said = _Said(kind, text, now_s)
        return self._said.text


def _mib(size_bytes: int) -> str:
    return f"{size_bytes // _MIB:,}"
