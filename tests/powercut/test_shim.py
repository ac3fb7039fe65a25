"""The shim sees what CPython and its SQLite do: were a call missed, every other test here would prove nothing."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powercut.disk import Disk, found
from powercut.journal import Call, Failure, Kind, Watch

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("powercut")]

BUSY = """
import os, sqlite3, sys
from pathlib import Path
root = Path(sys.argv[1])
(root / "folder").mkdir()
os.chdir(root / "folder")
with open("text", "w") as file:  # relative, buffered
    file.write("one"); file.flush(); os.fsync(file.fileno())
with open("text", "ab", buffering=0) as file:
    file.write(b"two"); os.writev(file.fileno(), [b"three", b"four"])
handle = os.open(root / "numbers", os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(handle, b"x" * 5000, 1000)
os.ftruncate(handle, 3000); os.posix_fallocate(handle, 0, 4000); os.fdatasync(handle)
other = os.dup(handle); os.close(handle); os.write(other, b"by another handle"); os.close(other)
os.replace("text", root / "moved"); os.link(root / "moved", "linked"); os.unlink(root / "moved")
(root / "gone").mkdir(); (root / "gone").rmdir()
folder = os.open(root, os.O_RDONLY); os.fsync(folder); os.close(folder)
database = sqlite3.connect(root / "a.db", isolation_level=None)
database.execute("PRAGMA journal_mode = WAL"); database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE t (x)")
for number in range(300):
    database.execute("INSERT INTO t VALUES (randomblob(4000))")
database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
database.execute("INSERT INTO t VALUES (1)")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def watch(tmp_path: Path, shim: Path) -> Watch:
    watch = Watch(shim, tmp_path.resolve() / "disk", tmp_path.resolve() / "journal")
    watch.root.mkdir()
    watch.journal.mkdir()
    return watch


def run(watch: Watch, program: str, failure: Failure | None = None, armed_by: Path | None = None) -> int:
    command = [sys.executable, "-c", program, str(watch.root)]
    environment = watch.environment(failure, armed_by=armed_by)
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


def played(disk: Disk, calls: list[Call]) -> Disk:
    for call in calls:
        disk.do(call)
    return disk


def test_every_kind_of_call_is_seen_and_what_is_played_back_is_what_is_there(watch: Watch) -> None:
    disk = Disk(watch.root)
    run(watch, BUSY)
    calls = watch.calls()
    assert {call.kind for call in calls} == set(Kind), "a kind of call was never seen: another name in this libc?"
    of_database = {call.kind for call in calls if "a.db" in call.path}
    assert of_database >= {Kind.OPENED, Kind.WRITTEN, Kind.SYNCED, Kind.TRUNCATED}, "SQLite's calls are not seen"
    assert played(disk, calls).now() == found(watch.root)


def test_sqlite_syncs_its_log_at_every_commit_and_the_folder_that_holds_it(watch: Watch) -> None:
    run(watch, BUSY)
    synced = [call.path for call in watch.calls() if call.kind is Kind.SYNCED]
    assert sum(path.endswith("a.db-wal") for path in synced) > 300
    assert synced.count(str(watch.root)) > 1


def test_the_times_of_a_call_surround_it(watch: Watch) -> None:
    run(watch, BUSY)
    calls = watch.calls()
    assert all(call.began_ns <= call.ended_ns for call in calls)
    assert all(one.ended_ns <= two.began_ns for one, two in itertools.pairwise(calls)), "one thread"


def test_what_is_not_below_the_root_is_not_written_down(watch: Watch, tmp_path: Path) -> None:
    beside = tmp_path / "disk-beside"  # begins as the root does
    beside.mkdir()
    command = [sys.executable, "-c", BUSY, str(beside)]
    subprocess.run(command, env=watch.environment(), timeout=60, check=False)
    assert watch.calls() == []


FAILING = """
import os, sys
handle = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT, 0o600)
failed = []
for number in range(6):
    if number == 2:
        open(os.path.dirname(sys.argv[1]) + "/armed", "w").close()
    try:
        os.write(handle, b"%d" % number)
        os.fsync(handle)
    except OSError as error:
        failed.append((number, error.errno))
assert failed == [(4, 5)], failed
"""


@pytest.mark.parametrize("kind", [Kind.SYNCED, Kind.WRITTEN])
def test_the_calls_that_are_asked_for_fail_once_they_are_armed(watch: Watch, tmp_path: Path, kind: Kind) -> None:
    assert os.strerror(5) == "Input/output error"
    failure = Failure(kind, "file$", 5, first=3, times=1)
    assert run(watch, FAILING, failure, armed_by=tmp_path / "armed") == 0
    assert [(call.kind, call.error) for call in watch.calls() if call.error] == [(kind, 5)]


ENDING = """
import os, sys
for number in range(100_000):
    with open(sys.argv[1] + f"/{number}", "w") as file:
        file.write("some")
    if number == 50:
        open(os.path.dirname(sys.argv[1]) + "/end", "w").close()
"""


def test_a_process_that_is_told_to_kill_itself_leaves_no_call_unwritten(watch: Watch, tmp_path: Path) -> None:
    disk = Disk(watch.root)
    environment = watch.environment(killed_by=tmp_path.resolve() / "end")
    command = [sys.executable, "-c", ENDING, str(watch.root)]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -9
    assert played(disk, watch.calls()).now() == found(watch.root)
    assert (watch.root / "50").exists()
    assert not (watch.root / "52").exists()
