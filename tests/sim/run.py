"""`make sim SEEDS=10000`: many seeds, and the figures of all of them."""

import argparse
import sys
import time

from sim.simulation import seeds, simulate


def main() -> int:
    """Run the seeds asked for; the first failure ends the run with its seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--seed", type=int, help="run this one alone (as a failure named it)")
    asked = parser.parse_args()
    started = time.monotonic()
    virtual_s, messages, faults, tasks, attempts = 0.0, 0, 0, 0, 0
    todo = seeds(asked.seeds) if asked.seed is None else [asked.seed]
    for seed in todo:
        try:
            figures = simulate(seed)
        except AssertionError as error:
            sys.stderr.write(f"{error}\nagain: make sim ONE={seed}\n")
            return 1
        virtual_s += figures.virtual_s
        messages += figures.messages
        faults += figures.faults
        tasks += figures.tasks
        attempts += figures.attempts
    sys.stdout.write(
        f"sim: {len(todo)} seeds, {virtual_s / 3600:.1f} virtual hours, {tasks} tasks, {messages} messages, "
        f"{faults} faults, {attempts / max(1, tasks):.3f} executions a task: 0 violations "
        f"({time.monotonic() - started:.0f} s)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
