"""Who may connect: the allow-list behind every handshake, and a ROUTER that cannot be reached around it."""

import ctypes
import functools
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from koubou_common import addresses
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.keys import KeyPair, fingerprint, is_key, new_key_pair
from koubou_common.link import Diagnosis, Link
from koubou_common.link_monitor import (
    FRAME_BYTES,
    HEARTBEAT_IVL_MS,
    HEARTBEAT_TIMEOUT_MS,
    HEARTBEAT_TTL_MS,
    Context,
    Socket,
)
from koubou_common.messages.limits import HWM_MESSAGES
from koubou_common.messages.values import Role

LIBZMQ_OLDEST = (4, 3, 5)  # the first release after the remote holes of 2019 and 2020 that we tested
ZAP_DOMAIN = b"koubou"
USER_PREFIX = "k1:"  # of the user ids that our handler gives out: what follows is a public key, z85

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by the ZAP specification (ZeroMQ RFC 27)
_ZAP_VERSION = b"1.0"
_KEY_BYTES = 32
_HANDSHAKE_IVL_MS = 5_000  # idle strangers give their file descriptor back after this
_BACKLOG = 1_024  # 500 agents that come back at once
_SELF_TEST_S = 10.0  # two handshake limits: a busy host may be slow, a guarded door answers in milliseconds
_LOG_EVERY_S = 1.0  # strangers must not fill the disk

