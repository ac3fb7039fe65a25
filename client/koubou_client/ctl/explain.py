"""`koubou-ctl explain`: why a task ran where it ran; of one that waits, who could take it, why not, about when."""

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import click

from koubou_client.ctl.candidates import candidate_lines, counts_text, fact_lines, has_groups, start_text, why
from koubou_client.ctl.ids import resolve_one
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.reasons import words_of
from koubou_client.ctl.times import duration
from koubou_client.ctl.views import (
    CACHED,
    attempt_json,
    candidate_json,
    decision_json,
    reasons_json,
    task_json,
    task_name,
)
from koubou_common.messages import Explanation
from koubou_common.messages.values import AttemptView, Candidate, TaskState, TaskView
from koubou_common.reasons import Reason

_ADVISED = 3  # remedies named; more is no advice


class Outlook(StrEnum):
    """What stands between a task that waits and its beginning."""

    GOES_NEXT = "goes_next"  # a worker is free for it
    WAITS_FOR_SLOT = "waits_for_slot"
    HELD_BACK = "held_back"  # who could take it has room, and the policy another plan
    NOBODY_NOW = "nobody_now"  # who could take it is away, paused or out of order
    IMPOSSIBLE = "impossible"  # as things are set up, no worker ever will
    NO_WORKER = "no_worker"


_VERDICTS: Mapping[Outlook, str] = {
    Outlook.GOES_NEXT: "A worker is free for it.",
    Outlook.WAITS_FOR_SLOT: "It waits for a slot on a worker that can take it.",
    Outlook.HELD_BACK: "A worker has room, but does not take it yet: WHY says what for.",
    Outlook.NOBODY_NOW: "No worker that could take it is able to now.",
    Outlook.IMPOSSIBLE: "Impossible as things are set up: no worker can ever take it.",
    Outlook.NO_WORKER: "No worker has joined yet.",
}

# What a person can do about it; {worker} is one with that reason.
_REMEDIES: Mapping[Reason, str] = {
    Reason.OTHER_WORKER: "submit it again without --worker, or with the name of a worker that can take it",
    Reason.LABEL_MISSING: "submit it again with other --label, or give a worker that label in workers.yaml",
    Reason.CAPABILITY_MISSING: "submit it again without --capability, or add it to a worker's capabilities"
    " in workers.yaml",
    Reason.MODEL_NOT_LISTED: "list the model under a worker's models in workers.yaml, or submit with another -m",
    Reason.DIGEST_DIFFERS: "pull the same version of the model on the workers, or submit again without --same-digest",
    Reason.WINDOW_TOO_SMALL: "give fewer files or a smaller --min-context, or raise a worker's num_ctx in workers.yaml",
    Reason.EXCLUDED: "see what went wrong there: koubou-ctl show {task}",
    Reason.NOT_CONNECTED: "start the agent of {worker} on its box, or invite it if it never joined:"
    " koubou-agent run --worker-id {worker}, or koubou-ctl workers invite {worker}",
    Reason.STOPPED_ANSWERING: "look at the box of {worker}: koubou-agent doctor",
    Reason.PAUSED: "let it work again: koubou-ctl workers resume {worker}",
    Reason.DRAINING: "let it work again: koubou-ctl workers resume {worker}",
    Reason.CANNOT_WORK: "look at the box of {worker}: koubou-agent doctor",
    Reason.COOLING_DOWN: "see why it fails: koubou-ctl workers show {worker}",
    Reason.MODEL_ABSENT: "pull the model on the box of {worker}: ollama pull {model}",
}


@click.command()
@click.argument("task_id", metavar="ID")
@click.pass_obj
def command(output: Output, task_id: str) -> int:
    """Why a task went to its worker, attempt by attempt; what it waits for, and about how long."""
    with output.client() as client:
        told = client.explain(resolve_one(client, task_id).task_id)
    if output.as_json:
        output.data(_json(told))
        return OK
    now_ms = int(time.time() * 1_000)
    output.say(f"Task {task_name(told.task)}: {_state(told.task, now_ms)}")
    for attempt in told.attempts:
        _say_attempt(output, attempt, now_ms)
    if told.task.state is TaskState.QUEUED:
        _say_waiting(output, told)
    elif not told.attempts:
        cached = CACHED in told.task.flags
        output.say("  Answered from the result cache: no worker ran." if cached else "  No worker ever began it.")
    return OK


def outlook_of(told: Explanation) -> Outlook:
    """How a task that waits stands."""
    if not told.candidates:
        return Outlook.NO_WORKER
    if any(one.available for one in told.candidates):
        return Outlook.GOES_NEXT
    eligible = [one for one in told.candidates if one.eligible]
    if eligible:
        held = all(one.code is not None and one.code.is_plan for one in eligible)
        return Outlook.HELD_BACK if held else Outlook.WAITS_FOR_SLOT
    if told.reasons and all(one.reason.is_lasting for one in told.reasons):
        return Outlook.IMPOSSIBLE
    return Outlook.NOBODY_NOW


