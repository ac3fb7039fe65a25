"""Every mechanism that keeps a promise, each with a switch that takes it out: the simulation must notice each.

A switch patches the real cores, the real ledger, or asks for a bug of a modelled part (`Bugs`). What it leads to is
a broken promise or, where the world stays safe, waste: `gate.py` holds the two apart and demands one of them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from koubou_agent.core.attempts import Attempts as AgentAttempts
from koubou_agent.core.core import AgentCore
from koubou_agent.core.deliveries import Deliveries
from koubou_agent.effects import SpoolDelete
from koubou_broker import task as broker_task
from koubou_broker.core import Core
from koubou_broker.core.agents import Agents
from koubou_broker.core.attempts import Attempts
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.restore import restore
from koubou_broker.core.state import State
from koubou_broker.core.submissions import Submissions
from koubou_broker.effects import Effect, Lookup, Send
from koubou_broker.routing.grouping import Grouping
from koubou_broker.routing.workers import LiveWorker
from koubou_broker.task import LiveAttempt, Task
from koubou_broker.timers import Timer
from koubou_broker.turns import Ledger, Turn
from koubou_common.messages import Abort, ResultStored, Submitted
from koubou_common.messages.values import AttemptProgress, AttemptState, TaskState
from sim.bugs import Bugs

Switch = Callable[[pytest.MonkeyPatch], Bugs]

_NEVER_S = 1e12
_NO_BUGS = Bugs()


def switched(**wanted: Any) -> Switch:
    """A bug of a modelled part."""
    return lambda patch: Bugs(**wanted)


# The broker: what it takes in.


def idempotency_key(patch: pytest.MonkeyPatch) -> Bugs:
    """Every submission is a new one."""
    original = Submissions.submit

    def submit(self: Any, session: Any, message: Any) -> None:
        fresh = self._state.draw_uid()
        original(self, session, replace(message, idempotency_key=f"{message.idempotency_key}/{fresh}"))

    patch.setattr(Submissions, "submit", submit)
    return _NO_BUGS


def terminal_compare_and_set(patch: pytest.MonkeyPatch) -> Bugs:
    """A success counts whatever state the task is in, and nothing holds a terminal state."""
    patch.setattr(LiveAttempt, "may_succeed", property(lambda self: True))
    patch.setattr(Task, "move", _move_anyhow)
    return _NO_BUGS


def _move_anyhow(self: Any, cause: Any, note: str = "") -> TaskState:
    before: TaskState = self.state
    after = next((state for (_, one), state in broker_task.TRANSITIONS.items() if one is cause), before)
    self.state = after
    return before


def late_success(patch: pytest.MonkeyPatch) -> Bugs:
    """The success of an attempt that was taken back does not count any more."""
    runs = property(lambda self: not self.task.is_over and self.record.state is AttemptState.RUNNING)
    patch.setattr(LiveAttempt, "may_succeed", runs)
    return _NO_BUGS


def attempt_uid(patch: pytest.MonkeyPatch) -> Bugs:
    """An outcome is taken for that of the task's current attempt, whichever it is of."""
    original = Attempts._of

    def of(self: Any, worker: Any, uid: str) -> Any:
        attempt = original(self, worker, uid)
        if attempt is None or not attempt.task.current:
            return attempt
        return self._state.attempts[attempt.task.current]

    patch.setattr(Attempts, "_of", of)
    return _NO_BUGS


def superseded_failure(patch: pytest.MonkeyPatch) -> Bugs:
    """The failure of an attempt that was superseded ends the one that runs."""
    patch.setattr(LiveAttempt, "is_current", property(lambda self: self.task.state is TaskState.RUNNING))
    return _NO_BUGS


# The broker: when it speaks.


def ack_after_commit(patch: pytest.MonkeyPatch) -> Bugs:
    """A submission is acknowledged before it is committed."""
    return _speak_early(patch, lambda effect, turn: isinstance(effect, Send) and isinstance(effect.message, Submitted))


def result_ack_after_commit(patch: pytest.MonkeyPatch) -> Bugs:
    """An agent is told that its outcome is stored before it is committed."""
    return _speak_early(
        patch, lambda effect, turn: isinstance(effect, Send) and isinstance(effect.message, ResultStored)
    )


