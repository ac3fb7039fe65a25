"""Bugs planted on purpose: each takes one mechanism out, and the simulation must notice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from koubou_agent.core.attempts import Attempts as AgentAttempts
from koubou_agent.core.core import AgentCore
from koubou_agent.core.deliveries import Deliveries
from koubou_agent.effects import SpoolDelete
from koubou_broker.core.agents import Agents
from koubou_broker.core.attempts import Attempts
from koubou_broker.core.lifecycle import Lifecycle
from koubou_broker.core.submissions import Submissions
from koubou_broker.task import LiveAttempt
from koubou_broker.timers import Timer
from koubou_broker.workers import LiveWorker
from sim.broker_node import Bugs

Plant = Callable[[pytest.MonkeyPatch], Bugs]
_NO_BUGS = Bugs()


def speaks_before_it_stores(patch: pytest.MonkeyPatch) -> Bugs:
    """Answers leave when they are made."""
    del patch
    return Bugs(speaks_before_store=True)


def loses_commits(patch: pytest.MonkeyPatch) -> Bugs:
    """One commit in twenty is said to be durable and is not."""
    del patch
    return Bugs(forgets_saves=0.05)


def leases_never_run_out(patch: pytest.MonkeyPatch) -> Bugs:
    """A silent agent keeps its attempts."""
    patch.setattr(Attempts, "lease_over", lambda self, uid: self._state.timers.set(Timer.LEASE, uid, 1e9))
    return _NO_BUGS


def heartbeats_renew_everything(patch: pytest.MonkeyPatch) -> Bugs:
    """A heartbeat counts for all attempts of its worker, listed or not."""
    original = Agents.apply_status

    def renew_all(self: Any, worker: Any, status: Any) -> None:
        held = [uid for uid in worker.attempts if uid not in status.spooled]
        running = tuple(replace_uid(status, uid) for uid in held)
        original(self, worker, replace(status, running=running))

    patch.setattr(Agents, "apply_status", renew_all)
    return _NO_BUGS


def replace_uid(status: Any, uid: str) -> Any:
    """The progress of one attempt, made up where the status has none."""
    from koubou_common.messages.values import AttemptProgress  # noqa: PLC0415 - only this bug needs it

    return next((one for one in status.running if one.uid == uid), AttemptProgress(uid))


def every_submit_is_new(patch: pytest.MonkeyPatch) -> Bugs:
    """The idempotency key is ignored."""
    original = Submissions.submit

    def submit(self: Any, session: Any, message: Any) -> None:
        fresh = self._state.draw_uid()
        original(self, session, replace(message, idempotency_key=f"{message.idempotency_key}/{fresh}"))

    patch.setattr(Submissions, "submit", submit)
    return _NO_BUGS


def a_late_success_counts_always(patch: pytest.MonkeyPatch) -> Bugs:
    """Also when the task is over, or was opened again."""
    patch.setattr(LiveAttempt, "may_succeed", property(lambda self: True))
    return _NO_BUGS


def the_spool_is_emptied_when_sent(patch: pytest.MonkeyPatch) -> Bugs:
    """The agent does not wait for ResultStored."""
    original = AgentCore.spooled

    def spooled(self: Any, uid: str, now: float) -> list[Any]:
        effects = original(self, uid, now)
        self._deliveries.remove(uid)
        return [*effects, SpoolDelete(uid)]

    patch.setattr(AgentCore, "spooled", spooled)
    return _NO_BUGS


def outcomes_are_sent_once(patch: pytest.MonkeyPatch) -> Bugs:
    """What is not acknowledged is not repeated."""
    original = Deliveries.to_send

    def to_send(self: Any, now: float) -> list[Any]:
        due = original(self, now)
        for delivery in self._by_uid.values():
            if delivery.sends:
                delivery.send_at_s = 1e12
        return due

    patch.setattr(Deliveries, "to_send", to_send)
    patch.setattr(Deliveries, "restart", lambda self, now: None)
    return _NO_BUGS


def doubled_dispatches_run_twice(patch: pytest.MonkeyPatch) -> Bugs:
    """The agent does not recognise an attempt it had."""
    patch.setattr(AgentAttempts, "was_here", lambda self, uid: False)
    return _NO_BUGS


def more_than_the_slots(patch: pytest.MonkeyPatch) -> Bugs:
    """The broker hands out and the agent starts without counting."""
    patch.setattr(LiveWorker, "free", property(lambda self: 5 if self.session else 0))
    patch.setattr(AgentCore, "_slots", lambda self: 256)
    return _NO_BUGS


def cancels_are_not_saved(patch: pytest.MonkeyPatch) -> Bugs:
    """A cancel is answered and not recorded."""
    original = Lifecycle.cancelled

    def cancelled(self: Any, task: Any, actor: str, reason: str) -> None:
        before = dict(self._state._records)
        original(self, task, actor, reason)
        self._state._records = before

    patch.setattr(Lifecycle, "cancelled", cancelled)
    return _NO_BUGS


PLANTED: tuple[Plant, ...] = (
    speaks_before_it_stores,
    loses_commits,
    leases_never_run_out,
    heartbeats_renew_everything,
    every_submit_is_new,
    a_late_success_counts_always,
    the_spool_is_emptied_when_sent,
    outcomes_are_sent_once,
    doubled_dispatches_run_twice,
    more_than_the_slots,
    cancels_are_not_saved,
)
