"""`koubou-ctl show`: a task's whole story; of a batch, its tasks."""

import time

import click

from koubou_client.ctl.finish import summary
from koubou_client.ctl.ids import names_batch, resolve
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.reasons import words_of
from koubou_client.ctl.tables import table
from koubou_client.ctl.times import age, duration, local_time
from koubou_client.ctl.views import attempt_json, event_json, task_json, task_name
from koubou_common.messages import Story
from koubou_common.messages.values import AttemptView, TaskState, TaskView


@click.command()
@click.argument("task_id", metavar="ID")
@click.pass_obj
def command(output: Output, task_id: str) -> int:
    """A task: what was asked, every attempt, every change, why it ran where it ran."""
    with output.client() as client:
        tasks = resolve(client, [task_id])
        if len(tasks) != 1 or names_batch([task_id]):
            _show_several(output, tasks)
            return OK
        story = client.story(tasks[0].task_id)
    if output.as_json:
        output.data(
            {
                "task": task_json(story.task),
                "attempts": [attempt_json(attempt) for attempt in story.attempts],
                "events": [event_json(event) for event in story.events],
            }
        )
    else:
        _say_story(output, story)
    return OK


def _show_several(output: Output, tasks: list[TaskView]) -> None:
    if output.as_json:
        output.data([task_json(task) for task in tasks])
        return
    rows = [
        (
            task.task_id,
            task.custom_id or "-",
            task.state.value,
            task.worker_id or "-",
            task.attempts,
            duration(task.finished_ms - task.started_ms) if task.started_ms and task.finished_ms else "-",
            task.target or "-",
            words_of(task.error_class, task.error_cause) if task.error_class else " ".join(task.flags) or "-",
        )
        for task in tasks
    ]
    output.say(table(("ID", "CUSTOM_ID", "STATE", "WORKER", "ATT", "RUN", "TARGET", "NOTE"), rows))
    output.say(summary(tasks))


def _say_story(output: Output, story: Story) -> None:
    task = story.task
    now_ms = int(time.time() * 1_000)
    facts = [
        ("State", _state(task, now_ms)),
        ("Custom id", task.custom_id),
        ("Priority", str(task.priority)),
        ("Type", task.task_type),
        ("Model", task.model or "the worker's own"),
        ("Target", task.target),
        ("Writes", task.out_path),
        ("Worker", task.worker_id),
        ("Submitted", f"{local_time(task.submitted_ms)} by {task.principal} ({age(task.submitted_ms, now_ms)} ago)"),
        ("Begins", _begin_limit(task, now_ms)),
        ("Waited", duration(task.started_ms - task.submitted_ms) if task.started_ms else ""),
        ("Ran", duration(task.finished_ms - task.started_ms) if task.started_ms and task.finished_ms else ""),
        ("Tokens", _tokens(task.prompt_tokens, task.thinking_tokens, task.output_tokens)),
        ("Flags", " ".join(task.flags)),
    ]
    output.say(f"Task {task_name(task)}")
    for name, value in facts:
        if value:
            output.say(f"  {name:<10} {value}")
    if task.error_class:
        output.say(f"  {'Error':<10} {task.error_class}: {words_of(task.error_class, task.error_cause)}")
        if task.error_message:
            output.say(f"  {'':<10} {task.error_message}")
    for attempt in story.attempts:
        _say_attempt(output, attempt, now_ms)
    if story.events:
        rows = [
            (
                local_time(event.at_ms),
                event.actor,
                f"{event.before} -> {event.after}" if event.before else event.after,
                event.attempt or "-",
                event.reason or "-",
            )
            for event in story.events
        ]
        output.say()
        output.say(table(("TIME", "WHO", "CHANGE", "ATT", "WHY"), rows))


def _say_attempt(output: Output, attempt: AttemptView, now_ms: int) -> None:
    ran = duration((attempt.ended_ms or now_ms) - attempt.started_ms)
    output.say()
    output.say(f"Attempt {attempt.number} on {attempt.worker_id}: {attempt.state}, {ran}")
    metrics = attempt.metrics
    if attempt.error_class:
        output.say(f"  {attempt.error_class}: {attempt.message or words_of(attempt.error_class)}")
    if tokens := _tokens(metrics.prompt_tokens, metrics.thinking_tokens, metrics.output_tokens):
        output.say(f"  tokens: {tokens}; window {metrics.num_ctx}, answer at most {metrics.num_predict}")
    if metrics.total_ms:
        output.say(
            f"  load {duration(metrics.load_ms)}, first token {duration(metrics.first_token_ms)},"
            f" Koubou's own time {duration(metrics.overhead_ms)}"
        )
    if attempt.placement:
        output.say(f"  placed: {attempt.placement}")


def _state(task: TaskView, now_ms: int) -> str:
    if task.state is not TaskState.QUEUED:
        return f"{task.state}, attempt {task.attempts}" if task.attempts > 1 else task.state.value
    if task.not_before_ms > now_ms:
        return f"queued, tries again in {duration(task.not_before_ms - now_ms)}"
    return f"queued, waits for {task.waiting_for}" if task.waiting_for else "queued"


def _begin_limit(task: TaskView, now_ms: int) -> str:
    """By when a worker has to begin it; empty: it has begun, or may wait for ever."""
    if task.queue_timeout_s is None or task.state is not TaskState.QUEUED or task.attempts:
        return ""
    left_ms = task.submitted_ms + round(task.queue_timeout_s * 1_000) - now_ms
    return f"within {duration(left_ms)}, or not at all"


def _tokens(prompt: int, thinking: int, answer: int) -> str:
    if not prompt and not answer:
        return ""
    thought = f" + {thinking} thinking" if thinking else ""
    return f"{prompt} prompt{thought} + {answer} output"
