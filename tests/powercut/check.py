"""Whether what was promised is there: a real broker is started on what the cut has left, and asked."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from koubou_agent.config import key_file
from koubou_agent.spool import Spool
from koubou_broker.start import Places
from koubou_client.client import Client
from koubou_client.connection import new_request_id
from koubou_client.tasks import new_idempotency_key
from koubou_client.where import broker_here
from koubou_common.errors import KoubouError
from koubou_common.home import Home
from koubou_common.keys import read_key_pair
from koubou_common.messages import GetResult, TaskResult
from koubou_common.messages.values import TaskState, TaskView
from powercut.activity import draft_of
from powercut.notes import Accepted, Ended, Heard, Joined, Keyed, Note, Told, Up
from powercut.process import Forge, await_broker, broker_arguments
from powercut.recording import AGENT_HOME, BROKER_HOME, WORKER

REPEATED = 3  # submissions that are said again: the same tasks must come back
_MOST_TASKS = 100_000
_ANSWER_S = 30.0


@dataclass(slots=True)
class Verdict:
    """What came of one cut."""

    checked: int = 0  # promises
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)

    def hold(self, is_kept: bool, promise: str) -> None:
        """One promise."""
        self.checked += 1
        if not is_kept:
            self.lost.append(promise)


def check(forge: Forge, folder: Path, config: Path, promises: Sequence[Note], log: Path) -> Verdict:
    """Start a broker on the home below `folder`, ask for everything that was promised, stop it, look at its files."""
    verdict = Verdict()
    home, box = Home(folder / BROKER_HOME), Home(folder / AGENT_HOME)
    broker = forge.start(broker_arguments(home.root, config), log)
    try:
        await_broker(broker)
    except AssertionError as error:
        verdict.corrupt.append(f"the broker does not start by itself: {error}")
        return verdict
    try:
        where = broker_here(home)
        for note in promises:
            if isinstance(note, Up):
                verdict.hold((where.broker_key, where.pair.public) == (note.broker_key, note.operator_key), str(note))
        if not verdict.lost:  # with other keys nobody can ask anything
            with contextlib.closing(Client(where=where)) as client:
                _ask(client, promises, verdict)
    except KoubouError as error:
        verdict.corrupt.append(f"the broker answers {error.code}: {error.message}\n{broker.log()}")
    finally:
        code = broker.stop()
    if code != 0:
        verdict.corrupt.append(f"the broker ended with {code}:\n{broker.log()}")
    _look(home, box, promises, verdict)
    return verdict


def _ask(client: Client, promises: Sequence[Note], verdict: Verdict) -> None:
    """Over the wire, as anybody would."""
    tasks = {task.task_id: task for task in client.tasks(most=_MOST_TASKS)}
    results: list[tuple[Ended, Future[bytes | None]]] = []
    accepted = [note for note in promises if isinstance(note, Accepted)]
    for note in accepted:
        for task_id, prompt in zip(note.task_ids, note.prompts, strict=True):
            verdict.hold(_is_that(tasks.get(task_id), note, prompt), f"task {task_id} was accepted")
    for end in promises:
        if not isinstance(end, Ended):
            continue
        task = tasks.get(end.task_id)
        if end.output is None or task is None or task.state is not end.state:
            verdict.hold(task is not None and task.state is end.state, f"task {end.task_id} was {end.state}")
        else:
            results.append((end, _output_of(client, end.task_id)))
    for end, output in results:
        is_there = output.result(_ANSWER_S) == end.output
        verdict.hold(is_there, f"task {end.task_id} has succeeded with {len(end.output or b'')} bytes")
    own = [note for note in accepted if note.principal == client.welcome().principal]
    for note in own[-REPEATED:]:
        drafts = [draft_of(prompt, note.worker) for prompt in note.prompts]
        again = client.submit_drafts(drafts, key=note.key, as_batch=note.batch_id != 0)
        same = [ref.task_id for ref in again.tasks if ref.existing]
        verdict.hold(same == list(note.task_ids), f"{note.task_ids} are what the key {note.key} stands for")
    given_out = max((task_id for note in accepted for task_id in note.task_ids), default=0)
    fresh = client.submit_drafts([draft_of("pause 0 ms, answer 64 bytes, fresh")], key=new_idempotency_key())
    verdict.hold(fresh.tasks[0].task_id > given_out, f"the number {given_out} was given out")


def _output_of(client: Client, task_id: int) -> "Future[bytes | None]":
    """A task's output, asked for without waiting; None where there is none."""
    output: Future[bytes | None] = Future()

    def fetched(reply: TaskResult) -> Callable[[Future[bytes]], None]:
        def done(data: Future[bytes]) -> None:
            error = data.exception()
            whole = None if error else data.result()
            end = reply.output_offset + reply.output_length
            output.set_result(whole[reply.output_offset : end] if whole is not None else None)

        return done

    def answered(reply: TaskResult | KoubouError) -> None:
        if isinstance(reply, KoubouError) or reply.body is None:
            output.set_result(None)
        else:
            client.connection.fetch(reply.body).add_done_callback(fetched(reply))

    client.connection.begin(GetResult(new_request_id(), task_id), answered)
    return output


