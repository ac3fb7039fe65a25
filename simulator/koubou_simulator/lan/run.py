"""One run: the broker's real core, simulated boxes and somebody who submits, in virtual time."""

import hashlib
import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum, auto

from koubou_broker.core import Core, CoreSettings
from koubou_broker.effects import Alert, Effect, Lookup, Now, Peer, Save, Send, Snapshot
from koubou_broker.records import Principal, TaskProgress
from koubou_broker.routing.strategies import Strategy
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    Abort,
    ClientHello,
    Dispatch,
    Error,
    FromAgent,
    FromBroker,
    FromClient,
    Submit,
    Submitted,
)
from koubou_common.messages.values import Body, File, Role, TaskSpec
from koubou_simulator.lan.agent import Agent, an_agent
from koubou_simulator.lan.answers import Answers
from koubou_simulator.lan.baselines import Chooser, Seen
from koubou_simulator.lan.outcome import JobStory, Outcome
from koubou_simulator.lan.things import BYTES_PER_TOKEN, BoxSpec, Job

_START = Now(1_000.0, 1_700_000_000_000)
_SUBMITTER = Peer("submitter".ljust(40, "0"), "submitter", Role.CLIENT)
_SUBMITTERS_SESSION = 1
_LONGEST_S = 60 * 86_400.0  # of virtual time: what takes longer never ends


class _Kind(Enum):
    COMES = auto()
    LEAVES = auto()
    CRASHES = auto()
    SUBMITS = auto()
    BOX = auto()
    BEATS = auto()


