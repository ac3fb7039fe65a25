"""Whether the demo kept its promises: judged by the broker's records and by what reached the simulated Ollamas."""

import hashlib
import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koubou_client.client import Client
from koubou_client.tasks import TaskDraft
from koubou_common.messages import Story
from koubou_common.messages.values import AttemptState, TaskState
from koubou_simulator.demo.play import Course
from koubou_simulator.demo.stage import Ollamas
from koubou_simulator.ollama.engine import Ask
from koubou_simulator.ollama.texts import TextModel

_ASK_S = 10.0
_DIGEST = re.compile(r"prompt sha256 ([0-9a-f]{12})")


@dataclass(slots=True)
class Verdict:
    """The counts of the last line, and everything that was wrong."""

    total: int
    succeeded: int = 0
    lost: int = 0  # accepted, and not recorded as ended
    duplicated: int = 0  # more than one success recorded, or more than one task made of it
    faults: list[str] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The last line of the demo."""
        return f"demo: {self.succeeded}/{self.total} succeeded, {self.lost} lost, {self.duplicated} duplicated"

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return not self.faults and self.succeeded == self.total and not self.lost and not self.duplicated


def judge(client: Client, course: Course, drafts: Sequence[TaskDraft], ollamas: Ollamas) -> Verdict:
    """Read everything back and compare."""
    verdict = Verdict(len(drafts))
    _count(verdict, client, course, drafts)
    if not course.killed:
        verdict.faults.append("no agent was killed: the tasks were over too soon")
    if not course.joined:
        verdict.faults.append("no box joined: the tasks were over too soon")
    if ollamas.is_simulated:
        asked = _requests(ollamas)
        for task_id, draft in zip(course.task_ids, drafts, strict=True):
            reply, data = client.result(task_id)
            if reply.task.state is TaskState.SUCCEEDED and (fault := _text_fault(data.decode(), draft, asked)):
                verdict.faults.append(f"task {task_id}: {fault}")
    return verdict


def _count(verdict: Verdict, client: Client, course: Course, drafts: Sequence[TaskDraft]) -> None:
    recorded = {task.task_id for task in client.tasks(batch_id=course.batch_id)}
    verdict.lost = len(drafts) - len(recorded & set(course.task_ids))
    verdict.duplicated = len(recorded) - len(drafts) if len(recorded) > len(drafts) else 0
    for task_id in sorted(recorded):
        story = client.story(task_id)
        verdict.stories.append(story)
        successes = sum(attempt.state is AttemptState.SUCCEEDED for attempt in story.attempts)
        match story.task.state:
            case TaskState.SUCCEEDED:
                verdict.succeeded += 1
                if successes != 1:
                    verdict.faults.append(f"task {task_id} succeeded with {successes} successful attempts on record")
                    verdict.duplicated += successes > 1
            case TaskState.FAILED | TaskState.CANCELLED:
                why = f"{story.task.error_class}: {story.task.error_message}"
                verdict.faults.append(f"task {task_id} {story.task.state}: {why}")
            case TaskState.QUEUED | TaskState.RUNNING:
                verdict.lost += 1
                verdict.faults.append(f"task {task_id} is {story.task.state} and nothing works on it")
    for task_id in course.moving:
        story = next(story for story in verdict.stories if story.task.task_id == task_id)
        if len(story.attempts) > 1 and story.attempts[0].state is not AttemptState.LOST:
            verdict.faults.append(f"task {task_id}: the killed agent's attempt is {story.attempts[0].state}, not lost")


def _requests(ollamas: Ollamas) -> dict[str, Mapping[str, Any]]:
    """Every request for text that reached a simulated Ollama, by the digest its answer names."""
    found = {}
    for url in ollamas.urls.values():
        with urllib.request.urlopen(f"{url}/_sim/requests", timeout=_ASK_S) as answer:  # noqa: S310 - ours, loopback
            for request in json.load(answer)["requests"]:
                found[hashlib.sha256(_seen(request).encode()).hexdigest()[:12]] = request
    return found


def _text_fault(text: str, draft: TaskDraft, asked: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with an output; empty: it is what the model answered to just this task."""
    digest = _DIGEST.search(text)
    request = asked.get(digest[1]) if digest else None
    if request is None:
        return "its output is no answer of these Ollamas"
    prompt, spec = request["prompt"], draft.spec
    wanted = [draft.bodies[spec.prompt.sha256].decode(), f"the complete content for the file: {spec.target}\n"]
    if not all(text in prompt for text in wanted):
        return f"its output answers another task than {spec.target}"
    for file in spec.files:
        if f"### File: {file.name}\n" not in prompt or draft.bodies[file.body.sha256].decode() not in prompt:
            return f"the file {file.name} did not reach the model"
    if request["truncate"] is not False:
        return "its request did not forbid truncation"
    ask = Ask(request["model"], _seen(request), [], request["options"]["seed"], str(request["think"] or ""))
    answer = b"".join(piece.data for piece in TextModel().reply(ask) if not piece.thinking).decode()
    return "" if text.strip() == answer.strip() else "its output is not the text that the model gave"


def _seen(request: Mapping[str, Any]) -> str:
    """The prompt as the simulated model sees it."""
    return f"{request['system']}\n\n{request['prompt']}" if request["system"] else str(request["prompt"])
