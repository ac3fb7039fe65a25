"""Join tokens, `kbj1_…`: one line that carries all a new box or person needs to reach the broker once."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

import msgpack

from koubou_common.addresses import AddressError, check_connect
from koubou_common.errors import Code, KoubouError
from koubou_common.keys import KeyPair, is_key, pair_of
from koubou_common.messages.values import Role

TOKEN_PREFIX = "kbj1_"  # noqa: S105 - a format's name
TOKEN_CHARS = 4_096  # eight addresses of 255 characters and two keys need less
ADDRESSES = 8  # an active broker, standbys, their other networks; as in `Invited`
ADDRESS_CHARS = 255  # the limit of names on the wire, where invitations carry addresses
NAME_CHARS = 64  # as a principal's name on the wire

_CHECKSUM_BYTES = 6  # a slip in copying goes unnoticed once in 2**48
_ROLES = (Role.WORKER, Role.CLIENT, Role.OPERATOR)
_INTEGER_MOST = 2**53  # seconds beyond this are no date, and no exact number in JSON either
_SAFE = re.compile(r"[A-Za-z0-9_-]*")
_AGAIN = "ask for a new one: `koubou-ctl workers invite NAME` (a box), `koubou-ctl keys invite NAME` (a person)"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Where the broker is, how to recognise it, and a key that may be exchanged once for one's own."""

    addresses: tuple[str, ...]
    server_key: str  # the broker's public key, z85
    enrol_secret: str = field(repr=False)  # of a key that is on the allow-list with role `enrol`
    role: Role  # what the holder's own key will be
    name: str  # the worker's id or the person's name
    expires_s: int  # unix time

    @property
    def enrol_pair(self) -> KeyPair:
        """The one-time key, both halves."""
        return pair_of(self.enrol_secret)


def encode_token(token: JoinToken) -> str:
    """The one line that `decode_token` reads; ValueError if the token breaks its own limits."""
    if fault := _fault(token):
        raise ValueError(fault)
    body: bytes = msgpack.packb(
        [
            list(token.addresses),
            token.server_key,
            token.enrol_secret,
            token.role.value,
            token.name,
            token.expires_s,
        ]
    )
    return TOKEN_PREFIX + _base64(body + _checksum(body))


def decode_token(text: str, now_s: float) -> JoinToken:
    """The token in `text`; KoubouError (token_invalid) if it cannot work, so that nothing is sent in vain.

    White space is ignored: terminals and chat programs break long lines.
    """
    line = "".join(text.split())
    if not line.startswith(TOKEN_PREFIX):
        raise _wrong_kind(line)
    if len(line) > TOKEN_CHARS:
        raise _invalid("this is too long for a join token", "copy exactly the line that was printed")
    body = _checked_body(line.removeprefix(TOKEN_PREFIX))
    token = _read(body)
    if token.expires_s <= now_s:
        minutes = int((now_s - token.expires_s) / 60) + 1
        raise _invalid(
            f"this join token for {token.name!r} expired about {minutes} min ago",
            f"{_AGAIN}; if it is fresh, this machine's clock is wrong",
        )
    return token


def _checked_body(encoded: str) -> bytes:
    cut = _invalid("this join token is damaged or cut short", "copy the whole line, from kbj1_ to its last character")
    if not _SAFE.fullmatch(encoded):
        raise cut
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError) as error:
        raise cut from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not body or checksum != _checksum(body) or _base64(data) != encoded:
        raise cut
    return body


def _read(body: bytes) -> JoinToken:
    """From here on the checksum is right: what is wrong was made wrong, by another version or on purpose."""
    foreign = _invalid("this join token was not made by a Koubou of this version", _AGAIN)
    try:
        fields = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=ADDRESSES,
            max_map_len=0,
            max_str_len=max(ADDRESS_CHARS, 4 * NAME_CHARS),  # bytes: a character has up to four
            max_bin_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise foreign from error
    match fields:
        case [list() as addresses, str(server_key), str(secret), str(role), str(name), int(expires_s)] if all(
            isinstance(address, str) for address in addresses
        ) and role in list(_ROLES):
            token = JoinToken(tuple(addresses), server_key, secret, Role(role), name, expires_s)
        case _:
            raise foreign
    if _fault(token):
        raise foreign
    return token


def _fault(token: JoinToken) -> str:
    """What is wrong with a token, "" if nothing."""
    if not 1 <= len(token.addresses) <= ADDRESSES:
        return f"a token has 1 to {ADDRESSES} addresses"
    for address in token.addresses:
        try:
            check_connect(address)
        except AddressError as error:
            return f"the address {address!r} {error.message}"
        if len(address) > ADDRESS_CHARS:
            return f"an address has at most {ADDRESS_CHARS} characters"
    if not is_key(token.server_key) or not is_key(token.enrol_secret):
        return "a token's keys are z85 keys"
    if token.role not in _ROLES:
        return f"nobody is invited as {token.role}"
    if not 1 <= len(token.name) <= NAME_CHARS or not token.name.isprintable():
        return f"a name has 1 to {NAME_CHARS} printable characters"
    if isinstance(token.expires_s, bool) or not 0 < token.expires_s < _INTEGER_MOST:
        return "a token's expiry is a unix time"
    return ""


def _wrong_kind(line: str) -> KoubouError:
    if re.match(r"kbj[0-9]+_", line):
        return _invalid(
            "this join token is of another version than this program reads",
            "bring Koubou on both machines to the same version",
        )
    return _invalid(f"this is not a join token: those begin with {TOKEN_PREFIX}", _AGAIN)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(TOKEN_PREFIX.encode("ascii") + body).digest()[:_CHECKSUM_BYTES]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _invalid(message: str, hint: str) -> KoubouError:
    return KoubouError(Code.TOKEN_INVALID, message, hint)
