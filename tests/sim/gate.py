"""`make sim_gate`: every mechanism is switched off once, and the simulation must notice within 500 seeds.

Noticed is: a broken promise (by its name), a check of the core's or the model's own that fails, a program that
breaks - or waste: the same seeds cost at least 1.2 times as much as with the mechanism, in executions a task or in
time from a task's submission to its end. Where a mechanism is rarely needed, its seeds draw its fault more often.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import pytest

from sim import mutations, mutations_answers
from sim.faults import Faults
from sim.mutations import Switch, switched
from sim.simulation import Figures, seeds, simulate
from sim.story import SeedError

WITHIN_SEEDS = 500
WASTE_RATIO = 1.2
_LINE_CHARS = 200

# Everything works, nobody is slow: what a harsh profile begins with.
CALM: Mapping[str, Any] = {
    "loss": 0.0,
    "doubling": 0.0,
    "latency_s": 0.02,
    "stale": 0.0,
    "partition_every_s": 0.0,
    "broker_crash_every_s": 0.0,
    "agent_crash_every_s": 0.0,
    "client_crash_every_s": 0.0,
    "crash_at_step": 0.0,
    "agent_crash_at_step": 0.0,
    "broker_pause_every_s": 0.0,
    "agent_pause_every_s": 0.0,
    "power_cut_every_s": 0.0,
    "box_power_cut_every_s": 0.0,
    "commit_s": 0.02,
    "spool_full": 0.0,
    "disk_full_every_s": 0.0,
    "disk_busy_every_s": 0.0,
    "clock_jumps": False,
    "restore_every_s": 0.0,
    "split": 0.0,
    "takeover_every_s": 0.0,
    "operator_every_s": 0.0,
    "agent_stop_every_s": 0.0,
    "same_key_every_s": 0.0,
    "skew": False,
    "slow_work": False,
    "poison": 0.0,
    "outage_every_s": 0.0,
    "releasing_s": 0.0,
    "fails": 0.0,
    "workers": 0,
    "slots": 0,
    "priority": 0,
    "cancel_every_s": 0.0,
    "retry_every_s": 0.0,
    "deadlines": False,
    "small_limits": False,
    "has_habits": False,
}


class Cost(Enum):
    """What waste is measured by."""

    EXECUTIONS = "executions a task"
    EXECUTIONS_OF_SUCCESS = "executions a success"
    DISPATCHES = "dispatches a task"
    OLLAMA_S = "seconds of an Ollama a success"
    LOADS = "loads of a model a task"
    OVERTAKEN_S = "seconds that a task is overtaken at most"
    TURNAROUND = "seconds from submission to end"

    def of(self, figures: Iterable[Figures]) -> float:
        """On average."""
        done = list(figures)
        tasks = max(1, sum(one.tasks for one in done))
        successes = max(1, sum(one.successes for one in done))
        match self:
            case Cost.EXECUTIONS:
                return sum(one.attempts for one in done) / tasks
            case Cost.EXECUTIONS_OF_SUCCESS:
                return sum(one.attempts for one in done) / successes
            case Cost.DISPATCHES:
                return sum(one.dispatches for one in done) / tasks
            case Cost.OLLAMA_S:
                return sum(one.ollama_s for one in done) / successes
            case Cost.LOADS:
                return sum(one.loads for one in done) / tasks
            case Cost.OVERTAKEN_S:
                return max(one.overtaken_s for one in done)
            case Cost.TURNAROUND:
                return sum(one.turnaround_s for one in done) / tasks


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mechanism, its switch, and where it was noticed when somebody last looked."""

    name: str
    switch: Switch
    faults: Mapping[str, Any] = field(default_factory=dict)  # drawn otherwise than by the seed
    waste: Cost | None = None  # safe without it, but wasteful
    seeds: int = 1  # a waste is measured over so many
    first: int = 0  # where the search begins


@dataclass(frozen=True, slots=True)
class Noticed:
    """How a mutant was noticed."""

    mutant: str
    by: str
    at: int  # index in the list of seeds; of waste: how many were compared
    seed: int
    elapsed_s: float

    def __str__(self) -> str:
        where = f"over {self.at} seeds" if not self.seed else f"seed {self.seed} (no. {self.at})"
        return f"{self.mutant:36} {where:28} {self.elapsed_s:5.1f} s  {self.by}"


