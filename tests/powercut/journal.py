"""The shim: compiling it, running a process under it, and reading what it wrote down (shim.c has the same struct)."""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")

_COMPILE_S = 60.0
_RECORD = struct.Struct("=IHHQQQqII")
_FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")


class Kind(IntEnum):
    """What a call did."""

    OPENED = 1
    WRITTEN = 2
    TRUNCATED = 3
    ALLOCATED = 4
    SYNCED = 5
    RENAMED = 6
    UNLINKED = 7
    FOLDER_MADE = 8
    FOLDER_GONE = 9
    LINKED = 10


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the file system had it done at some time between `began_ns` and `ended_ns`."""

    kind: Kind
    error: int  # errno; 0: it was done
    began_ns: int
    ended_ns: int
    inode: int
    number: int  # `a` of the struct: a place, a length, or how a file was opened
    path: str
    other: str  # the new name, of a rename and a link
    data: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Calls that are to fail: the n-th that fits and those after it, `times` in all."""

    kind: Kind  # SYNCED or WRITTEN
    part_of_path: str
    errno: int
    first: int = 1
    times: int = 1_000_000_000
    is_end: bool = False  # the process is killed by it: it can mend nothing

    def __str__(self) -> str:
        word = "sync" if self.kind is Kind.SYNCED else "write"
        errno = -self.errno if self.is_end else self.errno
        return f"{word}:{self.part_of_path}:{self.first}:{self.times}:{errno}"


@dataclass(frozen=True, slots=True)
class Watch:
    """Where the shim looks and writes."""

    shim: Path
    root: Path
    journal: Path

    def environment(
        self, failure: Failure | None = None, *, armed_by: Path | None = None, killed_by: Path | None = None
    ) -> dict[str, str]:
        """What a process needs to run under the shim; a file of each name makes it fail and ends it."""
        found = {
            "LD_PRELOAD": str(self.shim),
            "POWERCUT_ROOT": str(self.root),
            "POWERCUT_JOURNAL": str(self.journal),
        }
        if killed_by is not None:
            found["POWERCUT_KILL"] = str(killed_by)
        if failure is not None:
            found["POWERCUT_FAIL"] = str(failure)
        if armed_by is not None:
            found["POWERCUT_ARM"] = str(armed_by)
        return found

    def calls(self) -> list[Call]:
        """Everything so far, of all processes, in the order in which it was done."""
        found = [call for path in sorted(self.journal.iterdir()) for call in read(path.read_bytes())]
        return sorted(found, key=lambda call: call.ended_ns)


def why_not() -> str:
    """What this machine lacks to run processes under the shim; "" when nothing."""
    if os.uname().sysname != "Linux":
        return "power cuts are simulated on Linux only"
    if _compiler() is None:
        return "needs a C compiler (Debian: apt-get install gcc libc6-dev)"
    return ""


def build(folder: Path) -> Path:
    """Compile the shim into `folder`."""
    compiler, made = _compiler(), folder / "powercut.so"
    assert compiler is not None, why_not()
    command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{ran.stderr}")
    return made


def read(data: bytes) -> Iterator[Call]:
    """The calls of one journal."""
    at = 0
    while at + _RECORD.size <= len(data):
        length, kind, error, began_ns, ended_ns, inode, number, path_bytes, other_bytes = _RECORD.unpack_from(data, at)
        body = at + _RECORD.size
        path, other, rest = body + path_bytes, body + path_bytes + other_bytes, at + length
        if rest > len(data):  # killed while it was written: the call's caller never went on
            return
        yield Call(
            Kind(kind),
            error,
            began_ns,
            ended_ns,
            inode,
            number,
            os.fsdecode(data[body:path]),
            os.fsdecode(data[path:other]),
            data[other:rest],
        )
        at = rest


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
