"""One attempt to reach one broker address: its socket, and what the socket's monitor says became of it."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import zmq
from zmq.utils.monitor import parse_monitor_message

from koubou_common.addresses import check_connect
from koubou_common.keys import KeyPair
from koubou_common.messages.limits import HWM_MESSAGES, MESSAGE_BYTES

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

# What MAXMSGSIZE must admit: CURVE puts 33 bytes around every message ("\x07MESSAGE", nonce, tag, flags).
FRAME_BYTES = MESSAGE_BYTES + 33
# ZMTP heartbeats find dead TCP connections only (libzmq's own thread answers them, also for a hung program).
HEARTBEAT_IVL_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 15_000  # three unanswered ones
HEARTBEAT_TTL_MS = 20_000  # what we ask of the other side: a little more than our own limit

_GRACE_S = 0.5  # libzmq reports its own timeouts first; ours are for what it does not report (a slow resolver)
_GREETING_S = 1.0  # a broker's I/O thread answers a greeting in a millisecond
# We reconnect ourselves, by a new socket: a refused one swallows sends for ever, and libzmq's pauses never grow.
# Not by -1 ("never"): with that it does not report a name that cannot be resolved.
_RECONNECT_IVL_MS = 3_600_000
_ZAP_REFUSED = 400
# Signature and version, no more: a server says its mechanism then, and would hang up on one it does not like.
_GREETING_BEGIN = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x01"
_MECHANISM = slice(12, 32)  # in a greeting, after signature and version
_monitor_numbers = itertools.count(1)  # names of inproc endpoints: never used twice, unlike file descriptors


class Diagnosis(StrEnum):
    """How a link stands, or what became of its last attempt. A report, never a reason to delete anything:
    whoever answers at an address can fake each of these but `connected`."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    NOTHING_LISTENS = "nothing_listens"
    WRONG_BROKER_KEY = "wrong_broker_key"
    KEY_NOT_ENROLLED = "key_not_enrolled"
    NOT_A_BROKER = "not_a_broker"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an attempt ended, for programs and for people."""

    diagnosis: Diagnosis
    text: str


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step to a session may take, in seconds."""

    connect_s: float = 5.0
    handshake_s: float = 5.0


class Attempt:
    """A DEALER socket from connect to its end; a new attempt is a new socket.

    `is_known` says that a broker with our key answered at this address before: silence then means "stopped".
    """

    def __init__(
        self,
        context: Context,
        address: str,
        server_public: str,
        pair: KeyPair,
        *,
        now_s: float,
        timeouts: Timeouts,
        is_known: bool,
    ) -> None:
        self.is_open = False
        self.verdict: Verdict | None = None
        self._context = context
        self._address = address
        self._timeouts = timeouts
        self._is_known = is_known
        self._is_resolved = False
        self._greeting: _Greeting | None = None
        self._deadline_s = now_s + timeouts.connect_s + _GRACE_S
        self._socket = context.socket(zmq.DEALER)
        self._monitor = context.socket(zmq.PAIR)
        try:
            self._connect(server_public, pair)
        except BaseException:
            self.close()
            raise

    @property
    def sockets(self) -> list[Socket]:
        """What to poll for reading."""
        if self._greeting:
            return self._greeting.sockets
        return [self._monitor, self._socket] if self.is_open else [self._monitor]

    @property
    def deadline_s(self) -> float | None:
        """When `step` must be called although nothing arrived."""
        return None if self.is_open else self._deadline_s

    def step(self, now_s: float) -> None:
        """Take in what happened; `is_open` and `verdict` tell the result."""
        if self._greeting:
            self._finish_greeting(self._greeting, now_s)
            return
        for event, value in _events(self._monitor):
            self._observe(event, value, now_s)
            if self.verdict or self._greeting:
                return
        if not self.is_open and now_s >= self._deadline_s:
            self.verdict = self._silence()

    def receive(self) -> bytes | None:
        """The next message, None if there is none; more than one frame ends the session."""
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        if len(frames) != 1:
            self.verdict = Verdict(
                Diagnosis.NOT_A_BROKER, f"what answers at {self._address} does not speak Koubou's protocol"
            )
            return None
        return frames[0]

    def send(self, data: bytes) -> bool:
        """Whether libzmq took the message: it has room for HWM_MESSAGES, and none without a session."""
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Give everything back; what libzmq has not yet sent gets `linger_s` in the background."""
        if self._greeting:
            self._greeting.close()
            self._greeting = None
        _stop_monitor(self._socket, self._monitor)
        self._socket.close(round(linger_s * 1_000))

    def _connect(self, server_public: str, pair: KeyPair) -> None:
        socket = self._socket
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = HWM_MESSAGES
        socket.maxmsgsize = FRAME_BYTES
        # Without it, a send with no broker is "accepted" and lost. The price: what has arrived unread when the
        # connection ends may be lost, too. Who waits for an answer asks again anyway.
        socket.immediate = 1
        socket.ipv6 = _is_ipv6(self._address)
        socket.reconnect_ivl = _RECONNECT_IVL_MS
        socket.connect_timeout = round(self._timeouts.connect_s * 1_000)
        socket.handshake_ivl = round(self._timeouts.handshake_s * 1_000)
        socket.heartbeat_ivl = HEARTBEAT_IVL_MS
        socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
        socket.heartbeat_ttl = HEARTBEAT_TTL_MS
        socket.tcp_keepalive = 1
        socket.curve_serverkey = server_public.encode("ascii")
        socket.curve_publickey = pair.public.encode("ascii")
        socket.curve_secretkey = pair.secret.encode("ascii")
        # Must come before connect because on a loopback all is over before the next line runs.
        _start_monitor(socket, self._monitor)
        socket.connect(self._address)

    def _observe(self, event: int, value: int, now_s: float) -> None:
        match event:
            case zmq.EVENT_CONNECT_DELAYED:
                self._is_resolved = True
            case zmq.EVENT_CONNECT_RETRIED if not self._is_resolved:
                self.verdict = self._silence()
            case zmq.EVENT_CONNECTED:
                self._deadline_s = now_s + self._timeouts.handshake_s + _GRACE_S
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.is_open = True
            case zmq.EVENT_CLOSED:
                self.verdict = self._nothing_listens()
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.verdict = self._refused(value)
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
                self.verdict = self._wrong_key()
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self.verdict = self._not_encrypted()
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if value == zmq.EAGAIN:
                self.verdict = self._silence()
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                # A broker hangs up on who takes it for another, but so does a dead forwarded port: ask.
                self._greeting = _Greeting(self._context, self._address)
                self._deadline_s = now_s + _GREETING_S
            case zmq.EVENT_DISCONNECTED:
                self.verdict = self._hung_up()
            case _:
                pass  # MONITOR_STOPPED, and what a newer libzmq may add

    def _finish_greeting(self, greeting: "_Greeting", now_s: float) -> None:
        greeting.step()
        if not greeting.is_over and now_s < self._deadline_s:
            return
        if greeting.mechanism == b"CURVE":  # only a wrong key makes a CURVE server hang up on our handshake
            self.verdict = self._wrong_key()
        elif greeting.mechanism:
            self.verdict = self._not_encrypted()
        elif greeting.is_connected:
            self.verdict = self._not_a_broker("accepts connections, then hangs up")
        else:
            self.verdict = self._nothing_listens()

    def _nothing_listens(self) -> Verdict:
        return Verdict(Diagnosis.NOTHING_LISTENS, f"nothing listens at {self._address}")

    def _wrong_key(self) -> Verdict:
        return Verdict(
            Diagnosis.WRONG_BROKER_KEY, f"what answers at {self._address} is not the broker whose key we have"
        )

    def _refused(self, status: int) -> Verdict:
        if status == _ZAP_REFUSED:
            return Verdict(Diagnosis.KEY_NOT_ENROLLED, f"the broker at {self._address} does not know our key")
        return Verdict(Diagnosis.LOST, f"the broker at {self._address} cannot check keys now ({status})")

    def _not_a_broker(self, what: str) -> Verdict:
        return Verdict(Diagnosis.NOT_A_BROKER, f"what answers at {self._address} {what}")

    def _not_encrypted(self) -> Verdict:
        return self._not_a_broker("speaks ZeroMQ, but not with Koubou's encryption")

    def _silence(self) -> Verdict:
        if not self._is_resolved:
            return Verdict(Diagnosis.NOTHING_LISTENS, f"the name in {self._address} leads nowhere")
        if self._is_known:
            return Verdict(Diagnosis.LOST, f"the broker at {self._address} accepts connections but does not answer")
        return self._not_a_broker("accepts connections but says nothing")

    def _hung_up(self) -> Verdict:
        if self.is_open:
            return Verdict(Diagnosis.LOST, f"the connection to the broker at {self._address} was lost")
        return self._not_a_broker("does not speak ZeroMQ")


class _Greeting:
    """Asks an address, in the clear, which security its ZMTP greeting offers."""

    def __init__(self, context: Context, address: str) -> None:
        self.is_connected = False
        self.is_over = False
        self._heard = b""
        self._socket = context.socket(zmq.STREAM)
        self._monitor = context.socket(zmq.PAIR)
        self._socket.linger = 0
        self._socket.ipv6 = _is_ipv6(address)
        self._socket.reconnect_ivl = _RECONNECT_IVL_MS
        _start_monitor(self._socket, self._monitor)
        self._socket.connect(address)

    @property
    def sockets(self) -> list[Socket]:
        """What to poll for reading."""
        return [self._monitor, self._socket]

    @property
    def mechanism(self) -> bytes:
        """The security that a ZeroMQ server offers, b"" if none answered."""
        if len(self._heard) < _MECHANISM.stop or self._heard[0] != 0xFF or self._heard[9] != 0x7F:
            return b""
        return self._heard[_MECHANISM].rstrip(b"\x00")

    def step(self) -> None:
        """Read what has arrived."""
        has_ended = False
        for event, _ in _events(self._monitor):
            if event == zmq.EVENT_CONNECTED:
                self.is_connected = True
            elif event in (zmq.EVENT_CLOSED, zmq.EVENT_DISCONNECTED):
                has_ended = True
        self._converse()  # before the end is believed: the answer may have come first
        self.is_over = has_ended or len(self._heard) >= _MECHANISM.stop

    def close(self) -> None:
        """Give everything back."""
        _stop_monitor(self._socket, self._monitor)
        self._socket.close(0)

    def _converse(self) -> None:
        while len(self._heard) < _MECHANISM.stop:
            try:
                peer, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard += data
            if not data:  # the connection's begin, or its end: then sending fails
                with suppress(zmq.ZMQError):
                    self._socket.send_multipart([peer, _GREETING_BEGIN], zmq.NOBLOCK)


def _start_monitor(socket: Socket, monitor: Socket) -> None:
    endpoint = f"inproc://koubou-link-monitor-{next(_monitor_numbers)}"
    socket.monitor(endpoint, zmq.EVENT_ALL)
    monitor.linger = 0
    monitor.connect(endpoint)


def _stop_monitor(socket: Socket, monitor: Socket) -> None:
    with suppress(zmq.ZMQError):  # not started yet, or the context is already being terminated
        socket.disable_monitor()
    monitor.close(0)


def _events(monitor: Socket) -> Iterator[tuple[int, int]]:
    while True:
        try:
            frames = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        message = parse_monitor_message(frames)
        yield message["event"], message["value"]


def _is_ipv6(address: str) -> bool:
    """With the option set, names resolve to IPv6 first, where a broker bound to IPv4 does not listen."""
    return ":" in check_connect(address).host
