"""The broker as a process of its own, to be stopped, frozen and killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from koubou_common.home import Home
from koubou_common.keys import KeyPair, read_key_pair, read_public
from support.broker_play import Peer
from support.waiting import eventually

DISK = "disk: {reserve_bytes: 1048576, min_free_bytes: 0}\n"  # a nearly full machine runs the tests too
START_S = 30.0  # a busy machine imports slowly


class BrokerProcess:
    """`koubou-broker run` on a free port; `start` again after an end."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.context.destroy(linger=0)

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.home.create()
        settings = self.home.config_file("broker")
        if not settings.exists():
            settings.write_text(DISK)
        address = self.home.state / "broker.address"
        address.unlink(missing_ok=True)
        self.process = self.spawn("run", "--bind", "tcp://127.0.0.1:0")
        eventually(lambda: address.exists() or self.process_ended(), START_S, "the broker listens")
        assert address.exists(), self.finish()

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Another command of the broker on the same home."""
        command = [sys.executable, "-W", "error", "-m", "koubou_broker", *arguments, "--home", str(self.home.root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Another command of the broker, to its end: exit code, stdout, stderr."""
        process = self.spawn(*arguments)
        out, err = process.communicate(timeout=START_S)
        return process.returncode, out, err

    def process_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.kill()
            self.finish()

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, stdout, stderr."""
        assert self.process
        out, err = self.process.communicate(timeout=START_S)
        code, self.process = self.process.returncode, None
        return code, out, err

    def peer(self, pair: KeyPair | None = None) -> Peer:
        """A connection with a key, the operator's by default."""
        pair = pair or read_key_pair(self.home.key_file("operator"))
        address = (self.home.state / "broker.address").read_text("ascii").strip()
        return Peer(self.context, address, read_public(self.home.keys / "broker.pub"), pair)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
