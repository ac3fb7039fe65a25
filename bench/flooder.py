"""A client that behaves badly, as a process of its own: it says what it did when it is told to end."""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import zmq

from koubou_client.where import find_broker
from koubou_common.codec import DecodeError, decode, encode
from koubou_common.errors import Code
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    Cancel,
    ClientHello,
    ClientWelcome,
    Error,
    GetStatus,
    GetTasks,
    Message,
    Submit,
    Submitted,
    Watch,
)
from koubou_common.messages.values import Body, TaskSpec

CONNECTIONS = 4  # of the floods that use several
WATCHED = 400  # tasks that the slow reader watches, and cancels in one message

_LISTEN_MOST = 64  # answers read before the flood goes on
_PAUSE_S = 0.0005  # where no connection takes more
_GARBAGE_BYTES = (1, 40, 900, 100_000)
_SEED = 20  # of the garbage: the same in every run
_HELLO = ClientHello(PROTO_MIN, PROTO_MAX, "flooder")

Door = zmq.Socket[bytes]


class Flooder:
    """Connections with one key; counts what was sent and how the broker answered."""

    def __init__(self, home: Path) -> None:
        self._where = find_broker(os.environ, home)
        self._is_over = False
        self._number = 0
        self.said = 0
        self.heard: Counter[str] = Counter()

    def stop(self, *_: object) -> None:
        """End soon."""
        self._is_over = True

    def submits(self) -> None:
        """Small tasks, one a message, as fast as they go: accepted until a limit is reached, and refused then."""
        self._pour([self._connect()], lambda: encode(self._submission(1)))

    def batches(self) -> None:
        """Tasks by the hundred."""
        self._pour([self._connect()], lambda: encode(self._submission(100)))

    def status(self) -> None:
        """Questions over several connections."""

        def ask() -> bytes:
            request_id = self._next()
            return encode(GetStatus(request_id) if self._number % 2 else GetTasks(request_id))

        self._pour([self._connect() for _ in range(CONNECTIONS)], ask)

    def garbage(self) -> None:
        """Bytes that are no message, small and large."""
        draws = random.Random(_SEED)
        blobs = [draws.randbytes(size) for size in _GARBAGE_BYTES]
        self._pour([self._connect()], lambda: blobs[self.said % len(blobs)])

    def deaf(self) -> None:
        """Watches, changes and asks for pages over several connections, and reads nothing of what comes."""
        busy = self._connect()
        deaf = [self._connect(rcvhwm=1) for _ in range(CONNECTIONS)]
        while not self._is_over:
            batch = self._ask(busy, self._submission(WATCHED), Submitted)
            ids = tuple(one.task_id for one in batch.tasks) if isinstance(batch, Submitted) else ()
            for door in deaf:
                # Its session is gone each time that its queue was full: it comes back as if nothing had been.
                self._throw(door, encode(_HELLO))
                if ids:
                    self._throw(door, encode(Watch(self._next(), ids)))
            if ids:
                busy.send(encode(Cancel(self._next(), ids)))
            until_s = time.monotonic() + 0.2
            while time.monotonic() < until_s and not self._is_over:
                if not self._throw_all(deaf, lambda: encode(GetTasks(self._next()))):
                    time.sleep(_PAUSE_S)
            self._listen(busy)

    def _pour(self, doors: list[Door], make: Callable[[], bytes]) -> None:
        while not self._is_over:
            if not self._throw_all(doors, make):
                time.sleep(_PAUSE_S)
            for door in doors:
                self._listen(door)

    def _connect(self, *, rcvhwm: int = 1_000) -> Door:
        where = self._where
        door: Door = zmq.Context.instance().socket(zmq.DEALER)
        door.linger = 0
        door.sndhwm, door.rcvhwm = 64, rcvhwm
        door.curve_serverkey = where.broker_key.encode()
        door.curve_publickey, door.curve_secretkey = where.pair.public.encode(), where.pair.secret.encode()
        door.connect(where.addresses[0])
        self._ask(door, _HELLO, ClientWelcome)
        return door

    def _ask(self, door: Door, message: Message, kind: type[Message]) -> Message | None:
        """Say one thing and wait for its answer, dropping what comes before it."""
        door.send(encode(message))
        while not self._is_over:
            if door.poll(100) and isinstance(answer := decode(door.recv()).message, kind | Error):
                return answer
        return None

    def _throw_all(self, doors: list[Door], make: Callable[[], bytes]) -> int:
        return sum(self._throw(door, make()) for door in doors)

    def _throw(self, door: Door, data: bytes) -> bool:
        try:
            door.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.said += 1
        return True

    def _listen(self, door: Door) -> None:
        for _ in range(_LISTEN_MOST):
            try:
                message = decode(door.recv(zmq.NOBLOCK)).message
            except zmq.Again:
                return
            except DecodeError:
                continue
            self.heard[message.code.value if isinstance(message, Error) else type(message).__name__] += 1
            if isinstance(message, Error) and message.code is Code.HELLO_REQUIRED:
                self._throw(door, encode(_HELLO))
                return

    def _submission(self, tasks: int) -> Submit:
        specs = []
        for _ in range(tasks):
            prompt = f"flood {self._next()}".encode()
            specs.append(TaskSpec(Body(hashlib.sha256(prompt).digest(), len(prompt), prompt), priority=1))
        return Submit(self._next(), self._next(), tuple(specs))

    def _next(self) -> str:
        """A request id or a key that was never used before."""
        self._number += 1
        return f"{os.getpid()}-{self._number}"


def main() -> int:
    """Flood until SIGTERM; the last line of stdout is JSON: seconds, messages said, answers by kind."""
    parser = argparse.ArgumentParser(prog="python -m bench.flooder")
    parser.add_argument("kind", choices=("submits", "batches", "status", "garbage", "deaf"))
    parser.add_argument("home", type=Path)
    parser.add_argument("--processor", type=int, help="the one to run on, with what others leave of it")
    given = parser.parse_args()
    if given.processor is not None:
        os.sched_setaffinity(0, {given.processor})
        # What is measured is the broker: a quiet client on the same processor shall not wait for us to leave it.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    flooder = Flooder(given.home)
    signal.signal(signal.SIGTERM, flooder.stop)
    print("ready", flush=True)
    began_s = time.monotonic()
    getattr(flooder, given.kind)()
    took_s = time.monotonic() - began_s
    print(json.dumps({"s": round(took_s, 2), "said": flooder.said, "heard": dict(flooder.heard)}), flush=True)
    zmq.Context.instance().destroy(linger=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
