"""Logging of broker and agent: one line an event on stderr, as text for people or as JSON for collectors."""

import json
import logging
import os
import sys
import time
from typing import Literal, TextIO

LogFormat = Literal["auto", "text", "json"]

_PACKAGES = ("koubou_agent", "koubou_broker", "koubou_common")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SYSTEMD_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def set_up(level: str, form: LogFormat, stream: TextIO | None = None) -> None:
    """Send what our loggers say to `stream` (stderr)."""
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(form, stream))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries: only what is wrong
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(_LEVELS[level])


def _formatter(form: LogFormat, stream: TextIO) -> logging.Formatter:
    if form == "json":
        return _Json()
    if form == "auto" and os.environ.get("JOURNAL_STREAM") and not stream.isatty():
        return _Journal("%(message)s")  # the journal has its own clock
    return _Text("%(asctime)s %(levelname)-7s %(message)s")


class _Text(logging.Formatter):
    """Local time with its offset, to the millisecond."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        del datefmt
        at = time.localtime(record.created)
        return time.strftime("%Y-%m-%d %H:%M:%S", at) + f".{int(record.msecs):03d}" + time.strftime("%z", at)


class _Journal(logging.Formatter):
    """systemd's `<priority>` in front of each line."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _SYSTEMD_PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "at_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
