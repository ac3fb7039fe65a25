"""What tests of the runner share: a request, a run that is held in the middle, what it looks like from outside."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from koubou_agent.runner import Runner, RunReport, RunRequest
from support.cli import Reply, TinyOllama, children_of, says
from support.waiting import eventually

SECRET_PATH = "/t/0123456789abcdef"

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@contextmanager
def running(python: Path, work_dir: Path, *, warm: bool = True) -> Iterator[Runner]:
    runner = Runner(python, work_dir, warm=warm)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


class Held:
    """A run that waits for its answer, seen from outside."""

    def __init__(self, runner: Runner, ollama: TinyOllama, pool: ThreadPoolExecutor, request: RunRequest) -> None:
        self.hold = threading.Event()
        self.cancel = threading.Event()
        before = len(ollama.received)
        ollama.answer = lambda _request: Reply(says("late").body, hold=self.hold)
        self._run: Future[RunReport] = pool.submit(runner.run, request, self.cancel)
        eventually(lambda: len(ollama.received) > before or self._run.done())

    def report(self) -> RunReport:
        return self._run.result(20)


@contextmanager
def held(runner: Runner, ollama: TinyOllama, request: RunRequest) -> Iterator[Held]:
    with ThreadPoolExecutor(1) as pool:
        run = Held(runner, ollama, pool, request)
        try:
            yield run
        finally:
            run.cancel.set()
            run.hold.set()


def a_request(
    ollama: TinyOllama,
    *,
    prompt: str = "Explain this module, please",
    files: tuple[tuple[str, bytes], ...] = (("src/codec.py", b"x = 1\n"),),
    repo: str = "koubou",
    target: str = "codec.md",
    model: str = "gpt-oss:20b",
    timeout_s: float = 30.0,
) -> RunRequest:
    return RunRequest(
        attempt_uid="00ff" * 8,
        repo=repo,
        target=target,
        prompt=prompt,
        files=files,
        model=model,
        host_url=ollama.url + SECRET_PATH,
        timeout_s=timeout_s,
    )


def says_error(words: str) -> Reply:
    return Reply(json.dumps({"error": words}).encode(), 500)


def sent_prompt(ollama: TinyOllama) -> str:
    return str(ollama.received[-1].body["prompt"])


def folders(runner: Runner) -> list[Path]:
    return list(runner._work_dir.glob("attempt-*"))


def child_of(runner: Runner) -> int:
    """The process of the one run that is going on."""
    template = runner._template
    parent = os.getpid() if template is None else template_pid(runner)
    return eventually(lambda: children_of(parent))[-1]


def template_pid(runner: Runner) -> int:
    assert runner._template is not None
    process = runner._template._process
    assert process is not None
    return process.pid
