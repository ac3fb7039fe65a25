"""Forks a broker for every order: the product's own `main`, in a process of its own, without the price of imports.

Orders come on stdin, one a line, words separated by tabs: `start LOG ARGUMENT...` is answered with a process id,
`ended PID` with an exit code, negative for a signal, or RUNS.
"""

import gc
import os
import sys
from collections.abc import Sequence

import alembic.command
import alembic.config
import alembic.context  # noqa: F401 - with the two above: what a first start would import

from koubou_broker.__main__ import main
from powercut.process import RUNS


def serve() -> None:
    """Until the end of the orders."""
    gc.freeze()
    for line in sys.stdin:
        order, *words = line.rstrip("\n").split("\t")
        print(_start(*words) if order == "start" else _ended(int(words[0])), flush=True)


def _start(log: str, *arguments: str) -> int:
    pid = os.fork()
    if pid == 0:
        _become_a_broker(log, arguments)
    return pid


def _become_a_broker(log: str, arguments: Sequence[str]) -> None:
    """Everything from here on is as if the program had just been started."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (handle, 1), (handle, 2)):
        os.dup2(source, target)
    sys.argv = ["koubou-broker", *arguments]
    main()
    sys.exit(0)


def _ended(pid: int) -> int:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else RUNS


if __name__ == "__main__":
    serve()
