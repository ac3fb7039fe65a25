"""The broker's core on a stage: builders with defaults, a store in memory that keeps the laws, a clock."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from koubou_broker.core import Core, CoreSettings, WorkerSettings
from koubou_broker.effects import (
    Alert,
    Allow,
    Close,
    Effect,
    Lookup,
    Now,
    Peer,
    Revoke,
    Save,
    Send,
)
from koubou_broker.records import (
    BodyRef,
    NewTask,
    Principal,
)
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    AgentHello,
    ClientHello,
    Dispatch,
    Error,
    Failure,
    FromAgent,
    FromClient,
    Heartbeat,
    Result,
    Submit,
    Submitted,
)
from koubou_common.messages.values import (
    AgentHealth,
    AgentStatus,
    AttemptProgress,
    Body,
    File,
    Label,
    Metrics,
    ModelSeen,
    Option,
    Role,
    TaskSpec,
)
from support.shelf import Shelf

START = Now(1_000.0, 1_700_000_000_000)
MODEL = "gpt-oss:20b"

Kind = TypeVar("Kind")


def a_key(name: str) -> str:
    """A public key that can be told from others."""
    return name.ljust(40, "0")[:40]


def a_body(text: str = "Write the docs.", size_bytes: int | None = None) -> Body:
    """Bytes by their hash."""
    data = text.encode()
    return Body(hashlib.sha256(data).digest(), len(data) if size_bytes is None else size_bytes)


def a_spec(
    prompt: str = "Write the docs.",
    *,
    size_bytes: int | None = None,
    files: Iterable[tuple[str, int]] = (),
    model: str = "",
    priority: int = 5,
    worker: str = "",
    labels: Iterable[Label] = (),
    options: Iterable[Option] = (),
    min_context: int = 0,
    task_type: str = "general",
    deadline_s: float | None = None,
    queue_timeout_s: float | None = None,
    max_attempts: int | None = None,
    target: str = "",
) -> TaskSpec:
    """What a person asks for."""
    return TaskSpec(
        prompt=a_body(prompt, size_bytes),
        files=tuple(File(name, a_body(name, size)) for name, size in files),
        model=model,
        priority=priority,
        worker=worker,
        labels=tuple(labels),
        options=tuple(options),
        min_context=min_context,
        task_type=task_type,
        deadline_s=deadline_s,
        queue_timeout_s=queue_timeout_s,
        max_attempts=max_attempts,
        target=target,
    )


def a_new_task(
    *,
    model: str = "",
    priority: int = 5,
    worker: str = "",
    labels: tuple[Label, ...] = (),
    min_context: int = 0,
    task_type: str = "general",
    prompt_bytes: int = 10,
    max_attempts: int = 5,
) -> NewTask:
    """A task as it is stored."""
    return NewTask(
        task_id=1,
        batch_id=0,
        batch_index=0,
        principal="mika",
        custom_id="",
        idempotency_key="k",
        prompt=BodyRef(bytes(32), prompt_bytes),
        files=(),
        target="",
        repo="",
        model=model,
        priority=priority,
        task_type=task_type,
        options=(),
        worker=worker,
        labels=labels,
        min_context=min_context,
        timeout_s=None,
        deadline_ms=0,
        max_attempts=max_attempts,
        strict_output=False,
        out_path="",
        out_digest="",
        submitted_ms=0,
    )


def a_worker(
    worker_id: str = "w1",
    *,
    location: str = "local",
    model: str = MODEL,
    models: Sequence[str] | None = None,
    slots: int = 1,
    factor: float = 1.0,
    num_ctx: int = 8192,
    capabilities: Sequence[str] = ("general",),
    labels: Iterable[Label] = (),
) -> WorkerSettings:
    """A worker as workers.yaml names it."""
    return WorkerSettings(
        worker_id,
        location=location,
        default_model=model,
        models=tuple(models) if models is not None else (model,),
        slots=slots,
        performance_factor=factor,
        capabilities=tuple(capabilities),
        labels=tuple(labels),
        options=(Option("num_ctx", num_ctx),),
    )


def some_settings(*workers: WorkerSettings) -> CoreSettings:
    """Settings with these workers (one, if none is named) and small round numbers."""
    return CoreSettings(workers=workers or (a_worker(),), version="0.0.0")


def a_status(running: Iterable[str] = (), spooled: Iterable[str] = (), *, free: int = 1, last: int = 0) -> AgentStatus:
    """What an agent holds."""
    return AgentStatus(tuple(AttemptProgress(uid) for uid in running), tuple(spooled), free, last)


def a_health(*models: str, can_work: bool = True, issue: str = "") -> AgentHealth:
    """What an agent's probe saw."""
    seen = tuple(ModelSeen(name) for name in models or (MODEL,))
    return AgentHealth(ollama_ok=True, models=seen, can_work=can_work, issue=issue)


