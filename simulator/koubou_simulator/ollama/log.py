"""Every request for text, as it was understood and how it ended: what tests look at."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from .asking import Asked
from .gojson import Json


@dataclass(slots=True)
class LoggedRequest:
    """`think`, `keep_alive`, `truncate`, `shift` are None where the request did not name them."""

    number: int
    path: str
    model: str
    prompt: str
    system: str
    stream: bool | None
    think: bool | str | None
    truncate: bool | None
    shift: bool | None
    keep_alive: Json
    format: Json
    options: Mapping[str, object] = field(default_factory=dict)
    fields: tuple[str, ...] = ()  # every field the body named
    at_s: float = 0.0
    ended_s: float | None = None
    status: int | None = None
    # "answered", "broken off", "load", "unload", "hung up", "stopped", "fault KIND", "error STATUS: TEXT"
    ended: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0


class RequestLog:
    """Append only; safe to read while requests run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[LoggedRequest] = []

    def begin(self, path: str, asked: Asked, at_s: float) -> LoggedRequest:
        body = asked.body

        def flag(name: str) -> bool | None:
            value = body.get(name)
            return value if isinstance(value, bool) else None

        with self._lock:
            logged = LoggedRequest(
                number=len(self._requests),
                path=path,
                model=asked.model,
                prompt=asked.prompt,
                system=asked.system,
                stream=flag("stream"),
                think=asked.think,
                truncate=flag("truncate"),
                shift=flag("shift"),
                keep_alive=body.get("keep_alive"),
                format=asked.format,
                options=dict(asked.options),
                fields=tuple(body),
                at_s=at_s,
            )
            self._requests.append(logged)
            return logged

    def listed(self) -> list[LoggedRequest]:
        with self._lock:
            return list(self._requests)
