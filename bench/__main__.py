"""`python -m bench`: prints the figures of this machine; exit code 1 when a target is missed."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench import decisions, flood, machine, overhead, throughput

ROUNDS = 10  # of the overhead: medians of ten cold runs and thirty tasks for each gemini-repo-cli
THROUGHPUT_ROUNDS = 3


def main() -> int:
    """Measure one after the other, in a folder that is removed at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "decisions", "flood"),
        default="all",
        help="all but the flood (default), one task's cost in the core, or the flood",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"of the overhead's contest ({ROUNDS}), of each flood ({flood.ROUNDS})"
    )
    parser.add_argument("--folder", type=Path, help="where to put the database (default: the temporary folder)")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="koubou-bench-", dir=given.folder))
    try:
        print("\n".join(machine.describe(home)))
        if given.what == "flood":
            is_met = flood.measure(home / "flood", given.rounds or flood.ROUNDS)
        elif given.what == "decisions":
            is_met = decisions.measure()
        else:
            is_met = decisions.measure()
            is_met &= overhead.measure(home / "overhead", given.rounds or ROUNDS)
            throughput.measure(home / "throughput", THROUGHPUT_ROUNDS)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
