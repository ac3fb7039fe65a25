"""Random histories: agents that lose messages, crash, return; clients that repeat; brokers that restart."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from koubou_broker.core.agents import Agents
from koubou_broker.core.attempts import Attempts
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.submissions import Submissions
from koubou_broker.effects import Close, Effect, Send
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    Abort,
    AgentHello,
    Cancel,
    Dispatch,
    Error,
    Failure,
    FromAgent,
    HeartbeatAck,
    Result,
    ResultStored,
    Retry,
    Submit,
    Submitted,
    Welcome,
)
from koubou_common.messages.values import AgentStatus, Disposition, TaskState
from support.core_play import (
    Play,
    a_client,
    a_failure,
    a_heartbeat,
    a_result,
    a_spec,
    a_status,
    a_worker,
    an_agent,
    an_agent_hello,
    sent,
    some_settings,
)

SEEDS = range(40)
STEPS = 120
HEAL_STEPS = 600
FAILURES = (
    ErrorClass.OLLAMA_ERROR,
    ErrorClass.STALLED,
    ErrorClass.MODEL_MISSING,
    ErrorClass.EMPTY_OUTPUT,
    ErrorClass.RUNNER_KILLED,
)


@dataclass(slots=True)
class FakeAgent:
    """As honest as a real one: lists what it holds, repeats what was not acknowledged."""

    name: str
    slots: int
    boot: int = 0
    session: int = 0  # 0: must say hello
    running: set[str] = field(default_factory=set)
    spooled: dict[str, FromAgent] = field(default_factory=dict)
    last_dispatch: int = 0
    most_running: int = 0

    def status(self) -> AgentStatus:
        return a_status(
            sorted(self.running),
            sorted(self.spooled),
            free=max(0, self.slots - len(self.running)),
            last=self.last_dispatch,
        )

    def hello(self) -> AgentHello:
        return an_agent_hello(self.status(), boot=f"{self.name}b{self.boot}")

    def hear(self, message: object) -> None:
        match message:
            case Welcome(session=session):
                self.session = session
            case Dispatch() if message.session == self.session:
                self.last_dispatch = max(self.last_dispatch, message.number)
                if message.attempt_uid not in self.spooled:
                    self.running.add(message.attempt_uid)
                self.most_running = max(self.most_running, len(self.running))
            case Abort(attempt_uid=uid):
                self.running.discard(uid)
            case ResultStored(attempt_uid=uid):
                self.spooled.pop(uid, None)
            case Error():
                self.session = 0
            case _:
                pass


class World:
    """One seed's history; rates of faults are drawn by the seed, zero included."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        rates = [0.0, 0.05, 0.3]
        self.loss, self.crash, self.restart = (self.rng.choice(rates) for _ in range(3))
        self.slow_store = self.rng.choice([0.0, 0.5])
        self.crash, self.restart = self.crash / 5, self.restart / 10
        workers = [a_worker(f"w{n}", slots=self.rng.choice([1, 2])) for n in range(self.rng.choice([1, 2, 3]))]
        self.play = Play(some_settings(*workers), seed=seed)
        self.agents = [FakeAgent(one.worker_id, one.slots) for one in workers]
        self.submissions: dict[str, Submit] = {}
        self.accepted: dict[str, tuple[int, ...]] = {}
        self.recorded: dict[str, Disposition] = {}
        self.outcomes: dict[int, str] = {}
        self.log: list[str] = []
        self.client_session = False
        self.healing = False

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
        self.loss = self.crash = self.restart = 0.0
        self.healing = self.play.answering = True
        self.deliver(self.play.answer_questions())
        for _ in range(HEAL_STEPS):
            self.work()
            self.repeat_submissions()
            live = [row for row in self.play.shelf.progress.values() if not row.state.is_terminal]
            if not live and len(self.accepted) == len(self.submissions):
                break
        self.judge()

    def step(self) -> None:
        # The store answers late now and then: what it read may be old by the time it comes.
        self.play.answering = self.rng.random() >= self.slow_store
        if self.play.answering:
            self.deliver(self.play.answer_questions())
        chance = self.rng.random()
        if chance < 0.25:
            self.submit()
        elif chance < 0.30:
            self.change(Cancel)
        elif chance < 0.33:
            self.change(Retry)
        else:
            self.work()
        if self.rng.random() < self.crash:
            agent = self.rng.choice(self.agents)
            agent.boot += 1
            agent.session = 0
            agent.last_dispatch = 0
            agent.running.clear()
        if self.rng.random() < self.restart:
            self.play = self.play.restart()
            self.client_session = False
        if self.rng.random() < 0.1:
            self.repeat_submissions()

    def work(self) -> None:
        # While healing no pause is near a lease: only what is really lost may be taken back.
        self.deliver(self.play.wait(self.rng.choice([0.1, 1.0, 5.0] if self.healing else [0.1, 1.0, 5.0, 20.0])))
        for agent in self.agents:
            if self.rng.random() < 0.2:
                continue
            if not agent.session:
                self.tell(agent, agent.hello(), new=True)
                continue
            self.finish_some(agent)
            for uid in sorted(agent.spooled):
                if self.rng.random() < 0.7 and uid in agent.spooled:
                    kind = agent.spooled[uid]
                    self.tell(agent, _with_status(kind, agent.status()))
            if agent.session:
                self.tell(agent, a_heartbeat(agent.status()))

    def finish_some(self, agent: FakeAgent) -> None:
        for uid in sorted(agent.running):
            if self.rng.random() < 0.4:
                agent.running.discard(uid)
                good = self.rng.random() < 0.6
                agent.spooled[uid] = a_result(uid) if good else a_failure(uid, self.rng.choice(FAILURES))

    def submit(self) -> None:
        key = f"key{len(self.submissions)}"
        specs = tuple(a_spec(f"{key}/{n}") for n in range(self.rng.choice([1, 1, 3])))
        self.submissions[key] = Submit(f"r-{key}", key, specs)
        self.say_client(self.submissions[key])

    def repeat_submissions(self) -> None:
        for key, message in self.submissions.items():
            if key not in self.accepted or self.rng.random() < 0.1:
                self.say_client(message)

    def change(self, kind: type[Cancel] | type[Retry]) -> None:
        ids = sorted(self.play.shelf.tasks)
        if ids:
            self.say_client(kind("change", (self.rng.choice(ids),)))

    def say_client(self, message: Submit | Cancel | Retry) -> None:
        if not self.client_session:
            self.play.join(a_client())
            self.client_session = True
        if self.rng.random() >= self.loss:
            self.deliver(self.play.say(a_client(), message))

    def accept(self, answer: Submitted) -> None:
        key = answer.request_id.removeprefix("r-")
        ids = tuple(ref.task_id for ref in answer.tasks)
        assert self.accepted.setdefault(key, ids) == ids, f"{key}: {self.accepted[key]} and {ids}"
        assert all(task_id in self.play.shelf.tasks for task_id in ids), f"{key}: told before it was stored"

    def tell(self, agent: FakeAgent, message: FromAgent, *, new: bool = False) -> None:
        if self.rng.random() < self.loss:
            return
        peer = an_agent(agent.name)
        effects = self.play.join(peer, message) if new else self.play.say(peer, message, agent.session)
        self.deliver(effects)
        if self.rng.random() < self.loss:
            self.deliver(self.play.say(peer, message, self.play.session_of(peer)))

    def deliver(self, effects: list[Effect]) -> None:
        self.log += [repr(effect) for effect in effects]
        for answer in sent(effects, Submitted):
            if self.rng.random() >= self.loss:
                self.accept(answer)
        sessions = {self.play.session_of(an_agent(one.name)): one for one in self.agents if self.has_session(one)}
        for effect in effects:
            if isinstance(effect, Close) and effect.session in sessions:
                continue
            if not isinstance(effect, Send) or effect.session not in sessions:
                continue
            agent = sessions[effect.session]
            message = effect.message
            if isinstance(message, ResultStored):
                self.note_stored(message)
            if isinstance(message, Dispatch):
                attempt = self.play.shelf.attempts[message.attempt_uid]
                assert attempt.number == message.attempt, "dispatched before it was stored"
            if self.rng.random() >= self.loss or isinstance(message, HeartbeatAck):
                agent.hear(message)

    def note_stored(self, message: ResultStored) -> None:
        before = self.recorded.setdefault(message.attempt_uid, message.disposition)
        allowed = {before, Disposition.LATE, Disposition.RECORDED}
        assert message.disposition in allowed, f"{message.attempt_uid}: {before}, then {message.disposition}"

    def has_session(self, agent: FakeAgent) -> bool:
        try:
            self.play.session_of(an_agent(agent.name))
        except KeyError:
            return False
        return True

    def judge(self) -> None:
        shelf = self.play.shelf
        assert len(self.accepted) == len(self.submissions), "a submission was never accepted"
        told = [task_id for ids in self.accepted.values() for task_id in ids]
        assert sorted(told) == sorted(shelf.tasks), "tasks nobody asked for, or lost ones"
        stuck = {task_id: row.state for task_id, row in shelf.progress.items() if not row.state.is_terminal}
        assert not stuck, f"never ended: {stuck} {[self.play.core.story(task_id) for task_id in stuck]}"
        for task_id, row in shelf.progress.items():
            assert (row.result is not None) == (row.state is TaskState.SUCCEEDED), f"task {task_id}: {row}"
        for agent in self.agents:
            assert agent.most_running <= agent.slots, f"{agent.name} got more than its slots"