def an_agent_hello(
    status: AgentStatus | None = None, *, boot: str = "b1", health: AgentHealth | None = None, ceiling: int = 0
) -> AgentHello:
    """An agent's first message."""
    return AgentHello(
        1, 1, "koubou-agent 0", "linux", boot.ljust(32, "0"), ceiling, status or a_status(), health or a_health()
    )


def a_heartbeat(status: AgentStatus | None = None, health: AgentHealth | None = None) -> Heartbeat:
    """An agent's sign of life."""
    return Heartbeat(0, 3, status or a_status(), health)


def a_result(uid: str, status: AgentStatus | None = None, text: str = "# Docs") -> Result:
    """An attempt's success."""
    body = a_body(text)
    metrics = Metrics(prompt_tokens=100, output_tokens=20, total_ms=1_500)
    return Result(
        uid, body, 0, body.size_bytes, (), MODEL, "", metrics, "log", status or a_status(spooled=[uid], last=99)
    )


def a_failure(
    uid: str, error_class: ErrorClass, status: AgentStatus | None = None, message: str = "it failed"
) -> Failure:
    """An attempt's failure."""
    known = status or a_status(spooled=[uid], last=99)
    return Failure(uid, error_class, message, Metrics(), "log", known)


def an_operator(name: str = "boss") -> Peer:
    """A peer with every right."""
    return Peer(a_key(name), name, Role.OPERATOR)


def a_client(name: str = "mika") -> Peer:
    """A person."""
    return Peer(a_key(name), name, Role.CLIENT)


def an_agent(name: str = "w1") -> Peer:
    """A worker's agent."""
    return Peer(a_key(name), name, Role.WORKER)


def principal_of(peer: Peer) -> Principal:
    """The row behind a peer."""
    return Principal(peer.public_key, peer.name, peer.role, None, 0, 0, 0, "")


def sent(effects: Iterable[Effect], kind: type[Kind]) -> list[Kind]:
    """The messages of one kind among the effects."""
    return [one.message for one in effects if isinstance(one, Send) and isinstance(one.message, kind)]


def saved(effects: Iterable[Effect], kind: type[Kind]) -> list[Kind]:
    """The rows of one kind among the effects."""
    return [row for one in effects if isinstance(one, Save) for row in one.records if isinstance(row, kind)]


def the(found: Sequence[Kind]) -> Kind:
    """The only one."""
    assert len(found) == 1, found
    return found[0]


