"""When a chaos run does what to whom: drawn from a seed, so that it can be repeated. Pure."""

import random
from dataclasses import dataclass, field
from enum import StrEnum


class Deed(StrEnum):
    """What is done."""

    KILL = "kill"  # SIGKILL; it is started again after `lasts_s`
    FREEZE = "freeze"  # SIGSTOP for `lasts_s`
    RESTART = "restart"  # SIGTERM, and started again after `lasts_s`
    OLLAMA_FAULT = "ollama fault"  # its control interface is asked for `detail`
    LINK_DOWN = "link down"  # of the box in a network namespace, for `lasts_s`


@dataclass(frozen=True, slots=True)
class Act:
    """One deed, so long after the beginning."""

    at_s: float
    deed: Deed
    victim: str
    lasts_s: float = 0.0
    detail: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean pauses between deeds of a kind in seconds, whoever is hit; 0: never. Each pause is 0.5 to 1.5 of it."""

    kill_broker_s: float = 7.0
    kill_agent_s: float = 3.0
    kill_client_s: float = 5.0
    freeze_s: float = 20.0
    freeze_least_s: float = 5.0
    freeze_most_s: float = 40.0
    restart_broker_s: float = 40.0
    restart_agent_s: float = 40.0
    ollama_fault_s: float = 8.0
    link_down_s: float = 30.0
    link_down_most_s: float = 25.0


@dataclass(frozen=True, slots=True)
class Cast:
    """Who can be hit."""

    broker: str
    agents: tuple[str, ...]
    clients: tuple[str, ...]
    ollamas: tuple[str, ...]
    boxed: tuple[str, ...] = ()  # agents in a network namespace of their own


# What the simulated Ollama can do wrong that is over when the task is tried again.
OLLAMA_FAULTS: tuple[dict[str, object], ...] = (
    {"kind": "error", "status": 500, "text": "llama runner process has terminated"},
    {"kind": "busy"},
    {"kind": "crashed"},
    {"kind": "reset", "after": 300},
    {"kind": "eof", "after": 300},
    {"kind": "kill", "after": 20},
    {"kind": "stream_error", "after": 20, "text": "unexpected EOF"},
)
_PAUSE_DEAD_S = 0.5  # at most, before what fell is started again


def timetable(seed: int, span_s: float, cast: Cast, rates: Rates) -> list[Act]:
    """All acts of a run, in order."""
    acts: list[Act] = []
    streams = [
        (Deed.KILL, "broker", (cast.broker,), rates.kill_broker_s),
        (Deed.KILL, "agent", cast.agents, rates.kill_agent_s),
        (Deed.KILL, "client", cast.clients, rates.kill_client_s),
        (Deed.RESTART, "broker", (cast.broker,), rates.restart_broker_s),
        (Deed.RESTART, "agent", cast.agents, rates.restart_agent_s),
        (Deed.FREEZE, "any", (cast.broker, *cast.agents, *cast.ollamas), rates.freeze_s),
        (Deed.OLLAMA_FAULT, "ollama", cast.ollamas, rates.ollama_fault_s),
        (Deed.LINK_DOWN, "box", cast.boxed, rates.link_down_s),
    ]
    for deed, group, victims, pause_s in streams:
        if not victims or pause_s <= 0:
            continue
        # Every victim has a period of its own: together they are hit as often as the rate says.
        for victim in victims:
            dice = random.Random(f"{seed} {deed} {group} {victim}")
            own_s = pause_s * len(victims)
            at_s = own_s * dice.random()
            while at_s < span_s:
                acts.append(_act(at_s, deed, victim, rates, dice))
                at_s += own_s * dice.uniform(0.5, 1.5)
    return sorted(acts, key=lambda act: act.at_s)


def _act(at_s: float, deed: Deed, victim: str, rates: Rates, dice: random.Random) -> Act:
    match deed:
        case Deed.KILL | Deed.RESTART:
            return Act(at_s, deed, victim, dice.uniform(0.0, _PAUSE_DEAD_S))
        case Deed.FREEZE:
            # Short ones more often than long ones: in a long one little else can happen.
            share = dice.random() ** 2
            return Act(at_s, deed, victim, rates.freeze_least_s + share * (rates.freeze_most_s - rates.freeze_least_s))
        case Deed.OLLAMA_FAULT:
            return Act(at_s, deed, victim, detail=dice.choice(OLLAMA_FAULTS))
        case Deed.LINK_DOWN:
            return Act(at_s, deed, victim, dice.uniform(3.0, rates.link_down_most_s))
