"""A decision as it is kept and told."""

from koubou_broker.routing.placing import count_reasons, placement_text, reason_counts
from koubou_common.messages.values import Candidate, Decision, ReasonCount, ScorePart
from koubou_common.reasons import Reason


def a_candidate(worker_id: str, score: float, *parts: ScorePart, code: Reason | None = None) -> Candidate:
    """A worker that was weighed."""
    return Candidate(worker_id, eligible=True, available=code is None, score=score, reason="", code=code, parts=parts)


def test_reasons_are_counted_the_most_frequent_first_and_then_by_name() -> None:
    counted = {Reason.PAUSED: 1, Reason.BUSY: 3, Reason.DRAINING: 1, Reason.AVOIDED: 0}
    assert reason_counts(counted) == (
        ReasonCount(Reason.BUSY, 3),
        ReasonCount(Reason.DRAINING, 1),
        ReasonCount(Reason.PAUSED, 1),
    )


def test_who_is_available_is_out_for_no_reason() -> None:
    weighed = [a_candidate("a", 1.0), a_candidate("b", 1.0, code=Reason.BUSY)]
    assert count_reasons(weighed) == (ReasonCount(Reason.BUSY, 1),)


def test_one_line_tells_rule_order_what_came_beside_the_score_reasons_and_note() -> None:
    decision = Decision(
        strategy="priority_based",
        rule="no rule: all workers",
        candidates=(
            a_candidate("a", 180.0, ScorePart("factor", 100.0), ScorePart("prefix", 12.4)),
            a_candidate("b", 180.0, ScorePart("residency", -53.3), ScorePart("prefix", 2.0)),
        ),
        reasons=(ReasonCount(Reason.BUSY, 2),),
        note="no preferred worker was available",
    )
    assert placement_text(decision) == (
        "no rule: all workers; a 180 (prefix +12) > b 180 (residency -53, prefix +2); not: 2 busy;"
        " no preferred worker was available"
    )
