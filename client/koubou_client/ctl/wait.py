"""`koubou-ctl wait`: until tasks have ended; exit 1 if any brought nothing."""

import click

from koubou_client.ctl.finish import summary
from koubou_client.ctl.ids import resolve
from koubou_client.ctl.output import A_TASK_FAILED, OK, Output
from koubou_client.ctl.params import Duration
from koubou_client.ctl.reasons import failure_of
from koubou_client.ctl.views import task_json
from koubou_client.ctl.waiting import Waiter
from koubou_common.messages.values import TaskState

_REASONS_SHOWN = 10  # of failed tasks; `show` has them all


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--any", "for_any", is_flag=True, help="Until the first has ended; prints its id.")
@click.option("--wait-timeout", type=Duration(), metavar="S", help="Give up after S (exit 3); the tasks go on.")
@click.pass_obj
def command(output: Output, task_ids: tuple[str, ...], for_any: bool, wait_timeout: float | None) -> int:
    """Wait until all have ended. Ctrl-C detaches, the tasks go on."""
    with output.client() as client:
        wanted = [task.task_id for task in resolve(client, task_ids)]
        waiter = Waiter(client, output, wanted, " ".join(task_ids))
        marks = waiter.wait(for_all=not for_any, timeout_s=wait_timeout)
        ended_ids = {mark.task_id for mark in marks}
        tasks = client.tasks(task_ids=[one for one in wanted if one in ended_ids], most=len(marks))
    place = {task_id: number for number, task_id in enumerate(wanted)}
    tasks.sort(key=lambda task: place[task.task_id])
    if output.as_json:
        output.data([task_json(task) for task in tasks])
    elif for_any:
        for task in tasks:
            output.say(str(task.task_id))
    failed = [task for task in tasks if task.state is not TaskState.SUCCEEDED]
    if not output.as_json:
        for task in failed[:_REASONS_SHOWN]:
            output.error(failure_of(task))
    if len(tasks) > 1:
        output.note(summary(tasks))
    return A_TASK_FAILED if failed else OK
