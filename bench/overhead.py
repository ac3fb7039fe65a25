"""What Koubou's agent adds to a task, against one cold run of the gemini-repo-cli command, in one run."""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import watched
from bench.stage import client_of, start_agent, until_ready
from bench.timed_agent import MARK
from koubou_agent.setup_cli import STAND_IN, setup_cli
from koubou_client.client import Client
from koubou_simulator.workshop import Process, Worker, Workshop

REAL_CLI_VARIABLE = "KOUBOU_TEST_CLI_PYTHON"  # the interpreter of an environment with the real gemini-repo-cli
TARGET = 0.1  # of a cold run: what a task may cost beside Ollama

_TASKS_A_ROUND = 3  # a cold run takes as long as many tasks
_COLD_TIMEOUT_S = 60.0
_MODEL = "gpt-oss:20b"
_PROMPT = "Explain this module in one paragraph."
_TARGET_FILE = "codec.md"
_CONTEXT = Path(__file__).resolve().parent.parent / "common" / "koubou_common" / "codec.py"


@dataclass(slots=True)
class _Contest:
    """One gemini-repo-cli, as a command and behind its agent."""

    kind: str
    python: Path
    worker_id: str
    ollama_url: str
    agent: Process
    cold_ms: list[float] = field(default_factory=list)
    stayed_ms: list[float] = field(default_factory=list)
    recorded_ms: list[int] = field(default_factory=list)
    recorded_overhead_ms: list[int] = field(default_factory=list)


def measure(home: Path, rounds: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Print the ratio for each gemini-repo-cli there is; False if one misses the target."""
    with _stage(home, environ) as (contests, client, folder):
        for contest in contests:  # once each, not counted: file caches, the model's load
            _run_cold(contest, folder)
            _run_task(contest, client, folder)
        with watched() as share:
            for _ in range(rounds):
                for contest in contests:
                    contest.cold_ms.append(_run_cold(contest, folder))
                    for _ in range(_TASKS_A_ROUND):
                        stayed_ms, recorded_ms, overhead_ms = _run_task(contest, client, folder)
                        contest.stayed_ms.append(stayed_ms)
                        contest.recorded_ms.append(recorded_ms)
                        contest.recorded_overhead_ms.append(overhead_ms)
    print(f"agent overhead per task: simulated Ollama that answers at once; {share.text()}")
    is_met = True
    for contest in contests:
        is_met &= _tell(contest)
    if len(contests) == 1:
        print(f"  real gemini-repo-cli: not measured, {REAL_CLI_VARIABLE} names no interpreter that has it")
    return is_met


@contextmanager
def _stage(home: Path, environ: Mapping[str, str]) -> Iterator[tuple[Sequence[_Contest], Client, Path]]:
    pythons = {"stand-in": Path(setup_cli(home, STAND_IN).python)}
    if environ.get(REAL_CLI_VARIABLE):
        pythons["real"] = Path(environ[REAL_CLI_VARIABLE])
    folder = home / "repository"
    folder.mkdir()
    shutil.copy(_CONTEXT, folder / _CONTEXT.name)
    with Workshop(home) as shop:
        urls = {
            kind: shop.start_ollama(kind, "--preset", "tiny", "--model", f"{_MODEL}=tiny", "--seed", "7")
            for kind in pythons
        }
        shop.configure([Worker(f"bench_{number}", _MODEL, urls[kind]) for number, kind in enumerate(pythons)])
        shop.start_broker()
        contests = [
            _Contest(
                kind,
                python,
                f"bench_{number}",
                urls[kind],
                start_agent(shop, f"bench_{number}", "bench.timed_agent", urls[kind], KOUBOU_CLI_PYTHON=str(python)),
            )
            for number, (kind, python) in enumerate(pythons.items())
        ]
        with client_of(shop) as client:
            until_ready(shop, client, [contest.agent for contest in contests])
            yield contests, client, folder


def _run_cold(contest: _Contest, folder: Path) -> float:
    """One run of the command as a person starts it; milliseconds."""
    command = contest.python.with_name("gemini-repo-cli")
    program = [str(command)] if command.exists() else [str(contest.python), "-m", "gemini_repo.cli"]
    started_s = time.perf_counter()
    ran = subprocess.run(
        [
            *program,
            "--provider=ollama",
            f"--ollama-model={_MODEL}",
            f"--ollama-host={contest.ollama_url}",
            "--files",
            _CONTEXT.name,
            "--",
            folder.name,
            _TARGET_FILE,
            _PROMPT,
        ],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_COLD_TIMEOUT_S,
        check=False,
    )
    took_ms = (time.perf_counter() - started_s) * 1_000
    if ran.returncode or not ran.stdout:
        raise RuntimeError(f"{contest.kind} failed: {ran.stderr.decode(errors='replace')[-2_000:]}")
    return took_ms


def _run_task(contest: _Contest, client: Client, folder: Path) -> tuple[float, int, int]:
    """The same through the agent: how long it stayed there, and the broker's record of it; milliseconds."""
    future = client.submit(
        _PROMPT,
        files=[_CONTEXT.name],
        root=folder,
        target=_TARGET_FILE,
        worker=contest.worker_id,
    )
    future.result(_COLD_TIMEOUT_S)
    attempt = client.story(future.id).attempts[-1]
    marks = [line.split() for line in contest.agent.log().splitlines() if line.startswith(MARK)]
    stayed_ms = next(float(ms) for _mark, uid, ms in marks if uid == attempt.uid)
    return stayed_ms, attempt.metrics.total_ms, attempt.metrics.overhead_ms


def _tell(contest: _Contest) -> bool:
    cold_ms, stayed_ms = statistics.median(contest.cold_ms), statistics.median(contest.stayed_ms)
    ratio = stayed_ms / cold_ms
    is_met = ratio <= TARGET
    print(
        f"  {contest.kind:<9} cold run {cold_ms:7.1f} ms ({len(contest.cold_ms)} runs),"
        f" in the agent {stayed_ms:6.1f} ms ({len(contest.stayed_ms)} tasks;"
        f" recorded: total {statistics.median(contest.recorded_ms):g} ms,"
        f" without Ollama {statistics.median(contest.recorded_overhead_ms):g} ms):"
        f" ratio {ratio:.3f}, target {TARGET:g}: {'met' if is_met else 'MISSED'}"
    )
    return is_met
