"""What goes on while the power may fail: clients submit, wait and cancel, an operator gives and takes keys."""

import random
import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from koubou_client.client import Client
from koubou_client.connection import new_request_id
from koubou_client.tasks import TaskDraft, draft_task, new_idempotency_key
from koubou_client.where import Where
from koubou_common.enrol import enrol, invite
from koubou_common.errors import Code, KoubouError
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.messages import Keys, RevokeKey
from koubou_common.messages.values import Role, TaskState
from koubou_common.tokens import JoinToken
from powercut.notes import Accepted, Ended, Keyed, Notebook
from powercut.work import a_prompt

_Work = Callable[[Client, random.Random], None]

AWAY = "away_001"  # a worker that never comes: tasks for it wait, and can be cancelled at leisure

_WAIT_S = 2.0  # for an end: the broker may be gone meanwhile
_PAUSE_S = 0.03  # between two things one client does, at most
_KEYS_PAUSE_S = 0.3
_KEYS_MOST_S = 4.0  # for an invitation and an enrolment each: the broker may be gone meanwhile
_REPO = "powercut"
_SOFTWARE = "powercut"


def invited(where: Where, name: str, role: Role, notes: Notebook) -> JoinToken:
    """An invitation, as `koubou-ctl workers invite` and `keys invite` make it."""
    token = invite(
        where.addresses, where.broker_key, where.pair, software=_SOFTWARE, name=name, role=role, timeout_s=_KEYS_MOST_S
    )
    notes.add(Keyed(name, token.enrol_pair.public))
    return token


def draft_of(prompt: str, worker: str = "") -> TaskDraft:
    """The same prompt is the same task, also when it is submitted again after the cut."""
    return draft_task(prompt, repo=_REPO, worker=worker, custom_id=prompt[-8:].strip(".") or "task")


class Activity:
    """Some clients and an operator, each in a thread; ends with the block."""

    def __init__(self, operator: Where, notes: Notebook, seed: int) -> None:
        self._operator = operator
        self._notes = notes
        self._seed = seed
        self._is_over = threading.Event()
        self._clients: list[Client] = []
        self._threads: list[threading.Thread] = []
        self.faults: list[str] = []  # what no client should ever see

    def __enter__(self) -> Self:
        for number in range(3):
            pair = self._enrolled(f"client-{number}") if number else self._operator.pair
            self._start(self._submit, number, pair)
        self._start(self._give_keys, 9, self._operator.pair)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: _Work, number: int, pair: KeyPair) -> None:
        client = Client(where=Where(self._operator.addresses, self._operator.broker_key, pair))
        self._clients.append(client)
        dice = random.Random(f"{self._seed} {number}")
        self._threads.append(threading.Thread(target=self._loop, args=(work, client, dice), name=f"acts-{number}"))
        self._threads[-1].start()

    def _loop(self, work: _Work, client: Client, dice: random.Random) -> None:
        while not self._is_over.is_set():
            try:
                work(client, dice)
            except KoubouError as error:
                if not self._is_over.is_set() and error.code is not Code.BROKER_UNREACHABLE:
                    self.faults.append(f"{error.code}: {error.message}")
                self._is_over.wait(_PAUSE_S)

    def _submit(self, client: Client, dice: random.Random) -> None:
        count = dice.choice((1, 1, 1, 3))
        prompts = tuple(
            a_prompt(dice, is_large=dice.random() < 0.05, has_large_answer=dice.random() < 0.05) for _ in range(count)
        )
        worker = AWAY if dice.random() < 0.2 else ""
        key = new_idempotency_key()
        drafts = [draft_of(prompt, worker) for prompt in prompts]
        accepted = client.submit_drafts(drafts, key=key, as_batch=count > 1)
        task_ids = [ref.task_id for ref in accepted.tasks]
        principal = client.welcome().principal
        self._notes.add(Accepted(principal, key, worker, accepted.batch_id, tuple(task_ids), prompts))
        if dice.random() < (0.7 if worker else 0.15):
            self._cancel(client, task_ids)
        elif not worker and dice.random() < 0.6:
            self._await(client, task_ids)
        self._is_over.wait(dice.random() * _PAUSE_S)

    def _cancel(self, client: Client, task_ids: list[int]) -> None:
        for change in client.cancel(task_ids, reason="powercut"):
            if change.state is TaskState.CANCELLED:
                self._notes.add(Ended(change.task_id, change.state, None))

    def _await(self, client: Client, task_ids: list[int]) -> None:
        client.wait(task_ids, timeout_s=_WAIT_S)
        for task_id in task_ids:
            reply, output = client.result(task_id)
            if reply.task.state.is_terminal:
                output_or_none = output if reply.task.state is TaskState.SUCCEEDED else None
                self._notes.add(Ended(task_id, reply.task.state, output_or_none))

    def _give_keys(self, client: Client, dice: random.Random) -> None:
        name = f"guest-{secrets.token_hex(4)}"
        self._enrolled(name)
        if dice.random() < 0.5:
            client.connection.call(RevokeKey(new_request_id(), name), Keys)
            self._notes.add(Keyed(name, "", is_revoked=True))
        self._is_over.wait(dice.random() * _KEYS_PAUSE_S)

    def _enrolled(self, name: str) -> KeyPair:
        token = invited(self._operator, name, Role.CLIENT, self._notes)
        pair = new_key_pair()
        enrol(token, pair, _KEYS_MOST_S)
        self._notes.add(Keyed(name, pair.public))
        return pair
