"""The door of the broker's core: what came in, in; what is to be done, out.

The law: no socket, file, clock, randomness or thread is behind this door. Times come as arguments, draws
are hashes of the seed and a counter: the same inputs give the same effects.
"""

from typing import assert_never

from koubou_broker.core.agents import Agents, protocol
from koubou_broker.core.attempts import Attempts
from koubou_broker.core.cache import ResultCache
from koubou_broker.core.changes import TaskChanges
from koubou_broker.core.dispatching import Dispatching
from koubou_broker.core.explain import Explanations
from koubou_broker.core.guests import make_room
from koubou_broker.core.invariants import check_state
from koubou_broker.core.keys import ALLOWED, PrincipalKeys
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.measuring import Measuring
from koubou_broker.core.requests import Requests
from koubou_broker.core.restore import repair, restore
from koubou_broker.core.state import ALERT_LASTS_S, Refusal, Session, State
from koubou_broker.core.submissions import Submissions
from koubou_broker.core.upkeep import Upkeep
from koubou_broker.core_settings import CoreSettings
from koubou_broker.effects import Effect, Erased, Found, Now, Peer, Snapshot
from koubou_broker.records import Principal
from koubou_broker.routing.strategies import Strategy
from koubou_broker.timers import Timer
from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import (
    AgentHello,
    BackupMade,
    Cancel,
    ClientHello,
    ClientWelcome,
    EndBackup,
    Enrol,
    Explain,
    Failure,
    FromAgent,
    FromClient,
    GetBackupPart,
    GetKeys,
    GetParked,
    GetResult,
    GetStats,
    GetStatus,
    GetStory,
    GetTasks,
    GetWorkers,
    Goodbye,
    Heartbeat,
    Invite,
    MakeBackup,
    Purge,
    Removed,
    RemoveWorker,
    Result,
    Retry,
    RevokeKey,
    SetWorkerMode,
    Submit,
    Watch,
)
from koubou_common.messages.values import Role, TaskState


