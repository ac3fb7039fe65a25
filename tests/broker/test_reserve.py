"""Room held back, and the three grades of a disk: what is told, what is tried, and when."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from koubou_broker import disk_watch
from koubou_broker.batches import Probed
from koubou_broker.disk_watch import PAUSE_S, SAY_AGAIN_S, STEADY_S, DiskWatch
from koubou_broker.reserve import Reserve, Room

MIB = 1024 * 1024
FITS = Probed(can_write=True, fits_task=True)
SMALL = Probed(can_write=True, fits_task=False)
REFUSED = Probed(can_write=False, fits_task=False)


@dataclass
class StagedReserve(Reserve):
    """A reserve of 64 MiB on a disk whose free space a test sets."""

    free_bytes: int = 2_000 * MIB
    is_writable: bool = True
    has_quota: bool = False
    held: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__init__(Path("unused"), 64 * MIB, 1_024 * MIB)

    def room(self) -> Room:
        return Room(self.free_bytes, self.is_writable)

    def is_held(self) -> bool:
        return self.held

    def hold(self, spare_bytes: int = 0) -> bool:
        self.held = self.held or (self.has_room(spare_bytes) and not self.has_quota)
        return self.held

    def give_up(self) -> bool:
        had, self.held = self.held, False
        return had


def test_the_reserve_takes_its_whole_size_from_the_disk_and_gives_it_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 3 * MIB, 0)
    assert not reserve.is_held()
    assert reserve.hold()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 3 * MIB
    assert reserve.give_up()
    assert not reserve.is_held()
    assert not reserve.give_up(), "nothing was there to be freed"


def test_the_reserve_is_not_made_where_it_would_take_the_last_room(tmp_path: Path) -> None:
    room = Reserve(tmp_path / "reserve", 0, 0).room()
    reserve = Reserve(tmp_path / "reserve", 1 * MIB, room.free_bytes + 1_000 * MIB)
    assert not reserve.hold()
    assert not (tmp_path / "reserve").exists()


def test_a_reserve_of_no_bytes_is_held_and_makes_no_room(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 0, 0)
    assert reserve.hold()
    assert not reserve.give_up()


def test_with_room_new_tasks_are_taken() -> None:
    watch = DiskWatch(StagedReserve())
    assert watch.look(0.0, 0) == ""
    assert not watch.wants_probe(0.0)


def test_below_the_minimum_new_tasks_are_refused_with_the_numbers_and_the_setting() -> None:
    reserve = StagedReserve(free_bytes=1_023 * MIB)
    watch = DiskWatch(reserve)
    text = watch.look(0.0, 0)
    assert "1,023 MiB are free" in text
    assert "disk.min_free_bytes of 1,024 MiB" in text
    assert "those it has go on" in text
    reserve.free_bytes = 1_024 * MIB
    assert watch.look(1.0, 0) == ""


def test_room_inside_the_database_counts() -> None:
    reserve = StagedReserve(free_bytes=100 * MIB)
    watch = DiskWatch(reserve)
    assert "nearly full" in watch.look(0.0, 900 * MIB)
    assert watch.look(0.0, 924 * MIB) == ""


def test_numbers_alone_are_no_news_but_once_a_minute() -> None:
    reserve = StagedReserve(free_bytes=1_000 * MIB)
    watch = DiskWatch(reserve)
    first = watch.look(0.0, 0)
    reserve.free_bytes = 900 * MIB
    assert watch.look(SAY_AGAIN_S - 1, 0) == first
    assert "900 MiB" in watch.look(SAY_AGAIN_S, 0)


def test_after_a_refused_commit_the_reserve_is_given_up_and_writing_is_tried_at_once() -> None:
    reserve = StagedReserve(free_bytes=0)
    watch = DiskWatch(reserve)
    watch.failed(10.0)
    assert not reserve.held
    assert "nothing can be stored" in watch.look(10.0, 0)
    assert watch.wants_probe(10.0)
    assert not watch.wants_probe(10.0), "asked once until it is answered"
    assert watch.probed(SMALL, 10.1), "results go on"
    text = watch.look(10.1, 0)
    assert "disk.reserve_bytes of 64 MiB, which was given up" in text
    assert "nothing can be stored" not in text


def test_a_disk_that_takes_nothing_is_tried_ever_more_rarely() -> None:
    reserve = StagedReserve(held=False)
    watch = DiskWatch(reserve)
    now_s, tries = 0.0, []
    watch.failed(now_s)
    while now_s < 200.0:
        now_s += 0.5
        if watch.wants_probe(now_s):
            tries.append(now_s)
            assert not watch.probed(REFUSED, now_s)
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * PAUSE_S[0], PAUSE_S[1])


def test_tasks_are_taken_again_only_when_one_fits_and_the_reserve_is_there() -> None:
    reserve = StagedReserve(free_bytes=0)
    watch = DiskWatch(reserve)
    watch.failed(0.0)
    assert watch.wants_probe(0.0)
    watch.probed(FITS, 0.0)  # while the reserve is still missing that shows nothing
    assert "nearly full" in watch.look(1.0, 0)
    assert not watch.wants_probe(2.0), "nothing has changed"
    reserve.free_bytes = 2_000 * MIB
    assert "full" in watch.look(5.0, 0)
    assert reserve.held
    assert watch.wants_probe(5.0)
    assert not watch.probed(FITS, 5.1)
    assert watch.look(5.1, 0) == ""


def test_a_quota_that_free_space_knows_nothing_of_keeps_tasks_out() -> None:
    reserve = StagedReserve(has_quota=True)
    watch = DiskWatch(reserve)
    watch.failed(0.0)
    assert watch.wants_probe(0.0)
    watch.probed(FITS, 0.0)
    assert "quota" in watch.look(5.0, 0)
    assert not watch.wants_probe(6.0)
    reserve.has_quota = False
    watch.look(10.0, 0)
    assert watch.wants_probe(10.0)
    watch.probed(SMALL, 10.0)
    assert "quota" in watch.look(10.0, 0), "a task does not fit yet"


def test_after_a_steady_while_the_first_pause_is_short_again() -> None:
    watch = DiskWatch(StagedReserve(held=False))
    for number in range(4):
        watch.failed(float(number))
        watch.wants_probe(number + 100.0)
        watch.probed(SMALL, float(number))
    watch.failed(4.0 + STEADY_S)
    assert not watch.wants_probe(4.0 + STEADY_S + PAUSE_S[0] - 0.1)
    assert watch.wants_probe(4.0 + STEADY_S + PAUSE_S[0])


def test_a_read_only_disk_is_called_so() -> None:
    watch = DiskWatch(StagedReserve(is_writable=False))
    watch.failed(0.0)
    assert "read-only" in watch.look(0.0, 0)


def test_the_store_owes_an_answer_only_while_it_is_asked() -> None:
    watch = DiskWatch(StagedReserve(held=False))
    watch.failed(0.0)
    assert not watch.is_waiting_for_store
    assert watch.wants_probe(disk_watch.PAUSE_S[0])
    assert watch.is_waiting_for_store
    watch.probed(REFUSED, 1.0)
    assert not watch.is_waiting_for_store
