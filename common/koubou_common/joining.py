"""The holder's half of joining: a key on disk, then enrolled; settings that point at the broker."""

import contextlib
import os
import secrets
from collections.abc import Collection
from pathlib import Path

from koubou_common import durable
from koubou_common.enrol import ENROL_TIMEOUT_S, enrol
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.keys import KeyPair, new_key_pair, read_key_pair, write_key_pair
from koubou_common.messages.values import Role
from koubou_common.names import name_fault
from koubou_common.tokens import JoinToken, decode_token

# The broker has decided: this key is not enrolled and will not be by this token.
_REFUSALS = (Code.TOKEN_USED, Code.TOKEN_INVALID, Code.REFUSED, Code.CONFLICT)
_SETTINGS_MODE = 0o600  # the file names the broker's key: nobody else may point us elsewhere


def read_token(text: str, now_s: float, roles: Collection[Role], otherwise: str) -> JoinToken:
    """A token for one of `roles`; KoubouError (token_invalid) with the hint `otherwise` for another role."""
    token = decode_token(text, now_s)
    if token.role not in roles:
        holder = "a box" if token.role is Role.WORKER else f"a person as {token.role}"
        wanted = "a box" if Role.WORKER in roles else "a person"
        raise KoubouError(
            Code.TOKEN_INVALID, f"this token is for {token.name!r}: it invites {holder}, not {wanted}", otherwise
        )
    # The name becomes a file's: whoever made the token must not choose which file is written.
    if "/" in token.name or name_fault(token.name):
        raise KoubouError(
            Code.TOKEN_INVALID,
            f"this token names its holder {token.name!r}, which cannot be a file's name",
            "ask for a token with a plain name, lan_001 for example",
        )
    return token


def exchange(token: JoinToken, path: Path, timeout_s: float = ENROL_TIMEOUT_S) -> KeyPair:
    """Enrol a key that is on disk before anything is sent: after a lost answer the same one is offered again.

    It has another name until then: `path` may hold the key of an earlier membership, and a key that is
    there is taken to be enrolled. A line that has done its work may be repeated until that key connects.
    """
    pending, fresh = path.with_name(f"{path.name}.pending"), path.with_name(f"{path.name}.fresh")
    is_left_over = pending.exists()
    offered = pending
    try:
        try:
            pair = _offer(token, pending, timeout_s)
        except KoubouError as error:
            # Bound by an earlier token whose answer was lost: that token is of no use now, and this one
            # needs a key of its own.
            if not is_left_over or error.code not in (Code.REFUSED, Code.CONFLICT):
                raise
            offered = fresh
            pair = _offer(token, fresh, timeout_s)
    except KoubouError as error:
        if error.code is not Code.TOKEN_USED or not path.exists():
            raise
        pair = read_key_pair(path)  # perhaps it was used by this very box
        try:
            enrol(token, pair, timeout_s)
        except KoubouError:
            raise error from None
        return pair
    durable.replace(offered, path)
    pending.unlink(missing_ok=True)  # a worker's newer key ends its older ones
    return pair


def write_settings(path: Path, text: str) -> Path | None:
    """Put settings in place, durably and for their owner alone; what was there is kept aside and returned."""
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return None  # the same line again: what an earlier join kept aside must not be replaced by this
        kept_as = _keep_aside(path)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SETTINGS_MODE)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        durable.replace(partial, path)
    except OSError as error:
        raise ConfigError(
            f"cannot write the settings {path}: {error.strerror or error}", "check that the folder belongs to you"
        ) from error
    return kept_as


def _keep_aside(path: Path) -> Path | None:
    if not path.exists():
        return None
    kept_as = path.with_name(f"{path.name}.before-join")
    with contextlib.suppress(FileNotFoundError):
        path.replace(kept_as)
    return kept_as


def _offer(token: JoinToken, path: Path, timeout_s: float) -> KeyPair:
    """Enrol the key in `path`, made if there is none; a new one that is refused for good leaves no file."""
    is_new = not path.exists()
    if is_new:
        write_key_pair(path, new_key_pair())
    pair = read_key_pair(path)
    try:
        enrol(token, pair, timeout_s)
    except KoubouError as error:
        if is_new and error.code in _REFUSALS:
            path.unlink(missing_ok=True)
        raise
    return pair