_log = logging.getLogger("koubou_broker.access")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key on the allow-list is good for."""

    principal: str
    role: Role


class AccessControl:
    """Answers libzmq's question "may this key in?" from memory, in a thread of its own.

    Start it before the ROUTER binds. A revoked key keeps a connection that is open already, so the server
    must ask `grant_of` for every message.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._grants: dict[str, Grant] = {}  # replaced as a whole: the thread reads it without a lock
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop: Socket | None = None
        self._refusals = 0
        self._logged_s = float("-inf")

    def start(self) -> None:
        """Answer from now on; ZMQError if the context has a handler already."""
        zap = self._context.socket(zmq.ROUTER)
        wake = self._context.socket(zmq.PAIR)
        stop = self._context.socket(zmq.PAIR)
        try:
            zap.linger = wake.linger = stop.linger = 0
            zap.bind(_ZAP_ENDPOINT)
            endpoint = f"inproc://koubou-access-{id(self)}"
            wake.bind(endpoint)
            stop.connect(endpoint)
        except BaseException:
            for socket in (zap, wake, stop):
                socket.close(0)
            raise
        self._stop = stop
        self._thread = threading.Thread(target=self._run, args=(zap, wake), name="koubou-access", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop answering: from here on nobody new gets in. Harmless when not running."""
        if self._stop:
            with suppress(zmq.ZMQError):  # the thread ended already
                self._stop.send(b"", zmq.NOBLOCK)
            self._stop.close(0)
            self._stop = None
        if self._thread:
            self._thread.join()
            self._thread = None

    def is_alive(self) -> bool:
        """Whether handshakes are answered; if not, the broker must end: nobody can come back to it."""
        return self._thread is not None and self._thread.is_alive()

    def allow(self, public_key: str, principal_name: str, role: Role) -> None:
        """Let a key in, or change what it is good for."""
        if not is_key(public_key):
            raise ValueError("not a CURVE public key")
        with self._writing:
            self._grants = {**self._grants, public_key: Grant(principal_name, role)}

    def revoke(self, public_key: str) -> None:
        """Let a key in no more; unknown ones are none the worse."""
        with self._writing:
            self._grants = {key: grant for key, grant in self._grants.items() if key != public_key}

    def replace_all(self, grants: Mapping[str, Grant]) -> None:
        """Take over a whole allow-list at once, as at the start."""
        if not all(is_key(key) for key in grants):
            raise ValueError("not a CURVE public key")
        with self._writing:
            self._grants = dict(grants)

    def grant_of(self, public_key: str) -> Grant | None:
        """What a key is good for now; None: nothing, whatever connection it still has."""
        return self._grants.get(public_key)

    @property
    def refusals(self) -> int:
        """How many handshakes were refused."""
        return self._refusals

    def _run(self, zap: Socket, wake: Socket) -> None:
        poller = zmq.Poller()
        poller.register(zap, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if wake in ready:
                    return
                self._answer(zap)
        except zmq.ContextTerminated:
            return
        finally:
            zap.close(0)
            wake.close(0)

    def _answer(self, zap: Socket) -> None:
        """Answer one question; whatever is in it, this thread must live, or nobody gets in any more."""
        try:
            frames = zap.recv_multipart(zmq.NOBLOCK)
            # libzmq's own request: its return address, an empty frame, then what RFC 27 lists.
            sender, empty, version, request_id, *question = frames
            user = self._user_of(version, question)
            status, text = (b"200", b"OK") if user else (b"400", b"not enrolled")
            zap.send_multipart(
                [sender, empty, _ZAP_VERSION, request_id, status, text, user.encode("ascii"), b""],
                zmq.NOBLOCK,
            )
        except zmq.ContextTerminated:
            raise
        except Exception:
            # Unanswered, the handshake times out: also a refusal.
            _log.exception("a key could not be checked: its connection is refused")

    def _user_of(self, version: bytes, question: list[bytes]) -> str:
        """The user id of an enrolled key, "" for anybody else: another mechanism has other frames here."""
        match question:
            case [domain, address, _, b"CURVE", raw_key] if (
                version == _ZAP_VERSION and domain == ZAP_DOMAIN and len(raw_key) == _KEY_BYTES
            ):
                public_key = z85.encode(raw_key).decode("ascii")
                if public_key in self._grants:
                    return USER_PREFIX + public_key
                self._note_refusal(address, fingerprint(public_key))
            case _:
                self._note_refusal(b"", "")
        return ""

    def _note_refusal(self, address: bytes, key: str) -> None:
        self._refusals += 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "refused a connection: address=%s key=%s refusals=%d",
                address.decode("ascii", "replace") or "unknown",
                key or "none",
                self._refusals,
            )


_is_key = functools.lru_cache(maxsize=4_096)(is_key)  # asked twice a message, for the same few keys


def user_key(frame: zmq.Frame) -> str | None:
    """The public key that proved itself on the connection this frame came by; None if there is no proof.

    Read frames with `copy=False`. The routing id proves nothing: any peer may choose it.
    """
    try:
        user = frame.get("User-Id")
    except zmq.ZMQError:
        return None
    if not isinstance(user, str) or not user.startswith(USER_PREFIX):
        return None
    key = user.removeprefix(USER_PREFIX)
    return key if _is_key(key) else None


def open_router(
    context: Context,
    access: AccessControl,
    server_pair: KeyPair,
    address: str,
    *,
    allow_public: bool = False,
) -> Socket:
    """The broker's socket, bound and guarded; KoubouError if it cannot be, or would not be."""
    require_libzmq()
    check_bind(address, allow_public=allow_public)
    if not access.is_alive():
        raise RuntimeError("access control must run before the socket binds: without it libzmq asks nobody")
    seed_routing_ids()
    router = context.socket(zmq.ROUTER)
    try:
        harden(router, server_pair)
        router.ipv6 = address.startswith("tcp://[")
        router.bind(address)
    except zmq.ZMQError as error:
        router.close(0)
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"cannot listen on {address}: {error.strerror}",
            "is another broker running there? Does this host have that address?",
        ) from error
    except BaseException:
        router.close(0)
        raise
    return router


def harden(router: Socket, server_pair: KeyPair) -> None:
    """Set every option that security or steadiness rests on; must come before bind, which fixes them."""
    router.curve_server = True
    router.curve_publickey = server_pair.public.encode("ascii")
    router.curve_secretkey = server_pair.secret.encode("ascii")
    # With either of these two missing, libzmq lets in whoever knows the server's public key.
    router.zap_domain = ZAP_DOMAIN
    router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    router.router_mandatory = 1  # a message to nobody is an error to see, not one to lose
    router.router_handover = 0  # with it, any enrolled peer could take another's connection over
    router.maxmsgsize = FRAME_BYTES  # else one stranger makes us buffer gigabytes
    router.sndhwm = router.rcvhwm = HWM_MESSAGES
    router.handshake_ivl = _HANDSHAKE_IVL_MS
    router.heartbeat_ivl = HEARTBEAT_IVL_MS
    router.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
    router.heartbeat_ttl = HEARTBEAT_TTL_MS
    router.tcp_keepalive = 1
    router.backlog = _BACKLOG
    router.linger = 0  # what must arrive is asked for again


