"""What agents say of themselves: hello, heartbeats, goodbye; and what operators ask of workers."""

from dataclasses import replace

from koubou_broker.core.attempts import Attempts
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.state import ALERT_LASTS_S, Refusal, Session, State
from koubou_broker.core.views import worker_views
from koubou_broker.effects import Allow, Close
from koubou_broker.routing.versions import Versions
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt
from koubou_broker.timers import Timer
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    PROTO_MAX,
    PROTO_MIN,
    UNASKED,
    Abort,
    AgentHello,
    ClientHello,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Removed,
    RemoveWorker,
    SetWorkerMode,
    Welcome,
    Workers,
)
from koubou_common.messages.values import AbortReason, AgentHealth, AgentStatus, Role, TaskState
from koubou_common.models import normal_model

_MODEL_OPTIONS_SINCE = 2  # version of the protocol: agents of an older one pass Dispatch.model_options over
_VERSIONS = "model_versions"  # the alert's code
_SAVE_EVERY_S = 60.0  # a worker's row, where only its latency and its last health check change


class Agents:
    """Keeps the registry of workers in step with what their agents say."""

    def __init__(self, state: State, lifecycle: Lifecycle, attempts: Attempts) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._attempts = attempts
        self._versions = Versions()

    def hello(self, session: Session, message: AgentHello) -> None:
        """A session begins, or its first message came twice."""
        state = self._state
        proto = protocol(message)
        worker = state.add_worker(session.name)
        repeated = worker.session == session.session and worker.boot_id == message.boot_id
        if not repeated:
            self._replace(worker, session, message)
        state.router.roster.touch(worker.worker_id)
        worker.software, worker.platform = message.software, message.platform
        worker.slots_ceiling = message.slots_ceiling
        worker.heard(state.now.mono_s, state.now.wall_ms)
        windows_moved = worker.models.takes_options(told=proto >= _MODEL_OPTIONS_SINCE)
        if not repeated or not worker.health_sent_ms:
            self._healthy(worker, message.health, windows_moved=windows_moved)
        self._save(worker)
        state.alert(f"silent:{worker.worker_id}", "")
        self._watch_silence(worker)
        state.send(session.session, self._welcome(worker, session.session, message))
        self.apply_status(worker, message.status)
        self.check_min_workers()

    def look(self, worker_id: str, session: int, message: AgentHello) -> None:
        """Somebody with the worker's key looks how things stand; its agent may be at work meanwhile."""
        self._state.answer(session, self._welcome(self._state.add_worker(worker_id), 0, message))

    def heartbeat(self, worker: LiveWorker, message: Heartbeat) -> None:
        """It lives; the attempts it lists are renewed, and no others."""
        state = self._state
        worker.latency_ms = message.latency_ms
        if message.health is not None and message.sent_ms >= worker.health_sent_ms:
            worker.health_sent_ms = message.sent_ms
            self._healthy(worker, message.health)
        for progress in message.status.running:
            attempt = state.attempts.get(progress.uid)
            if attempt is not None:
                attempt.tokens = progress.tokens
        if state.now.mono_s - worker.saved_s >= _SAVE_EVERY_S:
            self._save(worker)
        state.send(worker.session, HeartbeatAck(message.sent_ms, worker.mode))
        self.apply_status(worker, message.status)

    def goodbye(self, worker: LiveWorker, message: Goodbye) -> None:
        """The agent stops: what it has not spooled goes elsewhere at once."""
        state = self._state
        session = worker.session
        self.apply_status(worker, message.status)
        for attempt in self._held(worker):
            if attempt.uid in message.status.spooled:
                continue
            self._gone(attempt, ErrorClass.DRAIN, f"{worker.worker_id} was stopped")
        state.close_session(session)
        state.emit(Close(session))
        state.timers.drop(Timer.SILENCE, worker.worker_id)
        self.check_min_workers()

    def heard(self, worker: LiveWorker) -> None:
        """Any message came in the worker's session."""
        worker.heard(self._state.now.mono_s, self._state.now.wall_ms)
        # Whatever the message goes on to change: it is looked at when the step ends.
        self._state.router.roster.touch(worker.worker_id)
        self._watch_silence(worker)

    def apply_status(self, worker: LiveWorker, status: AgentStatus) -> None:
        """Renew and adopt what is listed, stop what is over, take back what is missing."""
        if not worker.is_news(status.sequence):
            # A result waits until its text is here, heartbeats do not: its slots would be given out twice. Whatever
            # it lists, the later one listed too or said to be gone.
            return
        state = self._state
        session = worker.session
        running = [progress.uid for progress in status.running]
        for uid in running:
            attempt = self._attempt_of(worker, uid)
            if attempt is None:
                self._attempts.look_up_running(session, worker.worker_id, uid)
                continue
            self._attempts.found_alive(worker, attempt)
            if not attempt.may_succeed:
                over = attempt.task.state is TaskState.CANCELLED
                state.send(session, Abort(uid, AbortReason.CANCELLED if over else AbortReason.OVER))
        for uid in status.spooled:
            attempt = self._attempt_of(worker, uid)
            if attempt is not None and attempt.may_succeed:
                self._attempts.found_alive(worker, attempt)
        # The agent's word on its slots counts before anything it lost is given out again.
        worker.report(running, status.free_slots, status.last_dispatch, state.now.mono_s, status.releasing)
        listed = {*running, *status.spooled}
        for attempt in self._held(worker):
            if attempt.uid not in listed and attempt.number <= status.last_dispatch:
                if attempt.record.boot_id != worker.boot_id:
                    said = f"{worker.worker_id} was restarted"
                    self._gone(attempt, ErrorClass.AGENT_RESTARTED, said)
                else:
                    said = f"{worker.worker_id} no longer has it"
                    self._gone(attempt, ErrorClass.AGENT_LOST, said)

    def silent(self, worker_id: str) -> None:
        """A worker may have been silent for a whole lease."""
        state = self._state
        worker = state.workers.get(worker_id)
        if worker is None:
            return
        due_s = worker.last_heard_s + state.settings.lease_s
        if due_s > state.now.mono_s:
            state.timers.set(Timer.SILENCE, worker_id, due_s)
            return
        text = f"{worker_id} stopped answering {state.settings.lease_s:g} s ago; its work goes elsewhere"
        state.alert(f"silent:{worker_id}", text)
        self.check_min_workers()

    def check_min_workers(self) -> None:
        """Tell when fewer workers are there than the settings ask for."""
        state = self._state
        settings = state.settings
        now_s = state.now.mono_s
        if now_s < state.started.mono_s + settings.lease_s:
            # After a start everybody needs a moment to come back.
            state.timers.set(Timer.MIN_WORKERS, "", state.started.mono_s + settings.lease_s)
            return
        there = sum(
            worker.session != 0 and now_s - worker.last_heard_s < settings.lease_s for worker in state.workers.values()
        )
        few = there < settings.min_workers
        text = f"{there} workers are connected, min_workers is {settings.min_workers}" if few else ""
        state.alert("min_workers", text)

    def set_mode(self, session: Session, message: SetWorkerMode) -> None:
        """Pause, resume, drain; its agent hears of it at once, so that a drain hands back what waits there."""
        state = self._state
        worker = self._known(message.worker_id)
        if worker.mode is not message.mode:
            worker.mode = message.mode
            state.router.roster.touch(worker.worker_id)
            self._save(worker)
            state.audit(session.name, "worker_mode", worker.worker_id, message.mode)
            if worker.session:
                state.send(worker.session, HeartbeatAck(UNASKED, worker.mode))
        state.send(session.session, Workers(message.request_id, worker_views(state, [worker])))

    def remove(self, session: Session, message: RemoveWorker) -> None:
        """Its key keeps one right, to be told so; its work goes elsewhere at once."""
        state = self._state
        worker = self._known(message.worker_id)
        self.retire(worker, "was removed", told=True)
        state.audit(session.name, "worker_remove", worker.worker_id)
        state.send(session.session, Workers(message.request_id, worker_views(state, [worker])))
        if self._versions.forget(worker.worker_id):
            state.alert(_VERSIONS, self._versions.text)
        if all(one.worker_id != worker.worker_id for one in state.settings.workers):
            del state.workers[worker.worker_id]
        self.workers_changed()

    def retire(self, worker: LiveWorker, how: str, *, told: bool) -> None:
        """Take a worker's work back and end its session."""
        state = self._state
        session = worker.session
        for key, principal in list(state.principals.items()):
            mine = principal.name == worker.worker_id and principal.role is Role.WORKER
            if told and mine and not principal.revoked_ms:
                state.principals[key] = replace(principal, role=Role.REMOVED)
                state.save(state.principals[key])
                state.emit(Allow(key, principal.name, Role.REMOVED))
        for attempt in self._held(worker):
            self._gone(attempt, ErrorClass.DRAIN, f"{worker.worker_id} {how}")
        state.timers.drop(Timer.SILENCE, worker.worker_id)
        state.alert(f"silent:{worker.worker_id}", "")
        state.alert(f"cooling:{worker.worker_id}", "")
        if session:
            if told:
                state.send(session, Removed())
            state.close_session(session)
            state.emit(Close(session))
        self.check_min_workers()

    def workers_changed(self) -> None:
        """Another set of workers: sort all ready tasks in again, give up those nobody can run any more."""
        state = self._state
        state.router.workers_changed()
        for task_id in list(state.queue):
            self._lifecycle.requeue_bucket(state.tasks[task_id])
        self.fail_hopeless()

    def fail_hopeless(self) -> None:
        """Queued tasks of which every worker that could is excluded."""
        state = self._state
        for task in list(state.tasks.values()):
            if task.state is not TaskState.QUEUED or not task.excluded:
                continue
            need = state.router.need_of(task.spec, task.excluded, task.avoid)
            if not state.router.could_run(need):
                text = f"no worker is left that could run it; ruled out by failures: {', '.join(task.excluded)}"
                self._lifecycle.failed(task, ErrorClass.NO_WORKER_LEFT, text, "broker")

    def _replace(self, worker: LiveWorker, session: Session, message: AgentHello) -> None:
        state = self._state
        now_s = state.now.mono_s
        old = worker.session
        if old and old != session.session:
            state.close_session(old)
            state.emit(Close(old))
        if message.boot_id in worker.old_boot_ids:
            text = f"two agents use the key of {worker.worker_id} in turn: only the newest gets work"
            state.alert(f"twice:{worker.worker_id}", text, lasts_s=ALERT_LASTS_S)
        worker.connect(session.session, message.boot_id, now_s, message.status.last_dispatch)
        for attempt in self._held(worker):
            # Dispatches of earlier sessions are dropped on arrival: what is not listed never will be.
            attempt.number = 0

    def _healthy(self, worker: LiveWorker, health: AgentHealth, *, windows_moved: bool = False) -> None:
        state = self._state
        worker.reported_health(health)
        if health.models or health.ollama_ok:
            # An Ollama that is down reports no models; they are still there.
            tags = tuple(normal_model(model.name) for model in health.models)
            if tags != worker.tags:
                worker.tags = tags
                self._save(worker)
            windows_moved = worker.models.reported(health.models) or windows_moved
            loaded = [model.name for model in health.models if model.loaded]
            worker.foreign.reported(loaded, worker.lists_model, state.now.mono_s)
            listed = {model: one for model, one in worker.models.digests.items() if worker.lists_model(model)}
            if self._versions.told(worker.worker_id, listed):
                state.alert(_VERSIONS, self._versions.text)
        if windows_moved:
            self.workers_changed()

    def _save(self, worker: LiveWorker) -> None:
        worker.saved_s = self._state.now.mono_s
        self._state.save(worker.record())

    def _watch_silence(self, worker: LiveWorker) -> None:
        state = self._state
        due_s = state.now.mono_s + state.settings.lease_s
        state.timers.set(Timer.SILENCE, worker.worker_id, due_s)
        state.alert(f"silent:{worker.worker_id}", "")

    def _held(self, worker: LiveWorker) -> list[LiveAttempt]:
        # Sorted, as a set's order differs between runs and the same inputs must give the same run.
        attempts = [self._state.attempts[uid] for uid in worker.attempts]
        return sorted(attempts, key=lambda one: (one.record.task_id, one.record.number))

    def _attempt_of(self, worker: LiveWorker, uid: str) -> LiveAttempt | None:
        attempt = self._state.attempts.get(uid)
        return attempt if attempt is not None and attempt.record.worker_id == worker.worker_id else None

    def _welcome(self, worker: LiveWorker, session: int, message: AgentHello) -> Welcome:
        settings = self._state.settings
        return Welcome(
            proto=min(message.proto_max, PROTO_MAX),
            session=session,
            worker=worker.config(),
            mode=worker.mode,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
            software=f"koubou-broker {settings.version}".rstrip(),
            now_ms=self._state.now.wall_ms,
        )

    def _gone(self, attempt: LiveAttempt, error_class: ErrorClass, message: str) -> None:
        if attempt.is_current:
            self._attempts.lost(attempt, error_class, message)
        else:
            self._lifecycle.forget(attempt)

    def _known(self, worker_id: str) -> LiveWorker:
        worker = self._state.workers.get(worker_id)
        if worker is None:
            known = ", ".join(self._state.workers) or "none"
            raise Refusal(Code.NOT_FOUND, f"no worker {worker_id!r} is known", f"known are: {known}")
        return worker


def protocol(message: AgentHello | ClientHello) -> int:
    """The protocol version both sides speak."""
    if message.proto_min > PROTO_MAX or message.proto_max < PROTO_MIN:
        theirs = f"{message.proto_min}-{message.proto_max}"
        raise Refusal(
            Code.VERSION,
            f"the broker speaks protocol {PROTO_MIN}-{PROTO_MAX}, this side speaks {theirs}",
            "install the same version of Koubou on both sides",
        )
    return min(message.proto_max, PROTO_MAX)
