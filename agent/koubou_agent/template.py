"""Run by the interpreter of gemini-repo-cli's own environment: its `main()`, once per attempt.

`serve` (POSIX) imports the CLI once and forks for every attempt; `once` runs a single attempt and is the way
where there is no fork. Standard library alone; gemini-repo-cli itself is used as it is.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - looked up by every connect: here it is loaded once for all forks
import functools
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

if os.name == "posix":
    from koubou_agent import sandbox

_PROGRAM = "gemini-repo-cli"
_CLI_MODULE = "gemini_repo.cli"

_RECEIVE_BYTES = 1024 * 1024
_HEADER = struct.Struct(">I")


def main(arguments: list[str]) -> NoReturn:
    """`serve FD PARENT_PID`, or `once PARENT_PID` with the request on standard input."""
    if arguments[0] == "serve":
        _serve(socket.socket(fileno=int(arguments[1])), int(arguments[2]))
    _once(int(arguments[1]))


def _once(parent_pid: int) -> NoReturn:
    if os.name == "posix":
        sandbox.die_with_parent(parent_pid)
    request = json.load(sys.stdin)
    if os.name == "posix":
        sandbox.confine()
    sys.stdout = _text(1)
    sys.stderr = _text(2)
    _end(lambda: _run_cli(_load_cli(), request["argv"]))


def _serve(control: socket.socket, parent_pid: int) -> NoReturn:
    sandbox.die_with_parent(parent_pid)
    # Every HTTP client builds one, 22 ms; the import's own client fills this memory for all forks.
    build_context = cast("Callable[..., ssl.SSLContext]", functools.lru_cache(ssl.create_default_context))
    ssl.create_default_context = build_context
    try:
        cli_main = _load_cli()
    except BaseException as error:  # a missing library makes the CLI call exit(): SystemExit
        sys.stdout.flush()  # the CLI has printed there what it misses
        _tell(control, {"op": "failed", "why": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    gc.collect()
    gc.freeze()  # so that a collection in a child does not write to, and so copy, every inherited page
    _tell(control, {"op": "ready", "threads": threading.active_count()})
    _Template(control, cli_main).serve()
    sys.exit(0)


class _Template:
    """One thread: requests from the agent on one side, ended children on the other."""

    def __init__(self, control: socket.socket, cli_main: Callable[[], object]) -> None:
        self._control = control
        self._cli_main = cli_main
        self._received = bytearray()
        self._jobs: dict[int, int] = {}  # pid -> job
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)

    def serve(self) -> None:
        """Until the agent closes its end; then nothing of ours stays alive."""
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)  # without a handler nothing is woken
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            try:
                while True:
                    ready = {key.fileobj for key, _events in selector.select()}
                    if self._woken in ready:
                        self._woken.recv(4096)
                        self._report_ended()
                    if self._control in ready and not self._take_requests():
                        return
            except (ConnectionError, BrokenPipeError):
                return
            finally:
                for pid in self._jobs:
                    sandbox.kill_group(pid)

    def _take_requests(self) -> bool:
        chunk = self._control.recv(_RECEIVE_BYTES)
        if not chunk:
            return False
        self._received += chunk
        while len(self._received) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received)
            end = _HEADER.size + length
            if len(self._received) < end:
                break
            request = json.loads(self._received[_HEADER.size : end])
            del self._received[:end]
            if request["op"] == "run":
                self._start(request)
            else:
                self._kill(request["job"])
        return True

    def _start(self, request: dict[str, Any]) -> None:
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # out of processes or memory: that attempt fails, the template lives
            _tell(self._control, {"op": "ended", "job": request["job"], "why": f"cannot fork: {error}"})
            return
        if pid == 0:
            _end(lambda: self._attempt(request, parent_pid))
        self._jobs[pid] = request["job"]

    def _kill(self, job: int) -> None:
        for pid, its_job in self._jobs.items():
            if its_job == job:
                sandbox.kill_group(pid)

    def _report_ended(self) -> None:
        for pid in list(self._jobs):
            ended = sandbox.reap(pid)
            if ended is None:
                continue
            sandbox.kill_group(pid)  # what it may have left behind in its session
            status, cpu_s, peak_rss_bytes = ended
            job = self._jobs.pop(pid)
            _tell(
                self._control,
                {
                    "op": "ended",
                    "job": job,
                    "status": status,
                    "cpu_s": cpu_s,
                    "peak_rss_bytes": peak_rss_bytes,
                },
            )

    def _attempt(self, request: dict[str, Any], parent_pid: int) -> int:
        """The child's life: out of the template's session and descriptors, into its folder and the CLI."""
        os.setsid()
        sandbox.die_with_parent(parent_pid)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for inherited in (self._control, self._woken, self._waker):
            inherited.close()
        sandbox.confine()
        _redirect(0, os.devnull, os.O_RDONLY)
        _redirect(1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        _redirect(2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        sys.stdin, sys.stdout, sys.stderr = _text(0), _text(1), _text(2)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        gc.enable()
        return _run_cli(self._cli_main, request["argv"])


def _load_cli() -> Callable[[], object]:
    return cast("Callable[[], object]", importlib.import_module(_CLI_MODULE).main)


def _run_cli(cli_main: Callable[[], object], argv: list[str]) -> int:
    sys.argv = [_PROGRAM, *argv]
    try:
        cli_main()
    except SystemExit as leaving:
        if leaving.code is None:
            return 0
        if isinstance(leaving.code, int):
            return leaving.code & 0xFF
        print(leaving.code, file=sys.stderr)
        return 1
    return 0


def _end(life: Callable[[], int]) -> NoReturn:
    """End this process with what `life` returns: no handlers, no exit hooks of the template."""
    code = 1
    try:
        code = life()
        sys.stdout.flush()
    except BaseException:  # whatever it was, a child must never return into the template's loop
        code = 1
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def _text(fd: int) -> TextIO:
    """A fresh UTF-8 stream: one strange character must not lose an answer that was paid for."""
    # Lives as long as the process: nothing closes it.
    raw = open(fd, "rb" if fd == 0 else "wb", closefd=False)  # noqa: SIM115
    errors = "strict" if fd == 0 else "replace" if fd == 1 else "backslashreplace"
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, newline="\n", line_buffering=fd == 2)


def _redirect(fd: int, path: str, flags: int) -> None:
    opened = os.open(Path(path), flags, 0o600)
    os.dup2(opened, fd)
    os.close(opened)


def _tell(control: socket.socket, answer: dict[str, object]) -> None:
    body = json.dumps(answer).encode()
    control.sendall(_HEADER.pack(len(body)) + body)