def _state(task: TaskView, now_ms: int) -> str:
    match task.state:
        case TaskState.QUEUED:
            return f"queued for {duration(now_ms - task.submitted_ms)}"
        case TaskState.RUNNING:
            return f"running on {task.worker_id} for {duration(now_ms - task.started_ms)}"
        case TaskState.FAILED if task.error_class:
            return f"failed ({task.error_class}): {words_of(task.error_class, task.error_cause)}"
        case _:
            return f"{task.state} on {task.worker_id}" if task.worker_id else task.state.value


def _say_attempt(output: Output, attempt: AttemptView, now_ms: int) -> None:
    ran = duration((attempt.ended_ms or now_ms) - attempt.started_ms)
    output.say()
    output.say(f"Attempt {attempt.number} on {attempt.worker_id}: {attempt.state}, {ran}")
    ending = f"{attempt.error_class}: {attempt.message or words_of(attempt.error_class)}" if attempt.error_class else ""
    decision = attempt.decision
    if decision is None:
        _say_facts(output, ("Ended by", ending), ("Placed", attempt.placement or "not known any more"))
        return
    winner, *others = decision.candidates
    grouped = has_groups(decision.candidates)
    _say_facts(
        output,
        ("Ended by", ending),
        ("Rule", decision.rule),
        ("Strategy", decision.strategy),
        ("Chosen", _points(winner, with_group=grouped)),
        *((("Next" if nth == 0 else "", _points(one, with_group=grouped)) for nth, one in enumerate(others))),
        ("Not", counts_text(decision.reasons)),
        ("Note", decision.note),
    )


def _say_waiting(output: Output, told: Explanation) -> None:
    outlook = outlook_of(told)
    output.say()
    output.say(_VERDICTS[outlook])
    _say_facts(
        output,
        ("Waits for", told.task.waiting_for),
        ("Priority", _priority(told)),
        ("Before it", "nothing" if not told.ahead else "1 task" if told.ahead == 1 else f"{told.ahead:,} tasks"),
        ("Rule", told.rule),
        ("Strategy", told.strategy),
        ("Begins", start_text(told.starts_in_s, told.starts_basis)),
    )
    if told.candidates:
        output.say()
        for line in candidate_lines(told.candidates):
            output.say(line)
        shown, known = len(told.candidates), sum(one.count for one in told.reasons)
        if known > shown:
            output.say(f"... and others; in all: {counts_text(told.reasons)}")
    remedies = _remedies(told, outlook)
    if remedies:
        output.say()
        output.say("What helps:" if len(remedies) == 1 else "What helps, one of:")
        for line in fact_lines([("-", remedy) for remedy in remedies]):
            output.say(line)


def _say_facts(output: Output, *facts: tuple[str, str]) -> None:
    for line in fact_lines(facts):
        output.say(line)


def _points(candidate: Candidate, *, with_group: bool) -> str:
    text = why(candidate, with_group=with_group)
    return f"{candidate.worker_id} {candidate.score:.1f}{f' = {text}' if text else ''}"


def _priority(told: Explanation) -> str:
    begun = told.task.priority
    if told.effective_priority > begun:
        return f"{told.effective_priority:g}: it began with {begun}, waiting has raised it"
    return str(begun)


def _remedies(told: Explanation, outlook: Outlook) -> list[str]:
    """What a person can do where waiting alone does not help, the most frequent reason first."""
    if outlook is Outlook.NO_WORKER:
        return ["invite one: koubou-ctl workers invite NAME"]
    if outlook not in (Outlook.IMPOSSIBLE, Outlook.NOBODY_NOW):
        return []
    counted = [one.reason for one in told.reasons if outlook is Outlook.IMPOSSIBLE or not one.reason.is_lasting]
    remedies: list[str] = []
    for reason in counted:
        remedy = _REMEDIES.get(reason)
        worker = next((one.worker_id for one in told.candidates if one.code is reason), "NAME")
        if remedy:
            model = told.task.model or "MODEL"
            remedies.append(remedy.format(worker=worker, task=told.task.task_id, model=model))
    return remedies[:_ADVISED]


def _json(told: Explanation) -> dict[str, Any]:
    waiting = None
    if told.task.state is TaskState.QUEUED:
        outlook = outlook_of(told)
        waiting = {
            "outlook": outlook.value,
            "waits_for": told.task.waiting_for or None,
            "effective_priority": told.effective_priority,
            "ahead": told.ahead,
            "starts_in_s": told.starts_in_s,
            "starts_basis": told.starts_basis or None,
            "candidates": [candidate_json(one) for one in told.candidates],
            "reasons": reasons_json(told.reasons),
            "what_helps": _remedies(told, outlook),
        }
    return {
        "task": task_json(told.task),
        "rule": told.rule or None,
        "strategy": told.strategy or None,
        "attempts": [
            {**attempt_json(one), "decision": decision_json(one.decision) if one.decision is not None else None}
            for one in told.attempts
        ],
        "waiting": waiting,
    }
