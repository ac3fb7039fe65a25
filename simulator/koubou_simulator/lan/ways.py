"""The ways of giving work out that a scenario compares: Koubou's two strategies, and what people do elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from koubou_broker.core import CoreSettings
from koubou_broker.routing.strategies import Strategy
from koubou_simulator.lan.baselines import (
    Chooser,
    LeastConnections,
    LeastConnectionsAtSubmit,
    OriginalAtSubmit,
    RandomAtSubmit,
    RandomChoice,
    RoundRobin,
    RoundRobinAtSubmit,
)
from koubou_simulator.lan.outcome import Outcome
from koubou_simulator.lan.run import LanRun
from koubou_simulator.lan.things import BoxSpec, Job

DEFAULT, EARLIEST, FIFO = "priority_based", "earliest_finish", "fifo"
OURS = (DEFAULT, EARLIEST)
WAYS = (
    DEFAULT,
    EARLIEST,
    FIFO,
    "random",
    "round_robin",
    "least_connections",
    "random_at_submit",
    "round_robin_at_submit",
    "least_connections_at_submit",
    "original_at_submit",
)


def play(way: str, settings: CoreSettings, boxes: Sequence[BoxSpec], jobs: Sequence[Job], seed: int) -> Outcome:
    """One run of a scenario; the same arguments give the same outcome."""
    rng = Random(f"{way}/{seed}")
    if way in OURS:
        settings = replace(settings, strategy=way)
    elif way == FIFO:
        # First in, first out: no ageing, and no task is overtaken for a loaded model's sake.
        settings = replace(settings, strategy=DEFAULT, aging_s=0.0, patience_s=0.0)
    run = LanRun(settings, boxes, jobs, seed, strategy=_strategy(way, rng), chooser=_chooser(way, rng))
    return run.play()


def _strategy(way: str, rng: Random) -> Strategy | None:
    match way:
        case "random":
            return RandomChoice(rng)
        case "round_robin":
            return RoundRobin()
        case "least_connections":
            return LeastConnections()
        case _:
            return None


def _chooser(way: str, rng: Random) -> Chooser | None:
    match way:
        case "random_at_submit":
            return RandomAtSubmit(rng)
        case "round_robin_at_submit":
            return RoundRobinAtSubmit()
        case "least_connections_at_submit":
            return LeastConnectionsAtSubmit()
        case "original_at_submit":
            return OriginalAtSubmit()
        case _:
            return None
