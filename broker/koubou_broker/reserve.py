"""A file held back on the disk, given up when it is full: results in flight still find room then."""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 1024 * 1024

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Room:
    """How the disk stands."""

    free_bytes: int
    is_writable: bool


class Reserve:
    """The file `reserve` beside the database, and what is free around it."""

    def __init__(self, path: Path, size_bytes: int, min_free_bytes: int) -> None:
        self._path = path
        self.size_bytes = size_bytes
        self.min_free_bytes = min_free_bytes

    def room(self) -> Room:
        """Free space for this account, and whether the file system takes writes."""
        seen = os.statvfs(self._path.parent)
        return Room(seen.f_bavail * seen.f_frsize, not seen.f_flag & os.ST_RDONLY)

    def is_held(self) -> bool:
        """Whether the file has its whole size."""
        try:
            return self._path.stat().st_size >= self.size_bytes
        except OSError:
            return False

    def hold(self, spare_bytes: int = 0) -> bool:
        """Make the file if there is room for it and for `min_free_bytes` more; whether it is held."""
        if self.is_held():
            return True
        if not self.has_room(spare_bytes) or self.room().free_bytes < self.size_bytes:
            return False
        try:
            _allocate(self._path, self.size_bytes)
        except OSError as error:  # a quota, say: the next try may find it lifted
            log.debug("no room for the reserve of %d bytes: %s", self.size_bytes, error)
            self.give_up()
        return self.is_held()

    def give_up(self) -> bool:
        """Free its space; whether that made room."""
        had_bytes = 0
        with contextlib.suppress(OSError):  # a read-only disk keeps it: nothing is lost by that
            had_bytes = self._path.stat().st_blocks
            self._path.unlink()
            return had_bytes > 0
        return False

    def has_room(self, spare_bytes: int = 0) -> bool:
        """Whether new tasks may be taken: enough is free, the reserve not counted.

        `spare_bytes` lie unused inside the database: it fills them before it grows.
        """
        room = self.room()
        return room.is_writable and room.free_bytes + spare_bytes >= self.needed_bytes

    @property
    def needed_bytes(self) -> int:
        """What has to be free before new tasks are taken."""
        return self.min_free_bytes + (0 if self.is_held() else self.size_bytes)


def _allocate(path: Path, size_bytes: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if size_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size_bytes)
        else:  # a sparse file would reserve nothing: blocks have to be written
            for at in range(0, size_bytes, _BLOCK_BYTES):
                os.pwrite(handle, bytes(min(_BLOCK_BYTES, size_bytes - at)), at)
    finally:
        os.close(handle)
