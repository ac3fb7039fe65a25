"""A client's diary on disk: what it was about to ask and what it was told, each line durable before it goes on."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from koubou_common.messages.values import TaskState


@dataclass(frozen=True, slots=True)
class Ending:
    """How the client was told that a task ended, and what came out (sha256, hex; empty: nothing)."""

    task_id: int
    state: TaskState
    sha256: str = ""
    is_right: bool = True  # the output was the one that was asked for


@dataclass(slots=True)
class Memory:
    """A journal read back."""

    planned: dict[str, int] = field(default_factory=dict)  # key -> number of the submission
    accepted: dict[str, tuple[int, ...]] = field(default_factory=dict)  # key -> ids
    accepted_again: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)  # every acknowledgement
    cancelled: dict[int, TaskState] = field(default_factory=dict)  # task -> the state told upon the cancel
    endings: list[Ending] = field(default_factory=list)  # as they were told, repeats too

    @property
    def ended(self) -> set[int]:
        """Tasks whose end the client knows."""
        return {ending.task_id for ending in self.endings}


class Journal:
    """Appends lines; what a kill tore off in the middle is not there, as it was told to nobody."""

    def __init__(self, path: Path) -> None:
        self.memory = read(path)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write("\n")  # ends a torn line

    def plan(self, key: str, number: int) -> None:
        """Before anything is sent."""
        self._note(kind="plan", key=key, number=number)
        self.memory.planned[key] = number

    def accept(self, key: str, task_ids: tuple[int, ...]) -> None:
        """The broker acknowledged the key with these ids."""
        self._note(kind="accept", key=key, ids=task_ids)
        self.memory.accepted.setdefault(key, task_ids)

    def cancel(self, task_id: int, state: TaskState) -> None:
        """The broker answered a cancel."""
        self._note(kind="cancel", id=task_id, state=state)
        self.memory.cancelled[task_id] = state

    def end(self, ending: Ending) -> None:
        """The broker told how a task ended."""
        self._note(kind="end", id=ending.task_id, state=ending.state, sha256=ending.sha256, right=ending.is_right)
        self.memory.endings.append(ending)

    def close(self) -> None:
        """No more lines."""
        os.close(self._handle)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, **values: object) -> None:
        self._write(json.dumps(values) + "\n")

    def _write(self, text: str) -> None:
        os.write(self._handle, text.encode())
        os.fsync(self._handle)


def read(path: Path) -> Memory:
    """All that was noted; a missing file is an empty journal."""
    memory = Memory()
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            note: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue  # empty, or torn by a kill
        match note["kind"]:
            case "plan":
                memory.planned[note["key"]] = note["number"]
            case "accept":
                memory.accepted.setdefault(note["key"], tuple(note["ids"]))
                memory.accepted_again.append((note["key"], tuple(note["ids"])))
            case "cancel":
                memory.cancelled[note["id"]] = TaskState(note["state"])
            case "end":
                memory.endings.append(Ending(note["id"], TaskState(note["state"]), note["sha256"], note["right"]))
            case other:
                raise AssertionError(f"{path}: a note of kind {other!r}")
    return memory
