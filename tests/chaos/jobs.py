"""What the clients of a chaos run ask for: every submission follows from seed, client and number. Pure.

The prompt tells the simulated model word by word what to say, and what it says begins with the task's own key:
so the one right output of each task is known, and nobody else's could be taken for it.
"""

import random
from dataclasses import dataclass, replace

from koubou_client.inputs import body_of
from koubou_client.tasks import TaskDraft, draft_task
from koubou_common.messages.values import File
from koubou_simulator.ollama.texts import BYTES_PER_TOKEN

TOKENS_PER_S = 1_000.0  # of the simulated models (site.py)
_SHORTEST_S, _LONGEST_S = 0.1, 1.9  # an answer takes, undisturbed
_BATCH_SHARE = 0.05
_BATCH_TASKS = 3
_BATCH_FILE_BYTES = 100_000  # three of them are more than one message holds inline: the broker pulls one as a blob
_LARGE_SHARE = 0.01
_LARGE_FILE_BYTES = 264_000  # above the 256 KiB that travel inline, also from the broker to the agent
_CANCEL_SHARE = 0.05
_CANCEL_MOST_S = 4.0
_DEATH_SHARE = 0.04  # kills from outside hardly ever hit the moment between an answer and its note
_WORDS = (
    "anvil", "bellows", "chisel", "dowel", "easel", "file", "gauge", "hammer", "indigo", "joint", "kiln", "lacquer",
    "mallet", "needle", "oakum", "plane", "quill", "rasp", "saw", "tongs", "umber", "vice", "wedge", "yarn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One task: what is asked, and the only right answer."""

    name: str
    prompt: str
    answer: str
    files: tuple[tuple[str, bytes], ...] = ()

    def draft(self) -> TaskDraft:
        """As the client library takes it."""
        draft = draft_task(self.prompt, custom_id=self.name)
        files = tuple((name, data, body_of(data)) for name, data in self.files)
        spec = replace(draft.spec, files=tuple(File(name, body) for name, _, body in files))
        return TaskDraft(spec, {**draft.bodies, **{body.sha256: data for _, data, body in files}})


@dataclass(frozen=True, slots=True)
class Submission:
    """What goes under one idempotency key."""

    key: str
    jobs: tuple[Job, ...]
    cancel_after_s: float | None = None  # of its first task, from the moment it was accepted
    dies_before_noting: bool = False  # the client ends like a kill -9 when it is told for the first time


def submission(seed: int, client: str, number: int) -> Submission:
    """The client's so-manyth submission."""
    key = f"{client}-{number}"
    dice = random.Random(f"{seed} {key}")
    kind = dice.random()
    if kind < _LARGE_SHARE:
        jobs: tuple[Job, ...] = (_job(key, dice, _LARGE_FILE_BYTES),)
    elif kind < _LARGE_SHARE + _BATCH_SHARE:
        jobs = tuple(_job(f"{key}.{index}", dice, _BATCH_FILE_BYTES) for index in range(_BATCH_TASKS))
    else:
        jobs = (_job(key, dice, 0),)
    cancelled = dice.random() < _CANCEL_SHARE
    return Submission(key, jobs, dice.uniform(0.0, _CANCEL_MOST_S) if cancelled else None, dice.random() < _DEATH_SHARE)


def _job(name: str, dice: random.Random, file_bytes: int) -> Job:
    tokens = _SHORTEST_S * TOKENS_PER_S * (_LONGEST_S / _SHORTEST_S) ** dice.random()
    answer = f"answer to {name}:"
    while len(answer) < tokens * BYTES_PER_TOKEN:
        answer += f" {dice.choice(_WORDS)}"
    files: tuple[tuple[str, bytes], ...] = ()
    if file_bytes:
        line = f"{name} " + " ".join(dice.choice(_WORDS) for _ in range(12)) + "\n"
        files = ((f"notes/{name}.txt", (line * (file_bytes // len(line) + 1)).encode()[:file_bytes]),)
    return Job(name, f"[[sim: raw={answer}]] Say what {name} is told to say.", answer, files)
