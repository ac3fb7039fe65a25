"""What a cancel or a retry did, told per task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koubou_client.ctl.ids import names_batch, resolve
from koubou_client.ctl.output import Output
from koubou_common.messages.values import Change

if TYPE_CHECKING:
    from koubou_client.client import Client

_LINES_SHOWN = 20  # of a large batch; --json has them all


def named_tasks(client: "Client", words: Sequence[str]) -> tuple[list[int], int]:
    """The ids that the words name, or the batch if they name exactly one: the broker knows its tasks."""
    if batch_id := names_batch(words):
        return [], batch_id
    return [task.task_id for task in resolve(client, words)], 0


def tell(output: Output, changes: Sequence[Change], done: str) -> None:
    """Print what became of each; `done` is the word for those that changed."""
    if output.as_json:
        output.data(
            [
                {"id": one.task_id, "state": one.state.value, "changed": one.changed, "message": one.message or None}
                for one in changes
            ]
        )
        return
    for one in changes[:_LINES_SHOWN]:
        output.say(f"task {one.task_id}: {done}" if one.changed else f"task {one.task_id}: {_unchanged(one)}")
    if len(changes) > _LINES_SHOWN:
        changed = sum(one.changed for one in changes)
        output.say(f"… in all {changed} of {len(changes)} tasks: {done}")


def _unchanged(change: Change) -> str:
    return change.message or f"already {change.state}"