def _with_status(message: FromAgent, status: AgentStatus) -> FromAgent:
    match message:
        case Result():
            return a_result(message.attempt_uid, status)
        case Failure():
            return a_failure(message.attempt_uid, message.error_class, status)
        case _:
            return message


@pytest.mark.parametrize("seed", SEEDS)
def test_every_accepted_task_ends_once_whatever_is_lost(seed: int) -> None:
    World(seed).run()


def test_the_same_inputs_give_the_same_run() -> None:
    logs = []
    for _ in range(2):
        world = World(7)
        world.run()
        logs.append(world.log)
    assert logs[0] == logs[1]


def _no_lease(_self: Attempts, _uid: str) -> None:
    """Planted: silence costs nothing."""


def _renews_all(self: Agents, worker: LiveWorker, status: AgentStatus) -> None:
    """Planted: a heartbeat renews all that the worker was ever given, whatever it lists."""
    uids = sorted({*worker.attempts, *(progress.uid for progress in status.running)})
    _APPLY_STATUS(self, worker, a_status(uids, status.spooled, free=status.free_slots, last=status.last_dispatch))


def _forgets_abort(_self: Lifecycle, attempt: LiveAttempt, _reason: object) -> None:
    """Planted: an ended task leaves its attempts as they are."""
    attempt.tokens = 0


def _always_new(self: Submissions, principal: str, _key: str, found: object) -> None:
    """Planted: a repeated submission is taken for a new one."""
    for wish in self._asked.pop((principal, _key), ()):
        self._accept(principal, wish)


_APPLY_STATUS = Agents.apply_status


@pytest.mark.parametrize(
    ("where", "name", "bug"),
    [
        (Attempts, "lease_over", _no_lease),
        (Agents, "apply_status", _renews_all),
        (Lifecycle, "_stop", _forgets_abort),
        (Submissions, "_found", _always_new),
    ],
)
def test_planted_bugs_are_caught(
    where: type, name: str, bug: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, bug)
    caught = 0
    for seed in SEEDS:
        try:
            World(seed).run()
        except (AssertionError, KeyError):
            caught += 1
            break
    assert caught, f"{bug.__doc__} was never noticed"
