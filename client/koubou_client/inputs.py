"""What a person names becomes what the wire carries: prompts and context files, read once and checked."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from koubou_client import secret_scan
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.limits import FILE_BYTES, PROMPT_BYTES, TASK_BYTES, TASK_FILES
from koubou_common.messages.values import Body
from koubou_common.names import name_fault


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The broker's limits; its ClientWelcome brings them, these are the defaults."""

    prompt_bytes: int = PROMPT_BYTES
    file_bytes: int = FILE_BYTES
    task_bytes: int = TASK_BYTES
    task_files: int = TASK_FILES


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A context file as it was when it was read."""

    name: str  # relative to the root, with forward slashes
    data: bytes


def body_of(data: bytes) -> Body:
    """The body that names `data`; the bytes themselves travel inline or as a blob."""
    return Body(hashlib.sha256(data).digest(), len(data))


def check_prompt(prompt: str | bytes, limits: InputLimits) -> bytes:
    """The prompt's bytes; KoubouError (bad_input) if it is empty, not UTF-8, holds NUL or is over the limit."""
    try:
        # Arguments that were not UTF-8 arrive with their bytes escaped: they are named like a file's.
        data = prompt if isinstance(prompt, bytes) else prompt.encode("utf-8", "surrogateescape")
        text = data.decode("utf-8")
    except UnicodeError as error:
        raise _bad(f"the prompt is not UTF-8 ({_place(error)})", "save it as UTF-8 and submit again") from error
    if "\0" in text:
        raise _bad("the prompt holds a NUL character", "a prompt is text: remove it")
    if not text.strip():
        raise _bad("the prompt is empty", "say what is to be done")
    if len(data) > limits.prompt_bytes:
        raise _too_large("the prompt", len(data), limits.prompt_bytes, "prompt_bytes")
    return data


def read_context(
    paths: Sequence[str], root: Path, limits: InputLimits, *, allow_secrets: bool = False
) -> tuple[ContextFile, ...]:
    """The files at `paths` below `root`, in the given order.

    Raises KoubouError (bad_input, too_large) for what is missing, outside, linked, special, binary, too large or
    looks like a secret.
    """
    if len(paths) > limits.task_files:
        raise _bad(f"{len(paths)} files, at most {limits.task_files} are allowed", "split the task")
    files: list[ContextFile] = []
    for path in paths:
        name = _relative_name(path)
        if any(file.name == name for file in files):
            raise _bad(f"{path}: named twice", "name each file once")
        data = read_regular_file(root, name, limits.file_bytes)
        if b"\0" in data:
            raise _bad(f"{path}: holds NUL bytes, so it is no text", "context files are text")
        if not allow_secrets and (secret := secret_scan.find_secret(name, data)):
            raise _bad(f"{path}: looks like a secret ({secret})", "leave it out, or add --allow-secrets")
        files.append(ContextFile(name, data))
    total = sum(len(file.data) for file in files)
    if total > limits.task_bytes:
        raise _too_large("the files together", total, limits.task_bytes, "task_bytes")
    return tuple(files)


def read_regular_file(root: Path, name: str, most_bytes: int) -> bytes:
    """The bytes of `root/name`, where no part of `name` is a symbolic link and the end is an ordinary file."""
    path = root / name
    # Each part is looked at before it is opened: a link could lead anywhere, a FIFO would wait for ever.
    walked, status = root, root.lstat()
    for part in Path(name).parts:
        walked = walked / part
        try:
            status = walked.lstat()
        except FileNotFoundError as error:
            raise _bad(f"{name}: no such file (looked in {root})", "check the name") from error
        except OSError as error:
            raise _bad(f"{name}: {error.strerror}", "check that it can be read") from error
        if stat.S_ISLNK(status.st_mode):
            raise _bad(f"{name}: {walked} is a symbolic link", "name the real file")
    if stat.S_ISDIR(status.st_mode):
        raise _bad(f"{name}: is a folder", "name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise _bad(f"{name}: is no ordinary file", "only ordinary files can be context")
    if status.st_size > most_bytes:
        raise _too_large(name, status.st_size, most_bytes, "file_bytes")
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise _bad(f"{name}: {error.strerror}", "check that you may read it") from error
    if len(data) > most_bytes:
        raise _too_large(name, len(data), most_bytes, "file_bytes")
    return data


def _relative_name(path: str) -> str:
    name = path.replace(os.sep, "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if fault := name_fault(name):
        raise _bad(f"{path}: {fault}", "name files relative to the repository's root (--root)")
    return name


def _place(error: UnicodeError) -> str:
    return f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else "it holds half a character"


def _bad(message: str, hint: str) -> KoubouError:
    return KoubouError(Code.BAD_INPUT, message, hint)


def _too_large(what: str, size: int, most: int, setting: str) -> KoubouError:
    return KoubouError(
        Code.TOO_LARGE,
        f"{what}: {size} bytes, at most {most} are allowed (limit {setting})",
        "split it, or ask the operator to raise the limit in broker.yaml",
    )
