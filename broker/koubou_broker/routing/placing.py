"""What came of looking for a worker: one, and whom it was chosen among; or why the task waits. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from koubou_broker.routing.score import BESIDE_THE_SCORE
from koubou_broker.routing.strategies import Choice
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import Candidate, Decision, ReasonCount
from koubou_common.reasons import Reason

NAMED = 8  # in a decision: the winner and the next seven
_REASONS_MOST = 32
_PLACEMENT_CHARS = 2_000
_PLACEMENT_REASONS = 7


@dataclass(frozen=True, slots=True)
class Placed:
    """A task has its worker."""

    choice: Choice
    choices: Sequence[Choice]  # all that were available, the winner too
    note: str = ""  # what else spoke
    kept: Sequence[str] = ()  # worker_ids that were free too, but are to go on with the model they have loaded

    @property
    def worker(self) -> LiveWorker:
        """Who gets it."""
        return self.choice.worker


@dataclass(frozen=True, slots=True)
class Held:
    """A task waits."""

    reason: Reason  # BUSY: nobody who could take it has room
    worker_ids: Sequence[str] = ()  # who could take it but for that, where that is of interest


def reason_counts(counted: Mapping[Reason, int]) -> tuple[ReasonCount, ...]:
    """Counts for the wire, the most frequent first; of equal ones, in the order of the alphabet."""
    order = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
    return tuple(ReasonCount(reason, count) for reason, count in order[:_REASONS_MOST] if count)


def placement_text(decision: Decision) -> str:
    """A decision in one line: the rule, the winner, the next, how many were out for which reason."""
    text = f"{decision.rule}; {' > '.join(_named(one) for one in decision.candidates)}"
    if decision.reasons:
        most = decision.reasons[:_PLACEMENT_REASONS]
        text += f"; not: {', '.join(f'{one.count} {one.reason.text}' for one in most)}"
    if decision.note:
        text += f"; {decision.note}"
    return text[:_PLACEMENT_CHARS]


def count_reasons(candidates: Sequence[Candidate]) -> tuple[ReasonCount, ...]:
    """How many of these were out for which reason."""
    return reason_counts(Counter(one.code for one in candidates if one.code is not None))


def _named(one: Candidate) -> str:
    beside = ", ".join(f"{part.name} {part.points:+.0f}" for part in one.parts if part.name in BESIDE_THE_SCORE)
    return f"{one.worker_id} {one.score:.0f}{f' ({beside})' if beside else ''}"
