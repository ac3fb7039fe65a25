"""`koubou-ctl parked`: outcomes that came for attempts which a restored database does not know."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.protocol import needs_protocol
from koubou_client.ctl.tables import shorten, table
from koubou_client.ctl.times import age, rfc3339
from koubou_client.outputs import check_out_path, digest_of, write_output
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import GetParked, ParkedWork
from koubou_common.messages.values import ParkedView

if TYPE_CHECKING:
    from koubou_client.client import Client

_CELL_COLUMNS = 60
_PROTOCOL = 2  # the first with this message


@click.command()
@click.argument("uid", required=False)
@click.option("-o", "--output", "out", metavar="OUT", help="Write all the model said to this file.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def command(output: Output, uid: str | None, out: str | None, force: bool) -> int:
    """List what is parked; with UID, print all that the model said."""
    if out is not None and uid is None:
        raise click.UsageError("-o needs the UID of one parked outcome.")
    with output.client() as client:
        needs_protocol(client, _PROTOCOL, "parked")
        if uid is None:
            _list(output, list(_all(client)))
            return OK
        view = next(_all(client, uid))
        if view.body is None:
            raise KoubouError(Code.NOT_FOUND, f"{uid} has no text: {view.detail}", "koubou-ctl parked")
        name = _free_name(out, force=force) if out is not None else ""
        data = client.connection.fetch(view.body).result()
    if out is not None:
        path = write_output(Path.cwd(), name, data, expected_digest=None, force=force)
        output.note(f"wrote {path} ({len(data)} bytes)")
    if output.as_json:
        output.data({**_json(view), "text": data.decode("utf-8", "replace")})
    elif out is None:
        output.raw(data)
    return OK


def _free_name(out: str, *, force: bool) -> str:
    name = check_out_path(out, Path.cwd())
    if not force and digest_of(Path.cwd(), name):
        raise KoubouError(Code.CONFLICT, f"{name}: exists already", "replace it with --force, or choose another")
    return name


def _all(client: "Client", uid: str = "") -> Iterator[ParkedView]:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    skip = 0
    while True:
        page = client.connection.call(GetParked(new_request_id(), uid, skip), ParkedWork)
        yield from page.outcomes
        skip += len(page.outcomes)
        if uid or not page.outcomes or skip >= page.total:
            return


def _list(output: Output, views: list[ParkedView]) -> None:
    if output.as_json:
        output.data([_json(view) for view in views])
    elif not views:
        output.say("Nothing is parked.")
    else:
        now_ms = int(time.time() * 1000)
        rows = [
            (
                view.uid,
                view.worker_id,
                age(view.at_ms, now_ms),
                f"{view.body.size_bytes}" if view.body else "-",
                shorten(view.detail, _CELL_COLUMNS),
            )
            for view in views
        ]
        output.say(table(("UID", "WORKER", "AGE", "BYTES", "WHAT"), rows))


def _json(view: ParkedView) -> dict[str, object]:
    return {
        "uid": view.uid,
        "worker": view.worker_id,
        "at": rfc3339(view.at_ms),
        "bytes": view.body.size_bytes if view.body else None,
        "detail": view.detail,
    }
