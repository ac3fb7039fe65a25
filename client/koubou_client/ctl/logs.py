"""`koubou-ctl logs`: what gemini-repo-cli logged, attempt by attempt."""

import time

import click

from koubou_client.ctl.ids import resolve_one
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.times import duration, local_time
from koubou_client.ctl.views import attempt_json


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only this attempt.")
@click.pass_obj
def command(output: Output, task_id: str, attempt: int | None) -> int:
    """The log of every attempt (its end, if it is long); prompts are not in it."""
    with output.client() as client:
        story = client.story(resolve_one(client, task_id).task_id)
    attempts = [one for one in story.attempts if attempt in (None, one.number)]
    if output.as_json:
        output.data([{**attempt_json(one), "log": one.log} for one in attempts])
        return OK
    now_ms = int(time.time() * 1_000)
    for one in attempts:
        ran = duration((one.ended_ms or now_ms) - one.started_ms)
        why = f" ({one.error_class})" if one.error_class else ""
        output.say(
            f"--- attempt {one.number} on {one.worker_id}: {one.state}{why}, {local_time(one.started_ms)}, {ran} ---"
        )
        output.say(one.log.rstrip("\n") or "(no log)")
    if not attempts:
        output.note(f"task {story.task.task_id} has no such attempt yet" if attempt else "no attempt has begun yet")
    return OK
