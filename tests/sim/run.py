"""`make sim SEEDS=10000`: many seeds over all cores, the figures of all of them, and the story of the first failure.

The figures are sums over seeds in their order: they do not depend on how many processes shared the work.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sim.simulation import Figures, seeds, simulate

CHUNK_SEEDS = 10  # handed to a process at a time: a second or so of work
REPORT_EVERY_S = 30.0  # a line on stderr for those who wait
RECORD = Path("build/sim.json")


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that broke a promise, or the simulation itself."""

    seed: int
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """What some seeds came to."""

    figures: tuple[Figures, ...]
    failure: Failure | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds asked for; the first failure ends the run with its story."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="begin at this one of the list")
    parser.add_argument("--seed", type=int, help="run this one alone (as a failure named it)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the figures are written")
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return _one(asked.seed)
    started = time.monotonic()
    figures, failure = run(seeds(asked.seeds, asked.first), asked.jobs)
    _record(asked.record, figures, failure, time.monotonic() - started)
    if failure is not None:
        sys.stderr.write(f"{failure.text}\n{_replayed(failure)}\nagain: make sim ONE={failure.seed}\n")
        return 1
    return 0


def run(todo: list[int], jobs: int) -> tuple[list[Figures], Failure | None]:
    """The figures of each seed, in order, up to the first failure."""
    chunks = [todo[at : at + CHUNK_SEEDS] for at in range(0, len(todo), CHUNK_SEEDS)]
    if jobs <= 1 or len(chunks) <= 1:
        return _gather(map(run_chunk, chunks), len(todo))
    # Fresh interpreters: a fork would inherit what the parent happens to hold.
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(chunks))) as pool:
        return _gather(pool.imap(run_chunk, chunks), len(todo))


def run_chunk(todo: list[int]) -> Chunk:
    """In a process of its own: some seeds, up to the first failure."""
    done: list[Figures] = []
    for seed in todo:
        try:
            done.append(simulate(seed))
        except AssertionError as error:
            return Chunk(tuple(done), Failure(seed, str(error)))
        except Exception:  # what a core must not raise either; the seed is what counts
            return Chunk(tuple(done), Failure(seed, f"seed {seed}: {traceback.format_exc()}"))
    return Chunk(tuple(done), None)


def _gather(chunks: Iterable[Chunk], total: int) -> tuple[list[Figures], Failure | None]:
    figures: list[Figures] = []
    told_s = time.monotonic()
    for chunk in chunks:
        figures += chunk.figures
        if chunk.failure is not None:
            return figures, chunk.failure
        if time.monotonic() - told_s >= REPORT_EVERY_S:
            told_s = time.monotonic()
            sys.stderr.write(f"sim: {len(figures)} of {total} seeds\n")
    return figures, None


def summed(figures: Iterable[Figures]) -> dict[str, float]:
    """Each figure, over all seeds."""
    done = list(figures)
    return {field.name: sum(getattr(one, field.name) for one in done) for field in fields(Figures)}


def _record(path: Path, figures: list[Figures], failure: Failure | None, elapsed_s: float) -> None:
    total = summed(figures)
    record = {
        "seeds": len(figures) + (failure is not None),
        "violations": int(failure is not None),
        "virtual_hours": round(total["virtual_s"] / 3600, 1),
        "faults": total["faults"],
        "messages": total["messages"],
        "tasks": total["tasks"],
        "executions_per_task": round(total["attempts"] / max(1, total["tasks"]), 3),
        "earlier_answers": total["cached"],
        "questions_answered": total["explained"],
        "seeds_per_s": round(len(figures) / elapsed_s, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"sim: {record['seeds']} seeds, {record['virtual_hours']} virtual hours, {record['tasks']} tasks, "
        f"{record['messages']} messages, {record['faults']} faults, {record['executions_per_task']} executions a task: "
        f"{record['violations']} violations ({elapsed_s:.0f} s, {record['seeds_per_s']} seeds a second)\n"
    )


def _one(seed: int) -> int:
    chunk = run_chunk([seed])
    if chunk.failure is not None:
        sys.stderr.write(f"{chunk.failure.text}\n")
        return 1
    sys.stdout.write(f"seed {seed}: 0 violations; {chunk.figures[0]}\n")
    return 0


def _replayed(failure: Failure) -> str:
    again = run_chunk([failure.seed]).failure
    if again == failure:
        return "replayed: the same, to the last line"
    return f"replayed, and NOT the same - the simulation itself is not deterministic: {again}"


if __name__ == "__main__":
    sys.exit(main())
