"""Process chaos: `python -m chaos.run --minutes 10 --seed 1`; exit 1 if a promise was broken or a figure missed."""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from chaos.evidence import ALL, Evidence, gather
from chaos.figures import Figures, figures
from chaos.grounds import SETTINGS, Grounds
from chaos.netns import Box, Namespace, NotPermittedError
from chaos.storm import Incident, Storm, now_ms
from chaos.story import Survivor, hardest, told
from chaos.timetable import Rates, timetable
from chaos.weather import Climate, Gust
from koubou_common.messages.values import TaskState
from sim.checker import violations
from sim.facts import Invariant
from support.cli import CLI_KINDS, cli_python

MOST_EXECUTIONS = 1.5  # a task
_STUCK_S = 60.0  # in calm weather a client is told something more often than this, or it never will be
_POLL_S = 0.1
_TERMINATED = 143
_RESULTS_BY_CTL = 5  # of all: each is a process
_SHOWN = 25  # lines of broken promises
_DUPLICATES = (Invariant.I2, Invariant.I3)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    minutes: float
    seed: int
    agents: int = 4
    clients: int = 3
    window: int = 9  # open submissions of a client: a moderate queue
    rates: Rates = field(default_factory=Rates)
    climate: Climate = field(default_factory=Climate)
    namespaces: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed."""

    figures: Figures
    broken: tuple[str, ...]  # empty: every promise was kept
    incidents: tuple[Incident, ...]
    survivor: Survivor | None
    shown: str  # the survivor's story as `koubou-ctl show` prints it


def run(plan: Plan, home: Path, python: Path, say: Say) -> Outcome:
    """Storm, calm, reading back; the workshop is gone when it returns."""
    with ExitStack() as stack:
        box = _namespace(stack, say) if plan.namespaces else None
        incidents: list[Incident] = []

        def blew(door: str, gust: Gust) -> None:
            incidents.append(Incident(now_ms(), f"proxy {gust.kind}", door, gust.lasts_s))

        grounds = stack.enter_context(Grounds(home, python, plan.seed, plan.climate, blew))
        grounds.open(agents=plan.agents, clients=plan.clients, window=plan.window, box=box)
        storm = Storm(grounds, incidents, box)
        grounds.start()
        began_s = time.monotonic()
        storm.blow(timetable(plan.seed, plan.minutes * 60, storm.cast, plan.rates))
        minutes = (time.monotonic() - began_s) / 60
        say(f"the storm is over after {minutes:.1f} min; waiting until every task has ended")
        storm.calm()
        broken = _await_clients(grounds, storm)
        say("reading every outcome back")
        evidence = gather(grounds)
        found = violations(evidence.facts)
        broken += [*storm.troubles, *map(str, found), *evidence.complaints]
        duplicated = len({one.task_id for one in found if one.invariant in _DUPLICATES})
        acknowledged = [
            task_id for memory in evidence.memories.values() for ids in memory.accepted.values() for task_id in ids
        ]
        told_figures = figures(
            evidence.record, acknowledged, incidents, duplicated=duplicated, minutes=minutes, seed=plan.seed
        )
        survivor = hardest(evidence.record, incidents)
        shown = grounds.workshop.ctl("show", str(survivor.task_id)).stdout if survivor else ""
        broken += _compare_with_ctl(grounds, evidence)
    broken += [f"left behind: {process}" for process in grounds.leftovers()]
    broken += [
        f"task {task.task_id} failed: {task.error}" for task in evidence.record.tasks if task.state is TaskState.FAILED
    ]
    broken += _missed(told_figures)
    return Outcome(told_figures, tuple(broken), tuple(incidents), survivor, shown)


def _namespace(stack: ExitStack, say: Say) -> Box | None:
    try:
        box = stack.enter_context(Namespace())
    except NotPermittedError as error:
        say(f"skipped: no box in a network namespace of its own: {error}")
        return None
    say(f"one box runs in the network namespace {box.name}; its link goes down and up")
    return box


def _await_clients(grounds: Grounds, storm: Storm) -> list[str]:
    """Have them finish what they began; returns what went wrong."""
    for client in grounds.clients:
        (client.home / "stop").touch()
    running, noted, since_s = list(grounds.clients), 0, time.monotonic()
    while running and time.monotonic() < since_s + _STUCK_S:
        storm.watch()
        running = [client for client in running if not client.program.ended_well]
        size = sum(client.journal.stat().st_size for client in grounds.clients if client.journal.exists())
        if size != noted:
            noted, since_s = size, time.monotonic()
        time.sleep(_POLL_S)
    return [
        f"{client.name} was told nothing for {_STUCK_S:.0f} s and still waits: {_tail(client.program.log())}"
        for client in running
    ]


def _compare_with_ctl(grounds: Grounds, evidence: Evidence) -> list[str]:
    """`koubou-ctl ps -a` and some `result ID` as people see them."""
    ran = grounds.workshop.ctl("ps", "-a", "-n", str(ALL), "--json")
    listed = {task["id"]: task["state"] for task in json.loads(ran.stdout)["data"]} if ran.returncode == 0 else {}
    stored = {task.task_id: task.state.value for task in evidence.record.tasks}
    broken = [] if listed == stored else [f"koubou-ctl ps -a differs from the database: {ran.stderr.strip()}"]
    succeeded = [task.task_id for task in evidence.record.tasks if task.state is TaskState.SUCCEEDED]
    for task_id in succeeded[:: max(1, len(succeeded) // _RESULTS_BY_CTL)]:
        ran = grounds.workshop.ctl("result", str(task_id))
        if task_id in evidence.jobs and ran.stdout.rstrip("\n") != evidence.jobs[task_id].answer:
            broken.append(f"koubou-ctl result {task_id} prints another text: {ran.stderr.strip()}")
    return broken


def _missed(found: Figures) -> list[str]:
    missed = []
    if found.lost:
        missed.append(f"{found.lost} acknowledged tasks did not succeed")
    if found.executions_per_task >= MOST_EXECUTIONS:
        missed.append(f"{found.executions_per_task:.2f} executions a task, below {MOST_EXECUTIONS} are promised")
    return missed


def _tail(log: str) -> str:
    return " | ".join(log.splitlines()[-3:])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-namespaces", action="store_true", help="no box in a network namespace of its own")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"), help="where the figures go")
    given = parser.parse_args(arguments)
    plan = Plan(given.minutes, given.seed, namespaces=not given.no_namespaces)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that everything started is ended
    say(f"chaos for {plan.minutes:g} min, seed {plan.seed}; gemini-repo-cli: {CLI_KINDS[-1]}; the models are simulated")
    say("broker settings (poison limit and totals out of the way, shorter leases and pauses):")
    say("".join(f"    {line}\n" for line in SETTINGS.splitlines()).rstrip())
    with tempfile.TemporaryDirectory(prefix="koubou-chaos-") as folder:
        root = given.keep or Path(folder)
        python = cli_python(CLI_KINDS[-1], root / "cli")
        outcome = run(plan, root / "home", python, say)
        if given.keep:
            lines = [f"{incident.at_ms} {incident}\n" for incident in outcome.incidents]
            (given.keep / "incidents.txt").write_text("".join(lines))
    say("\n".join(report(outcome)))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(outcome.figures.as_json(), indent=2) + "\n")
    return int(bool(outcome.broken))


def report(outcome: Outcome) -> Iterable[str]:
    """For people."""
    survivor = outcome.survivor
    if survivor is not None:
        yield f"\ntask {survivor.task_id} met {len(survivor.kinds)} kinds of fault: {', '.join(sorted(survivor.kinds))}"
        yield from (f"    {line}" for line in told(survivor))
        yield outcome.shown
    for name, value in outcome.figures.as_json().items():
        yield f"{name:24} {value:g}"
    for line in outcome.broken[:_SHOWN]:
        yield f"BROKEN: {line}"
    if len(outcome.broken) > _SHOWN:
        yield f"... and {len(outcome.broken) - _SHOWN} more"
    yield f"{len(outcome.broken)} broken promises" if outcome.broken else "every promise was kept"


def say(text: str) -> None:
    """Print at once: a run takes long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
