"""Builders and a playbook for dialogues with the agent's core."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from koubou_agent.core import AgentCore, CoreSettings
from koubou_agent.effects import Effect, Failed, Outcome, Send, Success
from koubou_common.errors import ErrorClass
from koubou_common.messages import Dispatch, FromAgent, ToAgent, Welcome
from koubou_common.messages.values import (
    AgentHealth,
    Body,
    Metrics,
    WorkerConfig,
    WorkerMode,
)

EPOCH = 7
SESSION = 3
HEALTHY = AgentHealth(ollama_ok=True, ollama_version="0.24.0")
WORKER = WorkerConfig(worker_id="lan_001", default_model="tiny", models=("tiny",), slots=2)

Kind = TypeVar("Kind")


def uid(number: int) -> str:
    """A uid that reads as its number."""
    return f"{number:032x}"


def a_body(data: bytes) -> Body:
    """A body by its digest, not inline."""
    return Body(hashlib.sha256(data).digest(), len(data))


def a_dispatch(number: int, *, session: int = SESSION, attempt_uid: str = "") -> Dispatch:
    """A dispatch of task 100 + number."""
    return Dispatch(
        number=number,
        session=session,
        attempt_uid=attempt_uid or uid(number),
        attempt=1,
        task_id=100 + number,
        prompt=a_body(b"say hello"),
        files=(),
        target="out.md",
        repo="demo",
        task_type="general",
        model="tiny",
        options=(),
        timeout_s=None,
        strict_output=False,
        bytes_per_token=0.0,
    )


def a_success(number: int, text: bytes = b"hello") -> Success:
    """The success of attempt `number`."""
    return Success(uid(number), a_body(text), 0, len(text), (), "tiny", "d" * 12, Metrics(), "")


def a_failure(number: int, error_class: ErrorClass = ErrorClass.EMPTY_OUTPUT) -> Failed:
    """A failure of attempt `number`."""
    return Failed(uid(number), error_class, "no text came")


def a_welcome(*, session: int = SESSION, slots: int = 2, mode: WorkerMode = WorkerMode.ACTIVE) -> Welcome:
    """A welcome with the usual times."""
    return Welcome(1, session, replace(WORKER, slots=slots), mode, heartbeat_s=5.0, lease_s=30.0)


class Play:
    """A core under test, its clock, and short words for what happens to it; checks after every step."""

    def __init__(self, spooled: Iterable[Outcome] = (), *, ceiling: int = 0) -> None:
        self.now = 1000.0
        settings = CoreSettings("koubou-agent 0.1.0", "linux", uid(0xB007), ceiling)
        self.core = AgentCore(settings, spooled, HEALTHY, self.now)

    def done(self, effects: list[Effect]) -> list[Effect]:
        self.core.check()
        return effects

    def connect(self) -> list[Effect]:
        return self.done(self.core.connected(self.now))

    def hear(self, message: ToAgent, epoch: int = EPOCH) -> list[Effect]:
        return self.done(self.core.receive(message, epoch, self.now))

    def welcomed(self, *, session: int = SESSION, slots: int = 2) -> list[Effect]:
        return self.connect() + self.hear(a_welcome(session=session, slots=slots))

    def end(self, number: int, outcome: Outcome | None) -> list[Effect]:
        return self.done(self.core.ended(uid(number), outcome, self.now))

    def spooled(self, number: int) -> list[Effect]:
        return self.done(self.core.spooled(uid(number), self.now))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.done(self.core.tick(self.now))


def sent(effects: Iterable[Effect]) -> list[FromAgent]:
    """The messages among the effects."""
    return [effect.message for effect in effects if isinstance(effect, Send)]


def only(kind: type[Kind], items: Iterable[object]) -> Kind:
    """The one item of that kind; an AssertionError when there are none or several."""
    found = [item for item in items if isinstance(item, kind)]
    assert len(found) == 1, f"{len(found)} {kind.__name__} in {list(items)}"
    return found[0]


def none_of(kind: type[object], items: Iterable[object]) -> bool:
    """Whether no item is of that kind."""
    return not any(isinstance(item, kind) for item in items)
