"""What a failing seed tells: which promise, when, and the story of the task: events, attempts, what was said of it."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from koubou_broker.records import Attempt, Event
from sim.checker import BrokenPromiseError
from sim.world import START_S, World
from support.shelf import Shelf

_LINES_MOST = 80  # of the trace: the last ones
_LINE_CHARS = 400


class SeedError(AssertionError):
    """A seed failed; its text is the same whenever the seed is run."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason  # the broken promise, or the check that failed, in one line


def seed_error(world: World, disk: Shelf, error: AssertionError) -> SeedError:
    """All that somebody needs who has to find out why."""
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    if not isinstance(error, BrokenPromiseError):
        reason = f"check: {reason}"
    task_id = _task_of(disk, error)
    uids = [one.attempt_uid for one in disk.attempts.values() if one.task_id == task_id]
    story = story_of(disk, task_id, world.about(task_id, uids)) if task_id else _ending(world.trace)
    text = f"seed {world.seed} at {world.now_s - START_S:.3f} s: {error}\n{world.faults}\n{story}"
    return SeedError(text, reason)


def _task_of(disk: Shelf, error: AssertionError) -> int:
    """The task that a failure speaks of; 0: none."""
    if isinstance(error, BrokenPromiseError) and error.violation.task_id:
        return error.violation.task_id
    named = re.search(r"\btask (\d+)", str(error))
    if named:
        return int(named[1])
    uids = re.findall(r"\b[0-9a-f]{32}\b", str(error))
    return next((disk.attempts[uid].task_id for uid in uids if uid in disk.attempts), 0)


def _ending(trace: Sequence[str]) -> str:
    return "\n".join(["the last that happened", *(line[:_LINE_CHARS] for line in trace[-_LINES_MOST:])])


def story_of(disk: Shelf, task_id: int, trace: Sequence[str]) -> str:
    """What the record tells of the task, then the lines of the trace that name it."""
    lines = [f"story of task {task_id}"]
    task, progress = disk.tasks.get(task_id), disk.progress.get(task_id)
    if task is None or progress is None:
        lines.append("  the database does not know it")
    else:
        error = f", {progress.error_class}: {progress.error_message}" if progress.error_class else ""
        lines.append(f"  of {task.principal}, {progress.state} in generation {progress.generation}{error}")
    events, attempts = disk.events_of(task_id), [one for one in disk.attempts.values() if one.task_id == task_id]
    lines += [_event_line(event) for event in events]
    lines += [_attempt_line(attempt) for attempt in sorted(attempts, key=lambda one: one.number)]
    left_out = len(trace) - _LINES_MOST
    if left_out > 0:
        lines.append(f"  ... {left_out} earlier lines name it too")
    lines += [line[:_LINE_CHARS] for line in trace[-_LINES_MOST:]]
    return "\n".join(lines)


def _event_line(event: Event) -> str:
    at = datetime.fromtimestamp(event.at_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    number = f" (attempt {event.attempt})" if event.attempt else ""
    return (
        f"  event {event.seq} at {at} by {event.actor}: {event.before or '-'} -> {event.after}{number} {event.reason}"
    )


def _attempt_line(attempt: Attempt) -> str:
    error = f" {attempt.error_class}: {attempt.message}" if attempt.error_class else ""
    return (
        f"  attempt {attempt.number} {attempt.attempt_uid} on {attempt.worker_id}, "
        f"generation {attempt.generation}: {attempt.state}{error}"
    )