class LanRun:
    """A scenario being played."""

    def __init__(
        self,
        settings: CoreSettings,
        boxes: Sequence[BoxSpec],
        jobs: Sequence[Job],
        seed: int,
        *,
        strategy: Strategy | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """`strategy` None: the one that the settings name. With a `chooser` each job's box is chosen at submit."""
        self._jobs = jobs
        self._chooser = chooser
        self._agents = {spec.box_id: an_agent(spec) for spec in boxes}
        self._seen = {spec.box_id: Seen(spec, is_here=False) for spec in boxes}
        self._settings = replace(settings, workers=tuple(agent.worker() for agent in self._agents.values()))
        self._sessions: dict[int, Agent] = {}  # also those that are over: the broker may not know it yet
        self._last_session = _SUBMITTERS_SESSION
        self._stories: dict[int, JobStory] = {}
        self._submitting: JobStory | None = None
        self._submitted = 0
        self._ended = 0
        self._alerts: list[tuple[float, str, str]] = []
        self._answers = Answers()
        self._events: list[tuple[float, int, _Kind, Agent | Job, int]] = []
        self._numbered = 0
        self._now_s = 0.0
        self._steps = 0
        peers = (_SUBMITTER, *(agent.peer for agent in self._agents.values()))
        principals = tuple(Principal(one.public_key, one.name, one.role, None, 0, 0, 0, "") for one in peers)
        snapshot = Snapshot(epoch=1, next_task_id=1, next_batch_id=1, next_event_seq=1, principals=principals)
        self._core = Core(self._settings, snapshot, seed, self._now(), strategy)

    def play(self) -> Outcome:
        """From the first arrival until all jobs have ended."""
        self._do(self._core.start())
        self._say(_SUBMITTER, _SUBMITTERS_SESSION, ClientHello(PROTO_MIN, PROTO_MAX, "koubou-ctl simulated"))
        for agent in self._agents.values():
            self._plan_presence(agent)
        for job in self._jobs:
            self._at(job.arrives_s, _Kind.SUBMITS, job)
        while self._ended < len(self._jobs):
            self._next()
        for agent in self._agents.values():
            agent.leave(self._now_s)
            agent.story.busy_s = agent.box.busy_s
        stories = [self._stories[task_id] for task_id in sorted(self._stories)]
        return Outcome(
            jobs=stories,
            boxes={box_id: agent.story for box_id, agent in self._agents.items()},
            alerts=self._alerts,
            given={box_id: sum(one.boxes.count(box_id) for one in stories) for box_id in self._agents},
            factors=self._answers.factors,
            steps=self._steps,
        )

    def _plan_presence(self, agent: Agent) -> None:
        here_from_s = 0.0
        for absence in agent.spec.absences:
            if absence.from_s > here_from_s:
                self._at(here_from_s, _Kind.COMES, agent)
                self._at(absence.from_s, _Kind.CRASHES if absence.is_crash else _Kind.LEAVES, agent)
            agent.story.away.append((absence.from_s, absence.until_s))
            here_from_s = absence.until_s
        if here_from_s < math.inf:
            self._at(here_from_s, _Kind.COMES, agent)

    def _at(self, due_s: float, kind: _Kind, subject: Agent | Job, turn: int = 0) -> None:
        self._numbered += 1  # of events at one instant the one planned first comes first
        heapq.heappush(self._events, (due_s, self._numbered, kind, subject, turn))

    def _next(self) -> None:
        deadline_s = self._core.next_deadline
        due_s = self._events[0][0] if self._events else math.inf
        tick_s = deadline_s - _START.mono_s if deadline_s is not None else math.inf
        assert min(tick_s, due_s) < _LONGEST_S, f"{len(self._jobs) - self._ended} jobs never end"
        if tick_s < due_s:
            self._now_s = max(self._now_s, tick_s)
            self._do(self._core.tick(self._now()))
            return
        self._now_s, _, kind, subject, turn = heapq.heappop(self._events)
        match kind:
            case _Kind.SUBMITS:
                assert isinstance(subject, Job)
                self._submit(subject)
            case _:
                assert isinstance(subject, Agent)
                self._of_agent(kind, subject, turn)

    def _of_agent(self, kind: _Kind, agent: Agent, turn: int) -> None:
        match kind:
            case _Kind.BOX:
                if turn == agent.turn and agent.session:
                    self._box(agent)
            case _Kind.BEATS:
                if turn == agent.session:
                    self._at(self._now_s + self._settings.heartbeat_s, _Kind.BEATS, agent, agent.session)
                    self._say(agent.peer, agent.session, agent.heartbeat(self._now().wall_ms))
            case _Kind.COMES:
                self._last_session += 1
                self._sessions[self._last_session] = agent
                self._seen[agent.spec.box_id].is_here = True
                hello = agent.hello(self._last_session, self._now_s)
                self._at(self._now_s + self._settings.heartbeat_s, _Kind.BEATS, agent, agent.session)
                self._say(agent.peer, agent.session, hello)
            case _Kind.LEAVES | _Kind.CRASHES:
                session = agent.session
                self._seen[agent.spec.box_id].is_here = False
                if kind is _Kind.CRASHES:
                    agent.crash(self._now_s)
                else:
                    self._say(agent.peer, session, agent.goodbye(self._now_s))
            case _:
                raise AssertionError(kind)

    def _box(self, agent: Agent) -> None:
        for said in agent.outcomes(self._now_s):
            self._say(agent.peer, agent.session, said)
        self._plan_box(agent)

    def _plan_box(self, agent: Agent) -> None:
        agent.turn += 1
        due_s = agent.box.next_s
        if due_s < math.inf:
            self._at(max(due_s, self._now_s), _Kind.BOX, agent, agent.turn)

    def _submit(self, job: Job) -> None:
        box_id = ""
        if self._chooser is not None:
            box_id = self._chooser.choose(job, self._seen)
            self._seen[box_id].open_jobs += 1
        self._submitted += 1
        self._submitting = JobStory(0, job, box_id)
        name = f"r{self._submitted}"
        self._say(_SUBMITTER, _SUBMITTERS_SESSION, Submit(name, name, (_spec(job, self._submitted, box_id),)))

    def _say(self, peer: Peer, session: int, message: FromAgent | FromClient) -> None:
        self._steps += 1
        self._do(self._core.receive(peer, session, message, self._now()))

    def _do(self, effects: Iterable[Effect]) -> None:
        todo = deque(effects)
        self._core.durable(self._core.end_batch(), self._now())
        while todo:
            match todo.popleft():
                case Save(records=records):
                    for record in records:
                        self._answers.keep(record)
                        if isinstance(record, TaskProgress) and record.state.is_terminal:
                            self._over(record)
                case Send(session=session, message=message):
                    self._sent(session, message)
                case Lookup(token=token, query=query):
                    todo += self._core.found(token, self._answers.find(query), self._now())
                case Alert(code=code, message=text):
                    self._alerts.append((self._now_s, code, text))
                case _:
                    pass  # keys and backups: nobody here is concerned

    def _sent(self, session: int, message: FromBroker) -> None:
        agent = self._sessions.get(session)
        match message:
            case Submitted(tasks=refs):
                self._story(refs[0].task_id)
            case Dispatch():
                assert agent is not None
                self._given(agent, message)
            case Abort(attempt_uid=uid):
                assert agent is not None
                if agent.session == session:
                    agent.box.drop(uid, self._now_s)
                    self._plan_box(agent)
            case Error():
                raise AssertionError(f"the core refused: {message}")
            case _:
                pass

    def _given(self, agent: Agent, dispatch: Dispatch) -> None:
        story = self._story(dispatch.task_id)
        story.given_s.append(self._now_s)
        story.boxes.append(agent.spec.box_id)
        if agent.session == dispatch.session:
            agent.take(dispatch, story.job, self._now_s)
            self._plan_box(agent)

    def _story(self, task_id: int) -> JobStory:
        """The story of a task; one that is not known is the one being submitted, which may be given out at once."""
        story = self._stories.get(task_id)
        if story is None:
            assert self._submitting is not None
            story, self._submitting = self._submitting, None
            story.task_id = task_id
            self._stories[task_id] = story
        return story

    def _over(self, record: TaskProgress) -> None:
        story = self._stories[record.task_id]
        story.ended_s = self._now_s
        story.state = record.state
        self._ended += 1
        if story.asked_for:
            self._seen[story.asked_for].open_jobs -= 1

    def _now(self) -> Now:
        return Now(_START.mono_s + self._now_s, _START.wall_ms + round(self._now_s * 1000))


def _spec(job: Job, number: int, box_id: str) -> TaskSpec:
    """The task as it is submitted: what is the same in several prompts comes first."""
    own = Body(_sha256(f"own {number}"), max(1, (job.prompt_tokens - job.prefix_tokens) * BYTES_PER_TOKEN))
    if not job.prefix:
        return TaskSpec(prompt=own, model=job.model, priority=job.priority, worker=box_id)
    common = File("common.txt", Body(_sha256(job.prefix), job.prefix_tokens * BYTES_PER_TOKEN))
    return TaskSpec(
        prompt=Body(_sha256(f"prompt of {job.prefix}"), 200),
        files=(common, File(f"item_{number}.txt", own)),
        model=job.model,
        priority=job.priority,
        worker=box_id,
        prefix_files=1,
    )


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
