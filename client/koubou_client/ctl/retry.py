"""`koubou-ctl retry`: open ended tasks again."""

import click

from koubou_client.ctl.changes import named_tasks, tell
from koubou_client.ctl.output import OK, REFUSED, Output


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def command(output: Output, task_ids: tuple[str, ...]) -> int:
    """Open ended tasks again, with their history; of a batch, those that failed or were cancelled."""
    with output.client() as client:
        ids, batch_id = named_tasks(client, task_ids)
        changes = client.retry(ids, batch_id=batch_id)
    tell(output, changes, "queued again")
    # A task named by itself that was not opened is a refusal; a batch has nothing to retry when all went well.
    return OK if batch_id or all(change.changed for change in changes) else REFUSED
