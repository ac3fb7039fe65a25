"""What somebody was told, and when: from that instant it must survive everything."""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from koubou_common.messages.values import TaskState


@dataclass(frozen=True, slots=True)
class Up:
    """The broker was there: people have its key and the operator's from now on."""

    broker_key: str
    operator_key: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A submission was accepted."""

    principal: str
    key: str  # idempotency key
    worker: str
    batch_id: int
    task_ids: tuple[int, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A client heard how a task ended: with that output, or (None) not with one."""

    task_id: int
    state: TaskState
    output: bytes | None


@dataclass(frozen=True, slots=True)
class Keyed:
    """A key was put on the allow-list (an invitation, an enrolment), or all of a name were taken off it."""

    name: str
    public_key: str
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """`koubou-agent join` said that the box belongs to the workshop."""

    name: str


@dataclass(frozen=True, slots=True)
class Told:
    """The agent told the broker of an outcome: it is in the spool until it is recorded."""

    attempt_uid: str
    raw_sha256: str  # hex


@dataclass(frozen=True, slots=True)
class Heard:
    """The agent heard that an attempt is its own, or that its outcome is stored."""

    attempt_uid: str
    is_stored: bool


Note = Up | Accepted | Ended | Keyed | Joined | Told | Heard


@dataclass(slots=True)
class Notebook:
    """Notes with their time; used by many threads. Those of an agent also go to a file: it is killed."""

    file: Path | None = None
    notes: list[tuple[int, Note]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, note: Note) -> None:
        """Something was said or heard."""
        with self._lock:
            at_ns = time.monotonic_ns()
            self.notes.append((at_ns, note))
            if self.file is not None:
                with self.file.open("a") as file:
                    file.write(json.dumps([at_ns, type(note).__name__, asdict(note)]) + "\n")

    def until(self, at_ns: int) -> list[Note]:
        """What had been noted by then."""
        with self._lock:
            return [note for when_ns, note in self.notes if when_ns <= at_ns]


def of_agent(lines: Iterable[str]) -> list[tuple[int, Note]]:
    """What an agent wrote down; a last line that the kill cut short was said to nobody."""
    found: list[tuple[int, Note]] = []
    for line in lines:
        if not line.endswith("\n"):
            break
        at_ns, name, fields = json.loads(line)
        found.append((at_ns, Told(**fields) if name == Told.__name__ else Heard(**fields)))
    return found
