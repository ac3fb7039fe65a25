"""/_sim/*: what tests and demos ask of the simulator itself, over HTTP."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Protocol

from .faults import Fault, Faults, fault_from
from .gojson import BadJson, Json, decode_object, encode
from .log import RequestLog
from .server import Connection
from .wire import Reply, Request


class Controlled(Protocol):
    """The simulated server, as far as its control path reaches."""

    faults: Faults
    log: RequestLog

    def state(self) -> Mapping[str, object]: ...
    def restart(self, down_s: float = 0.0, *, but: Connection | None = None) -> None: ...
    def kill_runner(self, model: str) -> bool: ...
    def set_speed(self, speed: float) -> None: ...


def control(request: Request, reply: Reply, connection: Connection, sim: Controlled) -> None:
    """Answer a control request; mistakes get a 400 that says which."""
    try:
        answer = _act(request, connection, sim)
    except (ValueError, BadJson) as error:
        reply.json(400, encode({"error": f"[SIMULATED] {error}"}))
        return
    if answer is None:
        reply.json(404, encode({"error": f"[SIMULATED] no such control: {request.method} {request.path}"}))
    else:
        reply.json(200, encode(answer))


def _act(request: Request, connection: Connection, sim: Controlled) -> Mapping[str, object] | None:
    values: dict[str, Json] = decode_object(request.body, "Control") if request.body else {}
    match request.method, request.path:
        case "GET", "/_sim/state":
            return sim.state()
        case "GET", "/_sim/requests":
            return {"requests": [asdict(logged) for logged in sim.log.listed()]}
        case "GET", "/_sim/faults":
            return {"faults": {str(number): asdict(fault) for number, fault in sim.faults.listed().items()}}
        case "POST", "/_sim/fault":
            fault: Fault = fault_from(values)
            return {"id": sim.faults.add(fault)}
        case "DELETE", "/_sim/fault":
            sim.faults.remove(int(_number(values, "id")))
            return {}
        case "DELETE", "/_sim/faults":
            sim.faults.clear()
            return {}
        case "POST", "/_sim/restart":
            # This connection lives on: it has to carry the answer.
            sim.restart(_number(values, "down_s", 0.0), but=connection)
            return {}
        case "POST", "/_sim/kill":
            return {"killed": sim.kill_runner(str(values.get("model") or ""))}
        case "POST", "/_sim/speed":
            sim.set_speed(_number(values, "speed"))
            return {}
        case _:
            return None


def _number(values: Mapping[str, Json], name: str, default: float | None = None) -> float:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number")
    return float(value)