def notice(mutant: Mutant, within: int = WITHIN_SEEDS) -> Noticed | None:
    """Switch the mechanism off and look; None: nobody noticed."""
    started = time.monotonic()
    plain = [] if mutant.waste is None else [_run(mutant, seed, None) for seed in seeds(mutant.seeds, mutant.first)]
    with pytest.MonkeyPatch.context() as patch:
        bugs = mutant.switch(patch)
        if mutant.waste is not None:
            return _wasteful(mutant, mutant.waste, plain, bugs, started)
        for index in (*range(mutant.first, within), *range(mutant.first)):
            seed = seeds(1, index)[0]
            by = _broken(mutant, seed, bugs)
            if by:
                break
        else:
            return None
    # What fails with the mechanism too says nothing about the mechanism: the simulation is to be mended first.
    _run(mutant, seed, None)
    return Noticed(mutant.name, by, index, seed, time.monotonic() - started)


def _wasteful(mutant: Mutant, cost: Cost, plain: list[Figures], bugs: Any, started: float) -> Noticed | None:
    todo = seeds(mutant.seeds, mutant.first)
    with_it, without = cost.of(plain), cost.of([_run(mutant, seed, bugs) for seed in todo])
    if without < WASTE_RATIO * with_it:
        sys.stderr.write(f"{mutant.name}: {cost.value} {with_it:.3f} with it, {without:.3f} without\n")
        return None
    by = f"waste: {cost.value} {with_it:.2f} with it, {without:.2f} without, {without / with_it:.2f} x"
    return Noticed(mutant.name, by, len(todo), 0, time.monotonic() - started)


def _broken(mutant: Mutant, seed: int, bugs: Any) -> str:
    try:
        _run(mutant, seed, bugs)
    except SeedError as error:
        return error.reason
    except AssertionError as error:
        return f"assertion: {str(error).splitlines()[0]}"
    except Exception as error:  # a core that breaks down over it has noticed it too
        return f"breaks: {error!r}"
    return ""


def _run(mutant: Mutant, seed: int, bugs: Any) -> Figures:
    if not mutant.faults:
        return simulate(seed, bugs)
    return simulate(seed, bugs, replace(Faults.draw(random.Random(seed)), **mutant.faults))


# A backup put in place on another host; the old broker, thought dead, wakes and answers all that reached it.
_TWO_HOSTS: Mapping[str, Any] = {
    **CALM,
    "restore_every_s": 200.0,
    "split": 1.0,
    "stale": 1.0,
    "latency_s": 0.3,
    "workers": 4,
    "slots": 6,
}


# One slot for two models, and nobody comes first by priority.
_ONE_BOX: Mapping[str, Any] = {"slow_work": True, "workers": 1, "slots": 1, "priority": 5}


def _wasted(name: str, switch: Switch, cost: Cost, *, seeds: int = 10, **faults: Any) -> Mutant:
    """Safe without it: in a calm workshop where only these things happen, it costs more."""
    return Mutant(name, switch, {**CALM, **faults}, cost, seeds)