def repeat_after_commit(patch: pytest.MonkeyPatch) -> Bugs:
    """What is answered from memory does not wait for the commits it rests on."""
    return _speak_early(patch, lambda effect, turn: isinstance(effect, Send) and not turn.has_writes)


def look_up_after_commit(patch: pytest.MonkeyPatch) -> Bugs:
    """A question to the store does not wait for what was decided before it."""
    return _speak_early(patch, lambda effect, turn: isinstance(effect, Lookup))


def _speak_early(patch: pytest.MonkeyPatch, is_early: Callable[[Effect, Turn], bool]) -> Bugs:
    original = Ledger.seal

    def seal(self: Any, turn: Turn) -> Any:
        early = [effect for effect in turn.releases if is_early(effect, turn)]
        turn.releases = [effect for effect in turn.releases if not is_early(effect, turn)]
        batch, released = original(self, turn)
        return batch, [*early, *released]

    patch.setattr(Ledger, "seal", seal)
    # The check of each message as it leaves would notice at once; here the harm itself is to be noticed.
    patch.setattr("sim.process.check_promise", lambda disk, message: None)
    return _NO_BUGS


# The broker: who is alive, what was lost.


def heartbeat_listing(patch: pytest.MonkeyPatch) -> Bugs:
    """A heartbeat counts for all attempts of its worker, listed or not."""
    original = Agents.apply_status

    def renew_all(self: Any, worker: Any, status: Any) -> None:
        said = {one.uid: one for one in status.running}
        held = [uid for uid in worker.attempts if uid not in status.spooled]
        running = tuple(said.get(uid) or AttemptProgress(uid) for uid in sorted(held))
        original(self, worker, replace(status, running=running))

    patch.setattr(Agents, "apply_status", renew_all)
    return _NO_BUGS


def dispatch_number_echo(patch: pytest.MonkeyPatch) -> Bugs:
    """A dispatch under way counts as lost when a status does not list it."""
    original = Agents.apply_status

    def apply_status(self: Any, worker: Any, status: Any) -> None:
        original(self, worker, replace(status, last_dispatch=worker.dispatches))

    patch.setattr(Agents, "apply_status", apply_status)
    return _NO_BUGS


def lease_expiry(patch: pytest.MonkeyPatch) -> Bugs:
    """A silent agent keeps its attempts."""
    patch.setattr(Attempts, "lease_over", lambda self, uid: self._state.timers.set(Timer.LEASE, uid, _NEVER_S))
    return _NO_BUGS


def stretch(patch: pytest.MonkeyPatch) -> Bugs:
    """After the broker stood still, everybody seems to have been silent."""
    patch.setattr(Core, "stretch", lambda self, gap_s, now: [])
    return _NO_BUGS


def restart_grace(patch: pytest.MonkeyPatch) -> Bugs:
    """After a restart, what runs is given up at once."""

    def restored(state: Any, lifecycle: Any, snapshot: Any) -> None:
        restore(state, lifecycle, snapshot)
        for uid in state.attempts:
            if state.timers.due_s(Timer.LEASE, uid) is not None:
                state.timers.set(Timer.LEASE, uid, state.now.mono_s)

    patch.setattr("koubou_broker.core.core.restore", restored)
    return _NO_BUGS


def adoption(patch: pytest.MonkeyPatch) -> Bugs:
    """An attempt that was given up and is found alive is not taken up again."""
    patch.setattr(Lifecycle, "adopted", lambda self, task, attempt: None)
    return _NO_BUGS


# The broker: whom it gives how much.


def free_slot_report(patch: pytest.MonkeyPatch) -> Bugs:
    """The agent's word on its free slots is not listened to."""
    patch.setattr(LiveWorker, "free", property(lambda self: max(0, self.slots - self.in_use) if self.session else 0))
    return _NO_BUGS


def slot_count(patch: pytest.MonkeyPatch) -> Bugs:
    """The broker hands out and the agent starts without counting."""
    patch.setattr(LiveWorker, "free", property(lambda self: 5 if self.session else 0))
    patch.setattr(AgentCore, "_slots", lambda self: 256)
    return _NO_BUGS


