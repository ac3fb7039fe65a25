"""koubou-ctl backup, against a whole broker; and the way back with koubou-broker restore."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from koubou_broker.backup import SUFFIX
from koubou_common.errors import Code
from koubou_common.messages import (
    BackupEnded,
    BackupMade,
    BackupPart,
    ClientHello,
    ClientWelcome,
    EndBackup,
    Error,
    GetBackupPart,
    MakeBackup,
    Message,
)
from koubou_common.messages.limits import CHUNK_BYTES
from koubou_common.messages.values import Role
from support.broker_play import BrokerPlay, a_broker, a_spec
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop
from support.waiting import eventually


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main") as broker, broker.operator() as operator:
        for number in range(8):  # more than a few pieces
            operator.submit(a_spec(b"%d" % number * 200_000), key=f"k{number}")
        yield broker


@pytest.fixture
def ctl(broker: BrokerPlay) -> Ctl:
    return Ctl(broker.home.root)


def test_a_copy_is_written_whole_for_its_owner_alone(ctl: Ctl, broker: BrokerPlay, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    ran = ctl("backup", str(out))
    assert ran.code == 0, ran.err
    assert f"wrote {out}" in ran.out
    assert "8 tasks" in ran.out
    assert "keys/ and config/" in ran.err
    assert out.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(out)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM tasks").fetchone() == (8,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "main"]
    eventually(lambda: not list(broker.home.state.glob(f"*{SUFFIX}*")), what="the broker's copy is gone")


def test_json_has_the_figures(ctl: Ctl, tmp_path: Path) -> None:
    data = ctl("backup", str(tmp_path / "copy.db"), "--json").data
    assert (data["tasks"], data["bytes"]) == (8, (tmp_path / "copy.db").stat().st_size)
    assert data.keys() == {"path", "bytes", "sha256", "tasks", "epoch", "seconds"}


@pytest.mark.parametrize(
    ("out", "code"),
    [("-", 2), ("here", 7), ("no/such/folder/copy.db", 2), (".", 2)],
)
def test_a_place_that_will_not_do_is_refused(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("precious")
    assert ctl("backup", out).code == code
    assert (tmp_path / "here").read_text() == "precious"


def test_a_file_that_is_there_is_replaced_by_force_only(ctl: Ctl, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    out.write_text("old")
    assert ctl("backup", str(out)).code == 7
    assert ctl("backup", str(out), "--force").code == 0
    assert out.read_bytes().startswith(b"SQLite format 3")


def test_a_client_is_refused(ctl: Ctl, tmp_path: Path) -> None:
    mika = Ctl(tmp_path / "mika")
    assert mika("join", "-", stdin=ctl("keys", "invite", "mika", "-q").raw).code == 0
    assert mika("backup", str(tmp_path / "copy.db")).code == 4
    assert not (tmp_path / "copy.db").exists()


class Lending:
    """What a broker answers that forgets its copy once, and may give wrong bytes."""

    def __init__(self, *, forgets: int = 0, lies: bool = False, is_old: bool = False) -> None:
        self.data = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
        self.forgets = forgets
        self.lies = lies
        self.is_old = is_old
        self.made = 0

    def __call__(self, message: Message) -> list[Message] | None:
        match message:
            case ClientHello():
                return [ClientWelcome(1 if self.is_old else 2, 1, "mika", Role.OPERATOR, 1, 1, 1, 1)]
            case MakeBackup(request_id):
                self.made += 1
                return [BackupMade(request_id, len(self.data), sha256(self.data).digest(), 7, 9, 5)]
            case GetBackupPart(request_id) if self.made <= self.forgets:
                return [Error(Code.NOT_FOUND, "it is gone", "", request_id)]
            case GetBackupPart(request_id, _, index):
                piece = self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                return [BackupPart(request_id, index, piece[::-1] if self.lies and index == 2 else piece)]
            case EndBackup(request_id):
                return [BackupEnded(request_id)]
            case _:
                return None


def lent(workshop: FakeWorkshop, lending: Lending) -> Ctl:
    """koubou-ctl with that broker."""
    workshop.hook = lending
    return Ctl(workshop.home.root)


def test_a_broker_that_was_restarted_is_asked_anew(workshop: FakeWorkshop, tmp_path: Path) -> None:
    lending = Lending(forgets=1)
    ran = lent(workshop, lending)("backup", str(tmp_path / "copy.db"))
    assert (ran.code, lending.made) == (0, 2), ran.err
    assert (tmp_path / "copy.db").read_bytes() == lending.data
    assert "beginning again" in ran.err


def test_a_broker_that_loses_every_copy_is_given_up(workshop: FakeWorkshop, tmp_path: Path) -> None:
    lending = Lending(forgets=99)
    assert lent(workshop, lending)("backup", str(tmp_path / "copy.db")).code == 5
    assert lending.made == 3
    assert not [path for path in tmp_path.iterdir() if "copy" in path.name]


def test_bytes_that_are_not_the_copys_are_never_kept(workshop: FakeWorkshop, tmp_path: Path) -> None:
    ran = lent(workshop, Lending(lies=True))("backup", str(tmp_path / "copy.db"), "--json")
    assert (ran.code, ran.error["code"]) == (7, "internal")
    assert not [path for path in tmp_path.iterdir() if "copy" in path.name]
    assert workshop.heard(EndBackup)


def test_a_broker_that_knows_no_backups_is_told_apart_at_once(workshop: FakeWorkshop, tmp_path: Path) -> None:
    ran = lent(workshop, Lending(is_old=True))("backup", str(tmp_path / "copy.db"), "--json")
    assert (ran.code, ran.error["code"]) == (7, "version")
