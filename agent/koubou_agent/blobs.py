"""Bodies too large to travel inside a message: pulled in pieces from the broker, and kept in a cache on disk."""

import contextlib
import hashlib
import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from koubou_common import durable
from koubou_common.messages import BlobChunk, BlobGet
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING
from koubou_common.messages.values import Body

ASK_AGAIN_S = 15.0  # a piece takes a second on a slow LAN; what does not come was lost

_PARTIAL = ".partial"
_DAY_S = 86_400.0

_log = logging.getLogger("koubou_agent")


class BlobCache:
    """Inputs fetched before, by digest; used by many threads. The least recently used go first."""

    def __init__(self, folder: Path, most_bytes: int, most_days: float) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._most_days = most_days
        self._lock = threading.Lock()
        self._held_bytes = 0  # at most: what was replaced counts twice until somebody looks
        self._make_folder()

    def get(self, sha256: bytes) -> bytes | None:
        """The blob, checked against its digest."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).digest() != sha256:
            _log.warning("cache: %s is damaged and forgotten", path.name)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its last use
        return data

    def put(self, data: bytes) -> None:
        """Keep a blob; a cache that cannot write is a slow one, not a fault."""
        path = self._path(hashlib.sha256(data).digest())
        if _is_there(path, len(data)):
            return
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
        for is_last in (False, True):
            try:
                with open(partial, "xb", opener=durable.private) as file:
                    file.write(data)
                partial.replace(path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                if durable.is_refusal(error) and not is_last and self.give_way(len(data)):
                    continue
                _log.warning("cache: %s could not be kept: %s", path.name, error)
            break
        with self._lock:
            self._held_bytes += len(data)
            is_full = self._held_bytes > self._most_bytes
        if is_full:
            self.trim()

    def give_way(self, size_bytes: int) -> bool:
        """Drop what was not used for longest, so many bytes of it: the disk is full; whether anything was dropped."""
        with self._lock:
            freed_bytes = 0
            for _, blob_bytes, path in self._by_use():
                if freed_bytes >= size_bytes:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                    freed_bytes += blob_bytes
            return freed_bytes > 0

    def trim(self) -> None:
        """Drop what was not used for long, then the least recently used until the rest fits."""
        with self._lock:
            used = self._by_use()
            oldest = time.time() - self._most_days * _DAY_S
            left = sum(size for _, size, _ in used)
            for at, size, path in used:
                if left <= self._most_bytes and at >= oldest:
                    break
                with contextlib.suppress(OSError):  # a disk that became read-only keeps them
                    path.unlink(missing_ok=True)
                left -= size
            self._held_bytes = left

    def wipe(self) -> None:
        """Forget everything."""
        with self._lock:
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)
            self._held_bytes = 0

    def _by_use(self) -> list[tuple[float, int, Path]]:
        """Last use, size and place of all blobs, the least recently used first."""
        used: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                used.append((stat.st_mtime, stat.st_size, path))
        return sorted(used)

    def _path(self, sha256: bytes) -> Path:
        return self._folder / sha256.hex()

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.trim()


class InputsMissing(Exception):  # noqa: N818 - reads as the state it tells of
    """The broker has not, or does not give, what an attempt refers to."""


@dataclass(slots=True)
class _Download:
    body: Body
    pieces: dict[int, bytes] = field(default_factory=dict)
    asked_s: dict[int, float] = field(default_factory=dict)  # piece -> when

    @property
    def count(self) -> int:
        return max(1, -(-self.body.size_bytes // CHUNK_BYTES))


class Downloads:
    """What is being pulled from the broker: which pieces to ask for, and what has come whole. Pure."""

    def __init__(self) -> None:
        self._by_sha: dict[bytes, _Download] = {}

    def __len__(self) -> int:
        return len(self._by_sha)

    def want(self, body: Body) -> None:
        """Pull this body; asking twice changes nothing."""
        self._by_sha.setdefault(body.sha256, _Download(body))

    def forget(self, sha256: bytes) -> None:
        """Nobody waits for it any more, or the broker has it not."""
        self._by_sha.pop(sha256, None)

    def restart(self) -> None:
        """A new session: what was asked for in the old one will not come."""
        for download in self._by_sha.values():
            download.asked_s.clear()

    def due(self, now_s: float) -> list[BlobGet]:
        """The pieces to ask for now; never more than CHUNKS_OUTSTANDING are on their way."""
        asked: list[BlobGet] = []
        for download in self._by_sha.values():
            lost = [index for index, at_s in download.asked_s.items() if now_s - at_s >= ASK_AGAIN_S]
            for index in lost:
                del download.asked_s[index]
        room = CHUNKS_OUTSTANDING - sum(len(download.asked_s) for download in self._by_sha.values())
        for sha256, download in self._by_sha.items():
            for index in range(download.count):
                if room <= 0:
                    return asked
                if index not in download.pieces and index not in download.asked_s:
                    download.asked_s[index] = now_s
                    asked.append(BlobGet(sha256, index))
                    room -= 1
        return asked

    def chunk(self, message: BlobChunk) -> bytes | None:
        """A piece came; the whole, unchecked, if it was the last one."""
        download = self._by_sha.get(message.sha256)
        if download is None or message.index not in download.asked_s:
            return None  # not asked for: nothing a peer sends unasked is kept
        del download.asked_s[message.index]
        download.pieces[message.index] = message.data
        if len(download.pieces) < download.count:
            return None
        return b"".join(download.pieces[index] for index in range(download.count))

    def next_deadline(self) -> float | None:
        """When a piece counts as lost."""
        return min(
            (at_s + ASK_AGAIN_S for download in self._by_sha.values() for at_s in download.asked_s.values()),
            default=None,
        )


def _is_there(path: Path, size_bytes: int) -> bool:
    """Whether a blob is kept already; that is a use of it."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def is_body(body: Body, data: bytes) -> bool:
    """Whether `data` is what `body` names."""
    return len(data) == body.size_bytes and hashlib.sha256(data).digest() == body.sha256
