"""Which models are loaded: one load at a time, first come first served, eviction when there is no room."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from .errors import BUSY, CANCELED, Gone, Refusal
from .models import SimModel
from .runner import LoadOptions, Runner
from .settings import Mode, SimSettings
from .world import Stopped, World

FOREVER_S: Final = (2**63 - 1) / 1e9
# Families that Ollama runs with one slot whatever the setting says.
_ONE_SLOT: Final = frozenset((
    "lfm2", "lfm2moe", "mllama", "nemotron_h", "nemotron_h_moe",
    "qwen35", "qwen35moe", "qwen3next", "qwen3vl", "qwen3vlmoe",
))  # fmt: skip


class LoadFaults(Protocol):
    """What may go wrong between asking for a model and having it."""

    def load_delay_s(self, model: str) -> float: ...
    def load_failure(self, model: str) -> str: ...
    def eviction_hangs(self, model: str) -> bool: ...
    def cpu_fallback(self, model: str) -> bool: ...


@dataclass(slots=True)
class _Request:
    model: SimModel
    options: LoadOptions
    keep_alive_s: float | None
    gone: Callable[[], bool]
    runner: Runner | None = None
    refusal: Refusal | None = None


class Lease:
    """A request's hold on a loaded model: it is not unloaded before the release."""

    def __init__(self, scheduler: "Scheduler", runner: Runner) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._released = False

    def release(self) -> None:
        """May be called twice: when the client leaves and when its thread has noticed."""
        with self._scheduler.world.lock():
            if not self._released:
                self._released = True
                self._scheduler.released(self.runner)


