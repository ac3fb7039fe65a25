"""Plays the exchanges recorded from a real Ollama against another server, simulated or real."""

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from koubou_simulator.ollama import ManualClock, SimulatedOllama

from .waiting import eventually

_STEP_S = 0.001
_LOOK_S = 0.00005  # thousands of events are waited for: `eventually` would make seconds of each hundred
_ROUNDING_S = 1e-9
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Replayed:
    """What came back for one recorded exchange; times in the server's seconds from the scenario's beginning."""

    label: str
    started_s: float = 0.0
    ended_s: float | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    chunks: list[str] = field(default_factory=list)
    last_chunk_seen: bool | None = None
    end: str = ""


class Exchange:
    """One request on a connection of its own; a thread reads what comes back."""

    def __init__(self, port: int, recorded: Mapping[str, Any], now_s: Callable[[], float]) -> None:
        self.result = Replayed(recorded["label"], started_s=now_s())
        self._now_s = now_s
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.sendall(_request_bytes(recorded["request"], port))
        self._raw = bytearray()
        self._hung_up = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def hang_up(self) -> None:
        self._hung_up = True
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def finish(self) -> Replayed:
        self._thread.join(_PATIENCE_S)
        assert self.is_over, f"no end: {self.result.label}"
        self._sock.close()
        return self.result

    def _read(self) -> None:
        try:
            while data := self._sock.recv(65536):
                self._raw += data
            end = "closed by server"
        except ConnectionResetError:
            end = "reset by server"
        self.result.ended_s = self._now_s()
        self.result.end = "client hung up" if self._hung_up else end
        if self._raw:
            _parse(bytes(self._raw), self.result)


class Server(Protocol):
    """Who is played against, and the time that counts there."""

    port: int

    def now_s(self) -> float: ...
    def settle(self, begun: int, still_open: Callable[[], int]) -> None: ...
    def pass_time(self, until_s: float | None) -> None: ...
    def act(self, what: str) -> None: ...


class Simulated:
    """A simulator whose clock stands still: time moves from event to event, whatever the machine is busy with."""

    def __init__(self, sim: SimulatedOllama) -> None:
        assert isinstance(sim.clock, ManualClock)
        self.port = sim.port
        self._sim = sim
        self._clock = sim.clock
        self._begun = sim.begun
        self._stopped = False

    def now_s(self) -> float:
        return self._clock.now_s()

    def settle(self, begun: int, still_open: Callable[[], int]) -> None:
        if self._stopped:
            eventually(lambda: still_open() == 0, what="the end of every connection")
            return
        sim = self._sim
        give_up_s = time.monotonic() + _PATIENCE_S
        while not (sim.begun == self._begun + begun and sim.attended == still_open() and sim.world.at_rest):
            assert time.monotonic() < give_up_s, "somebody never rests"
            time.sleep(_LOOK_S)

    def pass_time(self, until_s: float | None) -> None:
        moments = [at_s for at_s in (until_s, self._sim.world.next_event_s) if at_s is not None]
        assert moments, "nothing will ever happen"
        self._clock.advance_to(min(moments))

    def act(self, what: str) -> None:
        if what == "SIGKILL to the runner process":
            assert self._sim.kill_runner("slow")
        else:
            assert what == "SIGTERM to the server", what
            self._sim.stop()
            self._stopped = True


class Real:
    """A server that runs by the wall clock."""

    def __init__(self, port: int) -> None:
        self.port = port

    def now_s(self) -> float:
        return time.monotonic()

    def settle(self, begun: int, still_open: Callable[[], int]) -> None:
        """It is not ours to look into."""

    def pass_time(self, until_s: float | None) -> None:
        left_s = _STEP_S if until_s is None else until_s - time.monotonic()
        time.sleep(min(max(left_s, 0), _STEP_S))

    def act(self, what: str) -> None:
        raise AssertionError(f"not done to a real server: {what}")


