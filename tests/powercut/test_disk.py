"""What a power cut leaves, by the strict reading of POSIX."""

import errno
import random
from pathlib import Path

import pytest

from powercut.disk import SECTOR_BYTES, Disk, Tree, build, found
from powercut.journal import Call, Kind

MADE, EMPTIED = 1, 2
FOLDER, FILE = 900, 901  # inodes


class Play:
    """Calls one after the other, one a nanosecond, on a disk with an empty folder `f`."""

    def __init__(self, root: Path) -> None:
        (root / "f").mkdir()
        self.root = root
        self.disk = Disk(root)
        self.folder = (root / "f").stat().st_ino
        self.at_ns = 0

    def do(
        self,
        kind: Kind,
        inode: int,
        path: str,
        *,
        number: int = 0,
        other: str = "",
        data: bytes = b"",
        error: int = 0,
        began_ns: int | None = None,
    ) -> None:
        self.at_ns += 1
        began_ns = self.at_ns if began_ns is None else began_ns
        names = [f"{self.root}/{name}" if name else "" for name in (path, other)]
        self.disk.do(Call(kind, error, began_ns, self.at_ns, inode, number, names[0], names[1], data))

    def write(self, data: bytes, at: int = 0) -> None:
        self.do(Kind.WRITTEN, FILE, "f/file", number=at, data=data)

    def sync(self, inode: int, *, error: int = 0, began_ns: int | None = None) -> None:
        self.do(Kind.SYNCED, inode, "f", error=error, began_ns=began_ns)

    def somes(self, count: int = 200) -> list[Tree]:
        return [self.disk.some(random.Random(number)) for number in range(count)]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """With a file `f/file` whose name is durable and which holds nothing."""
    play = Play(tmp_path)
    play.do(Kind.OPENED, FILE, "f/file", number=MADE)
    play.sync(play.folder)
    return play


def test_a_file_without_its_folders_sync_has_no_name(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.do(Kind.OPENED, FILE, "f/file", number=MADE)
    play.write(b"data")
    play.sync(FILE)
    assert play.disk.synced() == {"f": None}
    assert play.disk.now() == {"f": None, "f/file": b"data"}
    assert {tree.get("f/file") for tree in play.somes()} == {None, b"data"}
    play.sync(play.folder)
    assert play.disk.synced() == {"f": None, "f/file": b"data"}


def test_what_was_written_after_the_last_sync_may_be_lost_or_torn_at_sectors(play: Play) -> None:
    play.write(b"a" * 3 * SECTOR_BYTES)
    play.sync(FILE)
    play.write(b"b" * 2 * SECTOR_BYTES, SECTOR_BYTES // 2)
    assert play.disk.synced()["f/file"] == b"a" * 3 * SECTOR_BYTES
    contents = {tree["f/file"] for tree in play.somes()}
    torn = b"a" * SECTOR_BYTES + b"b" * SECTOR_BYTES + b"a" * SECTOR_BYTES
    assert {torn, b"a" * 3 * SECTOR_BYTES, play.disk.now()["f/file"]} <= contents


def test_a_write_that_came_while_a_sync_ran_is_not_durable(play: Play) -> None:
    play.write(b"before")
    began_ns = play.at_ns
    play.write(b"meanwhile")
    play.sync(FILE, began_ns=began_ns)
    assert play.disk.synced()["f/file"] == b"before"


def test_a_rename_without_a_sync_may_not_have_happened_but_never_by_half(play: Play) -> None:
    play.write(b"old")
    play.sync(FILE)
    play.do(Kind.OPENED, FILE + 1, "f/new", number=MADE)
    play.do(Kind.WRITTEN, FILE + 1, "f/new", data=b"new")
    play.sync(FILE + 1)
    play.do(Kind.RENAMED, FILE + 1, "f/new", other="f/file")
    assert play.disk.synced()["f/file"] == b"old"
    for tree in play.somes():
        assert tree["f/file"] in (b"old", b"new")
        assert not (tree["f/file"] == b"new" and tree.get("f/new") == b"new"), "both names at once"
    play.sync(play.folder)
    assert play.disk.synced() == {"f": None, "f/file": b"new"}


def test_a_file_that_was_removed_or_emptied_may_still_be_there(play: Play) -> None:
    play.write(b"data")
    play.sync(FILE)
    play.do(Kind.OPENED, FILE, "f/file", number=EMPTIED)
    assert play.disk.synced()["f/file"] == b"data"
    assert {tree["f/file"] for tree in play.somes()} == {b"", b"data"}
    play.do(Kind.UNLINKED, FILE, "f/file")
    assert "f/file" not in play.disk.now()
    assert {tree.get("f/file") for tree in play.somes()} == {None, b"", b"data"}


def test_what_a_failed_sync_was_to_write_is_read_but_never_durable(play: Play) -> None:
    play.write(b"lost")
    play.sync(FILE, error=errno.EIO)
    play.sync(FILE)
    assert play.disk.now()["f/file"] == b"lost"
    assert play.disk.synced()["f/file"] == b""
    assert {tree["f/file"] for tree in play.somes()} == {b""}


def test_a_folder_is_lost_with_all_that_is_in_it_unless_the_one_above_was_synced(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.do(Kind.FOLDER_MADE, FOLDER, "f/g")
    play.do(Kind.OPENED, FILE, "f/g/file", number=MADE)
    play.sync(FILE)
    play.sync(FOLDER)
    assert play.disk.synced() == {"f": None}
    play.sync(play.folder)
    assert play.disk.synced() == {"f": None, "f/g": None, "f/g/file": b""}


def test_an_inode_that_is_given_out_again_is_another_file(play: Play) -> None:
    play.write(b"data")
    play.sync(FILE)
    play.do(Kind.UNLINKED, FILE, "f/file")
    play.do(Kind.OPENED, FILE, "f/other", number=MADE)
    assert play.disk.now() == {"f": None, "f/other": b""}
    assert play.disk.synced() == {"f": None, "f/file": b"data"}


def test_a_tree_is_built_as_it_was_found_without_what_is_not_durable(play: Play, tmp_path: Path) -> None:
    play.write(b"data")
    play.do(Kind.OPENED, FILE + 1, "f/koubou.db-shm", number=MADE)
    build(play.disk.now(), tmp_path / "built")
    assert found(tmp_path / "built") == {"f": None, "f/file": b"data"}
    assert (tmp_path / "built" / "f" / "file").stat().st_mode & 0o777 == 0o600
