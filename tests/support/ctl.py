"""koubou-ctl in this process: what it printed and how it ended."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koubou_client.ctl.root import run


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode("utf-8")

    @property
    def data(self) -> Any:
        """What is in the one JSON document on stdout."""
        document = json.loads(self.out)
        assert document["v"] == 1, document
        return document["data"]

    @property
    def error(self) -> dict[str, str]:
        """What is in the last JSON document on stderr."""
        document = json.loads(self.err.splitlines()[-1])
        assert document["v"] == 1, document
        error: dict[str, str] = document["error"]
        return error


class _Stream(io.TextIOWrapper):
    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", write_through=True)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def taken(self) -> bytes:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Ctl:
    """Runs koubou-ctl with one home."""

    home: Path

    def __call__(self, *arguments: str, stdin: bytes = b"", is_terminal: bool = False) -> Ran:
        with _streams(stdin, is_terminal=is_terminal) as (out, err):
            try:
                run(["--home", str(self.home), *arguments])
            except SystemExit as end:
                code = end.code
        assert isinstance(code, int), code
        return Ran(code, out.taken(), err.taken().decode("utf-8"))


@contextmanager
def _streams(stdin: bytes, *, is_terminal: bool) -> Iterator[tuple[_Stream, _Stream]]:
    kept = sys.stdin, sys.stdout, sys.stderr
    out, err = _Stream(is_terminal=is_terminal), _Stream(is_terminal=is_terminal)
    sys.stdin, sys.stdout, sys.stderr = _Stream(stdin), out, err
    try:
        yield out, err
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
