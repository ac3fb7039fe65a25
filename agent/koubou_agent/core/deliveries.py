"""Outcomes that the broker has not stored yet: which to write to the spool, which to send, and when again."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from koubou_agent.effects import Failed, Outcome, Success
from koubou_common.messages import Failure, Result
from koubou_common.messages.values import AgentStatus

RESEND_FIRST_S = 6.0  # more than the broker's slowest honest answer: a commit and a round trip
RESEND_CAP_S = 300.0
REWRITE_S = 5.0  # a full disk is tried again as often as the broker hears about it
WINDOW = 16  # sent and unanswered at once: a spool of thousands does not flood a broker that just came back
SENDS_IN_WINDOW = 3  # after so many unanswered sends an outcome lets the others pass it by


class Keeping(Enum):
    """Where an outcome is kept."""

    WRITING = "writing"  # handed to the spool, not confirmed: must not be sent
    DURABLE = "durable"
    MEMORY = "memory"  # the spool's disk refused it


@dataclass(slots=True)
class _Delivery:
    outcome: Outcome
    keeping: Keeping
    sends: int = 0
    send_at_s: float = 0.0
    write_at_s: float = 0.0


class Deliveries:
    """Every outcome from its end until ResultStored, in the order they ended."""

    def __init__(self, spooled: Iterable[Outcome]) -> None:
        self._by_uid = {outcome.attempt_uid: _Delivery(outcome, Keeping.DURABLE) for outcome in spooled}
        self._in_memory: set[str] = set()

    def __contains__(self, uid: str) -> bool:
        return uid in self._by_uid

    def __len__(self) -> int:
        return len(self._by_uid)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_uid)

    @property
    def in_memory(self) -> int:
        """How many outcomes a crash would lose."""
        return len(self._in_memory)

    def in_memory_but(self, uid: str) -> int:
        """How many a crash would lose beside this one."""
        return len(self._in_memory - {uid})

    def is_writing(self) -> bool:
        """Whether the spool still owes an answer."""
        return any(delivery.keeping is Keeping.WRITING for delivery in self._by_uid.values())

    def add(self, outcome: Outcome) -> None:
        """A new outcome, on its way to the spool."""
        assert outcome.attempt_uid not in self._by_uid, f"two outcomes of {outcome.attempt_uid}"
        self._by_uid[outcome.attempt_uid] = _Delivery(outcome, Keeping.WRITING)

    def written(self, uid: str) -> bool:
        """The spool has it; False when the broker was faster."""
        delivery = self._by_uid.get(uid)
        if delivery is None:
            return False
        delivery.keeping = Keeping.DURABLE
        self._in_memory.discard(uid)
        return True

    def refused(self, uid: str, now: float) -> None:
        """The spool's disk would not take it: held in memory, written again later."""
        delivery = self._by_uid.get(uid)
        if delivery is None:
            return
        delivery.keeping = Keeping.MEMORY
        delivery.write_at_s = now + REWRITE_S
        self._in_memory.add(uid)

    def remove(self, uid: str) -> bool:
        """The broker stored it."""
        self._in_memory.discard(uid)
        return self._by_uid.pop(uid, None) is not None

    def restart(self, now: float) -> None:
        """A new session: everything is due."""
        for delivery in self._by_uid.values():
            delivery.sends = 0
            delivery.send_at_s = now

    def to_send(self, now: float) -> list[Outcome]:
        """What is due, and from now counts as sent."""
        due = [delivery for delivery in self._window() if delivery.send_at_s <= now]
        for delivery in due:
            delivery.send_at_s = now + min(RESEND_CAP_S, RESEND_FIRST_S * 2**delivery.sends)
            delivery.sends += 1
            if delivery.sends % SENDS_IN_WINDOW == 0:
                uid = delivery.outcome.attempt_uid
                self._by_uid[uid] = self._by_uid.pop(uid)
        return [delivery.outcome for delivery in due]

    def to_write(self, now: float) -> list[Outcome]:
        """What the spool is to be asked once more to take."""
        due = [self._by_uid[uid] for uid in sorted(self._in_memory) if self._by_uid[uid].write_at_s <= now]
        for delivery in due:
            delivery.write_at_s = now + REWRITE_S
        return [delivery.outcome for delivery in due]

    def next_send_s(self) -> float | None:
        """When `to_send` has something."""
        return min((delivery.send_at_s for delivery in self._window()), default=None)

    def next_write_s(self) -> float | None:
        """When `to_write` has something."""
        return min((self._by_uid[uid].write_at_s for uid in self._in_memory), default=None)

    def _window(self) -> list[_Delivery]:
        sendable = (d for d in self._by_uid.values() if d.keeping is not Keeping.WRITING)
        return list(itertools.islice(sendable, WINDOW))


def to_message(outcome: Outcome, status: AgentStatus) -> Result | Failure:
    """What the broker is told of an outcome."""
    match outcome:
        case Success():
            return Result(
                attempt_uid=outcome.attempt_uid,
                raw=outcome.raw,
                output_offset=outcome.output_offset,
                output_length=outcome.output_length,
                flags=outcome.flags,
                model=outcome.model,
                model_digest=outcome.model_digest,
                metrics=outcome.metrics,
                log=outcome.log,
                status=status,
            )
        case Failed(uid, error_class, message, metrics, log):
            return Failure(uid, error_class, message, metrics, log, status)
        case _:
            assert_never(outcome)
