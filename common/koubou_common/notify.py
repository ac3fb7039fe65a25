"""Tell systemd how a daemon stands (READY=1, STATUS=..., WATCHDOG=1, STOPPING=1); a no-op without systemd."""

import os
import socket

_MICROSECONDS = 1_000_000


def sd_notify(text: str) -> bool:
    """Whether the service manager was told; False where there is none or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):  # the abstract namespace is written so in the environment
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.connect(address)
            door.sendall(text.encode())
    except OSError:  # a manager that is restarting must not stop the daemon it watches
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of what WatchdogSec= allows, the pause between two pings; None where nobody watches."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    watched_pid = os.environ.get("WATCHDOG_PID", "")
    if not allowed_us.isdigit() or watched_pid not in ("", str(os.getpid())):
        return None
    return int(allowed_us) / _MICROSECONDS / 2
