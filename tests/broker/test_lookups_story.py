"""A task's story as the database tells it: attempts, events, and the decisions behind them where they are asked for."""

from pathlib import Path

from koubou_broker.batches import Entry
from koubou_broker.database import open_reader
from koubou_broker.effects import FindStory, Found
from koubou_broker.lookups import STORY_ATTEMPTS, find
from support.store_play import StorePlay, a_decision, a_store, a_submitted_task, an_attempt


def story(play: StorePlay, query: FindStory) -> Found:
    reader = open_reader(play.path)
    try:
        with reader.begin() as connection:
            return find(connection, query)
    finally:
        reader.dispose()


def test_a_decision_comes_back_as_it_was_taken_with_its_own_task_alone(tmp_path: Path) -> None:
    first, second, other = (f"{number:032x}" for number in range(3))
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(1), a_submitted_task(2, prompt=b"other"))
        attempts = (an_attempt(first, 1), an_attempt(second, 1, number=2), an_attempt(other, 2))
        play.write(Entry((*attempts, a_decision(first, 1), a_decision(other, 2))))
        found = story(play, FindStory(1, with_decisions=True))
        assert found.decisions == (a_decision(first, 1),)
        assert [one.attempt_uid for one in found.attempts] == [first, second]
        assert story(play, FindStory(1)).decisions == ()
        assert story(play, FindStory(9, with_decisions=True)) == Found()


def test_no_more_decisions_are_read_than_attempts_are_shown(tmp_path: Path) -> None:
    uids = [f"{number:032x}" for number in range(STORY_ATTEMPTS + 5)]
    with a_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(1))
        play.write(Entry(tuple(an_attempt(uid, 1, number=nth) for nth, uid in enumerate(uids, 1))))
        play.write(Entry(tuple(a_decision(uid, 1) for uid in uids)))
        found = story(play, FindStory(1, with_decisions=True))
        assert {one.attempt_uid for one in found.decisions} == {one.attempt_uid for one in found.attempts}
