"""What a piece of the loop's work takes of a processor, told without a system call for each piece. Pure."""

from collections.abc import Callable

LOOK_S = 0.02  # of work between looks at the thread's own clock: each is a system call


class LoopClock:
    """Time that passes, times the part of it that the loop's thread lately had a processor."""

    def __init__(self, *, cpu_s: Callable[[], float], mono_s: Callable[[], float]) -> None:
        """`cpu_s`: time that this thread has used; `mono_s`: time that has passed."""
        self._cpu_s = cpu_s
        self._mono_s = mono_s
        self._looked_s = cpu_s()
        self._worked_s = 0.0  # passed in turns since that look
        self._began_s = mono_s()
        self._part = 1.0

    def __call__(self) -> float:
        """Only differences within a turn have a meaning."""
        return self._mono_s() * self._part

    def begin_turn(self) -> None:
        """Waiting is over."""
        self._began_s = self._mono_s()

    def end_turn(self) -> None:
        """Waiting begins."""
        self._worked_s += self._mono_s() - self._began_s
        if self._worked_s >= LOOK_S:
            used_s = self._cpu_s()
            # What waiting itself uses is in it, and would make more than all of it.
            self._part = min(1.0, (used_s - self._looked_s) / self._worked_s)
            self._looked_s, self._worked_s = used_s, 0.0
