"""POSIX only: what holds one run of gemini-repo-cli in its bounds.

Imported by the scripts that run in the CLI's own environment, hence the standard library alone.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

_MIB = 1024 * 1024

# A run of the CLI needs ~60 MiB, 16 MiB of files, 10 descriptors and less than a second of CPU.
_LIMITS = (
    (resource.RLIMIT_AS, 2048 * _MIB),
    (resource.RLIMIT_FSIZE, 64 * _MIB),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_CPU, 60),  # seconds
)

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above: nobody is left to take us down
        os._exit(1)


def confine() -> None:
    """Bound this process for good: private files, limits, no new privileges."""
    os.umask(0o077)
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for limit, wanted in _LIMITS:
        _soft, hard = resource.getrlimit(limit)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS below what is mapped
            resource.setrlimit(limit, (value, value))


def kill_group(pid: int) -> None:
    """Kill a process that leads its own session, with all its descendants that stayed in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)  # also when it has not reached its setsid yet
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def reap(pid: int) -> tuple[int, float, int] | None:
    """(exit code, or minus the signal; CPU seconds; peak RSS bytes) of an ended child, None while it runs."""
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    if ended == 0:
        return None
    peak_rss_bytes = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, peak_rss_bytes


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
