"""A simulated Ollama on which a test moves the time: every order of events is the same in every run."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from koubou_simulator.ollama import ManualClock, SimModel, SimSettings, SimulatedOllama

from .ollama_replay import Exchange, Replayed, Simulated


class Stage:
    """Requests are told apart by the order in which they are made; each is received before the next is sent."""

    def __init__(self, sim: SimulatedOllama) -> None:
        self.sim = sim
        self._server = Simulated(sim)
        self._calls: list[Exchange] = []

    def now_s(self) -> float:
        return self._server.now_s()

    def ask(self, model: str, prompt: str = "hello", **more: Any) -> Exchange:
        """A request for text, not streamed unless said."""
        body = {"model": model, "prompt": prompt, "stream": False} | more
        return self.send("POST", "/api/generate", body)

    def send(self, method: str, path: str, body: object = None) -> Exchange:
        request = {"method": method, "path": path, "body": body}
        call = Exchange(self._server.port, {"label": path, "request": request}, self.now_s)
        self._calls.append(call)
        self.settle()
        return call

    def get(self, path: str) -> Any:
        """The JSON of a reading endpoint; takes no time."""
        call = self.send("GET", path)
        assert call.is_over, f"{path} waits"
        result = call.finish()
        return json.loads(result.body or "".join(result.chunks))

    def hang_up(self, call: Exchange) -> None:
        call.hang_up()
        self.settle()

    def advance(self, seconds_s: float) -> None:
        """Let so much time pass, with everything that happens in it."""
        until_s = self.now_s() + seconds_s
        while self.now_s() < until_s:
            self._server.pass_time(until_s)
            self.settle()

    def finish(self, call: Exchange) -> Replayed:
        """Let time pass until this one has ended."""
        self.until(lambda: call.is_over)
        return call.finish()

    def answer(self, call: Exchange) -> Any:
        """Its JSON; it must not be an error."""
        result = self.finish(call)
        assert result.status == 200, (result.status, result.body)
        return json.loads(result.body or "".join(result.chunks))

    def error(self, call: Exchange) -> tuple[int | None, str]:
        result = self.finish(call)
        return result.status, json.loads(result.body or "".join(result.chunks))["error"]

    def until(self, predicate: Callable[[], bool]) -> None:
        self.settle()
        while not predicate():
            self._server.pass_time(None)
            self.settle()

    def settle(self) -> None:
        self._server.settle(len(self._calls), lambda: sum(not call.is_over for call in self._calls))

    def close(self) -> None:
        for call in self._calls:
            call.finish()


@contextmanager
def a_stage(models: Sequence[SimModel], settings: SimSettings | None = None, seed: int = 0) -> Iterator[Stage]:
    with SimulatedOllama(settings, models, seed, clock=ManualClock()) as sim:
        stage = Stage(sim)
        try:
            yield stage
        finally:
            sim.stop()
            stage.close()
