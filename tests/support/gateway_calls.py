"""Ask a gateway's door what gemini-repo-cli asks, and read what it would read."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from koubou_agent.gateway import CallPlan, Door, Gateway, Limits

_PATIENCE_S = 30.0  # of the tests: every limit under test is far below it


def a_plan(**changes: object) -> CallPlan:
    """A plan with the defaults of a configured worker."""
    fields: dict[str, object] = {
        "model": "stop",
        "num_ctx": 8192,
        "num_predict": 4096,
        "options": {"temperature": 0.2, "seed": 7},
        "family": "llama",
        "can_think": False,
        "thinking_allowance": 2048,
        "limits": Limits(),
        "ollama_version": (0, 24, 0),
    }
    fields.update(changes)
    return CallPlan(**fields)  # type: ignore[arg-type]  # a builder with defaults


@contextmanager
def a_gateway(url: str) -> Iterator[Gateway]:
    """A started gateway that looks at what is loaded often."""
    gateway = Gateway(url, ps_every_s=0.1)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


@dataclass(frozen=True, slots=True)
class Told:
    """What the CLI was told."""

    status: int
    fields: Mapping[str, object]
    headers: Mapping[str, str]


def cli_body(model: str = "stop", prompt: str = "hello", **fields: object) -> dict[str, object]:
    """The body gemini-repo-cli sends."""
    return {
        "model": model,
        "prompt": prompt,
        "stream": False,
        "options": {"temperature": 0.3, "num_ctx": 4096},
        **fields,
    }


def ask(door: Door, body: object = None, *, method: str = "POST", path: str = "/api/generate") -> Told:
    """One request through the door, answered whole."""
    payload = body if isinstance(body, bytes) else json.dumps(cli_body() if body is None else body).encode()
    return ask_url(door.host_url + path, payload, method=method)


def ask_url(url: str, payload: bytes, *, method: str = "POST") -> Told:
    """One request to any address."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_PATIENCE_S)
    try:
        connection.request(method, parts.path, payload, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            text = response.read()
            return Told(response.status, json.loads(text) if text else {}, dict(response.getheaders()))
    finally:
        connection.close()


class Asking:
    """A request in a thread of its own."""

    def __init__(self, door: Door, body: object = None) -> None:
        self._told: list[Told] = []
        self._thread = threading.Thread(target=lambda: self._told.append(ask(door, body)), daemon=True)
        self._thread.start()

    def told(self) -> Told:
        """Its answer, waited for."""
        self._thread.join(_PATIENCE_S)
        assert self._told, "the gateway did not answer"
        return self._told[0]
