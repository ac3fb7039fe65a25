"""Inviting a box or a person: the one line that its holder runs."""

import os
import time
from dataclasses import replace
from datetime import datetime
from urllib.parse import urlsplit

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.times import rfc3339
from koubou_client.where import find_broker
from koubou_common import __version__
from koubou_common.addresses import is_loopback
from koubou_common.enrol import invite
from koubou_common.messages.values import Role
from koubou_common.tokens import encode_token

DEFAULT_TTL_S = 3_600.0  # long enough to walk to the box, too short to be found in a shell's history


def invite_holder(output: Output, name: str, role: Role, ttl_s: float, *, token_only: bool) -> int:
    """Invite `name` and print the command that joins; the token is a secret until it is used."""
    where = find_broker(os.environ, output.home)
    token = invite(
        where.addresses,
        where.broker_key,
        where.pair,
        software=f"koubou-ctl {__version__}",
        name=name,
        role=role,
        ttl_s=ttl_s,
        timeout_s=output.connect_timeout_s,
    )
    # Where the broker listens on a network too, its loopback would only cost other machines a vain try.
    beyond = tuple(address for address in token.addresses if not is_loopback(urlsplit(address).hostname or ""))
    token = replace(token, addresses=beyond or token.addresses)
    line = encode_token(token)
    program = "koubou-agent" if role is Role.WORKER else "koubou-ctl"
    command = f"{program} join {line}"
    if output.as_json:
        output.data(
            {
                "name": token.name,
                "role": token.role.value,
                "token": line,
                "command": command,
                "expires_at": rfc3339(token.expires_s * 1000),
                "addresses": list(token.addresses),
                "this_host_only": not beyond,
            }
        )
        return OK
    where_to = "the box" if role is Role.WORKER else f"{name}'s machine"
    output.note(f"Run this on {where_to}, once, until {_local_time(token.expires_s)}; it works as a password does:\n")
    output.say(line if token_only else command)
    if not beyond:
        output.note(
            "\nwarning: the broker listens on this host alone, other machines cannot reach it.\n"
            "  fix: add an address of your private network to `bind` in broker.yaml and restart the broker"
        )
    return OK


def _local_time(at_s: int) -> str:
    moment = datetime.fromtimestamp(at_s).astimezone()
    same_day = moment.date() == datetime.fromtimestamp(time.time()).astimezone().date()
    return f"{moment:%H:%M}" if same_day else f"{moment:%Y-%m-%d %H:%M}"
