"""`koubou-ctl purge`: remove what is kept of ended tasks, for good and at once."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from koubou_client.ctl.ids import resolve
from koubou_client.ctl.output import OK, REFUSED, Output
from koubou_client.ctl.params import Duration
from koubou_client.ctl.protocol import needs_protocol
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import GetTasks, Purge, Purged, Tasks
from koubou_common.messages.limits import MIB, PAGE_TASKS
from koubou_common.messages.values import Change, Role, TaskState, TaskView

if TYPE_CHECKING:
    from koubou_client.client import Client

_PURGE_TASKS = 500  # in one message: progress can be told, and nothing is held up for long
_LINES_SHOWN = 20  # of refused tasks; --json has them all
_PROTOCOL = 2  # the first with this message
_ENDED = tuple(state for state in TaskState if state.is_terminal)


@dataclass(slots=True)
class _Sum:
    """What was removed, over all messages."""

    tasks: int = 0
    texts: int = 0
    size_bytes: int = 0
    shared: int = 0
    is_log_empty: bool = True
    refused: list[Change] = field(default_factory=list)

    def add(self, one: Purged) -> None:
        self.tasks += one.tasks
        self.texts += one.texts
        self.size_bytes += one.size_bytes
        self.shared += one.shared
        self.is_log_empty = self.is_log_empty and one.is_log_empty
        self.refused += one.refused


@click.command()
@click.argument("task_ids", nargs=-1, metavar="[ID...]")
@click.option("--older-than", type=Duration(), metavar="AGE", help="Ended tasks only that ended so long ago: 30d, 12h.")
@click.option("--bodies", is_flag=True, help="Prompts, files and outputs; the record stays (the default).")
@click.option("--history", is_flag=True, help="The record as well: attempts, events, all that is known of the task.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(
    output: Output,
    /,
    *,
    task_ids: tuple[str, ...],
    older_than: float | None,
    bodies: bool,
    history: bool,
    yes: bool,
) -> int:
    """Remove the texts of ended tasks from the broker's database for good: prompts, files, outputs.

    With --older-than and no ID: of all your tasks, an operator's: of everybody's. Old backups still hold them, and
    workers keep inputs they were sent for up to 7 days (`cache_days` of agent.yaml).
    """
    if bodies and history:
        raise click.UsageError("Choose one of --bodies and --history.")
    if not task_ids and older_than is None:
        raise click.UsageError("Name tasks, or give --older-than AGE.")
    before_ms = None if older_than is None else int((time.time() - older_than) * 1000)
    with output.client() as client:
        needs_protocol(client, _PROTOCOL, "purge")
        named = resolve(client, task_ids) if task_ids else None
        count = sum(len(some) for some in _portions(client, named, before_ms))
        if not count:
            return _tell(output, _Sum(), history=history)
        whose = " (everybody's)" if named is None and client.welcome().role is Role.OPERATOR else ""
        _confirm(output, f"{_tasks(count)}{whose}", history=history, yes=yes)
        done = _purge(output, client, _portions(client, named, before_ms), count, history=history)
    return _tell(output, done, history=history)


def _portions(client: "Client", named: Sequence[TaskView] | None, before_ms: int | None) -> Iterator[list[int]]:
    """The ids to purge, some at a time; what was named and has not ended is for the broker to refuse."""
    pages = _ended(client) if named is None else iter([named])
    for page in pages:
        ids = [
            task.task_id
            for task in page
            if before_ms is None or (task.state.is_terminal and 0 < task.finished_ms < before_ms)
        ]
        for first in range(0, len(ids), _PURGE_TASKS):
            yield ids[first : first + _PURGE_TASKS]


def _ended(client: "Client") -> Iterator[Sequence[TaskView]]:
    """All ended tasks, newest first, page by page: there may be more than fit into memory."""
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    before = 0
    while True:
        asked = GetTasks(new_request_id(), (), 0, _ENDED, before, PAGE_TASKS)
        page = client.connection.call(asked, Tasks)
        yield page.tasks
        before = page.next_before
        if not before:
            return


def _confirm(output: Output, tasks: str, *, history: bool, yes: bool) -> None:
    if yes:
        return
    what = "all that is known" if history else "prompts, files and outputs"
    text = f"Remove {what} of {tasks} for good?"
    if not output.is_terminal or output.as_json:
        raise KoubouError(Code.REFUSED, f"{text} Nobody is there to say so", "add --yes")
    if not click.confirm(text, err=True):
        raise KoubouError(Code.REFUSED, "nothing was removed")


def _purge(output: Output, client: "Client", portions: Iterator[list[int]], count: int, *, history: bool) -> _Sum:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - as above

    done = _Sum()
    seen = 0
    for some in portions:
        if not some:
            continue
        reply = client.connection.call(Purge(new_request_id(), tuple(some), 0, history), Purged)
        done.add(reply)
        seen += len(some)
        if seen < count:
            output.note(f"{seen} of {_tasks(count)}")
    return done


def _tell(output: Output, done: _Sum, *, history: bool) -> int:
    if output.as_json:
        output.data(
            {
                "tasks": done.tasks,
                "history": history,
                "texts": done.texts,
                "bytes": done.size_bytes,
                "shared": done.shared,
                "log_empty": done.is_log_empty,
                "refused": [
                    {"id": one.task_id, "state": one.state.value, "message": one.message} for one in done.refused
                ],
            }
        )
        return REFUSED if done.refused else OK
    removed = f"{done.texts} texts, {done.size_bytes / MIB:,.1f} MiB"
    output.say(f"purged {_tasks(done.tasks)}: {removed}{' and the history' if history and done.tasks else ''}")
    if done.shared:
        output.note(f"{done.shared} texts stay: other tasks, parked results or uploads use them too")
    if not done.is_log_empty:
        output.note("a reader holds the database's log: the texts stay in it until it ends (a backup under way?)")
    for one in done.refused[:_LINES_SHOWN]:
        output.note(f"task {one.task_id} was left as it is: {one.message}")
    if len(done.refused) > _LINES_SHOWN:
        output.note(f"… in all {len(done.refused)} tasks were left as they are")
    if done.refused:
        output.note("  cancel or wait for what has not ended, then purge again")
    return REFUSED if done.refused else OK


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"