def seed_routing_ids() -> None:
    """Make the routing ids that a ROUTER gives out differ from start to start; call it before making one.

    libzmq draws them from the C library's `rand`, which it never seeds.
    """
    if os.name != "posix":  # the broker is for Linux; elsewhere each runtime library has a seed of its own
        return
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))


def require_libzmq() -> None:
    """Refuse to run on a libzmq with known holes, or without encryption."""
    version = zmq.zmq_version_info()
    if version < LIBZMQ_OLDEST:
        oldest = ".".join(map(str, LIBZMQ_OLDEST))
        raise ConfigError(
            f"the ZeroMQ library here is {zmq.zmq_version()}, the broker needs {oldest} or newer",
            "install a current pyzmq, whose wheels bring their own library",
        )
    if not zmq.has("curve"):
        raise ConfigError(
            "the ZeroMQ library here was built without encryption (CURVE)",
            "install a current pyzmq, whose wheels bring their own library",
        )


def check_bind(address: str, allow_public: bool = False) -> None:
    """ConfigError if the broker should not listen there."""
    try:
        addresses.check_bind(address, allow_public=allow_public)
    except addresses.AddressError as error:
        raise ConfigError(f"the broker's address {address!r} {error.message}", error.hint) from error


def self_test(address: str, server_public: str) -> None:
    """Try to get in as strangers do; KoubouError unless each is refused. Takes milliseconds, at the start."""
    where = _reachable(address)
    context = zmq.Context()  # of its own, as a stranger's would be
    try:
        _expect_refusal_of_unknown_key(context, where, server_public)
        _expect_refusal_without_key(context, where)
    finally:
        context.term()


def _reachable(address: str) -> str:
    """Where this host reaches what is bound to `address`: "every interface" is no place to connect to."""
    for everywhere, here in (("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")):  # noqa: S104 - replaced
        if address.startswith(f"tcp://{everywhere}:"):
            return address.replace(everywhere, here, 1)
    return address


def _expect_refusal_of_unknown_key(context: Context, address: str, server_public: str) -> None:
    link = Link([address], server_public, new_key_pair(), context=context)
    deadline_s = time.monotonic() + _SELF_TEST_S
    try:
        while link.diagnosis is Diagnosis.CONNECTING and time.monotonic() < deadline_s:
            link.pump(time.monotonic())
            if link.diagnosis is Diagnosis.CONNECTING:
                link.poll(deadline_s - time.monotonic())
        if link.diagnosis is not Diagnosis.KEY_NOT_ENROLLED:
            got = "it was let in" if link.is_connected else link.explain().message
            raise _unguarded(f"a key that nobody enrolled should be refused at {address}, but {got}")
    finally:
        link.close(0)


def _expect_refusal_without_key(context: Context, address: str) -> None:
    stranger = context.socket(zmq.DEALER)
    monitor = stranger.get_monitor_socket()
    deadline_s = time.monotonic() + _SELF_TEST_S
    try:
        stranger.linger = 0
        stranger.ipv6 = address.startswith("tcp://[")
        stranger.connect(address)
        while monitor.poll(max(0, round((deadline_s - time.monotonic()) * 1_000))):
            match recv_monitor_message(monitor)["event"]:
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    raise _unguarded(f"a connection without any key was let in at {address}")
                case zmq.EVENT_DISCONNECTED:
                    return
        raise _unguarded(f"a connection without any key was not refused at {address}")
    finally:
        stranger.disable_monitor()
        monitor.close(0)
        stranger.close(0)


def _unguarded(what: str) -> KoubouError:
    return KoubouError(
        Code.INTERNAL,
        f"the broker's own test of its door failed: {what}",
        "the broker does not run like this; if pyzmq is current, please report it",
    )
