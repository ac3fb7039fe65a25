"""The machine a figure was measured on, and how much of it others used meanwhile (Linux)."""

import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack
import zmq

from koubou_common import __version__

FOREIGN_MOST = 0.15  # beyond this share used by others, absolute figures say more about them
FSYNCS = 50  # enough for a median; the disk's share of every latency here
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_STAT_TIMES = slice(11, 15)  # after the name: utime, stime, and both of reaped children
_STAT_PARENT = 1
_CPU_IDLE = (3, 4)  # fields of /proc/stat's first line: idle and waiting for a disk


@dataclass(slots=True)
class Share:
    """What part of the machine was used by whom; filled when the measurement ends."""

    ours: float = 0.0
    foreign: float = 0.0

    def text(self) -> str:
        """For a person."""
        noisy = " (noisy: compare nothing but ratios)" if self.foreign > FOREIGN_MOST else ""
        return f"machine: {self.ours:.0%} ours, {self.foreign:.0%} foreign{noisy}"


@contextmanager
def watched() -> Iterator[Share]:
    """Measure what this process with all it started, and everybody else, used of the machine meanwhile."""
    share = Share()
    before_all, before_idle, before_ours = *_cpu_ticks(), _tree_ticks()
    yield share
    after_all, after_idle, after_ours = *_cpu_ticks(), _tree_ticks()
    span = max(1, after_all - before_all)
    share.ours = max(0, after_ours - before_ours) / span
    share.foreign = max(0.0, 1 - (after_idle - before_idle) / span - share.ours)


def cpu_s(pid: int) -> float:
    """What a process has used of the processors so far, its threads included, its children not."""
    return sum(_stat(pid)[_STAT_TIMES][:2]) * _TICK_S


def describe(folder: Path) -> list[str]:
    """The machine and the versions, in lines."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    machine = f"{os.cpu_count()} x {_processor()}, {platform.system()} {platform.release()}"
    libraries = f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"
    packing = f"msgpack {'.'.join(map(str, msgpack.version))}, SQLite {sqlite3.sqlite_version}"
    return [
        f"{when}, {machine}",
        f"Koubou {__version__}, Python {platform.python_version()}, {libraries}, {packing}",
        f"fsync after 4 KiB: {_fsync_ms(folder):.2f} ms (median of {FSYNCS})",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _fsync_ms(folder: Path) -> float:
    took_s = []
    path = folder / "fsync"
    with path.open("wb") as file:
        for _ in range(FSYNCS):
            file.write(bytes(4096))
            started_s = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
            took_s.append(time.perf_counter() - started_s)
    path.unlink()
    return statistics.median(took_s) * 1_000


def _cpu_ticks() -> tuple[int, int]:
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return sum(fields), sum(fields[index] for index in _CPU_IDLE)


def _tree_ticks() -> int:
    """Of this process and every living descendant; a reaped one counts with whoever reaped it."""
    stats: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(entry.name)] = _stat(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(fields[_STAT_PARENT], []).append(pid)
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        ticks += sum(stats[pid][_STAT_TIMES]) if pid in stats else 0
        waiting += children.get(pid, [])
    return ticks


def _stat(pid: int) -> list[int]:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return [int(field) if field.lstrip("-").isdigit() else 0 for field in fields]