MUTANTS: tuple[Mutant, ...] = (
    # What clients are told.
    Mutant("idempotency key", mutations.idempotency_key),
    Mutant("ack after commit", mutations.ack_after_commit),
    Mutant("ack of a repeat after commit", mutations.repeat_after_commit),
    Mutant("look-up after commit", mutations.look_up_after_commit),
    Mutant("durable cancel", mutations.cancel_before_abort),
    # Outcomes.
    Mutant(
        "result-ack after commit",
        mutations.result_ack_after_commit,
        {**CALM, "broker_crash_every_s": 60.0, "commit_s": 4.0},
    ),
    Mutant("terminal compare-and-set", mutations.terminal_compare_and_set),
    Mutant("late success accepted", mutations.late_success),
    Mutant("attempt uid", mutations.attempt_uid),
    Mutant("superseded failure ignored", mutations.superseded_failure),
    # Who is alive.
    Mutant("heartbeat listing", mutations.heartbeat_listing),
    Mutant("dispatch-number echo", mutations.dispatch_number_echo),
    Mutant("lease expiry", mutations.lease_expiry),
    _wasted(
        "loop-gap extension",
        mutations.stretch,
        Cost.EXECUTIONS_OF_SUCCESS,
        broker_pause_every_s=3.0,
        latency_s=0.3,
        slow_work=True,
        workers=6,
        slots=6,
    ),
    _wasted(
        "restart grace",
        mutations.restart_grace,
        Cost.EXECUTIONS,
        seeds=5,
        broker_crash_every_s=60.0,
        slow_work=True,
        workers=4,
        slots=6,
    ),
    _wasted(
        "adoption", mutations.adoption, Cost.EXECUTIONS, partition_every_s=60.0, slow_work=True, workers=1, slots=6
    ),
    # How much they are given.
    Mutant("slot count", mutations.slot_count),
    Mutant("numbers of statuses", mutations.status_numbers, first=130),
    _wasted(
        "free-slot report",
        mutations.free_slot_report,
        Cost.DISPATCHES,
        seeds=3,
        agent_stop_every_s=60.0,
        slow_work=True,
        workers=2,
    ),
    _wasted("grouping by model", mutations.grouping, Cost.LOADS, seeds=6, **_ONE_BOX),
    _wasted("patience of those overtaken", mutations.patience, Cost.OVERTAKEN_S, seeds=12, **_ONE_BOX),
    _wasted("poison limit", mutations.poison_limit, Cost.EXECUTIONS, poison=0.3),
    _wasted("backoff", mutations.backoff, Cost.EXECUTIONS_OF_SUCCESS, outage_every_s=30.0, workers=2, slots=2),
    _wasted(
        "abort of cancelled attempts",
        mutations.abort_of_cancelled,
        Cost.OLLAMA_S,
        seeds=5,
        cancel_every_s=60.0,
        slow_work=True,
        workers=4,
    ),
    # Who may do it, and what was answered before.
    Mutant("wishes of a task", mutations_answers.wishes, first=10),
    Mutant("same digest", mutations_answers.same_digest, first=20),
    Mutant("version that answered", mutations_answers.answering_version),
    Mutant("cache, whose question", mutations_answers.cache_by_principal),
    Mutant("cache, which question", mutations_answers.cache_by_prompt),
    Mutant("cache, which version", mutations_answers.cache_by_digest, first=20),
    Mutant("cache, only where it is wanted", mutations_answers.cache_when_wanted, first=55),
    Mutant("explanations of one's own tasks", mutations_answers.own_tasks),
    Mutant("dry runs accept nothing", mutations_answers.dry_run),
    # What agents keep.
    _wasted("spool", switched(no_spool=True), Cost.EXECUTIONS_OF_SUCCESS, agent_crash_at_step=0.4),
    Mutant("spool until stored", mutations.spool_until_stored),
    Mutant("spool forced to the disk", switched(spool_unsynced=True)),
    Mutant("delivery repeated", mutations.delivery_again),
    Mutant("doubled dispatch recognised", mutations.doubled_dispatch),
    Mutant("health repeated", mutations.health_again, {**CALM, "loss": 0.3, "spool_full": 0.2}),
    # One broker, one database.
    Mutant("epoch, agents", mutations.agent_epoch, {**_TWO_HOSTS, "commit_s": 4.0, "loss": 0.5}, first=28),
    Mutant("epoch, clients", switched(any_epoch=True), _TWO_HOSTS),
    Mutant(
        "epoch, fencing of commits",
        switched(unfenced=True),
        {**CALM, "takeover_every_s": 60.0, "stale": 1.0},
        first=30,
    ),
    Mutant("id jump after a restore", switched(no_jump=True)),
    Mutant("synchronous=FULL", switched(unsynced=True)),
)


def main() -> int:
    """Try all mutants, or those named; 1 where one is not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="these alone: any part of a mutant's name")
    parser.add_argument("--within", type=int, default=WITHIN_SEEDS, help="seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--from-the-first", action="store_true", help="do not begin where it was noticed last")
    asked = parser.parse_args()
    chosen = [one for one in range(len(MUTANTS)) if _is_chosen(MUTANTS[one], asked.names)]
    todo = [(one, asked.within, asked.from_the_first) for one in chosen]
    unnoticed: list[str] = []
    with multiprocessing.get_context("spawn").Pool(min(asked.jobs, len(todo))) as pool:
        for (one, _, _), noticed in zip(todo, pool.imap(_try, todo), strict=True):
            if noticed is None:
                unnoticed.append(MUTANTS[one].name)
            line = str(noticed) if noticed else f"{MUTANTS[one].name:36} NOT NOTICED"
            sys.stdout.write(f"{line[:_LINE_CHARS]}\n")
            sys.stdout.flush()
    sys.stdout.write(f"gate: {len(todo) - len(unnoticed)} of {len(todo)} mechanisms are missed when they are gone\n")
    return 1 if unnoticed else 0


def _is_chosen(mutant: Mutant, names: list[str]) -> bool:
    return not names or any(name in mutant.name for name in names)


def _try(asked: tuple[int, int, bool]) -> Noticed | None:
    one, within, from_the_first = asked
    mutant = MUTANTS[one]
    if from_the_first and mutant.waste is None:
        mutant = replace(mutant, first=0)
    return notice(mutant, within)


if __name__ == "__main__":
    sys.exit(main())
