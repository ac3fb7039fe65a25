"""What is forgotten: bodies after their time, history after its own, uploads nobody referred to after a day."""

from dataclasses import replace
from pathlib import Path

from koubou_broker.batches import Entry
from koubou_broker.database import open_writer
from koubou_broker.effects import FindParked
from koubou_broker.lookups import find
from koubou_broker.records import Audit, BodyRef, Parked, Submission, TaskProgress
from koubou_broker.retention import DAY_MS, STEP_BYTES, STEP_TASKS, Keep, Sweep
from koubou_broker.statements import ADD_QUARANTINED
from koubou_broker.transaction import Transaction
from koubou_broker.wake import Wake
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

HISTORY = ("tasks", "events", "attempts", "decisions", "worker_metrics", "submissions", "audit", "parked")
BODIES = ("quarantined", "blob", "blob_chunk", "blob_owner", "blob_ref")
TABLES = (*HISTORY, *BODIES)


class Clock:
    """Both clocks of the sweep, moved by hand."""

    def __init__(self) -> None:
        self.wall_ms = START_MS
        self.mono_s = 0.0

    def sweep(self) -> Sweep:
        keep = Keep(bodies_days=30, history_days=365)
        return Sweep(keep, wall_ms=lambda: self.wall_ms, mono_s=lambda: self.mono_s)


def ended(task_id: int, prompt: bytes) -> Entry:
    submitted = a_submitted_task(task_id, prompt=prompt)
    done = a_progress(task_id, TaskState.SUCCEEDED, result=BodyRef(sha(b"answer"), 6))
    uid = f"{task_id:032d}"
    more = (an_attempt(uid, task_id), a_decision(uid, task_id), a_metric(task_id), a_worker(), done)
    submission = Submission("mika", f"key-{task_id}", b"d" * 32, 0, task_id, 1, START_MS)
    return Entry((*submitted.records, *more, submission), (*submitted.blobs, a_blob(b"answer")))


def step(play: StorePlay, clock: Clock, sweep: Sweep, days: float) -> None:
    """One step of the sweep so many days after the start, on a connection of its own."""
    clock.wall_ms = START_MS + round(days * DAY_MS)
    clock.mono_s += 10_000
    with play.engine.connect() as connection:
        sweep.step(connection)


def prepared(path: Path, *entries: Entry) -> None:
    with a_store(path) as play:
        play.write(*entries)
        play.rows("SELECT 1")


def reopened(path: Path) -> StorePlay:
    """The same database without a store thread: the sweep has the writer for itself."""
    return StorePlay(path, open_writer(path), None, Wake())  # type: ignore[arg-type] # no store is running


def test_bodies_go_before_history_and_live_tasks_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    prepared(path, ended(1, b"old prompt"), a_submitted_task(2, prompt=b"waiting"))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    _backdate_blobs(play)
    step(play, clock, sweep, 29)
    assert play.rows("SELECT count(*) FROM blob") == [(3,)]
    step(play, clock, sweep, 31)
    assert play.rows("SELECT sha256 FROM blob") == [(sha(b"waiting"),)]
    assert play.rows("SELECT count(*) FROM blob_chunk") == [(1,)]
    assert play.rows("SELECT task_id, state FROM tasks ORDER BY 1") == [(1, "succeeded"), (2, "queued")]
    assert play.rows("SELECT count(*) FROM attempts") == [(1,)]
    assert play.rows("SELECT task_id FROM decisions") == [(1,)]
    _close(play)


def test_history_goes_after_a_year_and_numbers_are_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    prepared(path, ended(1, b"one"), ended(2, b"two"), Entry((Audit(START_MS, "mika", "invite", "x", ""),)))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    step(play, clock, sweep, 366)
    for table in ("tasks", "events", "attempts", "decisions", "worker_metrics", "submissions", "blob_ref", "audit"):
        assert play.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    snapshot = play.snapshot()
    assert (snapshot.next_task_id, snapshot.next_event_seq) == (3, 3)
    assert snapshot.submission_hashes == frozenset()
    _close(play)