def _is_that(task: TaskView | None, note: Accepted, prompt: str) -> bool:
    expected = draft_of(prompt, note.worker).spec
    return task is not None and (task.principal, task.custom_id, task.batch_id, task.priority) == (
        note.principal,
        expected.custom_id,
        note.batch_id,
        expected.priority,
    )


def _look(home: Home, box: Home, promises: Sequence[Note], verdict: Verdict) -> None:
    """In the files, after the broker's end: bodies, attempts, keys; and the spool of the agent's box."""
    database = Places(home).database
    with contextlib.closing(sqlite3.connect(database)) as connection:
        verdict.corrupt += [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
        bodies = _Bodies(connection)
        verdict.corrupt += bodies.faults()
        attempts = "SELECT a.attempt_uid, a.ended_ms, t.state FROM attempts a JOIN tasks t USING (task_id)"
        recorded = {uid: (ended_ms, state) for uid, ended_ms, state in connection.execute(attempts)}
        keys = list(connection.execute("SELECT name, public_key, revoked_ms FROM principals"))
    over = {uid for uid, (_, state) in recorded.items() if TaskState(state).is_terminal}
    ended = {uid for uid, (ended_ms, _) in recorded.items() if ended_ms}
    spooled = _spooled(box)
    for note in promises:
        match note:
            case Accepted():
                for task_id, prompt in zip(note.task_ids, note.prompts, strict=True):
                    verdict.hold(bodies.prompt_of(task_id) == prompt.encode(), f"the prompt of task {task_id}")
            case Keyed(name, _, is_revoked) if is_revoked:
                is_off = all(revoked_ms for other, _, revoked_ms in keys if other == name)
                verdict.hold(is_off, f"the keys of {name} were revoked")
            case Keyed(name, public_key, _):
                verdict.hold(any(key == public_key for _, key, _ in keys), f"a key of {name} was put on the list")
            case Joined():
                verdict.hold(_has_key(box, keys), "the box had joined")
            case Told(uid, raw_sha256):
                verdict.hold(uid in over or spooled.get(uid) == raw_sha256, f"the outcome of attempt {uid} was told")
            case Heard(uid, is_stored):
                known = ended if is_stored else recorded
                verdict.hold(uid in known, f"attempt {uid} was {'stored' if is_stored else 'given out'}")
            case Up() | Ended():
                pass
            case _:
                assert_never(note)


def _spooled(box: Home) -> dict[str, str]:
    """What the agent would deliver after the cut: digests of what the model said, by attempt."""
    folder = box.agent_state(WORKER) / "spool"
    if not folder.exists():
        return {}
    spool = Spool(folder)
    return {
        outcome.attempt_uid: hashlib.sha256(spool.raw_of(outcome.attempt_uid) or b"").hexdigest()
        for outcome in spool.load()
    }


def _has_key(box: Home, keys: Sequence[tuple[str, str, int]]) -> bool:
    path = key_file(box, WORKER)
    if not path.exists() or not box.config_file("agent").exists():
        return False
    public = read_key_pair(path).public
    return any(key == public and not revoked_ms for _, key, revoked_ms in keys)


class _Bodies:
    """What a database holds of texts."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._prompts: dict[int, bytes] = dict(connection.execute("SELECT task_id, prompt_sha256 FROM tasks"))
        self._bodies: dict[bytes, bytes] = {}
        for sha256, piece in connection.execute("SELECT sha256, bytes FROM blob_chunk ORDER BY sha256, n"):
            self._bodies[sha256] = self._bodies.get(sha256, b"") + piece
        self._named = [sha256 for (sha256,) in connection.execute("SELECT sha256 FROM blob_ref")]

    def faults(self) -> list[str]:
        """Bodies that are named but not there, or are there and not what their digest says."""
        missing = [f"the body {sha256.hex()} is missing" for sha256 in self._named if sha256 not in self._bodies]
        spoilt = [sha256 for sha256, data in self._bodies.items() if hashlib.sha256(data).digest() != sha256]
        return missing + [f"the body {sha256.hex()} is spoilt" for sha256 in spoilt]

    def prompt_of(self, task_id: int) -> bytes | None:
        return self._bodies.get(self._prompts.get(task_id, b""))
