"""A network namespace for one box, joined to this machine by a veth pair; needs root and `ip`."""

import ipaddress
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType

_TIMEOUT_S = 10.0
_NETWORKS = ipaddress.ip_network("10.213.0.0/16")  # private; one /30 of it is used


class NotPermittedError(Exception):
    """No namespace here; the text says why."""


@dataclass(frozen=True, slots=True)
class Box:
    """A namespace that exists."""

    name: str
    outside: str  # our end's address: what the box can reach
    inside: str  # the box's address
    inside_device: str

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs inside."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def link(self, *, up: bool) -> None:
        """Pull the cable, or put it back: nobody at either end of a connection is told."""
        _ip("-n", self.name, "link", "set", self.inside_device, "up" if up else "down")


class Namespace:
    """Makes one box and removes it: a context manager; NotPermittedError where that is not allowed."""

    def __init__(self) -> None:
        self.box: Box | None = None

    def __enter__(self) -> Box:
        if not shutil.which("ip"):
            raise NotPermittedError("there is no `ip` command")
        if os.geteuid() != 0:
            raise NotPermittedError("only root may make one")
        mark = secrets.token_hex(3)
        name, ours, theirs = f"koubou-{mark}", f"kb{mark}o", f"kb{mark}i"
        base = _NETWORKS[4 * secrets.randbelow(_NETWORKS.num_addresses // 4)]
        outside, inside = str(base + 1), str(base + 2)
        try:
            _ip("netns", "add", name)
            self.box = Box(name, outside, inside, theirs)
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            _ip("addr", "add", f"{outside}/30", "dev", ours)
            _ip("link", "set", ours, "up")
            _ip("-n", name, "addr", "add", f"{inside}/30", "dev", theirs)
            _ip("-n", name, "link", "set", theirs, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        except NotPermittedError:
            self._remove()
            raise
        return self.box

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if self.box is not None:
            _ip("netns", "delete", self.box.name)  # the veth pair goes with it
            self.box = None


def _ip(*arguments: str) -> None:
    ran = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ran.returncode != 0:
        raise NotPermittedError(f"`ip {' '.join(arguments)}`: {ran.stderr.strip() or ran.returncode}")
