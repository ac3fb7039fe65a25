"""kill -9 of broker or agent at seeded instants of one command: `python -m e2e.kill --count 50`."""

import argparse
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.site import MODEL, Site
from koubou_simulator.workshop import Process, Worker
from support.cli import CLI_KINDS, cli_python

BROKER, AGENT = "broker", "agent"
VICTIMS = (BROKER, AGENT)
WORKER = "local_001"

_LONGEST_S = 60.0  # of a command whose broker or agent was killed and started again
_PAST_END = 1.1  # the last instants fall just after the undisturbed command's end
_SOURCE = "def double(number: int) -> int:\n    return 2 * number\n"


@dataclass(frozen=True, slots=True)
class Run:
    """One command, disturbed at one instant."""

    victim: str
    instant_s: float
    took_s: float
    attempts: tuple[str, ...]  # their recorded states
    fault: str  # empty: it ended with exactly one result


class Range:
    """A workshop of one worker, in which the same command is run over and over."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # Some 0.8 s for the answer: long enough to be hit in the midst of it.
        ollama = site.ollama("kill", "--speed", "0.5")
        site.open([Worker(WORKER, MODEL, ollama.url)])
        self.agent = site.start_agent(WORKER, ollama)
        self._number = 0

    def undisturbed_s(self) -> float:
        """How long the command takes by itself; the shorter of two, the first also loads the model."""
        return min(self._run("", -1.0).took_s for _ in range(2))

    def run(self, victim: str, instant_s: float) -> Run:
        """Run the command, kill the victim so long after its start, start it again."""
        self.site.workshop.until(lambda: self.site.worker(WORKER)["state"] == "ready", self.agent, _LONGEST_S)
        return self._run(victim, instant_s)

    def _run(self, victim: str, instant_s: float) -> Run:
        self._number += 1
        folder = self.site.home / "runs" / str(self._number)
        (folder / "src").mkdir(parents=True)
        (folder / "src" / "double.py").write_text(_SOURCE)
        prompt = f"[[sim: length=400]] Explain run {self._number}"
        began_s = time.monotonic()
        with self._command(folder, prompt) as command:
            if victim:
                time.sleep(max(0.0, began_s + instant_s - time.monotonic()))
                process = self._process(victim)
                process.kill()
                process.start()
            try:
                _, said = command.communicate(timeout=_LONGEST_S)
            except subprocess.TimeoutExpired:
                return Run(victim, instant_s, _LONGEST_S, (), f"the command did not end within {_LONGEST_S:.0f} s")
        took_s = time.monotonic() - began_s
        self.site.workshop.until(lambda: self.site.ctl("status").code == 0, self.site.workshop.broker, _LONGEST_S)
        attempts, fault = self._judge(folder, prompt, command.returncode, said)
        return Run(victim, instant_s, took_s, attempts, fault)

    def _judge(self, folder: Path, prompt: str, code: int, said: str) -> tuple[tuple[str, ...], str]:
        """What the records say, and what is wrong; the run's repository name tells its tasks from all others."""
        if code != 0:
            return (), f"exit {code}: {said.strip()}"
        newest = self.site.ctl("ps", "-a", "--json").data
        own = [task for task in newest if task["target"] == f"run-{self._number}.md"]
        if len(own) != 1:
            return (), f"{len(own)} tasks are on record for one command"
        story = self.site.story(own[0]["id"])
        states = tuple(attempt["state"] for attempt in story["attempts"])
        if story["task"]["state"] != "succeeded" or states.count("succeeded") != 1:
            return states, f"task {story['task']['state']}, attempts {states}"
        if [attempt["attempt"] for attempt in story["attempts"]] != list(range(1, len(states) + 1)):
            return states, "the attempts are not all on record"
        files = sorted(path.name for path in folder.iterdir())
        if files != [f"run-{self._number}.md", "src"]:
            return states, f"the folder holds {files}"
        text = (folder / f"run-{self._number}.md").read_bytes()
        kept = self.site.ctl("result", str(own[0]["id"])).raw
        if text.rstrip(b"\n") != kept.rstrip(b"\n") or not text.startswith(b"[SIMULATED]"):
            return states, "the file is not the recorded output"
        return states, ""

    @contextmanager
    def _command(self, folder: Path, prompt: str) -> Iterator["subprocess.Popen[str]"]:
        workshop, target = self.site.workshop, f"run-{self._number}.md"
        arguments = ["submit", prompt, "-f", "src/double.py", "-o", target, "--wait"]
        with subprocess.Popen(
            [workshop.python, "-m", "koubou_client.ctl", "--home", str(self.site.home), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            try:
                yield command
            finally:
                if command.poll() is None:
                    command.kill()

    def _process(self, victim: str) -> Process:
        return self.site.workshop.broker if victim == BROKER else self.agent


def instants(victim: str, count: int, span_s: float, seed: int) -> list[float]:
    """One instant in each of `count` equal parts of the command, so that few of them spread well too."""
    dice = random.Random(f"{seed} {victim}")
    return [span_s * _PAST_END * (part + dice.random()) / count for part in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every run and the figures; exit 1 if a command did not end with exactly one result."""
    parser = argparse.ArgumentParser(prog="python -m e2e.kill", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="kills of each (50)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=VICTIMS, action="append", help="only this one")
    given = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="koubou-kill-") as folder:
        python = cli_python(CLI_KINDS[-1], Path(folder) / "cli")
        with Site(Path(folder) / "home", python) as site:
            field = Range(site)
            span_s = field.undisturbed_s()
            print(f"gemini-repo-cli: {CLI_KINDS[-1]}; the undisturbed command takes {span_s:.2f} s; seed {given.seed}")
            for victim in given.victim or VICTIMS:
                runs = []
                for instant_s in instants(victim, given.count, span_s, given.seed):
                    run = field.run(victim, instant_s)
                    runs.append(run)
                    print(
                        f"  {victim} killed at {run.instant_s:5.2f} s: ended after {run.took_s:5.2f} s,"
                        f" attempts {' '.join(run.attempts) or '-'}{'  WRONG: ' + run.fault if run.fault else ''}",
                        flush=True,
                    )
                print(_figures(victim, runs), flush=True)
                bad += sum(bool(run.fault) for run in runs)
    return int(bad > 0)


def _figures(victim: str, runs: Sequence[Run]) -> str:
    counts = Counter(len(run.attempts) for run in runs if not run.fault)
    attempts = ", ".join(f"{count} with {number}" for number, count in sorted(counts.items()))
    return (
        f"{victim}: {len(runs)} kills, {sum(not run.fault for run in runs)} ended with exactly one result"
        f" (attempts: {attempts}), longest {max(run.took_s for run in runs):.1f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
