"""Single files that must survive: the witness of a restoration, the copy before an upgrade, a person's output."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from koubou_broker.lock import Witness, read_witness
from powercut.disk import Disk, build
from powercut.journal import Call, Watch

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("powercut")]

EPOCH, NOTES = 1_800_000_000_000, 5
DISKS = 20  # that one cut may leave: a few of very many

WRITER = f"""
import sys
from pathlib import Path
from koubou_broker.lock import Witness, note_progress, write_witness
path = Path(sys.argv[1])
write_witness(path, Witness({EPOCH}, 0, 7, 8, 9))
for number in range(1, {NOTES} + 1):
    note_progress(path, {EPOCH}, number)
"""


COPIER = """
import sqlite3, sys
from pathlib import Path
from koubou_broker import migrate
path = Path(sys.argv[1])
database = sqlite3.connect(path, isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE t (x)")
database.close()
migrate._copy(path, path.with_name("before.db"))
"""

OUTPUT = """
import sys
from pathlib import Path
from koubou_client.outputs import write_output
write_output(Path(sys.argv[1]).parent, "epoch", b"text", expected_digest=None, force=False)
"""


@pytest.fixture
def watch(tmp_path: Path, shim: Path) -> Watch:
    watch = Watch(shim, tmp_path.resolve() / "disk", tmp_path.resolve() / "journal")
    watch.root.mkdir()
    watch.journal.mkdir()
    return watch


def played(watch: Watch, program: str) -> tuple[Disk, list[Call]]:
    """The disk before the program, and what the program did to it."""
    disk = Disk(watch.root)
    command = [sys.executable, "-c", program, str(watch.root / "epoch")]
    subprocess.run(command, env=watch.environment(), check=True, timeout=60)
    return disk, watch.calls()


def test_a_witness_is_never_lost_to_a_power_cut(watch: Watch, tmp_path: Path) -> None:
    disk, calls = played(watch, WRITER)
    assert read_witness(watch.root / "epoch") == Witness(EPOCH, NOTES, 7, 8, 9)

    dice = random.Random(7)
    seen: list[Witness] = []
    is_begun = False  # the term was told to be on the disk: from then on there is always a witness
    for number, call in enumerate(calls):
        disk.do(call)
        for one in range(DISKS):
            left = tmp_path / f"{number}-{one}"
            build(disk.some(dice) if one else disk.synced(), left)
            found = read_witness(left / "epoch")
            is_begun = is_begun or (one == 0 and found.epoch == EPOCH)
            if is_begun:
                assert (found.epoch, found.next_task_id) == (EPOCH, 7), (number, call.path, found)
                seen.append(found)
    assert {found.event_seq for found in seen} >= {0, NOTES}, (
        "the cuts have hit before the first note and after the last"
    )


def test_the_copy_made_before_an_upgrade_is_there_under_its_name(watch: Watch) -> None:
    disk, calls = played(watch, COPIER)
    for call in calls:
        disk.do(call)
    assert disk.synced().get("before.db"), sorted(disk.synced())


def test_an_output_that_was_written_is_there_under_its_name(watch: Watch) -> None:
    disk, calls = played(watch, OUTPUT)
    for call in calls:
        disk.do(call)
    assert disk.synced() == {"epoch": b"text\n"}
