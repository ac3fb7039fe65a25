"""Inviting, joining and looking over a short-lived link; a one-time key is put on the allow-list, then exchanged."""

import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

from koubou_common.codec import DecodeError, decode, encode
from koubou_common.errors import Code, KoubouError
from koubou_common.keys import KeyPair, new_key_pair
from koubou_common.link import Connected, Diagnosis, Disconnected, Link, Received
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    AgentHello,
    ClientHello,
    ClientWelcome,
    Enrol,
    Enrolled,
    Error,
    Invite,
    Invited,
    Message,
    Removed,
    Welcome,
)
from koubou_common.messages.values import AgentHealth, AgentStatus, Role
from koubou_common.tokens import JoinToken

ENROL_TIMEOUT_S = 20.0  # a handshake, a commit, and a broker that is just being restarted
INVITE_TTL_S = 600.0  # of an invitation that is used at once

_RESEND_S = 2.0
_POLL_MOST_S = 0.5
# The link's reasons that waiting does not cure.
_HOPELESS = (Diagnosis.KEY_NOT_ENROLLED, Diagnosis.WRONG_BROKER_KEY)

Answer = TypeVar("Answer", bound=Message)


def enrol(token: JoinToken, pair: KeyPair, timeout_s: float = ENROL_TIMEOUT_S) -> Enrolled:
    """Exchange the token's one-time key for `pair`, which must be on disk already; KoubouError if refused.

    May be repeated with the same pair until that pair has connected: a lost answer strands nobody.
    """
    request = Enrol(_request_id(), pair.public)
    link = Link(token.addresses, token.server_key, token.enrol_pair)
    try:
        return _ask(link, None, request, Enrolled, timeout_s)
    except KoubouError as error:
        if error.code is Code.KEY_NOT_ENROLLED:
            raise KoubouError(
                Code.TOKEN_USED,
                f"the broker does not accept the invitation of {token.name!r} (any more): it was used, withdrawn, "
                "or has expired",
                "ask for a new one: `koubou-ctl workers invite NAME` (a box), `koubou-ctl keys invite NAME` (a person)",
            ) from error
        raise
    finally:
        link.close(0.0)


def invite(
    addresses: Sequence[str],
    server_key: str,
    operator: KeyPair,
    *,
    software: str,
    name: str,
    role: Role,
    ttl_s: float = INVITE_TTL_S,
    timeout_s: float = ENROL_TIMEOUT_S,
) -> JoinToken:
    """Have an operator's key invite `name`; the secret half of the one-time key stays in the token."""
    one_time = new_key_pair()
    request = Invite(_request_id(), name, role, one_time.public, ttl_s)
    hello = ClientHello(PROTO_MIN, PROTO_MAX, software)
    link = Link(addresses, server_key, operator)
    try:
        invited = _ask(link, hello, request, Invited, timeout_s)
    finally:
        link.close(0.0)
    return JoinToken(
        addresses=invited.addresses or tuple(addresses),
        server_key=server_key,
        enrol_secret=one_time.secret,
        role=invited.role,
        name=invited.name,
        expires_s=invited.expires_ms // 1000,
    )


def look(link: Link, *, software: str, timeout_s: float = ENROL_TIMEOUT_S) -> Welcome:
    """How the broker sees the worker whose key `link` has; its agent may be at work meanwhile."""
    nobody = AgentHello(
        PROTO_MIN,
        PROTO_MAX,
        software,
        platform="",
        boot_id=secrets.token_hex(16),
        slots_ceiling=0,
        status=AgentStatus(),
        health=AgentHealth(can_work=False),
        looks_only=True,
    )
    return _ask(link, None, nobody, Welcome, timeout_s)


def _ask(
    link: Link,
    hello: ClientHello | None,
    request: Enrol | Invite | AgentHello,
    answer: type[Answer],
    timeout_s: float,
) -> Answer:
    """Say hello where the role has one, send `request` until it is answered, and return the answer."""
    deadline_s = time.monotonic() + timeout_s
    resend_at_s = time.monotonic() if link.is_connected else float("inf")  # nothing is due before a connection
    asked = "" if isinstance(request, AgentHello) else request.request_id
    opening: list[Message] = [request] if hello is None else [hello]
    to_send = opening
    while (now_s := time.monotonic()) < deadline_s:
        for event in link.pump(now_s):
            match event:
                case Connected():
                    to_send, resend_at_s = opening, now_s
                case Disconnected():
                    if link.diagnosis in _HOPELESS:  # of all addresses, the most telling
                        raise link.explain()
                    resend_at_s = float("inf")
                case Received(data):
                    message = _decoded(data)
                    if isinstance(message, answer):
                        return message
                    if isinstance(message, Removed):
                        raise _removed()
                    if isinstance(message, Error) and message.request_id in ("", asked):
                        if not message.retry_after_s:
                            raise KoubouError(message.code, message.message, message.hint)
                        resend_at_s = now_s + message.retry_after_s
                    if isinstance(message, ClientWelcome):
                        to_send, resend_at_s = [request], now_s
        if now_s >= resend_at_s and all(link.send(encode(message)) for message in to_send):
            resend_at_s = now_s + _RESEND_S
        link.poll(min(_POLL_MOST_S, deadline_s - now_s))
    if not link.is_connected:
        raise link.explain()
    raise KoubouError(
        Code.BROKER_UNREACHABLE,
        f"the broker is connected but did not answer within {timeout_s:g} s",
        "look at the broker's log on its host; then try the same command again",
    )


def _removed() -> KoubouError:
    return KoubouError(
        Code.NOT_AUTHORISED,
        "this worker was removed from the workshop by an operator",
        "to come back, join with a new token: `koubou-ctl workers invite ID` on the main host",
    )


def _decoded(data: bytes) -> Message | None:
    try:
        return decode(data).message
    except DecodeError:  # of a newer broker, perhaps: not what was asked for
        return None


def _request_id() -> str:
    return secrets.token_hex(16)