def test_uploads_that_nothing_refers_to_last_a_day_and_parked_results_longer(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    parked = Parked("u" * 32, "lan_001", START_MS, BodyRef(sha(b"parked"), 6), "")
    prepared(path, Entry((parked,), (a_blob(b"upload" * 1_000), a_blob(b"parked"))))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    _backdate_blobs(play)
    step(play, clock, sweep, 0.9)
    assert play.rows("SELECT count(*) FROM blob") == [(2,)]
    step(play, clock, sweep, 1.1)
    assert play.rows("SELECT sha256 FROM blob") == [(sha(b"parked"),)]
    assert play.rows("SELECT count(*) FROM blob_owner") == [(0,)]
    _close(play)


def test_a_body_of_two_tasks_stays_until_the_younger_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    prepared(path, ended(1, b"shared"), a_submitted_task(2, prompt=b"shared"))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    _backdate_blobs(play)
    step(play, clock, sweep, 31)
    assert play.rows("SELECT sha256 FROM blob") == [(sha(b"shared"),)]
    _close(play)


def test_a_walk_takes_small_steps_and_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    prepared(path, *(ended(number, b"p") for number in range(1, STEP_TASKS + 3)))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    step(play, clock, sweep, 366)
    assert play.rows("SELECT count(*) FROM tasks") == [(2,)]
    step(play, clock, sweep, 366)
    assert play.rows("SELECT count(*) FROM tasks") == [(0,)]
    _close(play)


def _backdate_blobs(play: StorePlay) -> None:
    """Blobs carry the real clock; the tests live at START_MS."""
    with play.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE blob SET stored_ms = {START_MS}")


def _close(play: StorePlay) -> None:
    play.engine.dispose()
    play.wake.close()


def test_over_many_generations_every_table_and_the_file_stay_bounded(tmp_path: Path) -> None:
    """Ten tasks a day for 60 days, kept 3 and 10 days: the file of the 20th day is as large as that of the 60th."""
    path = tmp_path / "koubou.db"
    prepared(path)
    play, clock = reopened(path), Clock()
    sweep = Sweep(Keep(bodies_days=3, history_days=10), wall_ms=lambda: clock.wall_ms, mono_s=lambda: clock.mono_s)
    sizes, most = [], dict.fromkeys(TABLES, 0)
    for day in range(60):
        _live_a_day(play, day)
        for _ in range(3):  # a walk, and another for the blobs of the first
            step(play, clock, sweep, day + 1)
        if day >= 20:
            most = {table: max(before, _count(play, table)) for table, before in most.items()}
            sizes.append(path.stat().st_size)
    assert max(sizes) <= sizes[0] * 1.1, "pages are used again"
    days_of_history, days_of_bodies = 10 + 1, 3 + 2  # a sweep comes later, an upload stays a day longer
    assert all(most[table] <= 10 * days_of_history for table in HISTORY), most
    assert all(most[table] <= 30 * days_of_bodies for table in BODIES), most
    assert all(most.values()), "every table was in use"
    assert len(play.snapshot().submission_hashes) <= 10 * days_of_history
    _close(play)


def test_a_step_takes_no_more_bytes_than_one_transaction_should(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    texts = [bytes([number]) * (STEP_BYTES // 2 - 1) for number in range(5)]
    prepared(path, Entry((), tuple(a_blob(text) for text in texts)))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    _backdate_blobs(play)
    left = []
    for _ in range(4):
        step(play, clock, sweep, 2)
        left.append(play.rows("SELECT count(*) FROM blob_chunk WHERE n = 0")[0][0])
    assert left == [3, 1, 0, 0]
    _close(play)


def test_the_text_of_a_parked_result_goes_when_other_texts_do_and_its_line_with_history(tmp_path: Path) -> None:
    path = tmp_path / "koubou.db"
    parked = Parked("u" * 32, "lan_001", START_MS, BodyRef(sha(b"parked"), 6), "a success")
    prepared(path, Entry((parked,), (a_blob(b"parked"),)))
    play, clock = reopened(path), Clock()
    sweep = clock.sweep()
    _backdate_blobs(play)
    step(play, clock, sweep, 31)
    assert play.rows("SELECT count(*) FROM blob") == [(0,)]
    with play.engine.begin() as connection:
        [shown] = find(connection, FindParked()).parked
    assert (shown.raw, shown.detail) == (None, "a success")
    step(play, clock, sweep, 366)
    assert play.rows("SELECT count(*) FROM parked") == [(0,)]
    _close(play)


def _live_a_day(play: StorePlay, day: int) -> None:
    """What ten tasks of a day leave behind, with one parked outcome, audit line and quarantined message each."""
    at_ms = START_MS + day * DAY_MS
    transaction = Transaction()
    for number in range(day * 10 + 1, day * 10 + 11):
        entry = ended(number, b"prompt %d " % number * 800)
        text = b"parked %d" % number * 500
        records = [
            replace(one, finished_ms=at_ms) if isinstance(one, TaskProgress) and one.state.is_terminal else one
            for one in entry.records
        ]
        parked = Parked(f"{number:032x}", "lan_001", at_ms, BodyRef(sha(text), len(text)), "")
        audited = Audit(at_ms, "mika", "purge", "x", "")
        transaction.add([Entry((*records, parked, audited), (*entry.blobs, a_blob(text)))])
    quarantined = {"at_ms": at_ms, "principal": "m", "kind": "x", "message": b"", "error": ""}
    with play.engine.begin() as connection:
        transaction.write(connection)
        connection.execute(ADD_QUARANTINED, [quarantined] * 10)
        connection.exec_driver_sql(f"UPDATE blob SET stored_ms = {at_ms} WHERE stored_ms > {at_ms}")


def _count(play: StorePlay, table: str) -> int:
    with play.engine.begin() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())
