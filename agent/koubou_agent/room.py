"""Whether the disk of this box takes what an attempt needs; asked before work is taken, not after it was done."""

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from koubou_common import durable

LEAST_BYTES = 32 * 1024 * 1024  # the files of the largest task (16 MiB), its result, and what the CLI writes
_TRIAL_BYTES = 64 * 1024  # gone before any system writes it out: it costs no disk
_MIB = 1024 * 1024


def issue_of(folders: Iterable[Path]) -> str:
    """What is wrong with the disk of one of these folders, in a person's words; "" if they all can be used."""
    for folder in folders:
        problem = _problem(folder)
        if problem:
            return f"this box cannot keep results: {problem} ({folder})"
    return ""


def _problem(folder: Path) -> str:
    trial = folder / f".trial-{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < LEAST_BYTES:
            return f"its disk is nearly full, {free_bytes // _MIB} MiB are free and {LEAST_BYTES // _MIB} MiB needed"
        try:  # a quota, a size limit, a disk that became read-only: free space tells nothing of them
            with open(trial, "wb", opener=durable.private) as file:
                file.write(bytes(_TRIAL_BYTES))
        finally:
            if os.path.lexists(trial):
                trial.unlink()
    except OSError as error:
        return f"its disk takes nothing: {error.strerror or error}"
    return ""
