"""The agent's side of the warm template: starts it, asks it for runs, restarts it when it dies (POSIX)."""

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koubou_agent.cli_env import CliMissing, clean_environment, inside_command
from koubou_common.errors import Code, KoubouError

_log = logging.getLogger("koubou_agent")

_READY_TIMEOUT_S = 60.0  # the import takes 0.7 s warm and was seen to take 20 s from a cold disk
_SEND_TIMEOUT_S = 30.0  # a template that does not take a request for so long is stuck
_STOP_TIMEOUT_S = 5.0
_RESTART_PAUSE_MAX_S = 30.0
_HEADER = struct.Struct(">I")
_ANSWER_MAX_BYTES = 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
_WHY_BYTES = 2000  # of what the template said before it died


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit code or minus the signal; None where nobody knows, with `why`."""

    status: int | None
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    why: str = ""


class Job:
    """One child of the template; `wait` for how it ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._over = threading.Event()
        self._ended = Ended(None)

    def wait(self, timeout_s: float) -> Ended | None:
        """None while it still runs."""
        return self._ended if self._over.wait(timeout_s) else None

    def end(self, ended: Ended) -> None:
        """Told once, by the thread that hears the template."""
        self._ended = ended
        self._over.set()


class WarmTemplate:
    """One template process at a time, and the thread it belongs to.

    The kernel kills the template when the *thread* that started it ends; that thread lives until `stop`.
    """

    def __init__(self, python: Path, work_dir: Path) -> None:
        self._python = python
        self._log_path = work_dir / "template.log"
        self._thread = threading.Thread(target=self._live, name="koubou-template", daemon=True)
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None  # only while the template is ready
        self._failure = ""
        self._jobs: dict[int, Job] = {}
        self._last_job = 0
        self._stopping = False
        self._sending = threading.Lock()

    def start(self) -> None:
        """Returns when the CLI is imported and runs can be asked for; CliMissing when it cannot be."""
        self._thread.start()
        try:
            with self._changed:
                self._await_ready()
        except KoubouError:
            self.stop()
            raise

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        stdout: Path,
        stderr: Path,
        environment: Mapping[str, str],
    ) -> Job:
        """Fork one run. A template that has just died is waited for."""
        with self._changed:
            self._await_ready()
            # Under the same lock: a template that dies after this ends the job, sent or not.
            self._last_job += 1
            job = self._jobs[self._last_job] = Job(self._last_job)
        self._send(
            job,
            {
                "op": "run",
                "job": job.number,
                "argv": list(argv),
                "folder": str(folder),
                "stdout": str(stdout),
                "stderr": str(stderr),
                "environment": dict(environment),
            },
        )
        return job

    def kill(self, job: Job) -> None:
        """Ask for the end of one child; it is over when its job says so."""
        self._send(job, {"op": "kill", "job": job.number})

    def kill_template(self) -> None:
        """The last resort, for a template that does not do what it is asked: all its children die with it."""
        with self._changed:
            process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the template and its children, and wait for that."""
        with self._changed:
            self._stopping = True
            if self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.shutdown(socket.SHUT_RDWR)
            elif self._process is not None:  # still importing
                self._process.kill()
            self._changed.notify_all()
        if self._thread.ident is not None:  # else it was never started
            self._thread.join()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while self._control is None:
            if self._stopping:
                raise KoubouError(Code.INTERNAL, "the runner is stopped")
            if self._failure:
                raise CliMissing(f"gemini-repo-cli does not start: {self._failure}")
            if not self._changed.wait(deadline - time.monotonic()):
                raise KoubouError(Code.INTERNAL, "gemini-repo-cli did not start in time")

    def _send(self, job: Job, request: dict[str, object]) -> None:
        body = json.dumps(request).encode()
        with self._sending:
            control = self._control
            if control is None or job.number not in self._jobs:
                return  # its template died meanwhile: the job has ended, or is about to
            try:
                control.sendall(_HEADER.pack(len(body)) + body)
            except TimeoutError:
                self.kill_template()  # half a request was sent: nothing after it can be understood
            except OSError:
                return  # dead; its thread hears that and ends the jobs

    def _live(self) -> None:
        """The thread: one template after the other."""
        failures = 0
        while not self._stopping:
            was_ready = self._one_life()
            failures = 0 if was_ready else failures + 1
            with self._changed:
                if failures and not self._stopping:
                    self._changed.wait_for(lambda: self._stopping, timeout=min(2.0**failures, _RESTART_PAUSE_MAX_S))

    def _one_life(self) -> bool:
        """True if the template became ready."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(_SEND_TIMEOUT_S)
            with self._log_path.open("wb") as said:
                process = subprocess.Popen(
                    inside_command(self._python, "template", "serve", str(theirs.fileno()), str(os.getpid())),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    cwd=self._log_path.parent,
                    env=clean_environment(self._log_path.parent),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in the terminal is the agent's to handle
                )
            theirs.close()
            with self._changed:
                self._process = process
            was_ready = False
            try:
                was_ready = self._hear(ours)
            finally:
                self._bury(process)
        return was_ready

    def _hear(self, control: socket.socket) -> bool:
        """Take the template's answers until it is gone."""
        ready = False
        deadline = time.monotonic() + _READY_TIMEOUT_S
        received = bytearray()
        while True:
            try:
                chunk = control.recv(_RECEIVE_BYTES)
            except TimeoutError:
                if not ready and time.monotonic() > deadline:
                    return False
                continue
            except OSError:
                return ready
            if not chunk:
                return ready
            received += chunk
            while (answer := _next_answer(received)) is not None:
                match answer["op"]:
                    case "ready":
                        ready = True
                        self._now_ready(control, answer["threads"])
                        if self._stopping:
                            return ready
                    case "failed":
                        self._now_failed(self._last_words() or answer["why"])
                    case "ended":
                        self._job_ended(answer)

    def _now_ready(self, control: socket.socket, threads: int) -> None:
        if threads > 1:
            _log.warning("gemini-repo-cli starts %d threads when imported: forks of it may hang", threads)
        with self._changed:
            if self._stopping:
                return
            self._failure = ""
            self._control = control
            self._changed.notify_all()

    def _now_failed(self, why: str) -> None:
        with self._changed:
            self._failure = why
            self._changed.notify_all()

    def _job_ended(self, answer: dict[str, Any]) -> None:
        with self._changed:
            job = self._jobs.pop(answer["job"], None)
        if job is None:
            return
        if "status" in answer:
            job.end(Ended(answer["status"], answer["cpu_s"], answer["peak_rss_bytes"]))
        else:
            job.end(Ended(None, why=answer["why"]))

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """The template is gone, or must go: no job of it is left without an end."""
        with self._sending, self._changed:
            was_ready = self._control is not None
            if self._control is not None:
                self._control.close()  # also tells a template that still lives
            self._control = None
        try:
            process.wait(_STOP_TIMEOUT_S if was_ready else 0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        died = _in_words(process.returncode)
        with self._changed:
            self._process = None
            orphans, self._jobs = list(self._jobs.values()), {}
            if not was_ready and not self._failure:
                self._failure = self._last_words() or f"its interpreter {died}"
            if was_ready and not self._stopping:
                _log.warning("the process that runs gemini-repo-cli %s; starting it again", died)
            self._changed.notify_all()
        for job in orphans:
            job.end(Ended(None, why=f"the process that runs gemini-repo-cli {died}"))

    def _last_words(self) -> str:
        said = self._log_path.read_bytes()[-_WHY_BYTES:].decode("utf-8", "replace").strip()
        return said.splitlines()[-1] if said else ""


def _next_answer(received: bytearray) -> dict[str, Any] | None:
    if len(received) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack_from(received)
    assert length <= _ANSWER_MAX_BYTES, "our own template speaks another language"
    end = _HEADER.size + length
    if len(received) < end:
        return None
    answer: dict[str, Any] = json.loads(received[_HEADER.size : end])
    del received[:end]
    return answer


def _in_words(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with code {returncode}"
