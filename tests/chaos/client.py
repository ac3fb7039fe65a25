"""One client of a chaos run as a process: submits, cancels, waits, writes down what it was told, survives kill -9."""

import argparse
import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from chaos.jobs import Job, Submission, submission
from chaos.journal import Ending, Journal
from koubou_client.client import Client
from koubou_client.futures import TaskFailedError, TaskFuture
from koubou_common.errors import KoubouError
from koubou_common.messages.values import TaskState

_POLL_S = 0.05
_CONNECT_S = 60.0  # a broker that is stopped for 40 s is waited for
_AGAIN_S = 0.3  # after an error of the connection
_ASKED_AGAIN = 3  # tasks known to have ended that are asked for once more after a start: nothing may have changed


class Program:
    """Goes on where the journal ends; ends when the file `stop` is there and every task of its keys has ended."""

    def __init__(self, home: Path, name: str, seed: int, window: int, journal: Journal) -> None:
        self._home = home
        self._name = name
        self._seed = seed
        self._window = window
        self._journal = journal
        self._stop = home / "stop"
        self._jobs: dict[int, Job] = {}
        self._cancels: dict[int, float] = {}  # task -> when

    def run(self) -> None:
        """Until stopped."""
        for key, ids in self._journal.memory.accepted.items():
            self._know(submission(self._seed, self._name, self._journal.memory.planned[key]), ids)
        self._cancels.clear()  # what was not cancelled before the kill runs on
        is_first = True
        while not self._is_done():
            # A client whose broker was away for a minute gives its futures up: a new one asks again.
            try:
                with Client(home=self._home, connect_timeout_s=_CONNECT_S) as client:
                    if is_first:
                        self._ask_again(client)
                        is_first = False
                    self._work(client)
            except KoubouError as error:
                print(f"{error.code}: {error.message}", flush=True)
                time.sleep(_AGAIN_S)

    def _work(self, client: Client) -> None:
        futures: dict[int, TaskFuture] = {}
        while not self._is_done():
            for planned in self._unacknowledged():
                self._submit(client, planned)
            if len(self._open()) < self._window and not self._stop.exists():
                number = len(self._journal.memory.planned)
                next_one = submission(self._seed, self._name, number)
                self._journal.plan(next_one.key, number)
                self._submit(client, next_one, is_first=True)
            self._cancel_due(client)
            unwatched = [task_id for task_id in self._open() if task_id not in futures]
            futures.update((future.id, future) for future in client.futures(unwatched))
            wait(futures.values(), _POLL_S, FIRST_COMPLETED)
            for task_id, future in list(futures.items()):
                if future.done():
                    self._end(future)
                    del futures[task_id]

    def _submit(self, client: Client, planned: Submission, *, is_first: bool = False) -> None:
        accepted = client.submit_drafts(
            [job.draft() for job in planned.jobs], key=planned.key, as_batch=len(planned.jobs) > 1
        )
        if is_first and planned.dies_before_noting:
            os.kill(os.getpid(), signal.SIGKILL)  # the worst moment: told, and nothing written down
        ids = tuple(ref.task_id for ref in accepted.tasks)
        self._journal.accept(planned.key, ids)
        self._know(planned, ids)

    def _know(self, planned: Submission, ids: tuple[int, ...]) -> None:
        self._jobs.update(zip(ids, planned.jobs, strict=True))
        if planned.cancel_after_s is not None:
            self._cancels[ids[0]] = time.monotonic() + planned.cancel_after_s

    def _cancel_due(self, client: Client) -> None:
        for task_id, at_s in list(self._cancels.items()):
            if time.monotonic() >= at_s:
                (change,) = client.cancel([task_id], reason="chaos")
                self._journal.cancel(task_id, change.state)
                del self._cancels[task_id]

    def _end(self, future: TaskFuture) -> None:
        """Write down what was told; KoubouError where only the connection ended."""
        error = future.exception()
        if error is None:
            text = future.result().text
            self._note(future.id, TaskState.SUCCEEDED, text.encode())
        elif isinstance(error, TaskFailedError):
            self._note(future.id, error.task.state, b"")
        else:
            raise error

    def _ask_again(self, client: Client) -> None:
        ended = sorted(self._journal.memory.ended)
        for task_id in random.Random(len(ended)).sample(ended, min(_ASKED_AGAIN, len(ended))):
            told, output = client.result(task_id)
            self._note(task_id, told.task.state, output)

    def _note(self, task_id: int, state: TaskState, output: bytes) -> None:
        is_right = state is not TaskState.SUCCEEDED or output.decode() == self._jobs[task_id].answer
        digest = hashlib.sha256(output).hexdigest() if output else ""
        self._journal.end(Ending(task_id, state, digest, is_right))

    def _unacknowledged(self) -> Iterator[Submission]:
        memory = self._journal.memory
        for key, number in memory.planned.items():
            if key not in memory.accepted:
                yield submission(self._seed, self._name, number)

    def _open(self) -> list[int]:
        return sorted(self._jobs.keys() - self._journal.memory.ended)

    def _is_done(self) -> bool:
        return self._stop.exists() and not self._open() and not list(self._unacknowledged())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of one client."""
    parser = argparse.ArgumentParser(prog="python -m chaos.client", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--window", type=int, required=True, help="open tasks at a time")
    given = parser.parse_args(arguments)
    with Journal(given.home / "journal.jsonl") as journal:
        Program(given.home, given.name, given.seed, given.window, journal).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
