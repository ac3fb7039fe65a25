"""What the demo shows while it runs: a few lines redrawn on a terminal, else a line for every event."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from koubou_client.ctl.output import clean
from koubou_client.ctl.tables import shorten

_BAR_COLUMNS = 24
_CLEAR_LINE = "\r\x1b[K"
_LINE_UP = "\x1b[1A"


class Screen:
    """Writes to one stream; silent where the result is to be JSON."""

    def __init__(self, stream: TextIO | None = None, *, is_silent: bool = False) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._is_silent = is_silent
        self._is_terminal = self._stream.isatty()
        self._shown = 0
        self._began_s = time.monotonic()
        encoding = (self._stream.encoding or "ascii").lower().replace("-", "")
        self._full, self._rest = ("█", "░") if encoding == "utf8" else ("#", ".")

    def start_clock(self) -> None:
        """Times count from now."""
        self._began_s = time.monotonic()

    @property
    def passed_s(self) -> float:
        """Since the clock was started."""
        return time.monotonic() - self._began_s

    def say(self, text: str = "") -> None:
        """Lines that stay."""
        self._write(self._wiped() + clean(text) + "\n")

    def event(self, text: str, *, is_small: bool = False) -> None:
        """Something happened; what the redrawn lines show anyway is small."""
        if not (is_small and self._is_terminal):
            self.say(f"{self.passed_s:6.1f} s  {text}")

    def show(self, done: int, total: int, summary: str, lines: Sequence[str]) -> None:
        """Redraw the progress; nothing where nobody watches."""
        if not self._is_terminal:
            return
        filled = _BAR_COLUMNS * done // max(1, total)
        bar = self._full * filled + self._rest * (_BAR_COLUMNS - filled)
        columns = shutil.get_terminal_size().columns - 1
        drawn = [f" {bar} {done}/{total}   {self.passed_s:.0f} s   {summary}", *lines]
        text = "".join(shorten(clean(line), columns) + "\n" for line in drawn)
        self._write(self._wiped() + text)
        self._shown = len(drawn)

    def _wiped(self) -> str:
        """What takes the redrawn lines away."""
        shown, self._shown = self._shown, 0
        return (_LINE_UP + _CLEAR_LINE) * shown

    def _write(self, text: str) -> None:
        if not self._is_silent:
            self._stream.write(text)
            self._stream.flush()
