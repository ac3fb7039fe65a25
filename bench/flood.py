"""What a flood by one key costs another: submit to accepted, quiet and beside each kind of flood, in turns."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import watched
from bench.stage import percentile
from koubou_client.client import Client
from koubou_client.tasks import draft_task
from koubou_client.where import find_broker
from koubou_common.client_settings import ClientSettings
from koubou_common.enrol import invite
from koubou_common.home import Home
from koubou_common.joining import exchange
from koubou_common.messages.values import Role
from koubou_simulator.workshop import Workshop

TARGET = 2.0  # times its own quiet p99
ROUNDS = 6  # of each kind; a quiet one beside every one
SAMPLES = 150  # submissions in each half of a round
QUEUE_TASKS = 4_000  # of one client: so small that a flood is refused before its first round is over

FLOODS = {
    "submits": "submits until refused, and goes on",
    "batches": "submits batches of 100, and goes on",
    "status": "asks over 4 connections",
    "garbage": "sends what is no message",
    "deaf": "watches and asks over 4 connections, and never reads",
}
AIMED = ("submits", "status", "garbage", "deaf")  # where the target holds; a batch is one message of 100 tasks

_PACE_S = 0.005  # between two submissions: the quiet client is one, not a flood
_WARM = 50  # submissions that count for nothing
_END_S = 30.0  # what a flooder is given to end
_SETTLE_S = 0.5  # after a flood: what it left behind is not the next quiet round's
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class _Figures:
    """Of one kind of flood, over all its rounds."""

    before_mib: float
    quiet_ms: list[float] = field(default_factory=list)
    flood_ms: list[float] = field(default_factory=list)
    said: int = 0
    flood_s: float = 0.0
    heard: Counter[str] = field(default_factory=Counter)
    most_mib: float = 0.0  # of the broker's memory, while it was flooded

    @property
    def ratio(self) -> float:
        """The flooded p99 by the quiet one."""
        return percentile(self.flood_ms, 99) / percentile(self.quiet_ms, 99)


def measure(home: Path, rounds: int) -> bool:
    """Print it; False if a target is missed."""
    home.mkdir()
    here, there = _pin()
    is_met = True
    with Workshop(home) as shop:
        shop.configure([], broker=f"limits: {{queue_per_client: {QUEUE_TASKS}}}\n")
        shop.start_broker()
        os.sched_setaffinity(0, {there})
        bad = _join(shop, "rin")
        with Client(home=_join(shop, "mika"), software="bench") as quiet:
            _submit(quiet, _WARM)
            print(
                f"submit to accepted of a quiet client, beside another key that floods; CURVE, synchronous=FULL;"
                f" {rounds} rounds of {SAMPLES} quiet and {SAMPLES} flooded submissions in turns;"
                f" the broker on processor {here}, the quiet client on {there}, where the flood has all that is left"
            )
            for kind, what in FLOODS.items():
                figures = _Figures(_rss_mib(shop.broker.pid))
                with watched() as share:
                    for _ in range(rounds):
                        figures.quiet_ms += _submit(quiet, SAMPLES)
                        with _flooding(kind, bad, there, figures):
                            _submit(quiet, SAMPLES // 10)  # until the flood has its own pace
                            figures.flood_ms += _submit(quiet, SAMPLES)
                            figures.most_mib = max(figures.most_mib, _rss_mib(shop.broker.pid))
                        time.sleep(_SETTLE_S)
                is_met = _tell(kind, what, figures, share.text()) and is_met
    return is_met


def _submit(client: Client, count: int) -> list[float]:
    """One task after the other; milliseconds from submit to accepted. They are cancelled: nobody works here."""
    took_ms, ids = [], []
    for number in range(count):
        draft = draft_task(f"quiet {number} {time.monotonic_ns()}", repo="bench")
        started_s = time.perf_counter()
        accepted = client.submit_drafts([draft])
        took_ms.append((time.perf_counter() - started_s) * 1_000)
        ids.append(accepted.tasks[0].task_id)
        time.sleep(_PACE_S)
    client.cancel(ids)
    return took_ms


@contextmanager
def _flooding(kind: str, home: Path, cpu: int, figures: _Figures) -> Iterator[None]:
    """A flood from here on; at its end what it says of itself is added up."""
    path = os.pathsep.join([str(_REPOSITORY), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "bench.flooder", kind, str(home), "--processor", str(cpu)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as flooder:
        assert flooder.stdout is not None, "it was asked for"
        try:
            assert flooder.stdout.readline() == "ready\n", f"the flooder ({kind}) did not start"
            yield
            flooder.send_signal(signal.SIGTERM)
            said = json.loads(flooder.communicate(timeout=_END_S)[0].splitlines()[-1])
        finally:
            flooder.kill()
    figures.said += said["said"]
    figures.flood_s += said["s"]
    figures.heard.update(said["heard"])


def _join(shop: Workshop, name: str) -> Path:
    """A home of its own with a client's key."""
    where = find_broker({}, shop.home)
    token = invite(where.addresses, where.broker_key, where.pair, software="bench", name=name, role=Role.CLIENT)
    home = Home(shop.home / name)
    home.create()
    key_file = home.key_file(name)
    exchange(token, key_file)
    settings = ClientSettings(where.addresses, where.broker_key, key_file.relative_to(home.root))
    home.config_file("client").write_text(settings.to_yaml(), encoding="utf-8")
    return home.root


def _pin() -> tuple[int, int]:
    """The broker's processor, where this process is too until it has started it; and that of everybody else."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[0]})
    return processors[0], processors[-1]


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found, "Linux says how much memory a process has"
    return int(found[1]) / 1024


def _tell(kind: str, what: str, figures: _Figures, machine: str) -> bool:
    quiet, flood = figures.quiet_ms, figures.flood_ms
    is_met = figures.ratio <= TARGET
    verdict = ("met" if is_met else "missed") if kind in AIMED else "no target"
    print(
        f"  {kind} ({what}):\n"
        f"    quiet p50 {percentile(quiet, 50):.1f} ms, p99 {percentile(quiet, 99):.1f} ms;"
        f" flooded p50 {percentile(flood, 50):.1f} ms, p99 {percentile(flood, 99):.1f} ms:"
        f" {figures.ratio:.2f} x its quiet p99 (target {TARGET:g}: {verdict})\n"
        f"    the flood: {figures.said / max(figures.flood_s, 0.001):.0f} messages/s,"
        f" answers {dict(sorted(figures.heard.items()))}\n"
        f"    broker's memory {figures.before_mib:.0f} MiB before, at most {figures.most_mib:.0f} MiB; {machine}"
    )
    return is_met or kind not in AIMED
