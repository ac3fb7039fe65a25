"""Files that survive a loss of power, found under their names, and that only their owner reads."""

import os
from pathlib import Path


def replace(source: Path, target: Path) -> None:
    """Give `source` the name `target`, on disk when this returns; both are in the same folder.

    A rename alone may be forgotten: a file under a name that is gone is lost, however durable its bytes.
    """
    source.replace(target)
    sync_folder(target.parent)


def private(path: str, flags: int) -> int:
    """An opener for `open`: what it creates is its owner's alone, whatever the umask."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    if os.name != "posix":  # a folder cannot be opened there, and a rename is durable with the file system's journal
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