class Play:
    """A core, its store and its clock: every step is checked, stored, made durable, looked up."""

    def __init__(self, settings: CoreSettings | None = None, *peers: Peer, shelf: Shelf | None = None, seed: int = 1):
        self.settings = settings or some_settings()
        self.now = START
        self.shelf = shelf or Shelf()
        if shelf is None:
            cast = peers or (
                an_operator(),
                a_client(),
                *(an_agent(worker.worker_id) for worker in self.settings.workers),
            )
            for peer in cast:
                self.shelf.principals[peer.public_key] = principal_of(peer)
        self.seed = seed
        #: False: lookups wait in `questions` until `answer_questions`
        self.answering = True
        self.questions: list[Lookup] = []
        #: False: nothing becomes durable until `make_durable`
        self.durable = True
        self._sessions: dict[str, int] = {}
        self._last_session = 0
        self._requests = 0
        self.core = Core(self.settings, self.shelf.snapshot(), seed, self.now)
        self.started = self._done(self.core.start())

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, ticking when a tick is due."""
        effects: list[Effect] = []
        until = self.now.mono_s + seconds
        while True:
            due_s = self.core.next_deadline
            if due_s is None or due_s > until:
                break
            self._set_clock(max(due_s, self.now.mono_s))
            effects += self._done(self.core.tick(self.now))
        self._set_clock(until)
        return effects

    def say(self, peer: Peer, message: FromAgent | FromClient, session: int = 0) -> list[Effect]:
        """A message comes in; without a session in that peer's latest."""
        number = session or self._sessions.get(peer.name, 0) or self._new_session(peer)
        self._sessions[peer.name] = number
        return self._done(self.core.receive(peer, number, message, self.now))

    def join(self, peer: Peer, hello: FromAgent | FromClient | None = None) -> list[Effect]:
        """A new session with its hello."""
        default = an_agent_hello() if peer.role is Role.WORKER else ClientHello(1, 1, "koubou-ctl 0")
        return self.say(peer, hello or default, self._new_session(peer))

    def step(self, effects: list[Effect]) -> list[Effect]:
        """A step that was taken with the core itself: checked, stored, made durable as any other."""
        return self._done(effects)

    def session_of(self, peer: Peer) -> int:
        """The peer's latest session."""
        return self._sessions[peer.name]

    def submit(self, *specs: TaskSpec, who: Peer | None = None, key: str = "") -> list[Effect]:
        """Submit tasks in one message."""
        peer = who or a_client()
        if peer.name not in self._sessions:
            self.join(peer)
        self._requests += 1
        request_id = f"r{self._requests}"
        return self.say(peer, Submit(request_id, key or f"k{self._requests}", specs or (a_spec(),)))

    def dispatched(self, *specs: TaskSpec) -> Dispatch:
        """Submit one task, which must be dispatched at once."""
        return the(sent(self.submit(*specs), Dispatch))

    def close(self, peer: Peer) -> list[Effect]:
        """The peer's session is lost."""
        return self._done(self.core.closed(self._sessions.pop(peer.name), self.now))

    def restart(self) -> "Play":
        """Another core from what is stored; all sessions are gone."""
        play = Play(self.settings, shelf=self.shelf, seed=self.seed + 1)
        play._set_clock(self.now.mono_s)
        play.core = Core(self.settings, self.shelf.snapshot(), self.seed + 1, play.now)
        play.started = play._done(play.core.start())
        play._requests = self._requests
        play._last_session = self._last_session
        return play

    def make_durable(self) -> None:
        """All that was saved is on disk."""
        self.core.durable(self.core.end_batch(), self.now)

    def answer_questions(self) -> list[Effect]:
        """Answer the lookups that wait."""
        questions, self.questions = self.questions, []
        effects: list[Effect] = []
        for question in questions:
            effects += self._done(self.core.found(question.token, self.shelf.find(question.query), self.now))
        return effects

    def state_of(self, task_id: int) -> str:
        """A task's stored state."""
        return self.shelf.progress[task_id].state

    def _done(self, effects: list[Effect]) -> list[Effect]:
        self.core.check()
        self._check_order(effects)
        for effect in effects:
            if isinstance(effect, Save):
                for record in effect.records:
                    self.shelf.put(record)
        if self.durable:
            self.make_durable()
        self.questions += [effect for effect in effects if isinstance(effect, Lookup)]
        return [*effects, *self.answer_questions()] if self.answering and self.questions else effects

    def _check_order(self, effects: list[Effect]) -> None:
        for nth, effect in enumerate(effects):
            assert nth == 0 or not isinstance(effect, Save), "a Save after what may rest on it"

    def _new_session(self, peer: Peer) -> int:
        self._last_session += 1
        self._sessions[peer.name] = self._last_session
        return self._last_session

    def _set_clock(self, mono_s: float) -> None:
        passed_s = mono_s - START.mono_s
        self.now = Now(mono_s, START.wall_ms + round(passed_s * 1000))


def refusal(effects: Iterable[Effect]) -> Error:
    """The only answer, an Error."""
    return the(sent(effects, Error))


def task_ids(effects: Iterable[Effect]) -> list[int]:
    """The ids just given out."""
    return [ref.task_id for one in sent(effects, Submitted) for ref in one.tasks]


def with_settings(play_settings: CoreSettings, **changes: object) -> CoreSettings:
    """Settings with some fields changed."""
    return replace(play_settings, **changes)  # type: ignore[arg-type] # names are checked by replace itself


def script(effects: Iterable[Effect]) -> list[str]:
    """The effects as a dialogue, in order: `save NewTask, Event`, `1 <- Dispatch`, `allow mika`."""
    lines: list[str] = []
    for effect in effects:
        match effect:
            case Save(records=records):
                kinds = dict.fromkeys(type(row).__name__ for row in records)
                lines.append(f"save {', '.join(kinds)}")
            case Send(session=session, message=message):
                lines.append(f"{session} <- {type(message).__name__}")
            case Lookup(query=query):
                lines.append(f"look up {type(query).__name__}")
            case Alert(code=code, message=text):
                lines.append(f"alert {code}" if text else f"no alert {code}")
            case Close(session=session):
                lines.append(f"close {session}")
            case Allow(name=name, role=role):
                lines.append(f"allow {name} as {role}")
            case Revoke(public_key=key):
                lines.append(f"revoke {key.rstrip('0')}")
    return lines
