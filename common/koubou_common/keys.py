"""CURVE key pairs and their files: written so that they survive, refused where others could read them."""

import base64
import contextlib
import hashlib
import os
import re
import secrets
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from koubou_common import durable
from koubou_common.errors import Code, KoubouError

KEY_CHARS = 40  # 32 bytes in z85
_FILE_BYTES = 4_096  # a key file has some 200 bytes: more is not one
_FINGERPRINT_CHARS = 16  # 80 bits: enough against a look-alike key, short enough to be read aloud

_PAIR_COMMENT = "# Koubou key pair (CURVE, z85). The secret proves who you are: only its owner may read this file."
_PUBLIC_COMMENT = "# Koubou public key (CURVE, z85). Not a secret."
# z85 has neither quote nor backslash, so that double quotes make every key valid YAML.
_LINE = re.compile(r'(?P<name>public|secret): "(?P<key>[^"]*)"')
_IS_POSIX = os.name == "posix"  # elsewhere modes and owners mean nothing: files rely on the account's own folder


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both halves of a CURVE key, in z85."""

    public: str
    secret: str = field(repr=False)


def new_key_pair() -> KeyPair:
    """A fresh random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def pair_of(secret: str) -> KeyPair:
    """The pair that a secret key belongs to; ValueError if it is no key."""
    if not is_key(secret):
        raise ValueError("not a CURVE key")
    return KeyPair(zmq.curve_public(secret.encode("ascii")).decode("ascii"), secret)


def is_key(text: str) -> bool:
    """Whether `text` is the z85 form of 32 bytes."""
    if len(text) != KEY_CHARS or not text.isascii():
        return False
    try:
        raw = z85.decode(text.encode("ascii"))
    except (KeyError, ValueError, struct.error):  # a foreign character; five characters beyond 2**32
        return False
    return z85.encode(raw) == text.encode("ascii")


def fingerprint(public: str) -> str:
    """A short form of a public key for people to compare: `k7dm-2xqa-…`."""
    digest = hashlib.sha256(z85.decode(public.encode("ascii"))).digest()
    short = base64.b32encode(digest).decode("ascii").lower()[:_FINGERPRINT_CHARS]
    return "-".join(short[i : i + 4] for i in range(0, _FINGERPRINT_CHARS, 4))


def write_key_pair(path: Path, pair: KeyPair, *, replace: bool = False) -> None:
    """Put `pair` on disk, durable when this returns; an existing file is kept unless `replace`."""
    text = f'{_PAIR_COMMENT}\npublic: "{pair.public}"\nsecret: "{pair.secret}"\n'
    _write(path, text, 0o600, replace=replace)


def write_public(path: Path, public: str, *, replace: bool = False) -> None:
    """Put a public key alone on disk, readable by everybody."""
    _write(path, f'{_PUBLIC_COMMENT}\npublic: "{public}"\n', 0o644, replace=replace)


def read_key_pair(path: Path, *, trusted_owner: int | None = None) -> KeyPair:
    """The pair in `path`; KoubouError (bad_configuration) if it is missing, unguarded or damaged.

    It must belong to this account, to root, or to the user id `trusted_owner`.
    """
    keys = _read(path, trusted_owner)
    if "public" not in keys or "secret" not in keys:
        raise _damaged(path, "it does not hold both a public and a secret key")
    if pair_of(keys["secret"]).public != keys["public"]:
        raise _damaged(path, "its two keys do not belong together")
    return KeyPair(keys["public"], keys["secret"])


def read_public(path: Path) -> str:
    """The public key in `path`, which holds it alone or beside its secret (then as guarded as that)."""
    keys = _read(path)
    if "public" not in keys:
        raise _damaged(path, "it does not hold a public key")
    return keys["public"]


def _write(path: Path, text: str, mode: int, *, replace: bool) -> None:
    try:
        durable.make_folder(path.parent)
        if not replace and os.path.lexists(path):
            raise KoubouError(
                Code.BAD_CONFIGURATION,
                f"{path} exists already and was left as it is: whoever knows that key would be locked out",
                "move the old key file away first, if that is what you want",
            )
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            _write_durably(temporary, text.encode("ascii"), mode)
            durable.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"cannot write the key file {path}: {error.strerror or error}",
            "check that the folder exists, belongs to you and has room",
        ) from error


def _write_durably(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    with os.fdopen(handle, "wb") as file:
        if _IS_POSIX:
            os.fchmod(handle, mode)  # the process's umask must not decide
        file.write(data)
        file.flush()
        os.fsync(handle)


def _read(path: Path, trusted_owner: int | None = None) -> dict[str, str]:
    # O_NOFOLLOW: somebody else's link would choose our key. O_NONBLOCK: a FIFO must not hang us.
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    try:
        if path.is_symlink():
            raise KoubouError(
                Code.BAD_CONFIGURATION,
                f"the key file {path} is a symbolic link, which is not followed",
                "put the file itself there, or name the file that the link leads to",
            )
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path, "it is not an ordinary file")
            data = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"cannot read the key file {path}: {error.strerror or error}",
            "check the path and that the file belongs to you",
        ) from error
    keys = _parse(path, data)
    if "secret" in keys:
        _check_guarded(path, status, trusted_owner)
    return keys


def _check_guarded(path: Path, status: os.stat_result, trusted_owner: int | None) -> None:
    if not _IS_POSIX:
        return
    # Root reads everything anyway, and hands out service credentials.
    if status.st_uid not in (os.geteuid(), 0, trusted_owner):
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"the key file {path} belongs to another account (user id {status.st_uid})",
            "run under the account that owns it, or make a key of your own",
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"the key file {path} can be used by other accounts (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 600 {path}   (if others may have read it, replace the key)",
        )


def _parse(path: Path, data: bytes) -> dict[str, str]:
    if len(data) > _FILE_BYTES:
        raise _damaged(path, "it is too large for a key file")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise _damaged(path, "it holds other characters than a key file has") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        if not found or not is_key(found["key"]) or found["name"] in keys:
            raise _damaged(path, f"line {number} is not one key")  # never quote it: it may be half a secret
        keys[found["name"]] = found["key"]
    return keys


def _damaged(path: Path, what: str) -> KoubouError:
    return KoubouError(
        Code.BAD_CONFIGURATION,
        f"the key file {path} cannot be used: {what}",
        "restore it from a backup, or remove it and join again with a new invitation",
    )
