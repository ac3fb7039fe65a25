"""A disk that answers with errors: the broker stops before it says what is not so, the agent keeps to its memory."""

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_client.client import Client
from koubou_client.tasks import new_idempotency_key
from koubou_common.errors import KoubouError
from koubou_common.messages.values import TaskState
from powercut.activity import draft_of
from powercut.check import check
from powercut.disk import build
from powercut.journal import Failure, Kind
from powercut.notes import Accepted
from powercut.process import Forge, Process
from powercut.recording import Stage
from powercut.work import LARGE_BYTES, answer_to
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("powercut")]

PATIENCE_S = 30.0
STOPPED = 1  # the exit code of a broker that trusts nothing any more: its service manager starts the next one


@pytest.fixture
def stage(tmp_path: Path, shim: Path) -> Iterator[Stage]:
    with Stage(tmp_path, shim) as stage:
        yield stage


class Submitter(threading.Thread):
    """Submits one task after another and notes what was accepted; waits while there is no broker."""

    def __init__(self, stage: Stage, prompt_bytes: int) -> None:
        super().__init__(name="submitter")
        self._client = Client(where=stage.where())
        self._stage = stage
        self._prompt_bytes = prompt_bytes
        self._is_over = threading.Event()
        self.accepted = 0

    def run(self) -> None:
        with contextlib.suppress(KoubouError):  # closed while it waited for an answer
            while not self._is_over.is_set():
                prompt = f"pause 0 ms, answer 64 bytes, {new_idempotency_key()} ".ljust(self._prompt_bytes, ".")
                key = new_idempotency_key()
                done = self._client.submit_drafts([draft_of(prompt)], key=key)
                ids = tuple(ref.task_id for ref in done.tasks)
                self._stage.notes.add(Accepted(self._client.welcome().principal, key, "", 0, ids, (prompt,)))
                self.accepted += 1

    def end(self) -> None:
        self._is_over.set()
        self._client.close()
        self.join()


@pytest.mark.parametrize("kind", [Kind.SYNCED, Kind.WRITTEN])
def test_a_broker_whose_log_cannot_be_written_stops_and_the_next_one_has_all_that_was_accepted(
    stage: Stage, forge: Forge, kind: Kind
) -> None:
    """One error is enough: after it the kernel says that all is well, and the bytes are not on the disk."""
    armed = stage.folder / "armed"
    broker = stage.start_broker(Failure(kind, "koubou.db-wal", errno.EIO, first=5, times=1), armed_by=armed)
    submitter = Submitter(stage, 1_000)
    submitter.start()
    try:
        eventually(lambda: submitter.accepted >= 10, PATIENCE_S, "some tasks before")
        armed.touch()
        assert broker.wait(PATIENCE_S) == STOPPED, broker.log()
        assert "the broker stops" in broker.log()
        before = submitter.accepted

        second = stage.start_broker()
        assert "looking through the database" in second.log()
        eventually(lambda: submitter.accepted >= before + 10, PATIENCE_S, "it goes on; the submission said again too")
    finally:
        submitter.end()
    _cut_and_check(stage, second, forge)


def test_what_a_failed_sync_did_not_write_is_on_the_disk_before_anybody_is_told_of_it(
    stage: Stage, forge: Forge
) -> None:
    """The broker dies of it: the next one reads the commit from the kernel's memory, and no later sync writes it."""
    armed = stage.folder / "armed"
    failure = Failure(Kind.SYNCED, "koubou.db-wal", errno.EIO, first=5, times=1, is_end=True)
    broker = stage.start_broker(failure, armed_by=armed)
    submitter = Submitter(stage, 1_000)
    submitter.start()
    try:
        eventually(lambda: submitter.accepted >= 10, PATIENCE_S, "some tasks before")
        armed.touch()
        assert broker.wait(PATIENCE_S) == -signal.SIGKILL, broker.log()
        before = submitter.accepted
        second = stage.start_broker()
        eventually(lambda: submitter.accepted >= before + 5, PATIENCE_S, "it goes on; the submission said again too")
        stage.kill(second, "broker")
    finally:
        submitter.end()
    _cut_and_check(stage, second, forge)


def test_a_broker_whose_checkpoint_fails_stops_and_nothing_is_lost(stage: Stage, forge: Forge) -> None:
    """The log has everything still; a disk that cannot take the database must not go unnoticed while the log grows."""
    armed = stage.folder / "armed"
    broker = stage.start_broker(Failure(Kind.SYNCED, "koubou.db$", errno.EIO, times=1), armed_by=armed)
    submitter = Submitter(stage, LARGE_BYTES)
    submitter.start()
    try:
        armed.touch()
        assert broker.wait(PATIENCE_S) == STOPPED, broker.log()
        second = stage.start_broker()
        before = submitter.accepted
        eventually(lambda: submitter.accepted >= before + 3, PATIENCE_S, "it goes on")
    finally:
        submitter.end()
    _cut_and_check(stage, second, forge)


@pytest.mark.parametrize(
    ("kind", "error"), [(Kind.WRITTEN, errno.ENOSPC), (Kind.SYNCED, errno.EIO)], ids=["full", "broken"]
)
def test_an_agent_whose_spool_cannot_be_written_delivers_from_memory(stage: Stage, kind: Kind, error: int) -> None:
    stage.start_broker()
    stage.join_box()
    agent = stage.start_agent(Failure(kind, ".outcome", error))
    prompt = "pause 0 ms, answer 300 bytes, kept in memory"
    with contextlib.closing(Client(where=stage.where())) as client:
        task_id = client.submit_drafts([draft_of(prompt)]).tasks[0].task_id
        client.wait([task_id], timeout_s=PATIENCE_S)
        reply, output = client.result(task_id)
    assert (reply.task.state, output) == (TaskState.SUCCEEDED, answer_to(prompt))
    assert "kept in memory only: this box cannot keep results" in agent.log()
    assert agent.stop() == 0, agent.log()


def _cut_and_check(stage: Stage, broker: Process, forge: Forge) -> None:
    """The power goes while the broker runs: pages whose sync has failed are gone with it."""
    if not broker.has_ended():
        stage.kill(broker, "broker")
    recording = stage.recorded(0)
    for call in recording.calls:
        recording.disk.do(call)
    left = stage.folder / "left"
    build(recording.disk.synced(), left)
    verdict = check(forge, left, recording.config, recording.until(recording.ended_ns), stage.folder / "after.log")
    assert (verdict.lost, verdict.corrupt) == ([], [])
    assert verdict.checked > 20
