"""Texts that are removed for good: gone from the database's files, byte for byte, and nobody else's with them."""

import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from koubou_broker.batches import Claim, Claimed, Entry, Purged
from koubou_broker.database import open_writer
from koubou_broker.effects import Erase
from koubou_broker.purge import LOG_WAIT_S, RELIED_MOST, STEP_TASKS, Purges
from koubou_broker.records import BodyRef, Parked, Submission
from koubou_broker.retention import Keep, Sweep
from koubou_common.messages.values import TaskState
from support.store_play import (
    START_MS,
    StorePlay,
    a_blob,
    a_decision,
    a_metric,
    a_progress,
    a_store,
    a_submitted_task,
    a_worker,
    an_attempt,
    sha,
)
from support.waiting import eventually

TABLES = ("tasks", "events", "attempts", "decisions", "worker_metrics", "submissions", "blob_ref")


def ended(task_id: int, prompt: bytes, answer: bytes = b"") -> Entry:
    """All that a task leaves behind that succeeded."""
    submitted = a_submitted_task(task_id, prompt=prompt)
    answer = answer or b"answer to " + prompt
    done = a_progress(task_id, TaskState.SUCCEEDED, result=BodyRef(sha(answer), len(answer)))
    uid = f"{task_id:032d}"
    more = (an_attempt(uid, task_id), a_decision(uid, task_id), a_metric(task_id), a_worker(), done)
    submission = Submission("mika", f"key-{task_id}", b"d" * 32, 0, task_id, 1, START_MS)
    return Entry((*submitted.records, *more, submission), (*submitted.blobs, a_blob(answer)))


def a_quiet_store(path: Path) -> AbstractContextManager[StorePlay]:
    """A store whose retention does not begin: the tasks of these tests ended years ago."""
    return a_store(path, sweep=Sweep(Keep(bodies_days=100_000, history_days=100_000)))


def purge(play: StorePlay, *task_ids: int, history: bool = False, token: int = 1) -> Purged:
    """Have the store do it, and wait for what came of it."""
    play.store.erase(Erase(token, task_ids, history))

    def answered() -> list[Purged]:
        return [one for one in play.heard() if isinstance(one, Purged) and one.token == token]

    [purged] = eventually(answered, what="the purge is over")
    return purged


