"""A simulated box's agent: what it says to the broker, message for message, and what it takes from it."""

import hashlib
from dataclasses import dataclass

from koubou_broker.core import WorkerSettings
from koubou_broker.effects import Peer
from koubou_common.errors import ErrorClass
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    AgentHello,
    Dispatch,
    Failure,
    Goodbye,
    Heartbeat,
    Result,
)
from koubou_common.messages.values import (
    AgentHealth,
    AgentStatus,
    AttemptProgress,
    Body,
    Metrics,
    ModelSeen,
    Option,
    Role,
)
from koubou_simulator.lan.box import Box, Run
from koubou_simulator.lan.outcome import BoxStory, Span
from koubou_simulator.lan.things import BYTES_PER_TOKEN, OVERHEAD_S, BoxSpec, Job

_NUM_CTX = 65_536  # tokens: windows are not what these scenarios are about
_LATENCY_MS = 2  # of a wired LAN


@dataclass(slots=True)
class Agent:
    """A box and its session with the broker."""

    spec: BoxSpec
    box: Box
    story: BoxStory
    peer: Peer
    session: int = 0  # 0: away
    turn: int = 0  # of its box's events: those of older turns are void
    _boots: int = 0
    _last_dispatch: int = 0
    _sequence: int = 0
    _came_s: float = 0.0

    def hello(self, session: int, now_s: float) -> AgentHello:
        """It comes, for the first time or again."""
        self.session = session
        self._boots += 1
        self._last_dispatch = self._sequence = 0
        self.box.now_s = self._came_s = now_s
        boot_id = hashlib.sha256(f"{self.spec.box_id}/{self._boots}".encode()).hexdigest()[:32]
        status = self._status(())
        return AgentHello(
            PROTO_MIN, PROTO_MAX, "koubou-agent simulated", "simulated", boot_id, 0, status, self._health()
        )

    def heartbeat(self, wall_ms: int) -> Heartbeat:
        """It lives, and tells what its Ollama has loaded."""
        return Heartbeat(wall_ms, _LATENCY_MS, self._status(()), self._health())

    def take(self, dispatch: Dispatch, job: Job, now_s: float) -> None:
        """Work arrived."""
        self._last_dispatch = dispatch.number
        self.box.take(dispatch.attempt_uid, dispatch.task_id, job, now_s)

    def outcomes(self, now_s: float) -> list[Result | Failure]:
        """What it says of attempts that ended just now."""
        self.box.go_on(now_s)
        ended = self.box.ended()
        uids = tuple(run.uid for run in ended)
        said: list[Result | Failure] = []
        for nth, run in enumerate(ended):
            # Those told before are spooled no more: the broker answers at once that they are stored.
            status = self._status(uids[nth:])
            if self.spec.fails_after_s:
                self._draw(run, now_s, "failed")
                text = "the simulated Ollama answered 500"
                said.append(Failure(run.uid, ErrorClass.OLLAMA_ERROR, text, Metrics(), "", status))
            else:
                self._draw(run, now_s, "succeeded")
                said.append(_result(run, now_s, status))
        return said

    def goodbye(self, now_s: float) -> Goodbye:
        """It stops: what it runs goes elsewhere."""
        self.crash(now_s)
        return Goodbye(self._status(()))

    def crash(self, now_s: float) -> None:
        """It is gone, and so is all it ran."""
        for run in self.box.runs:
            self._draw(run, now_s, "lost")
        self.box.crash()
        self.leave(now_s)

    def leave(self, now_s: float) -> None:
        """Count the time it was there."""
        if self.session:
            self.story.here_s += now_s - self._came_s
        self.session = 0

    def worker(self) -> WorkerSettings:
        """Its entry in workers.yaml."""
        return WorkerSettings(
            worker_id=self.spec.box_id,
            location=self.spec.location,
            default_model=self.spec.models[0],
            models=self.spec.models,
            slots=self.spec.slots,
            performance_factor=self.spec.configured_factor,
            options=(Option("num_ctx", _NUM_CTX),),
        )

    def _status(self, spooled: tuple[str, ...]) -> AgentStatus:
        self._sequence += 1
        running = tuple(AttemptProgress(run.uid) for run in self.box.runs)
        free = max(0, self.spec.slots - len(running))
        return AgentStatus(running, spooled, free, self._last_dispatch, sequence=self._sequence)

    def _health(self) -> AgentHealth:
        models = tuple(
            ModelSeen(name, digest=f"sha256:{name}", loaded=name in self.box.loaded) for name in self.spec.models
        )
        return AgentHealth(ollama_ok=True, ollama_version="simulated", models=models)

    def _draw(self, run: Run, now_s: float, how: str) -> None:
        begun_s = min(run.began_s, now_s)
        self.story.spans.append(Span(run.lane, begun_s, now_s, run.task_id, run.job, how))


def an_agent(spec: BoxSpec) -> Agent:
    """The agent of a box that has not come yet."""
    peer = Peer(spec.box_id.ljust(40, "0"), spec.box_id, Role.WORKER)
    box = Box(spec)
    return Agent(spec, box, BoxStory(spec, loads=box.loads), peer)


def _result(run: Run, now_s: float, status: AgentStatus) -> Result:
    job = run.job
    output_bytes = max(1, job.output_tokens * BYTES_PER_TOKEN)
    queued_s = run.began_s - run.came_s - OVERHEAD_S - run.load_s
    metrics = Metrics(
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        load_ms=round(run.load_s * 1000),
        first_token_ms=round((queued_s + run.reading_took_s) * 1000),
        prompt_ms=round(run.reading_took_s * 1000),
        eval_ms=round(run.answering_took_s * 1000),
        total_ms=round((now_s - run.came_s) * 1000),
        overhead_ms=round(OVERHEAD_S * 1000),
        num_ctx=_NUM_CTX,
    )
    raw = Body(hashlib.sha256(run.uid.encode()).digest(), output_bytes)
    digest = f"sha256:{job.model}"
    return Result(run.uid, raw, 0, output_bytes, (), job.model, digest, metrics, "", status)
