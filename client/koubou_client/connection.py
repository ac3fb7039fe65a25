"""One connection to the broker, kept by a thread: requests are repeated until answered, across restarts."""

import contextlib
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import zmq

from koubou_client.pending import Answered, Failed, Marks, Pending, Waits, Watched, settle
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
_BLIP_S = 2.5  # who is told to come again so soon comes again, whatever its patience
_JITTER = 0.25  # of the wait on top of it: a hundred clients refused at once do not come back at once
_OUTSTANDING = 256  # requests sent and not answered: more wait here, before the broker has to put them off
_RESEND_S = 15.0  # an unanswered request is repeated: its answer may have been lost
_HELLO_RESEND_S = 2.0  # a hello is small, and nothing else is heard before its answer
_IDLE_S = 0.5  # the thread looks at its timers at least this often

_HOPELESS = frozenset({Diagnosis.KEY_NOT_ENROLLED, Diagnosis.WRONG_BROKER_KEY})


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
        self._is_over = False
        self._pending: dict[str, Pending] = {}
        self._watches: dict[str, Watched] = {}
        self._offer = Offer()
        self._fetches = Fetches()
        self._welcome: ClientWelcome | None = None
        self._ready = False
        self._hello_at_s: float | None = None  # None: no hello is due
        self._session = 0
        self._epoch = 0
        self._out_since_s = time.monotonic()
        self._was_connected = False
        self._welcomed: Future[ClientWelcome] = Future()
        self._thread = threading.Thread(target=self._run, name="koubou-client", daemon=True)
        self._thread.start()

    def welcome(self) -> ClientWelcome:
        """Who the broker says we are, once connected; KoubouError with the diagnosis if that cannot be."""
        return self._welcome or self._welcomed.result()

    @property
    def session(self) -> int:
        """How many times the broker has welcomed us: it forgets a session's half-sent submission."""
        return self._session

    def begin(
        self,
        message: Any,
        on_answer: Answered,
        bodies: dict[bytes, bytes] | None = None,
        *,
        session: int | None = None,
        patience_s: float = 0.0,
        on_wait: Waits | None = None,
    ) -> None:
        """Send a request; `on_answer` gets its reply or a KoubouError.

        `bodies` (by sha256) are what the message names but does not carry: the broker pulls them. A request of one
        `session` is not repeated in the next: it fails with hello_required. One that is refused with a time to come
        again is sent again then, never earlier, for as long as `patience_s` allows; `on_wait` hears of it.
        """
        pending = Pending(message, on_answer, bodies or {}, session, patience_s, on_wait)
        if not self._do(lambda: self._begin(pending)):
            on_answer(_closed())

    def call(
        self,
        message: Any,
        reply: type[Reply],
        bodies: dict[bytes, bytes] | None = None,
        timeout_s: float | None = None,
        *,
        session: int | None = None,
        patience_s: float = 0.0,
        on_wait: Waits | None = None,
    ) -> Reply:
        """Send a request and wait for its reply of the given type; raises the KoubouError it was answered with."""
        future: Future[Reply] = Future()
        self.begin(message, settle(future), bodies, session=session, patience_s=patience_s, on_wait=on_wait)
        answer = future.result(timeout_s)
        if not isinstance(answer, reply):
            raise KoubouError(Code.INTERNAL, f"the broker answered with {type(answer).__name__}")
        return answer

    def fetch(self, body: Body) -> "Future[bytes]":
        """The bytes of a body that a reply named."""
        future: Future[bytes] = Future()
        if not self._do(lambda: self._fetches.want(body, settle(future))):
            future.set_exception(_closed())
        return future

    def watch(
        self,
        task_ids: Sequence[int],
        on_marks: Marks,
        on_error: Failed = lambda _: None,
        *,
        batch_id: int = 0,
    ) -> None:
        """Tell `on_marks` the states now and at every change, again after each reconnection, until it returns True.

        `on_error` hears why no more will be told: refused, or the broker is away for too long.
        """
        watched = Watched(Watch(new_request_id(), tuple(task_ids), batch_id), on_marks, on_error)
        if not self._do(lambda: self._watches.update({watched.message.request_id: watched})):
            on_error(_closed())

    def close(self) -> None:
        """End the connection; what is unanswered fails."""
        if self._thread.is_alive():
            self._closing = True
            with self._wake_lock:
                if not self._is_over:
                    self._wake()
            self._thread.join()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, command: Callable[[], None]) -> bool:
        """Have the thread do it; False when the thread is over."""
        # The wake-up socket is shared between callers, which ZeroMQ allows only one at a time.
        with self._wake_lock:
            if self._is_over:
                return False
            self._commands.put(command)
            self._wake()
            return True

    def _wake(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # full: it is awake
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
                self._say_hello()
                if self._ready:
                    self._flush()
        finally:
            with self._wake_lock:
                self._is_over = True  # from here on callers answer themselves
            self._take_commands()
            self._fail_all(_closed())
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
                self._ready, self._hello_at_s = False, 0.0
            case Disconnected():
                self._ready, self._hello_at_s = False, None
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
                self._on_welcome(message)
            case Error(code=Code.HELLO_REQUIRED):
                if self._ready:  # several requests may be answered so: one hello is enough
                    self._ready, self._hello_at_s = False, 0.0
            case Error(code=Code.BUSY, request_id="") if self._welcome is not None and message.retry_after_s > 0:
                # To our hello, after we had been welcomed before: what we wait for goes on.
                self._ready, self._hello_at_s = False, time.monotonic() + message.retry_after_s
            case Error(request_id=""):
                self._fail_all(KoubouError(message.code, message.message, message.hint))
            case Error():
                self._on_error(message)
            case Watching():
                if watched := self._watches.get(message.request_id):
                    watched.answered = True
                    self._tell(watched, message.tasks, message.missing)
            case TaskChanged():
                if watched := self._watches.get(message.request_id):
                    self._tell(watched, (message.task,), ())
            case BlobGet():
                self._say(self._offer.answer(message))
            case BlobChunk() | BlobMissing():
                self._fetches.received(message)
            case _:
                self._settle(getattr(message, "request_id", ""), message)

    def _on_welcome(self, welcome: ClientWelcome) -> None:
        self._ready, self._was_connected, self._hello_at_s = True, True, None
        self._session += 1
        self._welcome = welcome
        if not self._welcomed.done():
            self._welcomed.set_result(welcome)
        for pending in list(self._pending.values()):
            pending.sent_at_s = None
            if pending.session not in (None, self._session):
                self._settle(pending.message.request_id, _session_is_over())
        for watched in self._watches.values():
            watched.answered, watched.sent_at_s = False, None
        self._fetches.forget_asked()

    def _on_error(self, error: Error) -> None:
        asked = self._pending.get(error.request_id) or self._watches.get(error.request_id)
        if asked is not None and error.retry_after_s > 0 and self._comes_again(asked, error):
            return
        hint = error.hint
        if error.retry_after_s > 0:
            hint = f"{hint} (try again in {error.retry_after_s:.0f} s)".strip()
        told = KoubouError(error.code, error.message, hint, error.retry_after_s)
        if watched := self._watches.pop(error.request_id, None):
            watched.on_error(told)
        self._settle(error.request_id, told)

    def _comes_again(self, asked: Pending | Watched, error: Error) -> bool:
        """Send it again when the broker said; False if that is not worth waiting for."""
        now = time.monotonic()
        wait_s = error.retry_after_s * (1.0 + _JITTER * random.random())  # noqa: S311 - no secret
        if isinstance(asked, Watched):
            if error.code is not Code.BUSY:
                return False
        else:
            if error.code not in (Code.BUSY, Code.STORE_FULL):
                return False
            if asked.refused_at_s is None:
                asked.refused_at_s = now
            is_blip = error.retry_after_s <= _BLIP_S
            patience_s = max(asked.patience_s, self._outage_timeout_s) if is_blip else asked.patience_s
            if now - asked.refused_at_s + wait_s > patience_s:
                return False
            if asked.on_wait is not None and not is_blip:
                asked.on_wait(KoubouError(error.code, error.message, error.hint, error.retry_after_s), wait_s)
        asked.not_before_s = now + wait_s
        asked.sent_at_s = None
        return True

    def _begin(self, pending: Pending) -> None:
        if pending.session not in (None, self._session):
            pending.on_answer(_session_is_over())
            return
        self._offer.add(pending.bodies)
        self._pending[pending.message.request_id] = pending

    def _tell(self, watched: Watched, marks: Sequence[TaskMark], missing: Sequence[int]) -> None:
        if watched.on_marks(marks, missing):
            self._watches.pop(watched.message.request_id, None)

    def _settle(self, request_id: str, answer: object) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._offer.drop(pending.bodies)
            pending.on_answer(answer)

    def _flush(self) -> None:
        now = time.monotonic()
        unanswered = [watched for watched in self._watches.values() if not watched.answered]
        requests: list[Pending | Watched] = [*self._pending.values(), *unanswered]
        outstanding = sum(asked.sent_at_s is not None for asked in requests)
        for asked in requests:
            is_new = asked.sent_at_s is None
            due = is_new or (asked.sent_at_s is not None and now - asked.sent_at_s > _RESEND_S)
            if not due or now < asked.not_before_s or (is_new and outstanding >= _OUTSTANDING):
                continue
            if self._say(asked.message):
                asked.sent_at_s = now
                outstanding += is_new
        for ask in self._fetches.asks():
            self._say(ask)

    def _say_hello(self) -> None:
        now = time.monotonic()
        if self._hello_at_s is not None and now >= self._hello_at_s:
            self._say(ClientHello(PROTO_MIN, PROTO_MAX, self._software))
            self._hello_at_s = now + _HELLO_RESEND_S

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
        while self._watches:
            _, watched = self._watches.popitem()
            watched.on_error(error)
        self._fetches.fail(error)


def _closed() -> KoubouError:
    return KoubouError(Code.BROKER_UNREACHABLE, "the connection was closed")


def _session_is_over() -> KoubouError:
    return KoubouError(Code.HELLO_REQUIRED, "the session has ended", "begin again")


def new_request_id() -> str:
    """An id that no other request of anybody has."""
    return f"{os.getpid():x}-{secrets.token_hex(12)}"
