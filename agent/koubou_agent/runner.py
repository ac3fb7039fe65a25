"""Runs gemini-repo-cli for one attempt: its files in a private folder, bounded, ended with all it started."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from koubou_agent.cli_env import CliInfo, CliMissing, check, clean_environment, inside_command
from koubou_agent.run_folder import RunFolder, remove_leftovers
from koubou_agent.warm import Ended, WarmTemplate

if os.name == "posix":
    from koubou_agent import sandbox

_POLL_S = 0.02  # how late a cancel may be seen: one more line of a model's answer
_KILL_GRACE_S = 5.0  # SIGKILL takes effect at once; a template that has not reaped by then is stuck


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One attempt; `files` are (relative name, content), `host_url` the gateway's, with its secret."""

    attempt_uid: str
    repo: str
    target: str
    prompt: str
    files: tuple[tuple[str, bytes], ...]
    model: str
    host_url: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """How it ended: exactly one of `exit_code` and `signal`, or neither where the runner itself broke.

    `killed`: by the kernel, by somebody, with a dead template - not by `timed_out` or `cancelled`.
    """

    exit_code: int | None
    signal: int | None
    stdout: bytes
    log_tail: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    timed_out: bool
    cancelled: bool
    killed: bool


class Runner:
    """Runs many attempts at once, each called from a thread of its own.

    `work_dir` belongs to this runner alone: folders of earlier runs in it are deleted at the start.
    `warm=False` starts a whole interpreter per attempt, the only way where there is no fork.
    """

    def __init__(self, python: Path, work_dir: Path, *, warm: bool = True) -> None:
        self._python = python
        self._work_dir = work_dir.absolute()
        self._template = WarmTemplate(python, self._work_dir) if warm and hasattr(os, "fork") else None
        self._info: CliInfo | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """CliMissing, with the command that installs it, when gemini-repo-cli cannot be run."""
        # Without a template nothing else would find out that the CLI cannot be loaded.
        found = check(self._python, imports=self._template is None)
        if found.info is None or found.problems:
            raise CliMissing("\n".join(found.problems))
        self._work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(self._work_dir)
        if self._template is not None:
            self._template.start()
        self._info = found.info

    def describe(self) -> CliInfo:
        """What runs the attempts; after `start`."""
        assert self._info is not None, "the runner is not started"
        return self._info

    def run(self, request: RunRequest, cancel: threading.Event) -> RunReport:
        """Blocks until the CLI has ended and its folder is gone; `cancel` ends it.

        RefusedError for file names that are not allowed, OSError for a full disk, KoubouError when the CLI
        cannot be started any more.
        """
        started_s = time.monotonic()
        with RunFolder(self._work_dir, request.attempt_uid, request.files) as folder:
            watch = _Watch(cancel, self._stopping, started_s + request.timeout_s)
            if watch.must_end():
                ended = Ended(None)
            elif self._template is not None:
                ended = self._run_warm(self._template, request, folder, watch)
            else:
                ended = self._run_plain(request, folder, watch)
            by_signal = -ended.status if ended.status is not None and ended.status < 0 else None
            log_tail = folder.log_tail(request.prompt, request.host_url)
            return RunReport(
                exit_code=ended.status if by_signal is None else None,
                signal=by_signal,
                stdout=folder.output(),
                log_tail="\n".join(part for part in (log_tail, ended.why) if part),
                wall_s=time.monotonic() - started_s,
                cpu_s=ended.cpu_s,
                peak_rss_bytes=ended.peak_rss_bytes,
                timed_out=watch.timed_out,
                cancelled=watch.cancelled,
                killed=(by_signal is not None or ended.status is None) and not (watch.timed_out or watch.cancelled),
            )

    def stop(self) -> None:
        """End all runs; those still waited for report `killed`."""
        self._stopping.set()
        if self._template is not None:
            self._template.stop()

    def _run_warm(self, template: WarmTemplate, request: RunRequest, folder: RunFolder, watch: "_Watch") -> Ended:
        job = template.run(
            cli_arguments(request),
            folder.files,
            stdout=folder.stdout,
            stderr=folder.stderr,
            environment=clean_environment(folder.files),
        )
        ended = watch.until_over(job.wait)
        if ended is None:
            template.kill(job)
            ended = job.wait(_KILL_GRACE_S)
        while ended is None:
            template.kill_template()
            ended = job.wait(_KILL_GRACE_S)
        return ended

    def _run_plain(self, request: RunRequest, folder: RunFolder, watch: "_Watch") -> Ended:
        # The request goes in by a file: arguments have a size limit and are shown to everybody by `ps`.
        folder.request.write_text(json.dumps({"argv": cli_arguments(request)}), encoding="utf-8")
        with (
            folder.request.open("rb") as asked,
            folder.stdout.open("xb") as said,
            folder.stderr.open("xb") as logged,
        ):
            process = subprocess.Popen(
                inside_command(self._python, "template", "once", str(os.getpid())),
                stdin=asked,
                stdout=said,
                stderr=logged,
                cwd=folder.files,
                env=clean_environment(folder.files),
                start_new_session=True,
            )
        ended = watch.until_over(lambda pause_s: _look(process, pause_s))
        if ended is None:
            _kill(process)
        while ended is None:
            ended = _look(process, _KILL_GRACE_S)
        return ended


def cli_arguments(request: RunRequest) -> list[str]:
    """The command line: what comes from a task stands behind `=` or `--`, so that none of it is an option."""
    files = [f"./{name}" if name.startswith("-") else name for name, _content in request.files]
    return [
        "--provider=ollama",
        f"--ollama-model={request.model}",
        f"--ollama-host={request.host_url}",
        *(["--files", *files] if files else []),
        "--",
        *(_plain(text) for text in (request.repo, request.target, request.prompt)),
    ]


def _plain(text: str) -> str:
    # argparse removes a "--" wherever it stands, and then misses the argument.
    return "-- " if text == "--" else text


class _Watch:
    """Why a run must end before its time, remembered in the order it was seen."""

    def __init__(self, cancel: threading.Event, stopping: threading.Event, deadline_s: float) -> None:
        self._cancel = cancel
        self._stopping = stopping
        self._deadline_s = deadline_s
        self.timed_out = False
        self.cancelled = False

    def until_over(self, look: Callable[[float], Ended | None]) -> Ended | None:
        """What `look` finds, or None as soon as the run must end."""
        while True:
            ended = look(_POLL_S)
            if ended is not None:
                return ended
            if self.must_end():
                return None

    def must_end(self) -> bool:
        """True, and remembers the reason."""
        self.cancelled = self._cancel.is_set()
        self.timed_out = not self.cancelled and time.monotonic() > self._deadline_s
        return self.cancelled or self.timed_out or self._stopping.is_set()


def _look(process: subprocess.Popen[bytes], pause_s: float) -> Ended | None:
    """Wait at most `pause_s` for the process and tell how it ended, on POSIX with what it used."""
    if os.name != "posix":
        with contextlib.suppress(subprocess.TimeoutExpired):
            return Ended(process.wait(pause_s))
        return None
    deadline_s = time.monotonic() + pause_s
    while (reaped := sandbox.reap(process.pid)) is None:
        if time.monotonic() > deadline_s:
            return None
        time.sleep(min(_POLL_S, pause_s))
    sandbox.kill_group(process.pid)  # what it may have left behind in its session
    status, cpu_s, peak_rss_bytes = reaped
    process.returncode = status  # Popen would otherwise wait for a child that is reaped already
    return Ended(status, cpu_s, peak_rss_bytes)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        sandbox.kill_group(process.pid)
    else:
        process.kill()
