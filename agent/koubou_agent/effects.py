"""What the agent's core wants done, and how an attempt ends: the seam between deciding and doing."""

from dataclasses import dataclass

from koubou_common.errors import ErrorClass
from koubou_common.messages import Dispatch, FromAgent
from koubou_common.messages.values import Body, Metrics, WorkerConfig

NO_METRICS = Metrics()  # of an attempt that never reached Ollama


@dataclass(frozen=True, slots=True)
class Success:
    """The model answered; the raw text itself travels beside this record."""

    attempt_uid: str
    raw: Body  # never inline: the text is in the spool
    output_offset: int
    output_length: int
    flags: tuple[str, ...]
    model: str
    model_digest: str
    metrics: Metrics
    log: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed, and this is the failure's name."""

    attempt_uid: str
    error_class: ErrorClass
    message: str
    metrics: Metrics = NO_METRICS
    log: str = ""


Outcome = Success | Failed


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the broker; the raw text of a Result is attached by the loop where it is small."""

    message: FromAgent


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Run this attempt with the worker's settings as they are now."""

    dispatch: Dispatch
    worker: WorkerConfig


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """End an attempt early; without an error class nobody wants its outcome."""

    attempt_uid: str
    error_class: ErrorClass | None
    message: str


@dataclass(frozen=True, slots=True)
class SpoolWrite:
    """Make an outcome durable; answered with `AgentCore.spooled` or `AgentCore.spool_failed`."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SpoolDelete:
    """The broker has it: forget the outcome."""

    attempt_uid: str


@dataclass(frozen=True, slots=True)
class WipeCaches:
    """This worker was removed: no prompt and no file may stay here. The spool stays."""


@dataclass(frozen=True, slots=True)
class Log:
    """Something a person who reads the agent's log should know."""

    level: int  # as in `logging`
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Nothing is left to do; the process ends with this code and message."""

    code: int
    message: str


Effect = Send | StartAttempt | StopAttempt | SpoolWrite | SpoolDelete | WipeCaches | Log | Exit
