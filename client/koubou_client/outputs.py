"""Where an output goes: a path of the user's choice below a root, written whole or not at all."""

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path

from koubou_common import durable
from koubou_common.errors import Code, KoubouError
from koubou_common.names import name_fault


def check_out_path(path: str, root: Path) -> str:
    """The relative name that `path` has below `root`; KoubouError (bad_input) if it leads outside."""
    wanted = Path(path)
    if wanted.is_absolute():
        try:
            wanted = wanted.relative_to(root)
        except ValueError:
            raise _outside(path, root) from None
    name = wanted.as_posix()
    if fault := name_fault(name):
        if fault.startswith("'..'"):
            raise _outside(path, root)
        raise KoubouError(Code.BAD_INPUT, f"{path}: {fault}", "choose another name for the output")
    _check_folders(root, name)
    return name


def digest_of(root: Path, name: str) -> str:
    """The sha256 (hex) of the file at `root/name` now; empty if there is none."""
    path = root / name
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise KoubouError(Code.BAD_INPUT, f"{name}: {error.strerror}", "choose another name") from error
    if not stat.S_ISREG(status.st_mode):
        raise KoubouError(Code.BAD_INPUT, f"{name}: exists and is no ordinary file", "choose another name")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise KoubouError(Code.BAD_INPUT, f"{name}: {error.strerror}", "check that you may read it") from error


def write_output(root: Path, name: str, data: bytes, *, expected_digest: str | None, force: bool) -> Path:
    """Put `data` at `root/name` with one newline at its end, atomically.

    `expected_digest` is what the file was at submit ("" for none; None: there must be none now); another content is
    kept, with KoubouError (conflict), unless `force`.
    """
    name = check_out_path(name, root)
    path = root / name
    data = data.rstrip(b"\n") + b"\n"
    now = digest_of(root, name)
    if now == hashlib.sha256(data).hexdigest():
        return path  # written before: a repeated command is no conflict
    if not force and now != (expected_digest or ""):
        what = "appeared" if not expected_digest else "changed"
        raise KoubouError(
            Code.CONFLICT,
            f"{name}: {what} since the task was submitted, and was left as it is",
            "look at it, then write with --force, or choose another path with -o",
        )
    temporary = path.with_name(f".{secrets.token_hex(8)}.koubou.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_folders(root, name)
        mode = stat.S_IMODE(path.lstat().st_mode) if now else 0o666 & ~_umask()
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise KoubouError(Code.BAD_INPUT, f"{name}: {error.strerror}", "check the folder and its room") from error
    with contextlib.suppress(OSError):  # a person's folder may be of a kind that knows no such thing
        durable.sync_folder(path.parent)
    return path


def _check_folders(root: Path, name: str) -> None:
    """Refuse a link on the way: it would lead the output elsewhere."""
    walked = root
    for part in Path(name).parts:
        walked = walked / part
        if walked.is_symlink():
            raise KoubouError(Code.BAD_INPUT, f"{name}: {walked} is a symbolic link", "write to the real path")
    if walked.is_dir():
        raise KoubouError(Code.BAD_INPUT, f"{name}: is a folder", "name a file")


def _umask() -> int:
    current = os.umask(0o077)  # there is no way to only read it
    os.umask(current)
    return current


def _outside(path: str, root: Path) -> KoubouError:
    return KoubouError(
        Code.BAD_INPUT,
        f"{path}: outside {root}",
        "outputs stay below the current root; change it with --root",
    )
