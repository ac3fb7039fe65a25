"""Commands that an older broker has no answer to: said at once, instead of waiting for one."""

from typing import TYPE_CHECKING

from koubou_common.errors import Code, KoubouError

if TYPE_CHECKING:
    from koubou_client.client import Client


def needs_protocol(client: "Client", least: int, command: str) -> None:
    """KoubouError (version) if the broker does not know what `command` would ask of it."""
    spoken = client.welcome().proto
    if spoken < least:
        raise KoubouError(
            Code.VERSION,
            f"the broker is older than this koubou-ctl: it does not know `{command}` (protocol {spoken})",
            "upgrade the broker first",
        )
