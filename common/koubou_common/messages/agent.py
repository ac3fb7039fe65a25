"""What an agent says to the broker."""

from dataclasses import dataclass
from typing import Annotated

from koubou_common.errors import ErrorClass
from koubou_common.messages.limits import Count, Counter, Log, Millis, Name, Sentence, Uid, Word
from koubou_common.messages.values import AgentHealth, AgentStatus, Body, Metrics


@dataclass(frozen=True, slots=True)
class AgentHello:
    """First message of a session; `status` lists everything held from earlier ones."""

    proto_min: Counter
    proto_max: Counter
    software: Name
    platform: Name
    boot_id: Uid  # new at each start of the agent
    slots_ceiling: Counter  # min(agent.yaml ceiling, ollama_parallel); 0: no ceiling
    status: AgentStatus
    health: AgentHealth
    looks_only: bool = False  # of `doctor`: answered with a Welcome of session 0, begins and changes nothing


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Every heartbeat_s; renews the leases of the attempts it lists, and of no others."""

    sent_ms: Millis  # the agent's clock, echoed: the round trip is the latency
    latency_ms: Counter  # measured by the last echo
    status: AgentStatus
    health: AgentHealth | None  # None: as last said


@dataclass(frozen=True, slots=True)
class Result:
    """An attempt's success; repeated until ResultStored."""

    attempt_uid: Uid
    raw: Body  # all the model said, stored once
    output_offset: Counter  # of the output within raw, bytes
    output_length: Counter
    flags: Annotated[tuple[Word, ...], Count(16)]
    model: Name
    model_digest: Name
    metrics: Metrics
    log: Log
    status: AgentStatus


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt's failure, with its name; repeated until ResultStored."""

    attempt_uid: Uid
    error_class: ErrorClass
    message: Sentence
    metrics: Metrics
    log: Log
    status: AgentStatus


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The agent stops: what it still lists as running comes back as failures of class drain first."""

    status: AgentStatus
