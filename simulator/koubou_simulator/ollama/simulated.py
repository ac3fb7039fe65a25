"""The simulated Ollama: scheduler, models, faults and HTTP put together, to be started inside a program."""

import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from .asking import read_asked
from .catalogue import ps, show, tags
from .control import control
from .errors import Gone, Refusal, not_found
from .faults import ANSWERS, WIRE, Fault, FaultKind, Faults
from .generate import Generation, Outcome, refuse
from .gojson import encode
from .log import LoggedRequest, RequestLog
from .markers import read_marks
from .misbehaving import broken_reply, refusal_of
from .models import SimModel, normal_name, text_models, tiny_models
from .runner import LoadOptions
from .scheduler import Scheduler
from .server import Connection, HttpServer
from .settings import SimSettings
from .wire import Reply, Request
from .world import Clock, Stopped, World

_METHODS: Final = {
    "/": ("GET", "HEAD"),
    "/api/version": ("GET", "HEAD"),
    "/api/status": ("GET",),
    "/api/tags": ("GET", "HEAD"),
    "/api/ps": ("GET",),
    "/api/show": ("POST",),
    "/api/generate": ("POST",),
    "/api/chat": ("POST",),
}
# A real server has these too; nothing here imitates them.
_NOT_SIMULATED: Final = frozenset(
    ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/embed", "/api/embeddings")
)
_LOCAL_NAMES: Final = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS: Final = frozenset(("localhost", "127.0.0.1", "0.0.0.0"))  # noqa: S104 - names, nothing is bound
_OWN_SCHEMES: Final = frozenset(("app", "file", "tauri", "vscode-webview", "vscode-file"))


