"""The private folder of one run of gemini-repo-cli: the attempt's files in, its words out."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from koubou_common.errors import Code, RefusedError
from koubou_common.names import name_fault

LOG_TAIL_BYTES = 16 * 1024
STDOUT_MAX_BYTES = 8 * 1024 * 1024  # twice the largest result: what is longer is refused by its size anyway

_PREFIX = "attempt-"
_NAME_MAX_BYTES = 255
_LOG_READ_BYTES = 1024 * 1024  # the interesting lines come last; the first holds the whole prompt
_LINE_MAX_CHARACTERS = 400
_TELLING_CHARACTERS = 12  # a shorter line of a prompt says nothing, and would be found in harmless words
_REMOVE_TRIES = 20  # a child that is just being killed may still write its last file
_REMOVE_PAUSE_S = 0.05

# What a line of the CLI's log may show: its other fields hold the prompt, and paths.
_SHOWN_FIELDS = (
    "level", "name", "event", "status", "reason", "status_code", "provider", "model", "model_name",
    "duration_seconds", "total_duration_seconds", "output_length", "prompt_length", "error",
)  # fmt: skip


class RunFolder:
    """A context: made 0700 with the attempt's files under their relative names, gone on leaving.

    `files` is where the CLI runs and holds nothing else; its output and request lie beside it.
    """

    def __init__(self, work_dir: Path, attempt_uid: str, files: Iterable[tuple[str, bytes]]) -> None:
        uid = re.sub(r"[^0-9A-Za-z]", "", attempt_uid)[:32]
        self._root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{uid}-", dir=work_dir))
        self.files = self._root / "files"
        self.stdout = self._root / "stdout"
        self.stderr = self._root / "stderr"
        self.request = self._root / "request"
        try:
            self.files.mkdir(mode=0o700)
            for name, content in files:
                _write(self.files, checked_name(name), content)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete everything, however often it takes."""
        _remove(self._root)

    def output(self) -> bytes:
        """What the CLI printed, at most STDOUT_MAX_BYTES."""
        try:
            with self.stdout.open("rb") as stream:
                return stream.read(STDOUT_MAX_BYTES)
        except FileNotFoundError:  # it ended before it opened its output
            return b""

    def log_tail(self, prompt: str, host_url: str) -> str:
        """The end of the CLI's log without the prompt, bodies and the gateway's secret address."""
        try:
            with self.stderr.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                start = max(0, size - _LOG_READ_BYTES)
                stream.seek(start)
                raw = stream.read()
        except FileNotFoundError:
            return ""
        lines = raw.decode("utf-8", "replace").replace(host_url, "(gateway)").splitlines()
        if start > 0:
            lines = lines[1:]  # cut in the middle: no telling what it was
        said = [line for line in prompt.splitlines() if len(line) >= _TELLING_CHARACTERS]
        shown = "\n".join(line for line in (_shown(line, said) for line in lines) if line)
        return shown.encode()[-LOG_TAIL_BYTES:].decode("utf-8", "ignore")


def remove_leftovers(work_dir: Path) -> None:
    """Delete the folders of runs that an earlier agent left behind; `work_dir` belongs to one agent."""
    for leftover in work_dir.glob(f"{_PREFIX}*"):
        _remove(leftover)


def checked_name(name: str) -> str:
    """The name of a context file, or RefusedError: relative, inside, and the same on every platform."""
    if fault := name_fault(name):
        raise RefusedError(Code.BAD_INPUT, f"{name!r} cannot be a context file's name: {fault}")
    return name


def _write(folder: Path, name: str, content: bytes) -> None:
    path = folder.joinpath(*name.split("/"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as stream:  # x: two names that are one on this disk must not become one file
            stream.write(content)
    except (FileExistsError, NotADirectoryError) as error:
        raise RefusedError(Code.BAD_INPUT, f"two context files cannot both be there: {name!r}") from error


def _remove(root: Path) -> None:
    for _ in range(_REMOVE_TRIES):
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
        if not root.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)


def _shown(line: str, said: Sequence[str]) -> str:
    """What may be told of a log line: fields by name, and nothing that repeats a line of the prompt."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        return "" if _repeats(line, said) else _clipped(line)
    fields = {key: str(record[key]) for key in _SHOWN_FIELDS if key in record}
    if record.get("exception"):
        fields["exception"] = str(record["exception"]).replace("\\n", "\n").strip().splitlines()[-1]
    words = {key: _clipped(text) for key, text in fields.items() if not _repeats(text, said)}
    return json.dumps(words, ensure_ascii=False) if "event" in words or "exception" in words else ""


def _repeats(text: str, said: Sequence[str]) -> bool:
    return any(line in text for line in said)


def _clipped(text: str) -> str:
    return text if len(text) <= _LINE_MAX_CHARACTERS else text[:_LINE_MAX_CHARACTERS] + "…"
