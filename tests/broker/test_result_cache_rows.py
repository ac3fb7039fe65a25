"""The result cache in the real database: which rows answer a question, and when they go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from koubou_broker.batches import Entry
from koubou_broker.database import open_reader, open_writer
from koubou_broker.effects import FindCached
from koubou_broker.lookups import find
from koubou_broker.records import BodyRef, CachedResult
from koubou_broker.retention import DAY_MS, Keep, Sweep, forget_tasks
from koubou_common.messages.values import TaskState
from support.store_play import START_MS, a_blob, a_progress, a_store, a_submitted_task, sha

KEY, OTHER = b"k" * 32, b"o" * 32
Found = list[tuple[bytes, int, bytes]]


def an_answer(task_id: int, key: bytes = KEY, *, stored_ms: int = START_MS, text: bytes = b"answer") -> Entry:
    """A task that succeeded, and the question it answers."""
    submitted = a_submitted_task(task_id, prompt=b"prompt %d" % task_id)
    done = a_progress(
        task_id, TaskState.SUCCEEDED, finished_ms=stored_ms, result=BodyRef(sha(text), len(text)), output_length=3
    )
    return Entry((*submitted.records, done, CachedResult(key, task_id, stored_ms)), (*submitted.blobs, a_blob(text)))


@contextmanager
def _writing(path: Path) -> Iterator[Connection]:
    engine = open_writer(path)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def looked_up(path: Path, *keys: bytes, since_ms: int = 0) -> Found:
    """Key, task and text's hash of what is found."""
    engine = open_reader(path)
    try:
        with engine.begin() as connection:
            found = find(connection, FindCached(keys, since_ms)).cached
    finally:
        engine.dispose()
    results = [one.stored.progress.result for one in found]
    return [
        (one.key, one.stored.task.task_id, result.sha256)
        for one, result in zip(found, results, strict=True)
        if result is not None
    ]


def test_an_answer_is_found_by_its_key_and_a_newer_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_store(path) as play:
        play.write(an_answer(1), an_answer(2, OTHER))
        assert looked_up(path, KEY) == [(KEY, 1, sha(b"answer"))]
        assert looked_up(path, b"x" * 32) == []
        play.write(an_answer(3, stored_ms=START_MS + 5, text=b"newer"))
        assert sorted(looked_up(path, KEY, OTHER)) == [(KEY, 3, sha(b"newer")), (OTHER, 2, sha(b"answer"))]


def test_more_keys_than_one_query_takes_are_looked_up_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    keys = tuple(b"%032d" % number for number in range(1, 1_302))
    with a_store(path) as play:
        play.write(*(an_answer(task_id, keys[task_id]) for task_id in (1, 600, 1_300)))
        assert sorted(one[1] for one in looked_up(path, *keys)) == [1, 600, 1_300]


def _reopened(path: Path) -> None:
    with a_store(path) as play:
        play.write(Entry((a_progress(1, generation=1),)))


def _retried(path: Path) -> None:
    result = BodyRef(sha(b"answer"), 6)
    again = a_progress(1, TaskState.SUCCEEDED, generation=1, finished_ms=START_MS + 9, result=result)
    with a_store(path) as play:
        play.write(Entry((a_progress(1, generation=1),)))
        play.write(Entry((again,), (a_blob(b"answer"),)))


def _without_its_text(path: Path) -> None:
    with _writing(path) as connection:
        connection.exec_driver_sql("DELETE FROM blob_ref WHERE task_id = 1")


def _forgotten(path: Path) -> None:
    with _writing(path) as connection:
        forget_tasks(connection, [1])


@pytest.mark.parametrize(
    ("happened", "rows_left"), [(_reopened, 1), (_retried, 1), (_without_its_text, 1), (_forgotten, 0)]
)
def test_an_answer_that_is_not_its_tasks_any_more_is_not_found(
    tmp_path: Path, happened: Callable[[Path], None], rows_left: int
) -> None:
    path = tmp_path / "koubou.db"
    with a_store(path) as play:
        play.write(an_answer(1))
    assert looked_up(path, KEY) == [(KEY, 1, sha(b"answer"))]
    happened(path)
    assert looked_up(path, KEY) == []
    with a_store(path) as play:
        assert play.rows("SELECT count(*) FROM result_cache") == [(rows_left,)]


def test_an_older_answer_than_asked_for_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_store(path) as play:
        play.write(an_answer(1))
        assert looked_up(path, KEY, since_ms=START_MS) != []
        assert looked_up(path, KEY, since_ms=START_MS + 1) == []


def test_rows_go_when_their_answers_are_too_old_to_be_given(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_store(path) as play:
        play.write(an_answer(1), an_answer(2, OTHER, stored_ms=START_MS + DAY_MS))
    clock = [0.0]
    sweep = Sweep(Keep(cache_days=3), wall_ms=lambda: START_MS + 3 * DAY_MS + 1, mono_s=lambda: clock[0])
    clock[0] = 10_000.0
    engine = open_writer(path)
    with engine.connect() as connection:
        sweep.step(connection)
    engine.dispose()
    assert (looked_up(path, KEY), len(looked_up(path, OTHER))) == ([], 1)
    with a_store(path) as play:
        assert play.rows("SELECT task_id FROM result_cache") == [(2,)]
