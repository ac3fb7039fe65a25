"""A soak: steady load, now and then the kill of an agent that is not measured; prints whether anything grows.

`python -m chaos.soak --minutes 60`; exit 1 if a task failed, files stayed open or the database went on growing.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos.forgetful_broker import DAY_VARIABLE
from chaos.samples import MIB, Sample, Trend, is_bounded, trend
from koubou_client.client import Client
from koubou_client.futures import TaskFuture
from koubou_simulator.workshop import Process, Worker, Workshop
from support.cli import CLI_KINDS, cli_python

MODEL = "llama3.2:3b"
MEASURED, OTHER = "measured", "other"
PAUSE_S = 0.3  # between two submissions
SAMPLE_S = 10.0
KILL_S = 45.0  # between two kills of the other agent
DAYS_A_RUN = 60  # of retention: an hour has days of a minute
HISTORY_DAYS = 7  # so the database is full after an eighth of the run
_OPEN_MOST = 50  # tasks; beyond that nothing is submitted until some have ended
_END_S = 120.0
_TURN_S = 0.05
_TERMINATED = 143
_WORDS = ("count", "measure", "compare", "record", "review")


@dataclass(slots=True)
class Soak:
    """What was seen."""

    broker: list[Sample] = field(default_factory=list)
    agent: list[Sample] = field(default_factory=list)
    database_bytes: list[int] = field(default_factory=list)
    submitted: int = 0
    succeeded: int = 0
    wrong: list[str] = field(default_factory=list)
    kills: int = 0


def run(minutes: float, seed: int, home: Path, python: Path, sample_s: float = SAMPLE_S) -> Soak:
    """The whole soak; everything is stopped when it returns."""
    dice = random.Random(seed)
    soak = Soak()
    with ExitStack() as stack:
        workshop = stack.enter_context(Workshop(home, cli_python=str(python)))
        _forget_soon(workshop, minutes)
        urls = {name: workshop.start_ollama(name, "--model", f"{MODEL}=fast") for name in (MEASURED, OTHER)}
        workshop.configure(
            [Worker(name, MODEL, url) for name, url in urls.items()],
            broker="heartbeat_s: 1\nlease_s: 10\nretry: {poison_deaths: 100, backoff_base_s: 0.2, backoff_cap_s: 2}\n"
            f"retention: {{bodies_days: 1, history_days: {HISTORY_DAYS}}}\n"
            "disk: {reserve_bytes: 1048576, min_free_bytes: 0}\n",
        )
        workshop.start_broker()
        agents = {name: workshop.agent(name, url, None, "--stop-timeout", "3") for name, url in urls.items()}
        for agent in agents.values():
            agent.start()
        client = stack.enter_context(Client(home=home))
        load = _Load(client, soak, dice)
        began_s = time.monotonic()
        next_kill_s, next_sample_s = began_s + KILL_S, began_s + sample_s
        while time.monotonic() < began_s + minutes * 60:
            now_s = time.monotonic()
            load.turn(now_s)
            if now_s >= next_kill_s:
                agents[OTHER].kill()
                agents[OTHER].start()
                soak.kills += 1
                next_kill_s += KILL_S * dice.uniform(0.5, 1.5)
            if now_s >= next_sample_s:
                soak.broker.append(sample(workshop.broker, now_s - began_s))
                soak.agent.append(sample(agents[MEASURED], now_s - began_s))
                soak.database_bytes.append(_size(home / "state"))
                next_sample_s += sample_s
            time.sleep(_TURN_S)
        load.finish()
    return soak


class _Load:
    """Submits at a steady pace and looks at every answer."""

    def __init__(self, client: Client, soak: Soak, dice: random.Random) -> None:
        self._client = client
        self._soak = soak
        self._dice = dice
        self._next_s = 0.0
        self._open: dict[TaskFuture, str] = {}

    def turn(self, now_s: float) -> None:
        if now_s >= self._next_s and len(self._open) < _OPEN_MOST:
            self._next_s = max(self._next_s + PAUSE_S, now_s - PAUSE_S)
            self._soak.submitted += 1
            words = " ".join(self._dice.choice(_WORDS) for _ in range(self._dice.randrange(5, 40)))
            answer = f"answer {self._soak.submitted}: {words}"
            self._open[self._client.submit(f"[[sim: raw={answer}]] Say it.")] = answer
        for future in [one for one in self._open if one.done()]:
            self._look_at(future, self._open.pop(future))

    def finish(self) -> None:
        deadline_s = time.monotonic() + _END_S
        while self._open and time.monotonic() < deadline_s:
            self._next_s = deadline_s  # nothing new
            self.turn(time.monotonic())
            time.sleep(_TURN_S)
        self._soak.wrong += [f"task {future.id} has not ended" for future in self._open]

    def _look_at(self, future: TaskFuture, answer: str) -> None:
        error = future.exception()
        if error is not None:
            self._soak.wrong.append(f"task {future.id}: {error}")
        elif future.result().text != answer:
            self._soak.wrong.append(f"task {future.id} brought another text")
        else:
            self._soak.succeeded += 1


def sample(process: Process, at_s: float) -> Sample:
    """Of a running process (Linux)."""
    place = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    rss_bytes = int(status["VmRSS"].split()[0]) * 1024
    return Sample(at_s, rss_bytes, len(list((place / "fd").iterdir())), int(status["Threads"]))


def _forget_soon(workshop: Workshop, minutes: float) -> None:
    broker = workshop.broker
    broker.arguments = [word.replace("koubou_broker", "chaos.forgetful_broker") for word in broker.arguments]
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    broker.environment = {
        **broker.environment,
        "PYTHONPATH": path,
        DAY_VARIABLE: str(max(1.0, minutes * 60 / DAYS_A_RUN)),
    }


def _size(state: Path) -> int:
    """Of the database and its log, in bytes."""
    return sum(path.stat().st_size for path in state.glob("koubou.db*"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"), help="where the figures go")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that everything started is ended
    _say(f"soak of {given.minutes:g} min, a task every {PAUSE_S} s; gemini-repo-cli: {CLI_KINDS[-1]}, simulated models")
    _say(f"retention keeps {HISTORY_DAYS} days of {max(1.0, given.minutes * 60 / DAYS_A_RUN):g} s each")
    with tempfile.TemporaryDirectory(prefix="koubou-soak-") as folder:
        python = cli_python(CLI_KINDS[-1], Path(folder) / "cli")
        soak = run(given.minutes, given.seed, Path(folder) / "home", python)
    found, faults = judge(soak)
    for line in report(found, faults):
        _say(line)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"minutes": given.minutes, "seed": given.seed, **found}, indent=2) + "\n")
    return int(bool(faults))


def judge(soak: Soak) -> tuple[dict[str, object], list[str]]:
    """The figures, and what is wrong with them; a slope is told, not judged: short runs have none to speak of."""
    trends = {"broker": trend(soak.broker), "agent": trend(soak.agent)}
    faults = soak.wrong[:]
    faults += [f"the {name} keeps files open" for name, one in trends.items() if one.leaks_fds]
    if not is_bounded(soak.database_bytes):
        faults.append("the database goes on growing")
    found: dict[str, object] = {
        "tasks": soak.submitted,
        "succeeded": soak.succeeded,
        "kills": soak.kills,
        **{name: _rounded(one) for name, one in trends.items()},
        "database_max_mib": round(max(soak.database_bytes) / MIB, 2),
        "database_last_mib": round(soak.database_bytes[-1] / MIB, 2),
    }
    return found, faults


def report(found: dict[str, object], faults: Sequence[str]) -> Iterator[str]:
    """For people."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield f"{name:20} {', '.join(f'{what} {number}' for what, number in value.items())}"
        else:
            yield f"{name:20} {value}"
    yield from (f"WRONG: {fault}" for fault in faults)
    yield "nothing grows" if not faults else f"{len(faults)} faults"


def _rounded(one: Trend) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(one).items()}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