class Scheduler:
    """Starts its own thread, which does what Ollama's pending loop does; it ends when the world stops."""

    def __init__(self, world: World, settings: SimSettings, faults: LoadFaults) -> None:
        self.world = world
        self._settings = settings
        self._faults = faults
        self._loaded: dict[str, Runner] = {}
        self._pending: deque[_Request] = deque()
        self._in_page_cache: set[str] = set()
        self._memory_back_s = 0.0
        self.loads: list[tuple[str, int]] = []  # every load that was begun: name, num_ctx
        self._thread = threading.Thread(target=self._run, name="simulated scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)

    def acquire(
        self, model: SimModel, options: LoadOptions, keep_alive_s: float | None, gone: Callable[[], bool]
    ) -> Lease:
        """Wait for the model loaded with these options. Raises Gone, Refusal."""
        with self.world.lock():
            self._unload_expired()
            runner = self._loaded.get(model.name)
            if runner is not None and runner.loading:
                # The check whether it fits waits for the load, outside the queue.
                loading = runner
                self.world.wait(lambda: not loading.loading)
                runner = self._loaded.get(model.name)
            if runner is not None and not _needs_reload(runner, options):
                return self._use(runner, keep_alive_s)
            if len(self._pending) >= self._settings.max_queue:
                raise Refusal(503, BUSY)
            request = _Request(model, options, keep_alive_s, gone)
            self._pending.append(request)
            self.world.changed()
            self.world.wait(lambda: request.runner is not None or request.refusal is not None or gone())
            if request.runner is not None:
                return Lease(self, request.runner)
            if gone() or request.refusal is None:
                raise Gone
            raise request.refusal

    def expire(self, model: SimModel) -> None:
        """Unload as soon as nobody uses it: an empty prompt with keep_alive 0."""
        with self.world.lock():
            runner = self._loaded.get(model.name)
            if runner is not None:
                runner.expires_at_s = self.world.now_s()
                self._expire(runner)

    def released(self, runner: Runner) -> None:
        with self.world.lock():
            runner.refs -= 1
            if runner.refs <= 0 and self._loaded.get(runner.model.name) is runner:
                if runner.session_s <= 0:
                    self._unload(runner)
                else:
                    runner.unload_at_s = runner.expires_at_s = self.world.now_s() + runner.session_s
            self.world.changed()

    def loaded(self) -> list[Runner]:
        """As /api/ps lists them, but unsorted."""
        with self.world.lock():
            self._unload_expired()
            shows_loading = self._settings.mode is Mode.LEGACY
            return [runner for runner in self._loaded.values() if shows_loading or not runner.loading]

    @property
    def pending(self) -> int:
        return len(self._pending)

    def crash(self, name: str) -> None:
        """The model's process dies and is noticed: it is loaded no more."""
        with self.world.lock():
            runner = self._loaded.get(name)
            if runner is not None:
                self._forget(runner)

    def runner(self, name: str) -> Runner | None:
        with self.world.lock():
            return self._loaded.get(name)

    def drop_everything(self) -> None:
        """The server process ended: its models are gone with it."""
        with self.world.lock():
            for runner in self._loaded.values():
                runner.dead, runner.loading = True, False
            self._loaded.clear()
            self._pending.clear()
            self.world.changed()

    def _run(self) -> None:
        with suppress(Stopped), self.world.acting():
            while True:
                with self.world.lock():
                    self.world.wait(lambda: bool(self._pending))
                    request = self._pending.popleft()
                    if request.gone():
                        continue
                    self._place(request)
                    self.world.changed()

    def _place(self, request: _Request) -> None:
        while not request.gone():
            self._unload_expired()
            runner = self._loaded.get(request.model.name)
            if runner is not None:
                if not _needs_reload(runner, request.options):
                    request.runner = self._use(runner, request.keep_alive_s).runner
                    return
                victim: Runner | None = runner
            elif self._is_full(request):
                victim = self._victim()
            else:
                self._load(request)
                return
            if victim is not None:
                self._evict(victim)

    def _evict(self, victim: Runner) -> None:
        victim.evicting = True
        self._expire(victim)
        name = victim.model.name

        def is_over() -> bool:
            self._unload_expired()
            return self._loaded.get(name) is not victim

        self.world.wait(lambda: not self._faults.eviction_hangs(name))
        while not is_over():
            # A request with keep_alive may arm a timer meanwhile (issue 17408): then that decides.
            armed_s = victim.unload_at_s
            self.world.wait(partial(_differs, is_over, victim, armed_s), armed_s)
        self.world.wait(lambda: False, self._memory_back_s)

    def _load(self, request: _Request) -> None:
        model = request.model
        runner = Runner(
            model,
            request.options,
            world=self.world,
            mode=self._settings.mode,
            slots=1 if model.family in _ONE_SLOT else self._settings.num_parallel,
            fallback=lambda: self._faults.cpu_fallback(model.name),
            busy=lambda: sum(runner.active for runner in list(self._loaded.values())),
        )
        runner.session_s = self._settings.keep_alive_s if request.keep_alive_s is None else request.keep_alive_s
        self._loaded[model.name] = runner
        self.loads.append((model.name, runner.num_ctx))
        share = self._settings.warm_load_share if model.name in self._in_page_cache and model.timing.on_gpu else 1.0
        ready_s = self.world.now_s() + model.timing.load_s * share + self._faults.load_delay_s(model.name)
        self.world.changed()
        self.world.wait(lambda: request.gone() or runner.dead, ready_s)
        runner.loading = False
        failure = self._faults.load_failure(model.name) or _own_failure(model)
        if request.gone() or runner.dead:
            request.refusal = Refusal(499, CANCELED)
            self._forget(runner)
        elif failure:
            request.refusal = Refusal(500, f"llama runner process has terminated: {failure}")
            self._forget(runner)
        else:
            self._in_page_cache.add(model.name)
            request.runner = self._use(runner, request.keep_alive_s).runner

    def _use(self, runner: Runner, keep_alive_s: float | None) -> Lease:
        runner.refs += 1
        runner.unload_at_s = None
        if keep_alive_s is not None and (self._settings.bug_17408 or not runner.evicting):
            runner.session_s = keep_alive_s
        return Lease(self, runner)

    def _expire(self, runner: Runner) -> None:
        runner.session_s = 0.0
        runner.unload_at_s = None
        if runner.refs <= 0:
            self._unload(runner)

    def _unload_expired(self) -> None:
        # Timers are looked at when somebody asks: nobody can tell the difference, and no thread is needed.
        now_s = self.world.now_s()
        for runner in list(self._loaded.values()):
            if runner.unload_at_s is not None and runner.unload_at_s <= now_s:
                self._unload(runner)

    def _unload(self, runner: Runner) -> None:
        self._forget(runner)
        if runner.model.timing.on_gpu:
            self._memory_back_s = self.world.now_s() + self._settings.vram_recovery_s

    def _forget(self, runner: Runner) -> None:
        runner.dead = True
        if self._loaded.get(runner.model.name) is runner:
            del self._loaded[runner.model.name]
        self.world.changed()

    def _is_full(self, request: _Request) -> bool:
        if not self._loaded:
            return False
        if self._settings.max_loaded and len(self._loaded) >= self._settings.max_loaded:
            return True
        if not self._settings.vram_bytes:
            return False
        used = sum(runner.model.memory_bytes(runner.num_ctx) for runner in self._loaded.values())
        wanted = request.model.memory_bytes(min(request.options.num_ctx, request.model.train_ctx))
        return used + wanted > self._settings.vram_bytes

    def _victim(self) -> Runner | None:
        by_age = sorted(self._loaded.values(), key=lambda runner: (runner.session_s, runner.model.blob))
        return next((runner for runner in by_age if runner.refs == 0), by_age[0] if by_age else None)


def _differs(is_over: Callable[[], bool], victim: Runner, armed_s: float | None) -> bool:
    return is_over() or victim.unload_at_s != armed_s


def _needs_reload(runner: Runner, options: LoadOptions) -> bool:
    if runner.dead:
        return True
    if options.num_gpu < 0 or runner.options.num_gpu < 0:
        # "as many layers as fit" is what it was loaded with, or what is asked for now
        return _without_gpu(runner.options) != _without_gpu(options)
    return runner.options != options


def _without_gpu(options: LoadOptions) -> tuple[object, ...]:
    return (options.num_ctx, options.num_batch, options.main_gpu, options.use_mmap, options.num_thread)


def _own_failure(model: SimModel) -> str:
    if not model.broken:
        return ""
    return f"error loading model: missing tensor 'output_norm.weight'\npanic: unable to load model: {blob_path(model)}"


def blob_path(model: SimModel) -> str:
    return f"/var/simulated/blobs/sha256-{model.blob}"
