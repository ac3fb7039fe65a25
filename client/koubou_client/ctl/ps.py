"""`koubou-ctl ps`: tasks in a table."""

import time

import click

from koubou_client.ctl.ids import parse_batch
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.tables import shorten, table
from koubou_client.ctl.times import age, duration
from koubou_client.ctl.views import task_json
from koubou_common.messages.values import TaskState, TaskView

_MOST_DEFAULT = 200  # rows; more scroll by unread
_WHY_COLUMNS = 50
_LIVE = (TaskState.QUEUED, TaskState.RUNNING)


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Ended tasks too.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in TaskState]),
    help="Only this state; repeatable.",
)
@click.option("--batch", metavar="B", help="Only this batch, ended tasks too.")
@click.option("-n", "--most", type=click.IntRange(1), default=_MOST_DEFAULT, metavar="N", help="At most N (200).")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.pass_obj
def command(
    output: Output, /, *, every: bool, states: tuple[str, ...], batch: str | None, most: int, quiet: bool
) -> int:
    """Tasks that wait or run, newest first."""
    wanted = tuple(TaskState(state) for state in states)
    if not wanted and not every and batch is None:
        wanted = _LIVE
    batch_id = 0 if batch is None else parse_batch(batch)
    with output.client() as client:
        tasks = client.tasks(states=wanted, batch_id=batch_id, most=most)
    if output.as_json:
        output.data([task_json(task) for task in tasks])
    elif quiet:
        for task in tasks:
            output.say(str(task.task_id))
    else:
        _say(output, tasks)
        if len(tasks) == most:
            output.note(f"(the newest {most}; more with -n)")
        if not tasks and not every:
            output.note("nothing waits or runs; koubou-ctl ps -a lists ended tasks")
    return OK


def _say(output: Output, tasks: list[TaskView]) -> None:
    now_ms = int(time.time() * 1_000)
    rows = [
        (
            task.task_id,
            f"b{task.batch_id}.{task.batch_index}" if task.batch_id else "-",
            task.state.value,
            task.priority,
            task.model or "-",
            task.worker_id or "-",
            age(task.submitted_ms, now_ms),
            _run(task, now_ms),
            task.attempts,
            task.target or "-",
            shorten(_why(task, now_ms), _WHY_COLUMNS) or "-",
        )
        for task in tasks
    ]
    headers = ("ID", "BATCH", "STATE", "PRI", "MODEL", "WORKER", "AGE", "RUN", "ATT", "TARGET", "WHY")
    output.say(table(headers, rows))


def _run(task: TaskView, now_ms: int) -> str:
    if not task.started_ms or task.state is TaskState.QUEUED:
        return "-"
    return duration((task.finished_ms or now_ms) - task.started_ms)


def _why(task: TaskView, now_ms: int) -> str:
    """Why it waits, or why it failed."""
    if task.state is TaskState.QUEUED and task.not_before_ms > now_ms:
        again = f"tries again in {duration(task.not_before_ms - now_ms)}"
        return f"{again} ({task.error_class})" if task.error_class else again
    if task.state is TaskState.QUEUED:
        return f"waits for {task.waiting_for}" if task.waiting_for else ""
    if task.state is TaskState.FAILED and task.error_class:
        return task.error_class.value
    return " ".join(task.flags)
