"""Children: one that is started anew, and brokers that are forked from a program that has imported everything.

A power cut is checked by a broker's start; most of what that costs is Python reading the modules.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from support.waiting import eventually

START_S = 60.0  # a busy machine imports slowly

_END_S = 20.0
_LISTENS = "\nlook "  # the last line that a broker prints when it listens
_TESTS = Path(__file__).resolve().parent.parent


class Child(Protocol):
    """A process of ours."""

    def log(self) -> str:
        """All it has said."""

    def has_ended(self) -> bool:
        """Whether it is no more."""

    def stop(self) -> int:
        """SIGTERM; its exit code."""

    def kill(self) -> int:
        """kill -9."""


class Process:
    """A child in a program of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), **(environment or {})},
            )
        self._log = log

    def log(self) -> str:
        """All that was said, by earlier processes of the same log too."""
        return self._log.read_text("utf-8", "replace")

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def wait(self, timeout_s: float = _END_S) -> int:
        """Its exit code, once it has ended by itself."""
        return self._popen.wait(timeout_s)

    def stop(self) -> int:
        self._popen.send_signal(signal.SIGTERM)
        try:
            return self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self._popen.kill()
        return self._popen.wait()


class Forge:
    """Starts real brokers, each a fork of one program (powercut.forge); a context manager."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "powercut.forge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def __enter__(self) -> "Forge":
        return self

    def __exit__(self, *_: object) -> None:
        self._program.communicate(timeout=_END_S)  # the end of its input ends it

    def start(self, arguments: Sequence[str], log: Path) -> "Forged":
        """`koubou-broker` with these arguments."""
        log.touch()
        return Forged(self, self.ask("start", str(log), *arguments), log)

    def ask(self, *words: str) -> int:
        """One order, one number."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write("\t".join(words) + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


class Forged:
    """A broker of a forge."""

    def __init__(self, forge: Forge, pid: int, log: Path) -> None:
        self._forge = forge
        self._pid = pid
        self._log = log
        self._code: int | None = None

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def has_ended(self) -> bool:
        if self._code is None:
            code = self._forge.ask("ended", str(self._pid))
            self._code = None if code == RUNS else code
        return self._code is not None

    def stop(self) -> int:
        if not self.has_ended():
            os.kill(self._pid, signal.SIGTERM)
        try:
            eventually(self.has_ended, _END_S, "the broker ends")
        except AssertionError:
            return self.kill()
        assert self._code is not None
        return self._code

    def kill(self) -> int:
        if not self.has_ended():
            os.kill(self._pid, signal.SIGKILL)
        eventually(self.has_ended, _END_S, "the broker is gone")
        assert self._code is not None
        return self._code


RUNS = 1_000  # what the forge says of a child that has not ended: no exit code


def broker_arguments(home: Path, config: Path, address: str = "tcp://127.0.0.1:0") -> list[str]:
    """What `koubou-broker` is called with."""
    return ["run", "--home", str(home), "--config", str(config), "--bind", address]


def await_broker(broker: Child) -> None:
    """Wait until it listens; AssertionError with its log when it does not, and then it is gone."""
    try:
        eventually(lambda: _LISTENS in broker.log() or broker.has_ended(), START_S, "the broker listens")
        assert not broker.has_ended(), f"the broker ended at its start:\n{broker.log()}"
    except AssertionError:
        broker.kill()
        raise


def clean_environment() -> dict[str, str]:
    """Ours, without what would steer a program of Koubou or the shim."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KOUBOU_", "POWERCUT_"))}
    path = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
