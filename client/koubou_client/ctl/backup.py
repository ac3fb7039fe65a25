"""`koubou-ctl backup`: a copy of the broker's database, made while it works, into a file of yours."""

import contextlib
import hashlib
import os
import secrets
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.protocol import needs_protocol
from koubou_common import durable
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import BackupEnded, BackupMade, BackupPart, EndBackup, GetBackupPart, MakeBackup
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING, MIB

if TYPE_CHECKING:
    from koubou_client.client import Client

_TRIES = 3  # a broker that was restarted has no copy any more: it is begun anew
_NOTE_S = 2.0  # between lines of progress
_PROTOCOL = 2  # the first with these messages


@click.command()
@click.argument("out", metavar="OUT")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def command(output: Output, out: str, force: bool) -> int:
    """Write a checked copy of the broker's database to OUT, for `koubou-broker restore`.

    The broker goes on meanwhile. Keys and settings are not in it: copy keys/ and config/ of the broker's home too.
    """
    path = _path_of(out, force=force)
    began_s = time.monotonic()
    with output.client() as client:
        needs_protocol(client, _PROTOCOL, "backup")
        made = _backup(output, client, path, force=force)
    took_s = time.monotonic() - began_s
    if output.as_json:
        output.data(
            {
                "path": str(path),
                "bytes": made.size_bytes,
                "sha256": made.sha256.hex(),
                "tasks": made.tasks,
                "epoch": made.term_epoch,
                "seconds": round(took_s, 3),
            }
        )
        return OK
    output.say(f"wrote {path}: {_mib(made.size_bytes)}, {made.tasks} tasks, epoch {made.term_epoch}, {took_s:.1f} s")
    output.note("not in it: the broker's keys/ and config/; copy them too, and keep all three private")
    output.note(f"  restore: koubou-broker restore {path}")
    return OK


def _path_of(out: str, *, force: bool) -> Path:
    if out == "-":
        raise KoubouError(Code.BAD_INPUT, "a backup is a file, stdout is none", "name a file: koubou-ctl backup OUT")
    path = Path(out).absolute()
    if path.is_dir():
        raise KoubouError(Code.BAD_INPUT, f"{out} is a folder", f"name a file: {out.rstrip('/')}/koubou.backup")
    if not path.parent.is_dir():
        raise KoubouError(Code.BAD_INPUT, f"{path.parent} is no folder", "make it, or name another one")
    _refuse_existing(path, force=force)
    return path


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise KoubouError(Code.CONFLICT, f"{path}: exists already", "replace it with --force, or choose another")


def _backup(output: Output, client: "Client", path: Path, *, force: bool) -> BackupMade:
    for tries_left in reversed(range(_TRIES)):
        made = _make(output, client)
        try:
            _fetch_into(output, client, made, path, force=force)
        except KoubouError as error:
            if error.code is not Code.NOT_FOUND or not tries_left:
                raise
            output.note(f"{error.message}: beginning again")
        else:
            return made
    raise AssertionError("the last try raises")


def _make(output: Output, client: "Client") -> BackupMade:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    asked: Future[object] = _begin(client, MakeBackup(new_request_id()))
    began_s = time.monotonic()
    while True:
        try:
            made = asked.result(_NOTE_S)
        except TimeoutError:
            output.note(f"the broker copies its database: {time.monotonic() - began_s:.0f} s")
            continue
        assert isinstance(made, BackupMade), made
        return made


def _fetch_into(output: Output, client: "Client", made: BackupMade, path: Path, *, force: bool) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=durable.private) as file:
            _fetch(output, client, made, file)
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, force=force)
        durable.replace(partial, path)
    except OSError as error:
        raise KoubouError(
            Code.BAD_INPUT, f"{path} cannot be written: {error.strerror}", "check the folder and its room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        _end(client, made)


def _fetch(output: Output, client: "Client", made: BackupMade, file: BinaryIO) -> None:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - as above

    digest = hashlib.sha256()
    count = -(-made.size_bytes // CHUNK_BYTES)
    waiting: deque[Future[object]] = deque()
    asked = written = 0
    noted_s = time.monotonic()
    for _ in range(count):
        while asked < count and len(waiting) < CHUNKS_OUTSTANDING:
            waiting.append(_begin(client, GetBackupPart(new_request_id(), made.request_id, asked)))
            asked += 1
        part = waiting.popleft().result()
        assert isinstance(part, BackupPart), part
        digest.update(part.data)
        written += file.write(part.data)
        if time.monotonic() - noted_s >= _NOTE_S:
            noted_s = time.monotonic()
            output.note(f"fetched {_mib(written)} of {_mib(made.size_bytes)}")
    if written != made.size_bytes or digest.digest() != made.sha256:
        raise KoubouError(Code.INTERNAL, "what came is not the copy that the broker made", "try again")


def _end(client: "Client", made: BackupMade) -> None:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - as above

    # Not asked for twice: a copy that nobody fetches from is removed by the broker itself.
    with contextlib.suppress(KoubouError, TimeoutError):
        client.connection.call(EndBackup(new_request_id(), made.request_id), BackupEnded, timeout_s=_NOTE_S)


def _begin(client: "Client", message: object) -> "Future[object]":
    from koubou_client.pending import settle  # noqa: PLC0415 - as above

    future: Future[object] = Future()
    client.connection.begin(message, settle(future))
    return future


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:,.1f} MiB"