def replay(server: Server, record: Mapping[str, Any], before: Mapping[str, Callable[[], None]]) -> list[Replayed]:
    """Play one file; `before[label]` runs before the exchange of that label."""
    recorded, acts = record["exchanges"], record["acts"]
    zero_s = server.now_s()

    def now_s() -> float:
        return server.now_s() - zero_s

    running: list[Exchange | None] = [None] * len(recorded)
    done_acts: list[float | None] = [None] * len(acts)

    def still_open() -> int:
        return sum(exchange is not None and not exchange.is_over for exchange in running)

    def begin(number: int) -> None:
        before.get(recorded[number]["label"], lambda: None)()
        running[number] = Exchange(server.port, recorded[number], now_s)

    def act(number: int) -> None:
        server.act(acts[number]["what"])
        done_acts[number] = now_s()

    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        started = sum(exchange is not None for exchange in running)
        assert time.monotonic() < give_up_s, f"stuck before exchange {started} of: {record['shows']}"
        server.settle(started, still_open)
        happened = _happened(recorded, running, acts, done_acts)
        moments: list[tuple[float, Callable[[], None]]] = []
        for was, exchange in zip(recorded, running, strict=True):
            if exchange is not None and not exchange.is_over and was["end"] == "client hung up":
                moments.append((exchange.result.started_s + was["t_end_ms"] / 1000, exchange.hang_up))
        ahead = [(at_ms["t_ms"], partial(act, n)) for n, at_ms in enumerate(acts) if done_acts[n] is None]
        ahead += [(was["t_start_ms"], partial(begin, n)) for n, was in enumerate(recorded) if running[n] is None]
        if ahead:
            at_ms, do_it = min(ahead, key=lambda event: event[0])
            at_s = _moment(at_ms, happened)
            if at_s is not None:
                moments.append((at_s, do_it))
        elif not still_open():
            break
        first = min(moments, key=lambda moment: moment[0], default=None)
        if first is not None and first[0] <= now_s() + _ROUNDING_S:
            first[1]()
        else:
            server.pass_time(None if first is None else first[0] + zero_s)
    return [exchange.finish() for exchange in running if exchange is not None]


def _happened(
    recorded: list[Any], running: list[Exchange | None], acts: list[Any], done_acts: list[float | None]
) -> list[tuple[float, float | None]]:
    """Every recorded event as (recorded moment, replayed moment or None), in seconds."""
    events: list[tuple[float, float | None]] = [(0.0, 0.0)]
    for was, now in zip(recorded, running, strict=True):
        began_ms = was["t_start_ms"]
        events.append((began_ms / 1000, now.result.started_s if now else None))
        events.append(((began_ms + was["t_end_ms"]) / 1000, now.result.ended_s if now and now.is_over else None))
    events += [(act["t_ms"] / 1000, at_s) for act, at_s in zip(acts, done_acts, strict=True)]
    return events


def _moment(recorded_ms: float, happened: list[tuple[float, float | None]]) -> float | None:
    """As long after the latest earlier event as it was; None while an earlier one is still to come."""
    # A millisecond: what began at once after something ended began after it, whatever the rounding says.
    earlier = [event for event in happened if event[0] <= recorded_ms / 1000 - 0.0001]
    if any(at_s is None for _, at_s in earlier):
        return None
    was_s, is_s = max(((was_s, at_s) for was_s, at_s in earlier if at_s is not None), default=(0.0, 0.0))
    return is_s + recorded_ms / 1000 - was_s


def _request_bytes(request: Mapping[str, Any], port: int) -> bytes:
    body = request["body"]
    raw = b"" if body is None else body.encode("latin-1") if isinstance(body, str) else json.dumps(body).encode()
    headers = {"Host": f"127.0.0.1:{port}", "Accept": "*/*", "Connection": "close"} | request.get("headers", {})
    if body is not None:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(raw))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{request['method']} {request['path']} HTTP/1.1\r\n{lines}\r\n".encode() + raw


def _parse(raw: bytes, result: Replayed) -> None:
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    result.status = int(lines[0].split()[1])
    result.headers = dict(line.split(": ", 1) for line in lines[1:])
    if result.headers.get("Transfer-Encoding") != "chunked":
        result.body = rest.decode()
        return
    result.last_chunk_seen = False
    at = 0
    while at < len(rest):
        line_end = rest.index(b"\r\n", at)
        size = int(rest[at:line_end], 16)
        if size == 0:
            result.last_chunk_seen = True
            return
        result.chunks.append(rest[line_end + 2 : line_end + 2 + size].decode())
        at = line_end + 2 + size + 2
