"""What the demo asks for: thirty tasks of mixed priority about Koubou's own files."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path, PurePosixPath

from koubou_client.tasks import TaskDraft, draft_task

TASKS = 30

_PACKAGES = ("koubou_common", "koubou_broker", "koubou_agent", "koubou_client")
# As people mix them: some wait for an answer now, most is ordinary, some may take all night.
_PRIORITIES = (9, 5, 2, 6, 3, 8, 7, 1, 5, 4)
# Two such files and the instructions fit a window of 8,192 tokens, with room for the answer.
_LEAST_BYTES, _MOST_BYTES = 1_500, 7_000
_KINDS = (
    ("Explain this module to a newcomer, in at most ten sentences of Markdown.", "docs/{number:02d}-{stem}.md"),
    ("Write pytest tests for the public functions of this module, short ones.", "tests/test_{number:02d}_{stem}.py"),
    ("Review this module: what could go wrong? At most five points.", "reviews/{number:02d}-{stem}.md"),
    ("Say in Japanese what this module is for, in at most ten sentences.", "ja/{number:02d}-{stem}.md"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One task of the demo."""

    prompt: str
    files: tuple[str, ...]  # relative to the root, the one the task is about first
    target: str
    priority: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where the context files are."""

    root: Path
    files: tuple[str, ...]
    is_checkout: bool


def source() -> Source:
    """This repository's files when run from a checkout, else those of the installed packages."""
    folders = [_folder(package) for package in _PACKAGES]
    checkout = folders[0].parents[1]
    is_checkout = (checkout / "pyproject.toml").is_file() and all(checkout in folder.parents for folder in folders)
    root = checkout if is_checkout else folders[0].parent
    files = sorted(name for folder in folders for name in _modules(root, folder))
    return Source(root, tuple(files), is_checkout)


def jobs(files: tuple[str, ...], seed: int) -> list[Job]:
    """The tasks, always the same for a seed; every third has a second file as context."""
    dice = random.Random(seed)
    about = dice.sample(files, min(TASKS, len(files)))
    made = []
    for number in range(TASKS):
        name = about[number % len(about)]
        prompt, target = _KINDS[number % len(_KINDS)]
        second = () if number % 3 else tuple(dice.sample([other for other in files if other != name], 1))
        stem = PurePosixPath(name).stem.strip("_")
        target = target.format(number=number + 1, stem=stem)
        made.append(Job(prompt, (name, *second), target, _PRIORITIES[number % len(_PRIORITIES)]))
    return made


def drafts(made: Sequence[Job], where: Source) -> list[TaskDraft]:
    """The tasks ready to be submitted, their files read."""
    return [
        draft_task(
            job.prompt,
            files=job.files,
            root=where.root,
            allow_secrets=True,  # our own published sources: what looks like a key there is an example
            target=job.target,
            repo="koubou",
            priority=job.priority,
            custom_id=f"demo-{number:02d}",
        )
        for number, job in enumerate(made, start=1)
    ]


def _folder(package: str) -> Path:
    spec = util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent


def _modules(root: Path, folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        if _LEAST_BYTES <= path.stat().st_size <= _MOST_BYTES:
            yield path.relative_to(root).as_posix()
