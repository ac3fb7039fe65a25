"""The store: what it keeps comes back, law 6 holds in SQL, and every kind of failure is told apart."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event

from koubou_broker.batches import Claim, Claimed, Durable, Entry, Failed, FailureKind, Quarantined
from koubou_broker.database import open_reader
from koubou_broker.effects import FindMarks, StoredTask
from koubou_broker.idempotency import submission_hash
from koubou_broker.lookups import find
from koubou_broker.records import Audit, BodyRef, Parked, Submission
from koubou_broker.transaction import OWNED_BYTES
from koubou_common.errors import ErrorClass
from koubou_common.messages.values import AttemptState, Metrics, TaskState
from support.store_play import (
    START_MS,
    a_blob,
    a_metric,
    a_principal,
    a_progress,
    a_store,
    a_submitted_task,
    a_task,
    a_worker,
    an_attempt,
    an_event,
    sha,
)
from support.waiting import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "koubou.db"


def test_what_is_stored_comes_back_in_a_snapshot(path: Path) -> None:
    submission = Submission("mika", "key-1", b"d" * 32, 0, 1, 1, START_MS)
    with a_store(path) as play:
        play.write(
            Entry(
                (
                    a_principal(),
                    a_worker(),
                    a_task(files=(b"one", b"two"), queue_timeout_s=90.0),
                    a_progress(state=TaskState.RUNNING, attempts=1, deaths=("w/b",), excluded=("w2",)),
                    submission,
                    an_attempt(),
                    an_event(),
                    a_metric(),
                    Audit(START_MS, "mika", "invite", "lan_001", ""),
                ),
                (a_blob(b"hello"), a_blob(b"one"), a_blob(b"two")),
            )
        )
        snapshot = play.snapshot()
    assert snapshot.tasks == (
        StoredTask(
            a_task(files=(b"one", b"two"), queue_timeout_s=90.0),
            a_progress(state=TaskState.RUNNING, attempts=1, deaths=("w/b",), excluded=("w2",)),
        ),
    )
    assert snapshot.attempts == (an_attempt(),)
    assert snapshot.workers == (a_worker(),)
    assert snapshot.principals == (a_principal(),)
    assert snapshot.submission_hashes == {submission_hash("mika", "key-1")}
    assert snapshot.worker_scores == (("lan_001", 1, 0),)
    assert snapshot.bytes_per_token == (("gpt-oss:20b", 4.0),)
    assert (snapshot.next_task_id, snapshot.next_batch_id, snapshot.next_event_seq) == (2, 1, 2)


def test_wishes_and_a_models_name_of_an_older_release_come_back_as_the_core_knows_them(path: Path) -> None:
    wishes = a_task(model="Some-GGUF:Q4", capabilities=("code", "review"), digest="a" * 64)
    with a_store(path) as play:
        play.write(Entry((wishes, a_progress()), (a_blob(b"hello"),)))
        restored = play.snapshot().tasks[0].task
    assert (restored.model, restored.capabilities, restored.digest) == ("some-gguf:q4", ("code", "review"), "a" * 64)


def test_an_ended_task_is_no_part_of_a_snapshot_but_its_number_is_never_used_again(path: Path) -> None:
    ended = a_progress(7, TaskState.SUCCEEDED, result=BodyRef(sha(b"answer"), 6), metrics=Metrics(output_tokens=3))
    with a_store(path) as play:
        play.write(a_submitted_task(7))
        play.write(Entry((ended,), (a_blob(b"answer"),)))
        snapshot = play.snapshot()
    assert snapshot.tasks == ()
    assert snapshot.next_task_id == 8


def test_several_changes_of_one_task_in_one_transaction_leave_the_last(path: Path) -> None:
    with a_store(path) as play:
        play.write(
            a_submitted_task(),
            Entry((a_progress(state=TaskState.RUNNING, attempts=1), an_attempt())),
            Entry(
                (
                    an_attempt(state=AttemptState.LOST),
                    a_progress(attempts=1, infra_failures=1, error_cause=ErrorClass.AGENT_LOST),
                )
            ),
        )
        snapshot = play.snapshot()
    assert snapshot.tasks[0].progress == a_progress(attempts=1, infra_failures=1, error_cause=ErrorClass.AGENT_LOST)
    assert snapshot.attempts == (an_attempt(state=AttemptState.LOST),)


@pytest.mark.parametrize("shares_transaction", [True, False])
def test_a_terminal_state_never_changes(path: Path, shares_transaction: bool) -> None:
    cancelled = Entry((a_progress(state=TaskState.CANCELLED),))
    succeeded = Entry((a_progress(state=TaskState.SUCCEEDED),))
    with a_store(path) as play:
        play.write(a_submitted_task())
        if shares_transaction:
            failed = play.fail(cancelled, succeeded)
        else:
            play.write(cancelled)
            failed = play.fail(succeeded)
        assert failed.kind is FailureKind.BROKEN
        assert failed.entry == (1 if shares_transaction else 0)
        assert play.rows("SELECT state FROM tasks") == [("cancelled",)]


def test_many_tasks_change_together_and_one_that_is_over_stops_them_all(path: Path) -> None:
    running = Entry(tuple(a_progress(number, TaskState.RUNNING, attempts=1) for number in (1, 2, 3)))
    with a_store(path) as play:
        play.write(*(a_submitted_task(number) for number in (1, 2, 3)))
        play.write(running)
        play.write(Entry((a_progress(2, TaskState.CANCELLED),)))
        assert play.fail(running).kind is FailureKind.BROKEN
        assert play.rows("SELECT state FROM tasks ORDER BY task_id") == [("running",), ("cancelled",), ("running",)]


def test_an_error_quotes_nobodys_texts(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(1))
        failed = play.fail(
            Entry((a_task(1, target="secret plans"), a_progress(1), an_event(9))), Entry((), (a_blob(b"hello"),))
        )
        assert failed.kind is FailureKind.BROKEN
        assert "secret plans" not in failed.error


def test_a_retry_opens_an_ended_task_again(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(), Entry((a_progress(state=TaskState.FAILED, error_class=ErrorClass.TIMEOUT),)))
        play.write(Entry((a_progress(generation=1),)))
        assert play.snapshot().tasks[0].progress == a_progress(generation=1)


def test_progress_of_an_unknown_task_is_refused(path: Path) -> None:
    with a_store(path) as play:
        assert play.fail(Entry((a_progress(99),))).kind is FailureKind.BROKEN


def test_a_body_that_nobody_stored_cannot_be_referred_to(path: Path) -> None:
    with a_store(path) as play:
        failed = play.fail(Entry((a_task(), a_progress(), an_event())))
        assert failed.kind is FailureKind.BROKEN
        assert sha(b"hello").hex() in failed.error
        assert play.rows("SELECT count(*) FROM tasks") == [(0,)]


def test_the_same_idempotency_key_is_never_stored_twice(path: Path) -> None:
    once = Submission("mika", "key-1", b"d" * 32, 0, 1, 1, START_MS)
    with a_store(path) as play:
        play.write(a_submitted_task(1), Entry((once,)))
        failed = play.fail(a_submitted_task(2), Entry((Submission("mika", "key-1", b"e" * 32, 0, 2, 1, START_MS),)))
        assert (failed.kind, failed.entry) == (FailureKind.BROKEN, 1)


def test_only_the_culprit_of_a_broken_transaction_is_lost(path: Path) -> None:
    with a_store(path) as play:
        first, broken, dropped = (
            play.put(a_submitted_task(1)),
            play.put(a_submitted_task(2), Entry((a_progress(77),)), a_submitted_task(3)),
            play.put(a_submitted_task(4)),
        )
        failed = eventually(lambda: [one for one in play.heard() if isinstance(one, Failed)])[0]
        play.term = 1
        play.write(a_submitted_task(5))
        assert failed.number == broken
        assert failed.entry == 1
        assert play.heard()[-1] == Durable(dropped + 1, 1)
        assert [one for one in play.heard() if isinstance(one, Durable) and one.term == 0] == [Durable(first, 0)]
        # Entries before the culprit are kept, what came after it was decided on ground that is gone.
        assert play.rows("SELECT task_id FROM tasks") == [(1,), (2,), (5,)]


def test_batches_are_told_durable_in_order_and_many_share_a_transaction(path: Path) -> None:
    commits = []
    with a_store(path) as play:
        event.listen(play.engine, "commit", lambda connection: commits.append(1))
        last = [play.put(a_submitted_task(number)) for number in range(1, 201)][-1]
        eventually(lambda: Durable(last, 0) in play.heard())
        told = [one.number for one in play.heard() if isinstance(one, Durable)]
        assert told == sorted(told)
        assert len(commits) < 100
        assert play.rows("SELECT count(*) FROM tasks") == [(200,)]


def test_a_full_disk_fails_the_batch_and_writing_goes_on_once_there_is_room(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(1))
        play.limit_pages(int(str(play.rows("PRAGMA page_count")[0][0])) + 2)
        failed = play.fail(a_submitted_task(2, prompt=b"x" * 500_000))
        assert failed.kind is FailureKind.FULL
        play.limit_pages(None)
        play.write(a_submitted_task(3))
        assert play.rows("SELECT task_id FROM tasks") == [(1,), (3,)]


def test_an_io_error_ends_the_store(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(1))

        @event.listens_for(play.engine, "commit")
        def fail_as_a_broken_disk_does(connection: object) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error

        assert play.fail(a_submitted_task(2)).kind is FailureKind.FATAL
        eventually(lambda: not play.store.is_alive())
        assert play.rows("SELECT task_id FROM tasks") == [(1,)]


def test_a_broker_that_was_replaced_writes_no_more(path: Path) -> None:
    with a_store(path, epoch=5) as play:
        failed = play.fail(a_submitted_task())
        assert failed.kind is FailureKind.FATAL
        assert "epoch" in failed.error
        assert play.rows("SELECT count(*) FROM tasks") == [(0,)]


def test_somebody_elses_short_lock_is_waited_for(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(1))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        number = play.put(a_submitted_task(2))
        assert Durable(number, 0) not in play.heard()
        other.execute("COMMIT")
        other.close()
        eventually(lambda: Durable(number, 0) in play.heard())


def test_large_uploads_are_owned_by_who_sent_them_and_nobody_else(path: Path) -> None:
    large, small = b"x" * OWNED_BYTES, b"y" * (OWNED_BYTES - 1)
    with a_store(path) as play:
        play.write(Entry((), (a_blob(large, "mika"), a_blob(small, "mika"))))
        play.put(claims=(Claim(1, "mika", (sha(large), sha(small), sha(b"never"))), Claim(2, "rin", (sha(large),))))
        eventually(lambda: len([one for one in play.heard() if isinstance(one, Claimed)]) == 2)
        assert Claimed(1, ((sha(large), OWNED_BYTES),)) in play.heard()
        assert Claimed(2, ()) in play.heard()


def test_a_quarantined_message_and_a_parked_result_are_kept_for_a_person(path: Path) -> None:
    with a_store(path) as play:
        number = play.put(quarantined=Quarantined(START_MS, "mika", "submit", b"\x80", "IntegrityError: no"))
        play.write(
            Entry((Parked("u" * 32, "lan_001", START_MS, BodyRef(sha(b"text"), 4), "unknown"),), (a_blob(b"text"),))
        )
        assert Durable(number, 0) in play.heard() or Durable(number + 1, 0) in play.heard()
        assert play.rows("SELECT principal, kind, error FROM quarantined") == [("mika", "submit", "IntegrityError: no")]
        assert play.rows("SELECT attempt_uid, raw_bytes FROM parked") == [("u" * 32, 4)]


def test_after_a_start_only_failures_that_speak_about_a_worker_count_against_it(path: Path) -> None:
    with a_store(path) as play:
        play.write(
            a_submitted_task(),
            Entry((a_worker(), a_metric(), a_metric(success=False, error_type="timeout"))),
            Entry((a_metric(success=False, error_type="cut_output"), a_metric(success=False, error_type="drain"))),
        )
        assert play.snapshot().worker_scores == (("lan_001", 1, 1),)


def test_after_a_start_every_success_counts_for_its_worker(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(), Entry((a_worker(), a_metric(), a_metric(), a_metric())))
        assert play.snapshot().worker_scores == (("lan_001", 3, 0),)


def test_a_retry_can_tell_whose_bodies_are_gone(path: Path) -> None:
    with a_store(path) as play:
        play.write(a_submitted_task(1), a_submitted_task(2, prompt=b"other"))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM blob_ref WHERE task_id = 1")  # as retention does
    engine = open_reader(path)
    with engine.begin() as connection:
        found = find(connection, FindMarks((1, 2))).tasks
    engine.dispose()
    assert [(one.task.task_id, one.has_bodies) for one in found] == [(1, False), (2, True)]
