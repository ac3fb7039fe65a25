"""Files that survive a loss of power, found under their names, and that only their owner reads."""

import errno
import os
from pathlib import Path

_FOLDER_MODE = 0o700  # keys and prompts lie in them: nobody else's business
_TAKES_NO_MORE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def replace(source: Path, target: Path) -> None:
    """Give `source` the name `target`, on disk when this returns; both are in the same folder.

    A rename alone may be forgotten: a file under a name that is gone is lost, however durable its bytes.
    """
    source.replace(target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, their owner's alone, under names that survive."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(mode=_FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():  # else somebody made it meanwhile
            raise
    sync_folder(folder.parent)


def private(path: str, flags: int) -> int:
    """An opener for `open`: what it creates is its owner's alone, whatever the umask."""
    return os.open(path, flags, 0o600)


def is_refusal(error: OSError) -> bool:
    """Whether a disk takes no more for now: full, over a quota or a size limit, read-only. It is not broken."""
    return error.errno in _TAKES_NO_MORE


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    if os.name != "posix":  # a folder cannot be opened there, and a rename is durable with the file system's journal
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
