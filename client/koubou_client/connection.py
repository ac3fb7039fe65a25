"""One connection to the broker, kept by a thread: requests are repeated until answered, across restarts."""

import contextlib
import dataclasses
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import zmq

from koubou_client.transfer import Fetches, Offer
from koubou_common import codec
from koubou_common.errors import Code, KoubouError
from koubou_common.keys import KeyPair
from koubou_common.link import Connected, Diagnosis, Disconnected, Link, Received
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    BlobChunk,
    BlobGet,
    BlobMissing,
    ClientHello,
    ClientWelcome,
    Error,
    Message,
    TaskChanged,
    Watch,
    Watching,
)
from koubou_common.messages.values import Body, TaskMark

Reply = TypeVar("Reply")

CONNECT_TIMEOUT_S = 5.0  # to reach the broker for the first time; people wait for the answer
OUTAGE_TIMEOUT_S = 60.0  # without it later: a restart takes seconds, an upgrade less than this
_RESEND_S = 15.0  # an unanswered request is repeated: its answer may have been lost
_IDLE_S = 0.5  # the thread looks at its timers at least this often

_HOPELESS = frozenset({Diagnosis.KEY_NOT_ENROLLED, Diagnosis.WRONG_BROKER_KEY})
Answered = Callable[[Any], None]  # gets the reply, or a KoubouError
Marks = Callable[[Sequence[TaskMark], Sequence[int]], None]  # tasks as they are, ids that are not there


@dataclasses.dataclass(slots=True)
class _Pending:
    """A request without an answer."""

    message: Any
    on_answer: Answered
    bodies: dict[bytes, bytes]
    not_before_s: float = 0.0
    sent_at_s: float | None = None