def status_numbers(patch: pytest.MonkeyPatch) -> Bugs:
    """A status that was overtaken by a later one counts like any other."""
    patch.setattr(LiveWorker, "is_news", lambda self, sequence: True)
    return _NO_BUGS


def grouping(patch: pytest.MonkeyPatch) -> Bugs:
    """A worker takes what comes first, whatever model it has loaded."""
    patch.setattr(Grouping, "keeps", lambda self, worker, head, now_s: False)
    return _NO_BUGS


def patience(patch: pytest.MonkeyPatch) -> Bugs:
    """A loaded model keeps its worker as long as there is anything for it."""
    patch.setattr(Grouping, "_is_due", lambda self, worker, head, now_s: False)
    return _NO_BUGS


def poison_limit(patch: pytest.MonkeyPatch) -> Bugs:
    """A task may kill as many agents as it likes."""
    patch.setattr(broker_task, "DEATHS", frozenset())
    return _NO_BUGS


def backoff(patch: pytest.MonkeyPatch) -> Bugs:
    """What failed is tried again at once."""
    patch.setattr(broker_task, "_backoff_s", lambda failures, settings: 0.0)
    return _NO_BUGS


def abort_of_cancelled(patch: pytest.MonkeyPatch) -> Bugs:
    """No agent is told that an attempt of its is over."""
    original = State.send

    def send(self: Any, session: int, message: Any) -> None:
        if not isinstance(message, Abort):
            original(self, session, message)

    patch.setattr(State, "send", send)
    return _NO_BUGS


def cancel_before_abort(patch: pytest.MonkeyPatch) -> Bugs:
    """A cancel is answered and not recorded."""
    original = Lifecycle.cancelled

    def cancelled(self: Any, task: Any, actor: str, reason: str) -> None:
        before = dict(self._state._records)
        original(self, task, actor, reason)
        self._state._records = before

    patch.setattr(Lifecycle, "cancelled", cancelled)
    return _NO_BUGS


# The agent.


def agent_epoch(patch: pytest.MonkeyPatch) -> Bugs:
    """An agent listens to every broker, whatever its term."""
    original = AgentCore.receive

    def receive(self: Any, message: Any, epoch: int, now: float) -> Any:
        return original(self, message, max(epoch, self._session.epoch), now)

    patch.setattr(AgentCore, "receive", receive)
    return _NO_BUGS


def spool_until_stored(patch: pytest.MonkeyPatch) -> Bugs:
    """The spool is emptied when an outcome was sent, not when it is stored."""
    original = AgentCore.spooled

    def spooled(self: Any, uid: str, now: float) -> list[Any]:
        effects = original(self, uid, now)
        self._deliveries.remove(uid)
        return [*effects, SpoolDelete(uid)]

    patch.setattr(AgentCore, "spooled", spooled)
    return _NO_BUGS


def delivery_again(patch: pytest.MonkeyPatch) -> Bugs:
    """What is not acknowledged is not repeated."""
    original = Deliveries.to_send

    def to_send(self: Any, now: float) -> list[Any]:
        due = original(self, now)
        for delivery in self._by_uid.values():
            if delivery.sends:
                delivery.send_at_s = _NEVER_S
        return due

    patch.setattr(Deliveries, "to_send", to_send)
    patch.setattr(Deliveries, "restart", lambda self, now: None)
    return _NO_BUGS


def doubled_dispatch(patch: pytest.MonkeyPatch) -> Bugs:
    """The agent does not recognise an attempt that it had."""
    patch.setattr(AgentAttempts, "was_here", lambda self, uid: False)
    return _NO_BUGS


def health_again(patch: pytest.MonkeyPatch) -> Bugs:
    """News of a worker's health are said once, and may be lost."""
    original = AgentCore._heartbeat

    def heartbeat(self: Any, now: float) -> Any:
        said = original(self, now)
        self._news_ms = None
        return said

    patch.setattr(AgentCore, "_heartbeat", heartbeat)
    return _NO_BUGS
