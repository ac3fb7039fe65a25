"""`koubou-ctl join`: a key of one's own and settings, out of an operator's invitation."""

import os
import shlex
import sys
import time

import click

from koubou_client.ctl.output import OK, Output
from koubou_common.messages.values import Role


@click.command()
@click.argument("given", metavar="TOKEN|-")
@click.pass_obj
def command(output: Output, given: str) -> int:
    """Use the broker that TOKEN comes from; `-` reads the token from stdin, which keeps it out of `ps`."""
    # They pull in ZeroMQ, which --help must not pay for.
    from koubou_common.client_settings import ClientSettings  # noqa: PLC0415
    from koubou_common.home import Home  # noqa: PLC0415
    from koubou_common.joining import exchange, read_token, write_settings  # noqa: PLC0415
    from koubou_common.keys import fingerprint  # noqa: PLC0415

    text = sys.stdin.read() if given == "-" else given
    invitation = read_token(
        text, time.time(), (Role.CLIENT, Role.OPERATOR), "a box joins with `koubou-agent join kbj1_...`"
    )
    home = Home.from_env(os.environ, output.home)
    home.create()
    # Apart from operator.key and broker.key: a person may be called anything.
    key_file = home.key_file(f"clients/{invitation.name}")
    exchange(invitation, key_file)
    settings = ClientSettings(invitation.addresses, invitation.server_key, key_file.relative_to(home.root))
    config_file = home.config_file("client")
    kept_as = write_settings(config_file, settings.to_yaml())
    if output.as_json:
        output.data(
            {
                "name": invitation.name,
                "role": invitation.role.value,
                "addresses": list(invitation.addresses),
                "broker_fingerprint": fingerprint(invitation.server_key),
                "key_file": str(key_file),
                "config_file": str(config_file),
                "earlier_config_file": str(kept_as) if kept_as else None,
            }
        )
        return OK
    output.say(f"joined as {invitation.name} ({invitation.role}); the broker is {invitation.addresses[0]}")
    if kept_as is not None:
        output.say(f"your earlier settings are kept in {kept_as}")
    where = f" --home {shlex.quote(output.home)}" if output.home else ""
    output.say(f"settings: {config_file}\nnext: koubou-ctl{where} status")
    return OK
