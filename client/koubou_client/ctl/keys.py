"""`koubou-ctl keys`: who may speak to the broker."""

import time
from collections.abc import Sequence

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.params import Duration
from koubou_client.ctl.tables import table
from koubou_client.ctl.times import age, duration, rfc3339
from koubou_common.messages import GetKeys, Keys, RevokeKey
from koubou_common.messages.values import KeyView, Role

_HOUR = "1h"


@click.group()
def command() -> None:
    """List, invite, revoke the keys of people and workers."""


@command.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Revoked and used-up keys too.")
@click.pass_obj
def list_keys(output: Output, everything: bool) -> int:
    """Every key that is good, whose it is, and when it was last seen."""
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    with output.client() as client:
        keys = client.connection.call(GetKeys(new_request_id()), Keys).keys
    _tell(output, [key for key in keys if everything or not key.revoked])
    return OK


@command.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([Role.CLIENT.value, Role.OPERATOR.value]),
    default=Role.CLIENT.value,
    show_default=True,
    help="client: its own tasks; operator: everything. (A box: koubou-ctl workers invite.)",
)
@click.option("--ttl", type=Duration(), default=_HOUR, show_default=True, help="How long the invitation is good.")
@click.option("-q", "--quiet", "token_only", is_flag=True, help="Print the token alone.")
@click.pass_obj
def invite(output: Output, name: str, role: str, ttl: float, token_only: bool) -> int:
    """Print the one line that lets a person's machine join as NAME."""
    from koubou_client.ctl.invitation import invite_holder  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    return invite_holder(output, name, Role(role), ttl, token_only=token_only)


@command.command()
@click.argument("name")
@click.pass_obj
def revoke(output: Output, name: str) -> int:
    """Refuse every key of NAME from now on; open invitations of that name end too."""
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    with output.client() as client:
        keys = client.connection.call(RevokeKey(new_request_id(), name), Keys).keys
    named = [key for key in keys if key.name == name]
    if output.as_json:
        _tell(output, named)
    else:
        output.say(f"every key of {name} is refused from now on")
    return OK


def _tell(output: Output, keys: Sequence[KeyView]) -> None:
    from koubou_common.keys import fingerprint  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    now_ms = int(time.time() * 1000)
    if output.as_json:
        output.data(
            [
                {
                    "name": key.name,
                    "role": key.role.value,
                    "state": _state(key, now_ms),
                    "public_key": key.public_key,
                    "fingerprint": fingerprint(key.public_key),
                    "created_at": rfc3339(key.created_ms),
                    "expires_at": rfc3339(key.expires_ms),
                    "last_seen_at": rfc3339(key.last_seen_ms),
                }
                for key in keys
            ]
        )
        return
    rows = [
        (
            key.name,
            key.role.value,
            _told(key, now_ms),
            fingerprint(key.public_key),
            age(key.created_ms, now_ms),
            age(key.last_seen_ms, now_ms),
        )
        for key in keys
    ]
    output.say(table(("NAME", "ROLE", "STATE", "FINGERPRINT", "AGE", "SEEN"), rows))


def _state(key: KeyView, now_ms: int) -> str:
    if key.revoked:
        return "revoked"
    if key.role is Role.ENROL:
        return "expired" if 0 < key.expires_ms <= now_ms else "invited"
    return "removed" if key.role is Role.REMOVED else "good"


def _told(key: KeyView, now_ms: int) -> str:
    state = _state(key, now_ms)
    return f"{state}, {duration(key.expires_ms - now_ms)} left" if state == "invited" and key.expires_ms else state
