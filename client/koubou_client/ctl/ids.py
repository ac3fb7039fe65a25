"""Tasks as people name them: `142`, `b12`, `b12.7`, `1-3,7`, `last`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koubou_common.errors import Code, KoubouError
from koubou_common.messages.limits import BATCH_TASKS, PAGE_TASKS
from koubou_common.messages.values import TaskView

if TYPE_CHECKING:
    from koubou_client.client import Client

LAST = "last"  # the newest submission: its batch if it came in one
_ID_MOST = 2**53
_ONE = re.compile(r"(?P<batch>[bB](?P<batch_id>[0-9]+)(?:\.(?P<index>[0-9]+))?)|(?P<first>[0-9]+)(?:-(?P<end>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Selection:
    """What was named; `index` is a place in the batch, 0 for the whole of it."""

    task_ids: tuple[int, ...] = ()
    batch_id: int = 0
    index: int = 0
    is_last: bool = False


def parse_ids(words: Sequence[str]) -> tuple[Selection, ...]:
    """What the words name, in their order; KoubouError (bad_input) for what is no id."""
    return tuple(_parse(part.strip(), word) for word in words for part in word.split(","))


def resolve(client: "Client", words: Sequence[str]) -> list[TaskView]:
    """The tasks named, each once, in the order named; KoubouError (not_found) for what is not there."""
    found: dict[int, TaskView] = {}
    singles: list[int] = []

    def fetch_singles() -> None:
        by_id = {task.task_id: task for task in client.tasks(task_ids=singles, most=len(singles))} if singles else {}
        for task_id in singles:
            found.setdefault(task_id, by_id[task_id])
        singles.clear()

    for selection in parse_ids(words):
        if selection.task_ids:
            singles += [task_id for task_id in selection.task_ids if task_id not in singles]
            continue
        fetch_singles()
        for task in _of_batch(client, selection):
            found.setdefault(task.task_id, task)
    fetch_singles()
    return list(found.values())


def resolve_one(client: "Client", word: str) -> TaskView:
    """The single task named; KoubouError (bad_input) if the word names several."""
    tasks = resolve(client, [word])
    if len(tasks) != 1:
        raise KoubouError(Code.BAD_INPUT, f"{word}: names {len(tasks)} tasks, one is expected", "name one: b12.7")
    return tasks[0]


def names_batch(words: Sequence[str]) -> int:
    """The batch, if the words name exactly one whole batch; else 0."""
    selections = parse_ids(words)
    if len(selections) == 1 and selections[0].batch_id and not selections[0].index:
        return selections[0].batch_id
    return 0


def parse_batch(word: str) -> int:
    """The id of a whole batch; KoubouError (bad_input) for anything else."""
    batch_id = names_batch([word if word[:1] in "bB" else f"b{word}"])
    if not batch_id:
        raise KoubouError(Code.BAD_INPUT, f"{word!r} is no batch", "a batch looks like b12")
    return batch_id


def _parse(part: str, word: str) -> Selection:
    if part.lower() == LAST:
        return Selection(is_last=True)
    found = _ONE.fullmatch(part)
    numbers = [int(number) for number in found.groupdict().values() if number and number.isdigit()] if found else []
    if found is None or not all(0 < number <= _ID_MOST for number in numbers):
        named = repr(part) if part == word else f"{part!r} (in {word!r})"
        raise KoubouError(
            Code.BAD_INPUT,
            f"{named} names no task",
            "a task is 142, a batch b12, one of its tasks b12.7, several 1-3,7, the newest submission last",
        )
    if found["batch"]:
        return Selection(batch_id=int(found["batch_id"]), index=int(found["index"] or 0))
    first = int(found["first"])
    end = int(found["end"] or first)
    if end < first or end - first >= BATCH_TASKS:
        raise KoubouError(Code.BAD_INPUT, f"{part!r}: from {first} to {end} is no range", "write 3-7")
    return Selection(tuple(range(first, end + 1)))


def _of_batch(client: "Client", selection: Selection) -> list[TaskView]:
    batch_id = selection.batch_id
    if selection.is_last:
        newest = _newest_own(client)
        if not newest.batch_id:
            return [newest]
        batch_id = newest.batch_id
    tasks = sorted(client.tasks(batch_id=batch_id, most=BATCH_TASKS), key=lambda task: task.task_id)
    if not tasks:
        raise KoubouError(Code.NOT_FOUND, f"no batch b{batch_id} of yours", "koubou-ctl ps -a lists all tasks")
    if not selection.index:
        return tasks
    chosen = [task for task in tasks if task.batch_index == selection.index]
    if not chosen:
        raise KoubouError(
            Code.NOT_FOUND,
            f"batch b{batch_id} has no task {selection.index}",
            f"it has b{batch_id}.{tasks[0].batch_index} to b{batch_id}.{tasks[-1].batch_index}",
        )
    return chosen


def _newest_own(client: "Client") -> TaskView:
    me = client.welcome().principal
    for task in client.tasks(most=PAGE_TASKS):
        if task.principal == me:
            return task
    raise KoubouError(Code.NOT_FOUND, "you have not submitted anything yet", 'koubou-ctl submit "…"')
