"""`koubou-ctl cancel`: stop tasks that have not ended."""

import click

from koubou_client.ctl.changes import named_tasks, tell
from koubou_client.ctl.output import OK, Output

_REASON_CHARS = 2_000  # what a message takes


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", default="", metavar="TEXT", help="Kept with the task.")
@click.pass_obj
def command(output: Output, task_ids: tuple[str, ...], reason: str) -> int:
    """Cancel tasks or batches; what has ended already stays as it is."""
    with output.client() as client:
        ids, batch_id = named_tasks(client, task_ids)
        changes = client.cancel(ids, batch_id=batch_id, reason=reason[:_REASON_CHARS])
    tell(output, changes, "cancelled")
    return OK