def secret(number: int, size_bytes: int) -> bytes:
    """A text that occurs nowhere else, as long as that."""
    mark = b"secret-%06d " % number
    return mark * (size_bytes // len(mark) + 1)


def test_the_text_is_gone_from_database_and_log(tmp_path: Path) -> None:
    sizes = [100, 900, 3_000, 5_000, 40_000, 600_000]
    with a_quiet_store(tmp_path / "koubou.db") as play:
        for number, size_bytes in enumerate(sizes * 6, start=1):
            play.write(ended(number, secret(number, size_bytes), secret(1_000 + number, size_bytes)))
        assert any(b"secret-000001" in path.read_bytes() for path in tmp_path.glob("koubou.db*"))
        purged = purge(play, *range(1, 31))
        assert (len(purged.erased.task_ids), purged.erased.texts, purged.erased.is_log_empty) == (30, 60, True)
        assert purged.erased.size_bytes == sum(2 * len(secret(number + 1, sizes[number % 6])) for number in range(30))
        files = {path.name: path.read_bytes() for path in tmp_path.glob("koubou.db*")}
        left = [(name, n) for name, data in files.items() for n in range(1, 31) if secret(n, 1)[:13] in data]
        left += [(name, n) for name, data in files.items() for n in range(1_001, 1_031) if secret(n, 1)[:13] in data]
        assert left == []
        assert all(secret(n, 1)[:13] in files["koubou.db"] for n in range(31, 37)), "other texts are still there"
        assert set(purged.hashes) >= {sha(secret(1, 100)), sha(secret(1_001, 100))}


def test_a_text_that_sqlite_moved_about_before_is_gone_too(tmp_path: Path) -> None:
    """Small texts share pages; what pages are joined or split would leave copies, were deletes not overwritten."""
    with a_quiet_store(tmp_path / "koubou.db") as play:
        for first in range(1, 201, 8):
            play.write(*(ended(number, secret(number, 150 + number % 7 * 400)) for number in range(first, first + 8)))
        odd = range(1, 201, 2)
        for first in range(0, 100, 20):
            purge(play, *odd[first : first + 20], history=True, token=first + 1)
        purge(play, *range(2, 101, 2), token=1_000)
        data = b"".join(path.read_bytes() for path in tmp_path.glob("koubou.db*"))
        gone = [*odd, *range(2, 101, 2)]
        assert [number for number in gone if secret(number, 1)[:13] in data] == []


def test_the_record_stays_unless_it_is_to_go_too(tmp_path: Path) -> None:
    with a_quiet_store(tmp_path / "koubou.db") as play:
        play.write(ended(1, b"one"), ended(2, b"two"))
        purge(play, 1, token=1)
        assert play.rows("SELECT task_id, state FROM tasks") == [(1, "succeeded"), (2, "succeeded")]
        assert play.rows("SELECT task_id FROM blob_ref GROUP BY 1") == [(2,)]
        purged = purge(play, 1, 2, history=True, token=2)
        assert purged.erased.task_ids == (1, 2)
        for table in TABLES:
            assert play.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
        assert play.rows("SELECT count(*) FROM blob") == [(0,)]
        assert play.snapshot().next_task_id == 3, "numbers are not used again"
        assert play.snapshot().submission_hashes == frozenset()


def test_a_text_that_others_use_stays_for_them(tmp_path: Path) -> None:
    with a_quiet_store(tmp_path / "koubou.db") as play:
        parked = Parked("u" * 32, "lan_001", START_MS, BodyRef(sha(b"parked"), 6), "")
        play.write(ended(1, b"shared", b"same"), ended(2, b"shared", b"parked"), ended(3, b"x", b"same"))
        play.write(Entry((parked,)))
        first = purge(play, 1, token=1).erased
        assert (first.texts, first.shared) == (0, 2)
        second = purge(play, 2, token=2).erased
        assert (second.texts, second.shared) == (1, 1)
        assert {row[0] for row in play.rows("SELECT sha256 FROM blob")} == {sha(b"parked"), sha(b"x"), sha(b"same")}
        together = purge(play, 3, token=3).erased
        assert (together.texts, together.shared) == (2, 0)


def test_a_text_of_two_tasks_goes_when_both_are_purged_together(tmp_path: Path) -> None:
    with a_quiet_store(tmp_path / "koubou.db") as play:
        play.write(ended(1, b"shared", b"same"), ended(2, b"shared", b"same"))
        purged = purge(play, 1, 2)
        assert (purged.erased.texts, purged.erased.shared) == (2, 0)
        assert play.rows("SELECT count(*) FROM blob_chunk") == [(0,)]


@pytest.mark.parametrize("how", ["claimed", "uploaded again"])
def test_a_text_that_a_submission_under_way_counts_on_stays(tmp_path: Path, how: str) -> None:
    text = secret(1, 8_000)
    with a_quiet_store(tmp_path / "koubou.db") as play:
        play.write(ended(1, text))
        if how == "claimed":
            number = play.put(claims=(Claim(7, "mika", (sha(text),)),))
            eventually(lambda: any(isinstance(one, Claimed) for one in play.heard()), what=f"batch {number}")
        else:
            play.write(Entry((), (a_blob(text),)))
        assert purge(play, 1).erased.shared == 1
        play.write(a_submitted_task(2, prompt=text))  # would break the rules of the tables without it
        assert play.rows("SELECT count(*) FROM blob_chunk") == [(1,)]


def test_what_has_not_ended_and_what_is_not_there_is_left_alone(tmp_path: Path) -> None:
    with a_quiet_store(tmp_path / "koubou.db") as play:
        play.write(a_submitted_task(1, prompt=b"waiting"))
        for token, history in enumerate((False, True)):
            purged = purge(play, 1, 99, history=history, token=token)
            assert (purged.erased.task_ids, purged.erased.error) == ((), "")
        assert play.rows("SELECT count(*) FROM blob_ref") == [(1,)]


def test_a_large_purge_lets_others_write_in_between(tmp_path: Path) -> None:
    count = 3 * STEP_TASKS
    with a_quiet_store(tmp_path / "koubou.db") as play:
        play.write(*(ended(number, b"%d" % number) for number in range(1, count + 1)))
        play.store.erase(Erase(1, tuple(range(1, count + 1)), False))
        number = play.put(a_submitted_task(count + 1))
        eventually(lambda: any(isinstance(one, Purged) for one in play.heard()), what="the purge is over")
        kinds = [type(one).__name__ for one in play.heard() if getattr(one, "number", number) == number]
        assert kinds.index("Durable") < kinds.index("Purged")


def test_a_reader_that_holds_the_log_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_quiet_store(path) as play:
        play.write(ended(1, secret(1, 5_000)))
        with closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("BEGIN")
            shell.execute("SELECT count(*) FROM tasks").fetchone()
            play.store.erase(Erase(1, (1,), False))
            eventually(lambda: play.rows("SELECT count(*) FROM blob_ref") == [(0,)], what="the text is deleted")
            play.write(a_submitted_task(2))
            assert not [one for one in play.heard() if isinstance(one, Purged)], "it is still in the log"
            shell.execute("COMMIT")
        [purged] = eventually(lambda: [one for one in play.heard() if isinstance(one, Purged)], what="told")
        assert purged.erased.is_log_empty
        assert not [path for path in tmp_path.glob("koubou.db*") if b"secret-000001" in path.read_bytes()]


def test_a_reader_that_never_ends_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "koubou.db"
    with a_quiet_store(path) as play:
        play.write(ended(1, b"one"))
    now_s = 0.0
    purges = Purges(mono_s=lambda: now_s)
    engine = open_writer(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell, engine.connect() as connection:
        shell.execute("BEGIN")
        shell.execute("SELECT count(*) FROM tasks").fetchone()
        purges.put(Erase(1, (1,), False))
        assert [purges.step(connection) for _ in range(3)] == [None, None, None]
        now_s = LOG_WAIT_S
        purged = purges.step(connection)
    engine.dispose()
    assert purged is not None
    assert (purged.erased.is_log_empty, purged.erased.error) == (False, "")
    assert "held the write-ahead log" in caplog.text


def test_what_keeps_it_from_writing_ends_a_purge_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    with a_quiet_store(path) as play:
        play.write(ended(1, b"one"), ended(2, b"two"))
    purges = Purges()
    engine = open_writer(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell, engine.connect() as connection:
        plain = connection.connection.driver_connection
        assert isinstance(plain, sqlite3.Connection)
        plain.execute("PRAGMA busy_timeout = 20")
        shell.execute("BEGIN IMMEDIATE")
        purges.put(Erase(1, (1, 2), False))
        failed = purges.step(connection)
        shell.execute("ROLLBACK")
        assert failed is not None
        assert (failed.erased.task_ids, failed.erased.is_log_empty) == ((), False)
        assert "locked" in failed.erased.error
        purges.put(Erase(2, (1, 2), False))
        assert purges.step(connection) is None
        done = purges.step(connection)
    engine.dispose()
    assert done is not None
    assert (done.erased.texts, done.erased.error) == (4, "")


def test_what_is_relied_on_is_forgotten_after_an_hour_and_bounded() -> None:
    now_s = 0.0
    purges = Purges(mono_s=lambda: now_s)
    many = tuple((number.to_bytes(32, "big"), 1) for number in range(RELIED_MOST + 10))
    purges.note((), (Claimed(1, many),))
    assert len(purges._relied) == RELIED_MOST
    now_s = 3_601.0
    purges.note((), (Claimed(2, many[:3]),))
    assert set(purges._relied) == {sha256 for sha256, _ in many[:3]}