class Connection:
    """Thread-safe; callbacks run on its own thread and must not block."""

    def __init__(
        self,
        addresses: Sequence[str],
        broker_key: str,
        pair: KeyPair,
        *,
        software: str,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        outage_timeout_s: float = OUTAGE_TIMEOUT_S,
    ) -> None:
        self._context = zmq.Context()
        self._link = Link(addresses, broker_key, pair, context=self._context)
        self._software = software
        self._connect_timeout_s = connect_timeout_s
        self._outage_timeout_s = outage_timeout_s
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        name = f"inproc://wake-{secrets.token_hex(8)}"
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind(name)
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect(name)
        self._wake_lock = threading.Lock()
        self._closing = False
        self._pending: dict[str, _Pending] = {}
        self._watches: dict[str, tuple[Watch, Marks]] = {}
        self._offer = Offer()
        self._fetches = Fetches()
        self._welcome: ClientWelcome | None = None
        self._ready = False
        self._epoch = 0
        self._out_since_s = time.monotonic()
        self._was_connected = False
        self._welcomed: Future[ClientWelcome] = Future()
        self._thread = threading.Thread(target=self._run, name="koubou-client", daemon=True)
        self._thread.start()

    def welcome(self) -> ClientWelcome:
        """Who the broker says we are, once connected; KoubouError with the diagnosis if that cannot be."""
        return self._welcomed.result()

    def begin(self, message: Any, on_answer: Answered, bodies: dict[bytes, bytes] | None = None) -> None:
        """Send a request; `on_answer` gets its reply or a KoubouError.

        `bodies` (by sha256) are what the message names but does not carry: the broker pulls them.
        """
        self._do(lambda: self._begin(message, on_answer, bodies or {}))

    def call(
        self,
        message: Any,
        reply: type[Reply],
        bodies: dict[bytes, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """Send a request and wait for its reply of the given type; raises the KoubouError it was answered with."""
        future: Future[Reply] = Future()
        self.begin(message, settle(future), bodies)
        answer = future.result(timeout_s)
        if not isinstance(answer, reply):
            raise KoubouError(Code.INTERNAL, f"the broker answered with {type(answer).__name__}")
        return answer

    def fetch(self, body: Body) -> "Future[bytes]":
        """The bytes of a body that a reply named."""
        future: Future[bytes] = Future()
        self._do(lambda: self._fetches.want(body, settle(future)))
        return future

    def watch(self, task_ids: Sequence[int], on_marks: Marks, *, batch_id: int = 0) -> Callable[[], None]:
        """Tell `on_marks` the states now and at every change, again after each reconnection; returns a stopper."""
        request_id = new_request_id()
        message = Watch(request_id, tuple(task_ids), batch_id)
        self._do(lambda: self._begin_watch(message, on_marks))
        return lambda: self._do(lambda: self._end_watch(request_id))

    def close(self) -> None:
        """End the connection; what is unanswered fails."""
        if self._thread.is_alive():
            self._closing = True
            self._wake()
            self._thread.join()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, command: Callable[[], None]) -> None:
        if self._closing:
            raise KoubouError(Code.BROKER_UNREACHABLE, "the connection is closed")
        self._commands.put(command)
        self._wake()

    def _wake(self) -> None:
        # The socket is shared between callers, which ZeroMQ allows only one at a time.
        with self._wake_lock, contextlib.suppress(zmq.ZMQError):
            self._wake_out.send(b"", zmq.NOBLOCK)

    # All below runs on the connection's own thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._poll()
                self._take_commands()
                for event in self._link.pump(time.monotonic()):
                    self._on_event(event)
                self._check_outage()
                if self._ready:
                    self._flush()
        finally:
            self._fail_all(KoubouError(Code.BROKER_UNREACHABLE, "the connection was closed"))
            self._link.close()
            self._wake_in.close(0)
            self._wake_out.close(0)
            self._context.term()

    def _poll(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_in, zmq.POLLIN)
        for socket in self._link.sockets():
            poller.register(socket, zmq.POLLIN)
        now = time.monotonic()
        wait_s = _IDLE_S
        if (deadline := self._link.next_deadline) is not None:
            wait_s = min(wait_s, max(0.0, deadline - now))
        poller.poll(int(wait_s * 1000) + 1)
        with contextlib.suppress(zmq.Again):
            while True:
                self._wake_in.recv(zmq.NOBLOCK)

    def _take_commands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _on_event(self, event: Connected | Disconnected | Received) -> None:
        match event:
            case Connected():
                self._ready = False
                self._say(ClientHello(PROTO_MIN, PROTO_MAX, self._software))
            case Disconnected():
                self._ready = False
                if self._was_connected:
                    self._was_connected = False
                    self._out_since_s = time.monotonic()
            case Received(data):
                try:
                    envelope = codec.decode(data)
                except codec.DecodeError:
                    return  # a newer broker's message that we do not know: the request is repeated or times out
                if envelope.epoch >= self._epoch:
                    self._epoch = envelope.epoch
                    self._on_message(envelope.message)

    def _on_message(self, message: Message) -> None:
        match message:
            case ClientWelcome():
                self._ready, self._was_connected = True, True
                self._welcome = message
                if not self._welcomed.done():
                    self._welcomed.set_result(message)
                for pending in self._pending.values():
                    pending.sent_at_s = None
                self._fetches.forget_asked()
                for watch, _ in self._watches.values():
                    self._say(watch)
            case Error(code=Code.HELLO_REQUIRED):
                self._ready = False
                self._say(ClientHello(PROTO_MIN, PROTO_MAX, self._software))
            case Error(request_id=""):
                self._fail_all(KoubouError(message.code, message.message, message.hint))
            case Error():
                self._on_error(message)
            case Watching():
                if held := self._watches.get(message.request_id):
                    held[1](message.tasks, message.missing)
            case TaskChanged():
                if held := self._watches.get(message.request_id):
                    held[1]((message.task,), ())
            case BlobGet():
                self._say(self._offer.answer(message))
            case BlobChunk() | BlobMissing():
                self._fetches.received(message)
            case _:
                self._settle(getattr(message, "request_id", ""), message)

    def _on_error(self, error: Error) -> None:
        pending = self._pending.get(error.request_id)
        if pending is not None and error.retry_after_s > 0 and error.code is Code.BUSY:
            pending.not_before_s = time.monotonic() + error.retry_after_s
            pending.sent_at_s = None
            return
        hint = error.hint
        if error.retry_after_s > 0:
            hint = f"{hint} (try again in {error.retry_after_s:.0f} s)".strip()
        self._settle(error.request_id, KoubouError(error.code, error.message, hint))

    def _begin(self, message: Any, on_answer: Answered, bodies: dict[bytes, bytes]) -> None:
        self._offer.add(bodies)
        self._pending[message.request_id] = _Pending(message, on_answer, bodies)

    def _begin_watch(self, message: Watch, on_marks: Marks) -> None:
        self._watches[message.request_id] = (message, on_marks)
        if self._ready:
            self._say(message)

    def _end_watch(self, request_id: str) -> None:
        self._watches.pop(request_id, None)

    def _settle(self, request_id: str, answer: object) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._offer.drop(pending.bodies)
            pending.on_answer(answer)

    def _flush(self) -> None:
        now = time.monotonic()
        for pending in list(self._pending.values()):
            due = pending.sent_at_s is None or now - pending.sent_at_s > _RESEND_S
            if due and now >= pending.not_before_s and self._say(pending.message):
                pending.sent_at_s = now
        for ask in self._fetches.asks():
            self._say(ask)

    def _say(self, message: Message) -> bool:
        return self._link.send(codec.encode(message))

    def _check_outage(self) -> None:
        if self._was_connected:
            return
        out_s = time.monotonic() - self._out_since_s
        first_time = self._welcome is None
        limit_s = self._connect_timeout_s if first_time else self._outage_timeout_s
        # A hopeless diagnosis is final for a newcomer; later it may be a broker that is just being replaced.
        hopeless = first_time and self._link.diagnosis in _HOPELESS
        if hopeless or out_s > limit_s:
            self._fail_all(self._link.explain())

    def _fail_all(self, error: KoubouError) -> None:
        if not self._welcomed.done():
            self._welcomed.set_exception(error)
        for request_id in list(self._pending):
            self._settle(request_id, error)
        self._fetches.fail(error)


def settle(future: "Future[Any]") -> Answered:
    """A callback that settles `future` with a reply, or with the error."""

    def answered(answer: Any) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return answered


def new_request_id() -> str:
    """An id that no other request of anybody has."""
    return f"{os.getpid():x}-{secrets.token_hex(12)}"
