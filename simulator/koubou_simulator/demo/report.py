"""What the demo tells at its end: who did what, whether it was right, and what to type next."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from koubou_client.ctl.tables import table
from koubou_common.addresses import DEFAULT_OLLAMA_URL
from koubou_common.messages.values import AttemptState, TaskView, WorkerView
from koubou_simulator.demo.cli_choice import Choice
from koubou_simulator.demo.play import Course
from koubou_simulator.demo.stage import Ollamas
from koubou_simulator.demo.verdict import Verdict

_ASK_S = 1.0  # a look at one's own machine

_NEXT = """\
Next   koubou-ctl up                           broker and agent for the Ollama of this machine
       koubou-ctl submit "Explain this module" -f FILE -o explained.md --wait
       koubou-ctl workers invite lan_001       the line that lets another box join
       koubou-ctl doctor                       what is missing, and how to mend it"""


def workers_table(verdict: Verdict, workers: list[WorkerView]) -> str:
    """A row for every worker, from the attempts on record."""
    rows = []
    attempts = [attempt for story in verdict.stories for attempt in story.attempts]
    for worker in workers:
        own = [attempt for attempt in attempts if attempt.worker_id == worker.worker_id]
        good = [attempt for attempt in own if attempt.state is AttemptState.SUCCEEDED]
        run_ms = sum(attempt.ended_ms - attempt.started_ms for attempt in good)
        rows.append(
            (
                worker.worker_id,
                worker.location,
                worker.performance_factor,
                len(good),
                sum(attempt.state is AttemptState.LOST for attempt in own),
                sum(attempt.metrics.prompt_tokens for attempt in good),
                sum(attempt.metrics.output_tokens for attempt in good),
                f"{run_ms / 1000 / max(1, len(good)):.1f} s",
            )
        )
    return table(("WORKER", "WHERE", "FACTOR", "DONE", "LOST", "READ", "WRITTEN", "PER TASK"), rows)


def priorities_table(verdict: Verdict) -> str:
    """A row for every priority: how long its tasks waited, and who did them."""
    rows: list[tuple[object, ...]] = []
    tasks = [story.task for story in verdict.stories]
    for priority in sorted({task.priority for task in tasks}, reverse=True):
        own = [task for task in tasks if task.priority == priority]
        waits_ms = [task.started_ms - task.submitted_ms for task in own if task.started_ms]
        mean_s = sum(waits_ms) / 1000 / max(1, len(waits_ms))
        rows.append((priority, len(own), f"{mean_s:.1f} s", ", ".join(sorted({task.worker_id for task in own}))))
    return table(("PRIORITY", "TASKS", "WAITED", "DONE BY"), rows)


def example_placement(verdict: Verdict) -> str:
    """Why one task of the highest priority went where it went; empty where nothing is on record."""
    stories = [story for story in verdict.stories if story.attempts and story.attempts[-1].placement]
    if not stories:
        return ""
    story = max(stories, key=lambda one: one.task.priority)
    return f"Why task {story.task.task_id} ran where it ran: {story.attempts[-1].placement}"


def next_steps(ollamas: Ollamas) -> str:
    """The commands to go on with; with an Ollama on this machine, the demo on it comes first."""
    if not ollamas.is_simulated:
        return _NEXT
    models = models_at(DEFAULT_OLLAMA_URL)
    if models is None:
        return _NEXT
    model = models[0] if models else "MODEL"
    hint = "" if models else " (it has no model yet: ollama pull MODEL)"
    return (
        f"An Ollama answers on {DEFAULT_OLLAMA_URL}{hint}. The same demo with it:\n"
        f"       koubou-ctl demo --ollama {DEFAULT_OLLAMA_URL} --model {model}\n{_NEXT}"
    )


def models_at(url: str, timeout_s: float = _ASK_S) -> list[str] | None:
    """The models of an Ollama, None where none answers; no proxy may stand between."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/tags", timeout=timeout_s) as answer:
            return [str(model["name"]) for model in json.load(answer)["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def result_json(
    verdict: Verdict, course: Course, cli: Choice, ollamas: Ollamas, log_folder: str | None
) -> dict[str, Any]:
    """The whole result as one document."""
    return {
        "summary": verdict.line,
        "good": verdict.is_good,
        "simulated": {"ollama": ollamas.is_simulated, "cli": cli.is_simulated},
        "cli": cli.label,
        "model": ollamas.model,
        "seconds": round(course.seconds_s, 1),
        "joined": {"worker": course.joined, "seconds": round(course.join_s, 1)},
        "killed": {"worker": course.killed, "tasks_running": course.moving, "tasks_moved": course.moved},
        "succeeded": verdict.succeeded,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "faults": verdict.faults,
        "tasks": [_task_json(story.task, len(story.attempts)) for story in verdict.stories],
        "logs": log_folder,
    }


def _task_json(task: TaskView, attempts: int) -> Mapping[str, Any]:
    return {
        "id": task.task_id,
        "custom_id": task.custom_id,
        "priority": task.priority,
        "target": task.target,
        "state": task.state.value,
        "worker": task.worker_id,
        "attempts": attempts,
    }