class Core:
    """Decides everything, does nothing. Each call returns its effects in the order they are to be done."""

    def __init__(
        self, settings: CoreSettings, snapshot: Snapshot, seed: int, now: Now, strategy: Strategy | None = None
    ) -> None:
        """`seed` must be a fresh one for every Core: attempt uids are drawn from it. `strategy`: see TaskRouter."""
        self._state = State(settings, snapshot, seed, now, strategy)
        self._lifecycle = Lifecycle(self._state)
        self._cache = ResultCache(self._state, self._lifecycle)
        self._attempts = Attempts(self._state, self._lifecycle, self._cache)
        self._dispatching = Dispatching(self._state, self._lifecycle, self._attempts)
        self._agents = Agents(self._state, self._lifecycle, self._attempts)
        self._keys = PrincipalKeys(self._state, self._agents)
        self._submissions = Submissions(self._state, self._lifecycle, self._cache)
        self._requests = Requests(self._state, self._lifecycle)
        self._explanations = Explanations(self._state)
        self._changes = TaskChanges(self._state, self._lifecycle)
        self._upkeep = Upkeep(self._state)
        self._measuring = Measuring(self._state)
        restore(self._state, self._lifecycle, snapshot)

    def start(self) -> list[Effect]:
        """Once, first of all: the allow-list, and what the snapshot left in an impossible state."""
        self._keys.start()
        repair(self._state, self._lifecycle)
        self._agents.fail_hopeless()
        self._measuring.start()
        self._agents.check_min_workers()
        return self._state.finish()

    def receive(self, peer: Peer, session: int, message: FromAgent | FromClient, now: Now) -> list[Effect]:
        """A message came; its bodies are durable already, or are written together with this step's Save."""
        self._state.now = now
        try:
            self._receive(peer, session, message)
        except Refusal as refusal:
            self._state.refuse(session, getattr(message, "request_id", ""), refusal)
        return self._finish()

    def found(self, token: int, found: Found, now: Now) -> list[Effect]:
        """The answer to a Lookup, read after all Saves that came before it."""
        self._state.now = now
        self._state.found(token, found)
        return self._finish()

    def not_found(self, token: int, now: Now) -> list[Effect]:
        """A Lookup could not be answered, a bug of ours: who asked is told so."""
        self._state.now = now
        self._state.not_found(token)
        return self._finish()

    def backed_up(self, session: int, principal: str, message: BackupMade, now: Now) -> list[Effect]:
        """The copy that AskBackup asked for was made."""
        self._state.now = now
        self._upkeep.backed_up(session, principal, message)
        return self._finish()

    def erased(self, token: int, done: Erased, now: Now) -> list[Effect]:
        """What this Erase asked for is done and durable, or the disk did not take it."""
        self._state.now = now
        self._upkeep.erased(token, done)
        return self._finish()

    def end_batch(self) -> int:
        """The number of the batch made of all steps since the last call: what `durable` will name."""
        state = self._state
        state.last_batch += 1
        state.sealed.append((state.last_batch, state.unsealed))
        state.unsealed = []
        return state.last_batch

    def durable(self, batch: int, now: Now) -> list[Effect]:
        """This batch and all before it are on disk, its messages leave: leases run from here."""
        state = self._state
        state.now = now
        while state.sealed and state.sealed[0][0] <= batch:
            for uid in state.sealed.popleft()[1]:
                if uid in state.attempts:
                    state.timers.set(Timer.LEASE, uid, now.mono_s + state.settings.lease_s)
        return []

    def closed(self, session: int, now: Now) -> list[Effect]:
        """The server lost or gave up a session. What its agent runs, it still runs: leases decide."""
        self._state.now = now
        self._state.close_session(session)
        return self._finish()

    def tick(self, now: Now) -> list[Effect]:
        """Do what has become due; to be called after all that has arrived was received."""
        state = self._state
        state.now = now
        while (due := state.timers.pop_due(now.mono_s)) is not None:
            self._due(*due)
        return self._finish()

    def stretch(self, gap_s: float, now: Now) -> list[Effect]:
        """Nothing was read for `gap_s`: nobody's silence counts for so long."""
        state = self._state
        state.now = now
        state.timers.stretch(Timer.LEASE, gap_s)
        state.timers.stretch(Timer.SILENCE, gap_s)
        for worker in state.workers.values():
            worker.last_heard_s += gap_s
        state.router.roster.touch_all()
        return []

    @property
    def next_deadline(self) -> float | None:
        """When `tick` is due, by the monotonic clock; None: no need."""
        return self._state.timers.next_s

    def alert(self, code: str, message: str, now: Now, *, lasts_s: float = ALERT_LASTS_S) -> list[Effect]:
        """The server has something to tell people; an empty message ends it."""
        self._state.now = now
        self._state.alert(code, message, lasts_s=lasts_s)
        return self._state.finish()

    def refuse_submits(self, reason: str, retry_after_s: float) -> list[Effect]:
        """Take nothing new, say why; what is there goes on."""
        self._state.refused = (reason, retry_after_s)
        self._state.alert("store_full", reason)
        return self._state.finish()

    def accept_submits(self) -> list[Effect]:
        """Take submissions again."""
        self._state.refused = None
        self._state.alert("store_full", "")
        return self._state.finish()

    def story(self, task_id: int) -> list[str]:
        """What happened to a live task, newest last: for debugging."""
        task = self._state.tasks.get(task_id)
        return list(task.story) if task is not None else []

    def check(self) -> None:
        """Assert that all indexes agree. Costs a pass over everything: for tests and simulation."""
        check_state(self._state)

    def _finish(self) -> list[Effect]:
        self._dispatching.dispatch_ready()
        return self._state.finish()

    def _receive(self, peer: Peer, number: int, message: FromAgent | FromClient) -> None:
        state = self._state
        principal = self._authorised(peer, message)
        if principal.role is Role.REMOVED and isinstance(message, AgentHello):
            state.answer(number, Removed())
            return
        if isinstance(message, Enrol):
            self._keys.enrol(peer, number, message)
            return
        session = state.sessions.get(number)
        if session is not None and session.public_key != peer.public_key:
            session = None
        if isinstance(message, AgentHello | ClientHello):
            proto = protocol(message)
            if isinstance(message, AgentHello) and message.looks_only:
                self._agents.look(principal.name, number, message)
                return
            if session is None:
                session = self._open(principal, number)
            session.proto = proto
        if session is None:
            raise Refusal(Code.HELLO_REQUIRED, "this session is not known here (any more): say hello first")
        session.heard_s = state.now.mono_s
        self._answer(session, message)

    def _authorised(self, peer: Peer, message: FromAgent | FromClient) -> Principal:
        principal = self._state.principals.get(peer.public_key)
        if principal is None:
            raise Refusal(Code.NOT_AUTHORISED, "this key is not on the list")
        if principal.revoked_ms:
            if principal.replaced_by:
                raise Refusal(Code.TOKEN_USED, "this token was used already", "ask the operator for a new one")
            if principal.role is Role.ENROL:
                raise Refusal(Code.TOKEN_INVALID, "this token is not valid any more", "ask for a new one")
            raise Refusal(Code.NOT_AUTHORISED, "this key was revoked", "ask the operator for an invitation")
        if type(message) not in ALLOWED[principal.role]:
            text = f"a key with the role {principal.role} may not send {type(message).__name__}"
            raise Refusal(Code.NOT_AUTHORISED, text)
        return principal

    def _open(self, principal: Principal, number: int) -> Session:
        state = self._state
        state.close_session(number)
        make_room(state, principal.name, principal.role)
        session = Session(number, principal.public_key, principal.name, principal.role, state.now.mono_s)
        state.sessions[number] = session
        self._keys.connected(principal.public_key)
        return session

    def _answer(self, session: Session, message: FromAgent | FromClient) -> None:
        match message:
            case AgentHello():
                self._agents.hello(session, message)
            case Heartbeat() | Result() | Failure() | Goodbye():
                self._from_agent(session, message)
            case ClientHello():
                self._welcome(session)
            case Submit():
                self._submissions.submit(session, message)
            case GetTasks():
                self._requests.tasks(session, message)
            case GetStory():
                self._requests.story(session, message)
            case Explain():
                self._explanations.explain(session, message)
            case GetResult():
                self._requests.result(session, message)
            case Watch():
                self._requests.watch(session, message)
            case Cancel():
                self._changes.cancel(session, message)
            case Retry():
                self._changes.retry(session, message)
            case GetStatus():
                self._requests.status(session, message)
            case GetWorkers():
                self._requests.workers(session, message)
            case GetStats():
                self._requests.stats(session, message)
            case SetWorkerMode():
                self._agents.set_mode(session, message)
            case RemoveWorker():
                self._agents.remove(session, message)
            case Invite():
                self._keys.invite(session, message)
            case GetKeys():
                self._keys.keys(session, message)
            case RevokeKey():
                self._keys.revoke(session, message)
            case MakeBackup() | GetBackupPart() | EndBackup():
                self._upkeep.backup(session, message)
            case Purge():
                self._upkeep.purge(session, message)
            case GetParked():
                self._upkeep.parked(session, message)
            case Enrol():
                raise AssertionError("an enrolment has no session")
            case _:
                assert_never(message)

    def _from_agent(self, session: Session, message: Heartbeat | Result | Failure | Goodbye) -> None:
        worker = self._state.workers[session.name]
        assert worker.session == session.session, f"{session.name}: two sessions"
        self._agents.heard(worker)
        match message:
            case Heartbeat():
                self._agents.heartbeat(worker, message)
            case Result():
                self._attempts.on_result(session.session, worker, message)
                self._agents.apply_status(worker, message.status)
            case Failure():
                self._attempts.on_failure(session.session, worker, message)
                self._agents.apply_status(worker, message.status)
            case Goodbye():
                self._agents.goodbye(worker, message)
            case _:
                assert_never(message)

    def _welcome(self, session: Session) -> None:
        limits = self._state.settings.limits
        self._state.send(
            session.session,
            ClientWelcome(
                proto=session.proto,
                session=session.session,
                principal=session.name,
                role=session.role,
                prompt_bytes=limits.prompt_bytes,
                file_bytes=limits.file_bytes,
                task_bytes=limits.task_bytes,
                task_files=limits.task_files,
                restored_ms=self._state.loss.restored_ms,
                lost_first_id=self._state.loss.first_task_id,
                lost_end_id=self._state.loss.end_task_id,
            ),
        )

    def _due(self, kind: Timer, key: object) -> None:
        state = self._state
        match kind:
            case Timer.LEASE:
                self._attempts.lease_over(str(key))
            case Timer.NOT_BEFORE:
                assert isinstance(key, int), key
                self._lifecycle.make_ready(state.tasks[key])
            case Timer.DEADLINE:
                assert isinstance(key, int), key
                task = state.tasks[key]
                where = "while it ran" if task.state is TaskState.RUNNING else "while it waited"
                self._lifecycle.failed(task, ErrorClass.DEADLINE, f"its deadline passed {where}", "broker")
            case Timer.QUEUE_TIMEOUT:
                assert isinstance(key, int), key
                self._lifecycle.begun_too_late(state.tasks[key])
            case Timer.OVERFLOW | Timer.COOLDOWN | Timer.LOOK_AGAIN:
                pass  # that time has passed is all: dispatch_ready follows every step
            case Timer.SILENCE:
                self._agents.silent(str(key))
            case Timer.ENROLMENT:
                self._keys.expire(str(key))
            case Timer.MIN_WORKERS:
                self._agents.check_min_workers()
            case Timer.ALERT:
                state.alert(str(key), "")
            case Timer.MEASURE:
                self._measuring.measure()
            case _:
                assert_never(kind)
