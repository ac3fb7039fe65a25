"""Copies of a database in use: whole, checked, one at a time, and nothing of them is left behind."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from koubou_broker.backup import IDLE_S, READS_MOST, SUFFIX, Answer, Backups
from koubou_broker.effects import AskBackup
from koubou_broker.wake import Wake
from koubou_common.errors import Code
from koubou_common.messages import (
    BackupEnded,
    BackupMade,
    BackupPart,
    EndBackup,
    Error,
    GetBackupPart,
    MakeBackup,
)
from koubou_common.messages.limits import CHUNK_BYTES, MIB
from koubou_common.messages.values import Role
from support.broker_play import Peer, a_broker, a_configuration, a_spec, work_one
from support.store_play import StorePlay, a_store, a_submitted_task
from support.waiting import eventually

ROOMY = 1 << 40


class Desk:
    """A Backups on the database of a running store, and what it has said."""

    def __init__(self, play: StorePlay, spare_bytes: int) -> None:
        self.now_s = 0.0
        self.wake = Wake()
        self.folder = play.path.parent
        self.backups = Backups(play.path, lambda: spare_bytes, self.wake.set, mono_s=lambda: self.now_s)
        self.said: list[Answer] = []

    def say(self, message: MakeBackup | GetBackupPart | EndBackup, *, session: int = 1, name: str = "op") -> None:
        self.said += self.backups.ask(AskBackup(session, name, message))

    def hear(self) -> Answer:
        """The next thing it says."""

        def next_one() -> Answer | None:
            self.said += self.backups.take()
            return self.said.pop(0) if self.said else None

        answer = eventually(next_one, what="an answer")
        assert answer is not None
        return answer

    def make(self, request_id: str = "b1") -> BackupMade:
        self.say(MakeBackup(request_id))
        made = self.hear().message
        assert isinstance(made, BackupMade), made
        return made

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(f"*{SUFFIX}*"))


@contextmanager
def a_desk(root: Path, *, tasks: int = 1, spare_bytes: int = ROOMY) -> Iterator[Desk]:
    with a_store(root / "koubou.db") as play:
        for number in range(tasks):
            play.write(a_submitted_task(number + 1, prompt=b"%d " % number * 200_000))
        desk = Desk(play, spare_bytes)
        desk.backups.start()
        try:
            yield desk
        finally:
            assert desk.backups.stop(10)
            desk.wake.close()


def fetched(peer: Peer, made: BackupMade) -> bytes:
    parts = []
    for index in range(-(-made.size_bytes // CHUNK_BYTES)):
        part = peer.ask(GetBackupPart(f"p{index}", made.request_id, index), BackupPart)
        assert part.index == index
        parts.append(part.data)
    return b"".join(parts)


def test_a_backup_is_a_whole_database_with_all_that_was_accepted_before(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as operator, play.agent() as agent:
        first = operator.submit(a_spec(b"first")).tasks[0].task_id
        work_one(agent, b"an answer")
        operator.say(MakeBackup("b1"))
        made = operator.next(BackupMade)
        after = operator.submit(a_spec(b"later"), key="k2").tasks[0].task_id
        data = fetched(operator, made)
        assert operator.ask(EndBackup("e1", "b1"), BackupEnded).request_id == "e1"
        eventually(lambda: not list(play.home.state.glob(f"*{SUFFIX}*")), what="the copy is gone")
    assert (hashlib.sha256(data).digest(), len(data)) == (made.sha256, made.size_bytes)
    copy = tmp_path / "copy.db"
    copy.write_bytes(data)
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT task_id, state FROM tasks").fetchall() == [(first, "succeeded")]
        assert database.execute("SELECT count(*) FROM blob_chunk WHERE bytes = ?", (b"an answer",)).fetchone() == (1,)
    assert (made.tasks, after) == (1, first + 1)
    with closing(sqlite3.connect(tmp_path / "state" / "koubou.db")) as database:
        audited = database.execute("SELECT actor, action FROM audit WHERE action = 'backup'").fetchall()
    assert audited == [("operator", "backup")]


def test_only_an_operator_may_have_one(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.peer(play.enrol("mika", Role.CLIENT)) as mika, play.operator() as operator:
        mika.hello()
        operator.ask(MakeBackup("b1"), BackupMade)
        for message in (MakeBackup("b2"), GetBackupPart("p", "b1", 0), EndBackup("e", "b1")):
            assert mika.ask(message, Error).code is Code.NOT_AUTHORISED
        assert len(operator.ask(GetBackupPart("p", "b1", 0), BackupPart).data) > 0


def test_a_disk_without_room_for_it_is_refused_beforehand(tmp_path: Path) -> None:
    config = a_configuration("bind: tcp://127.0.0.1:0\ndisk: {reserve_bytes: 0, min_free_bytes: 1125899906842624}\n")
    with a_broker(tmp_path, config) as play, play.operator() as operator:
        refused = operator.ask(MakeBackup("b1"), Error)
        assert (refused.code, "min_free_bytes" in refused.message) == (Code.STORE_FULL, True)
        assert not list(play.home.state.glob(f"*{SUFFIX}*"))


def test_there_is_one_at_a_time_and_the_next_is_told_when_to_ask_again(tmp_path: Path) -> None:
    with a_desk(tmp_path) as desk:
        made = desk.make()
        desk.say(MakeBackup("b2"), session=2, name="other")
        busy = desk.hear().message
        assert isinstance(busy, Error)
        assert (busy.code, busy.request_id, busy.retry_after_s > 0) == (Code.BUSY, "b2", True)
        desk.say(MakeBackup("b1"), session=3)
        assert desk.hear() == Answer(3, "op", made), "the same request is the same copy, also in a new session"
        desk.say(EndBackup("e", "b1"))
        assert desk.hear().message == BackupEnded("e")
        desk.say(MakeBackup("b2"), session=2, name="other")
        assert isinstance(desk.hear().message, BackupMade)


def test_a_request_repeated_while_the_copy_is_made_moves_to_the_new_session(tmp_path: Path) -> None:
    with a_desk(tmp_path, tasks=20) as desk:
        desk.say(MakeBackup("b1"), session=1)
        desk.say(MakeBackup("b1"), session=2)
        answer = desk.hear()
        assert (answer.session, type(answer.message)) == (2, BackupMade)
        assert len(desk.copies()) == 1


def test_somebody_elses_copy_cannot_be_fetched_or_ended(tmp_path: Path) -> None:
    with a_desk(tmp_path) as desk:
        desk.make()
        desk.say(GetBackupPart("p", "b1", 0), name="other")
        refused = desk.hear().message
        assert isinstance(refused, Error)
        assert refused.code is Code.NOT_FOUND
        desk.say(EndBackup("e", "b1"), name="other")
        desk.hear()
        assert len(desk.copies()) == 1


def test_a_copy_that_nobody_fetches_is_removed(tmp_path: Path) -> None:
    with a_desk(tmp_path) as desk:
        desk.make()
        desk.now_s += IDLE_S
        desk.say(GetBackupPart("p", "b1", 0))
        assert isinstance(desk.hear().message, BackupPart)
        desk.now_s += IDLE_S - 1
        assert (desk.backups.take(), len(desk.copies())) == ([], 1)
        desk.now_s += 2
        eventually(lambda: not desk.backups.take() and not desk.copies(), what="the copy is gone")
        desk.say(GetBackupPart("p", "b1", 0))
        assert isinstance(desk.hear().message, Error)


def test_who_asks_for_more_pieces_than_agreed_gets_no_more_than_agreed(tmp_path: Path) -> None:
    with a_desk(tmp_path) as desk:
        desk.make()
        for index in range(3 * READS_MOST):
            desk.say(GetBackupPart(f"p{index}", "b1", 0))
        for _ in range(READS_MOST):
            assert isinstance(desk.hear().message, BackupPart)
        desk.say(GetBackupPart("last", "b1", 0))
        last = desk.hear().message
        assert isinstance(last, BackupPart)
        assert last.request_id == "last"


def test_a_start_removes_what_a_crash_left(tmp_path: Path) -> None:
    left = tmp_path / f"koubou.db.1{SUFFIX}"
    left.write_bytes(b"half a copy")
    (tmp_path / f"koubou.db.1{SUFFIX}-journal").touch()
    with a_desk(tmp_path) as desk:
        assert desk.copies() == []


def test_a_stop_breaks_off_what_is_being_made(tmp_path: Path) -> None:
    with a_desk(tmp_path, tasks=60) as desk:
        desk.say(MakeBackup("b1"))
        eventually(lambda: bool(desk.copies()), what="the copy has begun")
        assert desk.backups.stop(10)
        assert desk.copies() == []
        assert not desk.backups.is_alive()


def test_a_copy_is_its_owners_alone_and_has_no_free_pages(tmp_path: Path) -> None:
    with a_desk(tmp_path, tasks=5) as desk:
        made = desk.make()
        [copy] = desk.folder.glob(f"*{SUFFIX}")
        assert copy.stat().st_mode & 0o777 == 0o600
        assert 2 * MIB < made.size_bytes <= (tmp_path / "koubou.db").stat().st_size + 10 * MIB


@pytest.mark.parametrize("spare_bytes", [0, MIB])
def test_what_does_not_fit_is_not_begun(tmp_path: Path, spare_bytes: int) -> None:
    with a_desk(tmp_path, tasks=5, spare_bytes=spare_bytes) as desk:
        desk.say(MakeBackup("b1"))
        refused = desk.hear().message
        assert isinstance(refused, Error)
        assert (refused.code, desk.copies()) == (Code.STORE_FULL, [])
        desk.say(MakeBackup("b2"))
        assert isinstance(desk.hear().message, Error), "a refused one is not under way"
