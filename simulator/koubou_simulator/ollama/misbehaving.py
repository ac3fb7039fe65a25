"""Faults on the wire and in place of an answer: what they do to a reply."""

from .errors import BUSY, CANCELED, RUNNER_GONE, TOO_LONG, Gone, Refusal, not_found
from .faults import Fault, FaultKind
from .server import Connection
from .wire import JSON_TYPE, Link, Reply, Request
from .world import World


def broken_reply(fault: Fault, reply: Reply, *, request: Request, connection: Connection, world: World) -> Reply | None:
    """A reply whose bytes the fault spoils; None if the fault itself was the answer. Raises Gone."""
    match fault.kind:
        case FaultKind.DRIP | FaultKind.RESET | FaultKind.EOF:
            return Reply(request, _SpoiledLink(fault, connection, world))
        case FaultKind.HANG:
            _until_left(connection, world)
        case FaultKind.HEADERS_HANG:
            reply.head_only(200, JSON_TYPE)
            _until_left(connection, world)
        case FaultKind.INVALID_JSON:
            reply.json(200, b'{"model":"[SIMULATED] not JSON","response":"half an answ')
        case FaultKind.HTML:
            page = "<html><head><title>Proxy</title></head><body>[SIMULATED] not Ollama</body></html>"
            reply.whole(200, page.encode(), "text/html; charset=utf-8")
        case FaultKind.REDIRECT:
            reply.whole(fault.status or 302, b"", "", {"Location": fault.text or "http://192.0.2.1:11434/api/generate"})
        case _:
            raise AssertionError(f"{fault.kind} does not happen on the wire")
    return None


def refusal_of(fault: Fault, model: str) -> Refusal:
    """The error answer a fault stands for."""
    match fault.kind:
        case FaultKind.NOT_FOUND:
            return not_found(model)
        case FaultKind.CONTEXT:
            return Refusal(400, fault.text or TOO_LONG, late=True)
        case FaultKind.CANCELED:
            return Refusal(499, CANCELED)
        case FaultKind.BUSY:
            return Refusal(503, BUSY)
        case FaultKind.CRASHED:
            return Refusal(500, RUNNER_GONE, late=True)
        case _:
            return Refusal(fault.status or 500, fault.text or "[SIMULATED] something went wrong")


def _until_left(connection: Connection, world: World) -> None:
    world.wait(connection.left)
    raise Gone


class _SpoiledLink(Link):
    """Sends slowly, or only so many bytes."""

    def __init__(self, fault: Fault, connection: Connection, world: World) -> None:
        self._fault = fault
        self._connection = connection
        self._world = world
        self._sent = 0

    def send(self, data: bytes) -> None:
        if self._fault.kind is FaultKind.DRIP:
            for byte in data:
                self._connection.link.send(bytes([byte]))
                if self._world.wait(self._connection.left, self._world.now_s() + self._fault.delay_s):
                    raise Gone
            return
        left = self._fault.after - self._sent
        if len(data) < left:
            self._connection.link.send(data)
            self._sent += len(data)
            return
        self._connection.link.send(data[:left])
        if self._fault.kind is FaultKind.RESET:
            self._connection.reset()
        else:
            self._connection.drop()
        raise Gone
