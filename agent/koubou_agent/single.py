"""One agent per worker on a box: a lock on its folder, held by the process (fcntl on POSIX, msvcrt on Windows)."""

import os
import sys
from pathlib import Path
from types import TracebackType

from koubou_common import durable
from koubou_common.errors import ConfigError

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class SingleAgent:
    """Held while an agent runs: two of them would deliver, and delete, each other's outcomes."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        self._path = folder / "agent.lock"
        self._worker_id = worker_id
        self._handle: int | None = None

    def __enter__(self) -> "SingleAgent":
        durable.make_folder(self._path.parent)  # the spool will lie in it
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            raise ConfigError(
                f"an agent for {self._worker_id} runs already on this box (it holds {self._path})",
                "stop it first; one Ollama needs one agent, max_concurrent_tasks gives it more slots",
            ) from error
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
