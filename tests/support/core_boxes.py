"""Boxes that run what the broker's core gives them, in virtual time, with room for one model each."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from koubou_broker.core import CoreSettings
from koubou_broker.effects import Effect, Lookup, Peer, Save, Send
from koubou_broker.records import Decided
from koubou_common.messages import Dispatch
from koubou_common.messages.values import AttemptProgress, Metrics
from support.core_play import Play, a_health, a_result, a_status, an_agent, an_agent_hello

_CHECK_EVERY = 100  # steps: a check looks at everything, a run has thousands of steps
_NEVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Given:
    """A task that a box was given."""

    task_id: int
    worker_id: str
    model: str
    at_s: float  # after the start
    swapped: bool  # another model had to go for its own


@dataclass(slots=True)
class Box:
    """A box and its agent."""

    peer: Peer
    slots: int
    model: str = ""  # loaded; empty: none
    running: dict[str, str] = field(default_factory=dict)  # uid -> model
    last: int = 0


class Boxes(Play):
    """Plays all agents: what is dispatched runs for as long as `run_s` says, then succeeds."""

    def __init__(
        self,
        settings: CoreSettings,
        *,
        run_s: Callable[[int], float] = lambda _task_id: 20.0,
        load_s: float = 30.0,
        prompt_tokens: int = 300,
    ) -> None:
        self.given: list[Given] = []
        self.decided: list[Decided] = []
        self._boxes: dict[str, Box] = {}
        self._ends: list[tuple[float, int, Box, str, int]] = []
        self._run_s, self._load_s, self._prompt_tokens = run_s, load_s, prompt_tokens
        self._steps = 0
        # Nobody falls silent here: what is looked at are decisions alone.
        super().__init__(replace(settings, heartbeat_s=_NEVER_S, lease_s=_NEVER_S))
        for one in self.settings.workers:
            box = Box(an_agent(one.worker_id), one.slots)
            self._boxes[one.worker_id] = box
            health = a_health(*one.models)
            self.join(box.peer, an_agent_hello(a_status(free=one.slots), health=health))

    @property
    def swaps(self) -> int:
        """How often a model had to go for another."""
        return sum(one.swapped for one in self.given)

    @property
    def passed_s(self) -> float:
        """Since the start."""
        return self.now.mono_s - 1_000.0

    def run(self, until_s: float = _NEVER_S) -> None:
        """Until nothing runs any more, or so long after the start."""
        while self._ends and self._ends[0][0] <= until_s:
            due_s, _, box, uid, task_id = heapq.heappop(self._ends)
            self.wait(max(0.0, due_s - self.passed_s))
            model = box.running.pop(uid)
            status = replace(
                a_status(spooled=[uid], free=box.slots - len(box.running), last=box.last),
                running=tuple(AttemptProgress(one) for one in box.running),
            )
            metrics = Metrics(
                prompt_tokens=self._prompt_tokens, output_tokens=100, total_ms=round(1_000 * self._run_s(task_id))
            )
            self.say(box.peer, replace(a_result(uid, status), model=model, metrics=metrics))
        if until_s < _NEVER_S:
            self.wait(max(0.0, until_s - self.passed_s))

    def _done(self, effects: list[Effect]) -> list[Effect]:
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0:
            self.core.check()
        for effect in effects:
            if isinstance(effect, Save):
                for record in effect.records:
                    self.shelf.put(record)
                    if isinstance(record, Decided):
                        self.decided.append(record)
        self.make_durable()
        self.questions += [effect for effect in effects if isinstance(effect, Lookup)]
        if self.questions:
            effects = [*effects, *self.answer_questions()]
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Dispatch):
                self._take(effect.message)
        return effects

    def _take(self, message: Dispatch) -> None:
        box = next(one for one in self._boxes.values() if self._sessions.get(one.peer.name) == message.session)
        swapped = box.model not in ("", message.model)
        loads_s = self._load_s if box.model != message.model else 0.0
        box.model = message.model
        box.running[message.attempt_uid] = message.model
        box.last = message.number
        given = Given(message.task_id, box.peer.name, message.model, self.passed_s, swapped)
        self.given.append(given)
        due_s = self.passed_s + loads_s + self._run_s(message.task_id)
        heapq.heappush(self._ends, (due_s, len(self.given), box, message.attempt_uid, message.task_id))
