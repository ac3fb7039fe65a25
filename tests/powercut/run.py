"""Power cuts by the hundred: `python -m powercut.run --cuts 200 --seed 1`.

Several cuts are taken from every recorded run, half of them at any instant, half right after something was promised.
Half leave only what was synced, half leave some of the rest.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from powercut import journal
from powercut.check import Verdict, check
from powercut.disk import build
from powercut.process import Forge
from powercut.recording import Recording, record

CUTS_A_RUN = 10
SPAN_S = 3.0  # of work, in which the broker ends and is started again
JUST_AFTER_NS = 1_000_000  # a promise: before anything else has made it durable
CONTROL_RUNS = 2  # with synchronous=NORMAL
FULL, NORMAL = "koubou_broker", "powercut.normal_broker"  # the programs: the product's, and the control
CUT, KILLED = "power cuts", "kill -9, power stays"
CONTROL, CONTROL_KILLED = "synchronous=NORMAL, power cuts", "synchronous=NORMAL, kill -9"
_SHOWN = 10  # lost promises printed of one cut
_REPORT = Path("build/powercut.json")


@dataclass(slots=True)
class Figures:
    """Of all cuts of one kind."""

    cuts: int = 0
    promises: int = 0
    lost: int = 0
    corrupt: int = 0
    stories: list[str] = field(default_factory=list)

    def add(self, name: str, verdict: Verdict) -> None:
        """One cut more."""
        self.cuts += 1
        self.promises += verdict.checked
        self.lost += len(verdict.lost)
        self.corrupt += len(verdict.corrupt)
        for text in verdict.lost[:_SHOWN]:
            self.stories.append(f"{name}: lost: {text}")
        for text in verdict.corrupt[:_SHOWN]:
            self.stories.append(f"{name}: corrupt: {text}")

    def __str__(self) -> str:
        return f"{self.cuts} times, {self.promises} acknowledgements checked, {self.lost} lost, {self.corrupt} corrupt"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where runs are recorded and played back."""

    folder: Path
    shim: Path
    forge: Forge
    span_s: float = SPAN_S

    def cuts(self, seed: int, count: int, cut: Figures, killed: Figures, *, module: str = FULL) -> None:
        """Record one run; cut it `count` times; check what the kill at its end has left as well."""
        place = self.folder / f"run-{seed}-{module}"
        place.mkdir()
        recording = record(place, self.shim, seed, self.span_s, broker_module=module)
        if recording.faults:
            killed.stories.append(f"seed {seed}: a client saw {recording.faults[:_SHOWN]}")
            killed.corrupt += len(recording.faults)
        for number, (at_ns, left) in enumerate(self._left(recording, seed, count, place)):
            name = f"seed {seed}, cut {number} after {(at_ns - recording.began_ns) / 1e9:.3f} s"
            log = place / f"cut-{number}.log"
            cut.add(name, check(self.forge, left, recording.config, recording.until(at_ns), log))
            shutil.rmtree(left)
        build(recording.killed, place / "killed")
        killed.add(
            f"seed {seed}, killed",
            check(
                self.forge,
                place / "killed",
                recording.config,
                recording.until(recording.ended_ns),
                place / "killed.log",
            ),
        )
        shutil.rmtree(place)

    def _left(self, recording: Recording, seed: int, count: int, place: Path) -> Iterator[tuple[int, Path]]:
        """The disks that `count` cuts leave, every second one with some of what was not synced."""
        dice = random.Random(f"cuts {seed}")
        instants = sorted(_instants(recording, count, dice))
        calls = iter(recording.calls)
        call = next(calls, None)
        for number, at_ns in enumerate(instants):
            while call is not None and call.ended_ns <= at_ns:
                recording.disk.do(call)
                call = next(calls, None)
            left = place / f"cut-{number}"
            build(recording.disk.some(dice) if number % 2 else recording.disk.synced(), left)
            yield at_ns, left
        while call is not None:
            recording.disk.do(call)
            call = next(calls, None)
        if recording.disk.now() != recording.killed:
            raise RuntimeError("the shim missed something: what was played back is not what is there")


def _instants(recording: Recording, count: int, dice: random.Random) -> list[int]:
    anywhere = [dice.randrange(recording.began_ns, recording.ended_ns) for _ in range(count - count // 2)]
    return anywhere + [dice.choice(recording.notes)[0] + dice.randrange(JUST_AFTER_NS) for _ in range(count // 2)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit 1 if anything was lost, or if the control lost nothing."""
    parser = argparse.ArgumentParser(prog="python -m powercut.run", description=__doc__)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    if reason := journal.why_not():
        print(reason, file=sys.stderr)
        return 2
    figures = {name: Figures() for name in (CUT, KILLED, CONTROL, CONTROL_KILLED)}
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="koubou-powercut-") as folder, Forge() as forge:
        bench = Bench(Path(folder), journal.build(Path(folder)), forge)
        for done in range(0, given.cuts, CUTS_A_RUN):
            seed = given.seed + done // CUTS_A_RUN
            bench.cuts(seed, min(CUTS_A_RUN, given.cuts - done), figures[CUT], figures[KILLED], module=FULL)
            _tell(seed, figures[CUT], figures[KILLED])
        for seed in range(given.seed, given.seed + CONTROL_RUNS):
            bench.cuts(seed, CUTS_A_RUN, figures[CONTROL], figures[CONTROL_KILLED], module=NORMAL)
            _tell(seed, figures[CONTROL_KILLED])
    print(f"seed {given.seed}, {CUTS_A_RUN} cuts a recorded run, {time.monotonic() - began_s:.0f} s")
    for name, one in figures.items():
        print(f"  {name:<32} {one}{'  (must lose)' if name == CONTROL else ''}")
    must_hold = [figures[name] for name in (CUT, KILLED, CONTROL_KILLED)]
    is_good = not any(one.lost or one.corrupt for one in must_hold) and figures[CONTROL].lost > 0
    print("passed" if is_good else "FAILED")
    _write_report(given.seed, figures, time.monotonic() - began_s)
    return int(not is_good)


def _tell(seed: int, *told: Figures) -> None:
    """What has gone wrong since the last time, and how it stands."""
    for figures in told:
        while figures.stories:
            print(figures.stories.pop(0))
    print(f"  up to seed {seed}: {told[0]}", flush=True)


def _write_report(seed: int, figures: Mapping[str, Figures], took_s: float) -> None:
    cut, control = figures[CUT], figures[CONTROL]
    report = {
        "seed": seed,
        "cuts": cut.cuts,
        "cuts_per_run": CUTS_A_RUN,
        "acknowledgements": cut.promises,
        "lost": cut.lost,
        "corrupt": cut.corrupt,
        "kills": figures[KILLED].cuts,
        "kill_lost": figures[KILLED].lost,
        "control_cuts": control.cuts,
        "control_acknowledgements": control.promises,
        "control_lost": control.lost,
        "control_kill_lost": figures[CONTROL_KILLED].lost,
        "took_s": round(took_s, 1),
    }
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