class SimulatedOllama:
    """Start, use `url`, stop; or `with SimulatedOllama(...) as sim`. Thread-safe."""

    def __init__(
        self,
        settings: SimSettings | None = None,
        models: Sequence[SimModel] | None = None,
        seed: int = 0,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or SimSettings()
        self.models = list(models) if models is not None else [*text_models("tiny"), *tiny_models()]
        self.clock = clock or Clock(self.settings.speed)
        self.world = World(self.clock)
        self.log = RequestLog()
        self.faults = Faults(seed, self._faults_changed)
        self.faults.when_at_once(self._happen)
        self.scheduler = Scheduler(self.world, self.settings, self.faults)
        self.hits: Counter[str] = Counter()
        self._by_name = {normal_name(model.name).lower(): model for model in self.models}
        self._generation = Generation(
            models=self._by_name,
            world=self.world,
            settings=self.settings,
            scheduler=self.scheduler,
            faults=self.faults,
            seed=seed,
        )
        self._server: HttpServer | None = None
        self._stopped = False
        self._helpers: list[threading.Thread] = []

    def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._server = HttpServer(self.settings.host, self.settings.port, self.world, self._handle)
        self.scheduler.start()
        self._server.start()

    def stop(self) -> None:
        """At once, like a server that gets SIGTERM: answers break off in the middle. May be called twice."""
        self.world.close()
        if self._server is not None and not self._stopped:
            self._stopped = True
            self._server.stop()
            self.scheduler.join()
        for helper in self._helpers:
            helper.join(5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        assert self._server is not None, "not started"
        return self._server.port

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.port}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """Every request for text so far, in the order of arrival."""
        return self.log.listed()

    @property
    def begun(self) -> int:
        """Requests read so far, of every kind."""
        return self._server.begun if self._server else 0

    @property
    def attended(self) -> int:
        """Requests being answered whose client is still there."""
        return self._server.attended if self._server else 0

    def state(self) -> Mapping[str, object]:
        runners = self.scheduler.loaded()
        return {
            "simulated": True,
            "mode": self.settings.mode.value,
            "speed": self.clock.speed,
            "now_s": self.world.now_s(),
            "pending": self.scheduler.pending,
            "loads": [{"model": name, "num_ctx": num_ctx} for name, num_ctx in self.scheduler.loads],
            "requests": len(self.log.listed()),
            "hits": dict(self.hits),
            "loaded": [
                {
                    "model": runner.model.name,
                    "num_ctx": runner.num_ctx,
                    "loading": runner.loading,
                    "refs": runner.refs,
                    "slots": len(runner.slots),
                    "active": runner.active,
                    "waiting": runner.waiting,
                    "most_active": runner.most_active,
                }
                for runner in runners
            ],
        }

    def restart(self, down_s: float = 0.0, *, but: Connection | None = None) -> None:
        """All connections drop, nothing is loaded; for `down_s` nothing listens."""
        assert self._server is not None, "not started"
        if down_s > 0:
            self.faults.add(Fault(FaultKind.REFUSE, delay_s=down_s))
        self.scheduler.drop_everything()
        self._server.drop_all(but)

    def kill_runner(self, model: str) -> bool:
        """Kill the model's process in the middle of what it does; /api/ps goes on listing it."""
        runner = self.scheduler.runner(normal_name(model))
        if runner is None:
            runner = self.scheduler.runner(model)
        if runner is not None:
            runner.kill()
        return runner is not None

    def set_speed(self, speed: float) -> None:
        self.clock.set_speed(speed)
        self.world.changed()

    def _handle(self, request: Request, reply: Reply, connection: Connection) -> None:
        if not self._is_allowed(request):
            reply.whole(403, b"", "")
            return
        if request.path.startswith("/_sim/"):
            control(request, reply, connection, self)
            return
        self.hits[request.path] += 1
        if request.method == "POST" and request.path in ("/api/generate", "/api/chat"):
            self._generate(request, reply, connection)
            return
        fault = self.faults.take(WIRE | ANSWERS, path=request.path)
        if fault is not None and fault.kind in ANSWERS:
            refuse(reply, refusal_of(fault, ""), stream=False)
            return
        spoiled = (
            reply
            if fault is None
            else broken_reply(fault, reply, request=request, connection=connection, world=self.world)
        )
        if spoiled is not None:
            self._plain(request, spoiled)

    def _generate(self, request: Request, reply: Reply, connection: Connection) -> None:
        shape = request.path.removeprefix("/api/")
        try:
            asked = read_asked(request.body, "GenerateRequest" if shape == "generate" else "ChatRequest")
        except Refusal as refusal:
            refuse(reply, refusal, stream=False)
            return
        logged = self.log.begin(request.path, asked, self.world.now_s())
        used = reply

        def note(outcome: Outcome) -> None:
            logged.ended = logged.ended or outcome.ended
            logged.status, logged.ended_s = outcome.status, self.world.now_s()
            logged.prompt_tokens, logged.output_tokens = outcome.prompt_tokens, outcome.output_tokens

        try:
            fault = self._wished_fault(asked.prompt) or self.faults.take(
                WIRE | ANSWERS, path=request.path, model=asked.model, prompt=asked.prompt
            )
            if fault is not None:
                logged.ended = f"fault {fault.kind}"
                if fault.kind in ANSWERS:
                    if fault.kind is FaultKind.CRASHED:
                        self.scheduler.crash(normal_name(asked.model))
                    raise refusal_of(fault, asked.model)
                spoiled = broken_reply(fault, reply, request=request, connection=connection, world=self.world)
                if spoiled is None:
                    return
                used = spoiled
            self._generation.answer(asked, shape, used, connection, note)
        except Refusal as refusal:
            note(Outcome(f"error {refusal.status}: {refusal.text}", refusal.status))
            refuse(used, refusal, stream=asked.stream)
        except Gone:
            logged.ended = logged.ended or "hung up"
            raise
        except Stopped:
            logged.ended = "stopped"
            raise
        finally:
            logged.status = logged.status or used.status
            logged.ended_s = logged.ended_s or self.world.now_s()

    def _wished_fault(self, prompt: str) -> Fault | None:
        wished = read_marks(prompt).fault
        return Fault(FaultKind(wished)) if wished in {kind.value for kind in WIRE | ANSWERS} else None

    def _plain(self, request: Request, reply: Reply) -> None:
        methods = _METHODS.get(request.path)
        if methods is None:
            if request.path in _NOT_SIMULATED:
                reply.json(501, encode({"error": f"[SIMULATED] {request.path} is not simulated"}))
            else:
                reply.whole(404, b"404 page not found", "text/plain")
        elif request.method not in methods:
            reply.whole(405, b"405 method not allowed", "text/plain", {"Allow": ", ".join(methods)})
        else:
            self._read_only(request, reply)

    def _read_only(self, request: Request, reply: Reply) -> None:
        match request.path:
            case "/":
                reply.whole(200, b"Ollama is running", "text/plain; charset=utf-8")
            case "/api/version":
                reply.json(200, encode({"version": self.settings.shown_version}))
            case "/api/status":
                cloud = {"disabled": self.settings.no_cloud, "source": "env" if self.settings.no_cloud else "none"}
                reply.json(200, encode({"cloud": cloud}))
            case "/api/tags":
                reply.json(200, tags(self.models, self.faults))
            case "/api/ps":
                with self.world.lock():
                    body = ps(self.scheduler.loaded(), self.world, self.faults)
                reply.json(200, body)
            case _:
                self._show(request, reply)

    def _show(self, request: Request, reply: Reply) -> None:
        try:
            name = read_asked(request.body, "ShowRequest").model
            model = self._by_name.get(normal_name(name).lower())
            if model is None:
                raise not_found(name)
        except Refusal as refusal:
            refuse(reply, refusal, stream=False)
            return
        reply.json(200, show(model))

    def _is_allowed(self, request: Request) -> bool:
        """Only local names reach a loopback server, and no foreign web page does."""
        origin = request.headers.get("origin", "")
        host = request.headers.get("host", "")
        if origin and origin.partition("://")[2] != host:
            parts = urlsplit(origin)
            if parts.scheme not in _OWN_SCHEMES and parts.hostname not in _LOCAL_ORIGINS:
                return False
        return _is_local_name(urlsplit(f"//{host}").hostname or "")

    def _happen(self, number: int, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.REFUSE:
                assert self._server is not None, "not started"
                self._server.refuse()
                if fault.delay_s > 0:
                    self._in_background(lambda: self._end_later(number, fault.delay_s))
            case FaultKind.RESTART:
                self._in_background(lambda: self.restart(fault.delay_s))
            case FaultKind.FOREIGN_CLIENT:
                self._in_background(lambda: self._visit(fault))
            case _:
                raise AssertionError(f"{fault.kind} does not happen at once")

    def _end_later(self, number: int, delay_s: float) -> None:
        self.world.wait(lambda: False, self.world.now_s() + delay_s)
        self.faults.remove(number)

    def _visit(self, fault: Fault) -> None:
        model = self._by_name[normal_name(fault.model or self.models[0].name).lower()]
        num_ctx = fault.num_ctx or self.settings.default_num_ctx // 2
        self.scheduler.acquire(model, LoadOptions(num_ctx=num_ctx), None, lambda: False).release()

    def _in_background(self, act: Callable[[], None]) -> None:
        def run() -> None:
            with suppress(Stopped, Gone, Refusal), self.world.acting():
                act()

        helper = threading.Thread(target=run, name="simulated event", daemon=True)
        self._helpers.append(helper)
        helper.start()

    def _faults_changed(self) -> None:
        self.world.changed()
        if self._server is not None and self.faults.holding(FaultKind.REFUSE) is None:
            self._server.listen()


def _is_local_name(host: str) -> bool:
    if host in ("", "localhost", socket.gethostname().lower()) or host.endswith(_LOCAL_NAMES):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified
