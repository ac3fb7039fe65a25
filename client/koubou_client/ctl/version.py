"""`koubou-ctl version`: Koubou and what it stands on."""

import platform
from importlib import metadata

import click

from koubou_client.ctl.output import OK, Output
from koubou_common import __version__
from koubou_common.messages import PROTO_MAX, PROTO_MIN

_PARTS = ("click", "msgpack", "PyYAML", "pyzmq", "pydantic", "SQLAlchemy", "alembic", "requests")


@click.command()
@click.pass_obj
def command(output: Output) -> int:
    """The versions that a report of trouble should name."""
    import zmq  # noqa: PLC0415 - only here: other commands may never need it

    versions = {
        "koubou": __version__,
        "protocol": str(PROTO_MAX) if PROTO_MIN == PROTO_MAX else f"{PROTO_MIN}-{PROTO_MAX}",
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "libzmq": zmq.zmq_version(),
        **_installed(),
    }
    if output.as_json:
        output.data(versions)
    elif output.is_terminal:
        for name, version in versions.items():
            output.say(f"{name:<11} {version}")
    else:
        output.say(f"koubou {__version__}")
    return OK


def _installed() -> dict[str, str]:
    versions = {}
    for part in _PARTS:
        try:
            versions[part.lower()] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
    return versions
