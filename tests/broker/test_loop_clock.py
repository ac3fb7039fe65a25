"""The loop's clock: processor time without asking for it at each piece of work."""

import pytest

from koubou_broker.loop_clock import LOOK_S, LoopClock


class Times:
    """Both clocks, by hand."""

    def __init__(self) -> None:
        self.cpu_s = 5.0
        self.mono_s = 100.0
        self.looks = 0
        self.clock = LoopClock(cpu_s=self.look, mono_s=lambda: self.mono_s)

    def look(self) -> float:
        self.looks += 1
        return self.cpu_s

    def work(self, passed_s: float, used_s: float) -> float:
        """One turn after a pause; what the clock says that it took."""
        self.mono_s += 1.0
        self.clock.begin_turn()
        began_s = self.clock()
        self.mono_s += passed_s
        self.cpu_s += used_s
        took_s = self.clock() - began_s
        self.clock.end_turn()
        return took_s


def test_time_without_a_processor_is_not_counted_and_waiting_neither() -> None:
    times = Times()
    times.work(2 * LOOK_S, LOOK_S / 2)
    assert times.work(0.001, 0.001) == pytest.approx(0.00025)


def test_no_piece_takes_more_than_the_time_that_passed() -> None:
    times = Times()
    times.work(2 * LOOK_S, LOOK_S * 3)
    assert times.work(0.001, 0.001) == pytest.approx(0.001)


def test_the_thread_is_not_asked_at_each_turn() -> None:
    times = Times()
    for _ in range(40):
        times.work(LOOK_S / 10, LOOK_S / 10)
    assert times.looks <= 5
