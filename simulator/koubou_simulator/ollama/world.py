"""One lock, one clock: everything simulated waits here, so that time can run faster than the wall's."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):  # noqa: N818 - it ends a thread quietly, nothing went wrong
    """The simulated server stops; whoever waits unwinds."""


class Clock:
    """Simulated seconds that pass `speed` times as fast as real ones; the speed may change while it runs."""

    def __init__(self, speed: float = 1.0) -> None:
        self._lock = threading.Lock()
        self._speed = _checked(speed)
        self._sim_s = 0.0
        self._real_s = time.monotonic()

    @property
    def speed(self) -> float:
        return self._speed

    def now_s(self) -> float:
        with self._lock:
            return self._sim_s + (time.monotonic() - self._real_s) * self._speed

    def set_speed(self, speed: float) -> None:
        """Wake the waiting afterwards (`World.changed`): what they computed holds for the old speed."""
        checked = _checked(speed)
        with self._lock:
            real_s = time.monotonic()
            self._sim_s += (real_s - self._real_s) * self._speed
            self._real_s, self._speed = real_s, checked

    def real_s(self, sim_s: float) -> float | None:
        """Real seconds that so many simulated ones take; None if only a call can make time pass."""
        return sim_s / self._speed


class ManualClock(Clock):
    """Stands still until a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._wake: list[Callable[[], None]] = []

    def now_s(self) -> float:
        return self._now_s

    def real_s(self, sim_s: float) -> float | None:  # noqa: ARG002 - the interface's
        return None

    def advance(self, seconds_s: float) -> None:
        self.advance_to(self._now_s + seconds_s)

    def advance_to(self, now_s: float) -> None:
        self._now_s = max(self._now_s, now_s)
        for wake in self._wake:
            wake()

    def on_advance(self, wake: Callable[[], None]) -> None:
        self._wake.append(wake)


class World:
    """The lock over all simulated state, and the only place where a thread waits.

    It knows who acts and who rests, so that a test with a manual clock can move time from event to event.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._condition = threading.Condition(threading.RLock())
        self._closing = False
        self._actors = 0
        self._resting: dict[int, float | None] = {}
        if isinstance(clock, ManualClock):
            clock.on_advance(self.changed)

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self._condition:
            yield

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Around everything a simulated thread does; a thread that only reads from a socket does not act."""
        with self._condition:
            self._actors += 1
        try:
            yield
        finally:
            with self._condition:
                self._actors -= 1

    @property
    def at_rest(self) -> bool:
        """Does everybody wait, having looked at the latest state? Then nothing happens before time passes."""
        with self._condition:
            return len(self._resting) == self._actors

    @property
    def next_event_s(self) -> float | None:
        with self._condition:
            return min((until_s for until_s in self._resting.values() if until_s is not None), default=None)

    def changed(self) -> None:
        with self._condition:
            self._resting.clear()
            self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self.changed()

    def now_s(self) -> float:
        return self.clock.now_s()

    def wait(self, done: Callable[[], bool], until_s: float | None = None) -> bool:
        """Wait for `done()` (asked under the lock) or the simulated time; True if it is done. Raises Stopped."""
        me = threading.get_ident()
        with self._condition:
            try:
                while True:
                    if self._closing:
                        raise Stopped
                    if done():
                        return True
                    left_s = None if until_s is None else until_s - self.clock.now_s()
                    if left_s is not None and left_s <= 0:
                        return False
                    self._resting[me] = until_s
                    self._condition.wait(None if left_s is None else self.clock.real_s(left_s))
            finally:
                self._resting.pop(me, None)


def _checked(speed: float) -> float:
    if not 0 < speed <= 1e6:  # beyond that one scheduling hiccup of the machine is an hour of simulated time
        raise ValueError(f"speed must be above 0 and at most 1000000, not {speed}")
    return speed
