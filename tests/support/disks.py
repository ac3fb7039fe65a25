"""Disks that take no more: by a limit on the size of files, which needs no right, or small ones, which need root's."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def files_at_most(size_bytes: int, pid: int = 0) -> Iterator[None]:
    """While in it every write of a process beyond `size_bytes` of a file fails (EFBIG), as over a quota."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def a_small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A disk of its own below `folder`; skips the test where that is not permitted."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk (root)")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change how a small disk is mounted: `ro`, `rw`, `rw,size=1m`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
