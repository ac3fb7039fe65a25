"""Who has which version of a model, and which one most can run."""

from collections.abc import Sequence

from koubou_broker.routing.versions import Versions, most_capable
from koubou_broker.routing.workers import LiveWorker
from koubou_common.messages.values import ModelSeen
from support.core_play import a_worker

A, B = "a" * 64, "b" * 64


def holder(worker_id: str, digest: str, *, slots: int = 1, factor: float = 1.0, connected: bool = True) -> LiveWorker:
    worker = LiveWorker(a_worker(worker_id, model="m", slots=slots, factor=factor))
    if connected:
        worker.connect(1, "b1", 0.0, 0)
    worker.models.reported([ModelSeen("m", digest=digest)])
    return worker


def chosen(*groups: Sequence[LiveWorker]) -> str | None:
    return most_capable(groups, "m:latest", lambda worker: worker.settings.performance_factor)


def test_equal_versions_are_no_news() -> None:
    versions = Versions()
    versions.told("w1", {"m:latest": A})
    versions.told("w2", {"m:latest": A, "other:1b": B})
    assert versions.text == ""


def test_a_difference_is_told_with_who_has_what_and_ends_with_it() -> None:
    versions = Versions()
    for worker_id, digest in (("w1", A), ("w2", A), ("w3", B)):
        assert versions.told(worker_id, {"m:latest": digest})
    assert "m:latest is aaaaaaaaaaaa on w1, w2, bbbbbbbbbbbb on w3" in versions.text
    assert not versions.told("w3", {"m:latest": B}), "nothing new"
    versions.told("w3", {"m:latest": A})
    assert versions.text == ""


def test_a_difference_ends_with_the_worker_and_with_the_model() -> None:
    versions = Versions()
    versions.told("w1", {"m:latest": A})
    versions.told("w2", {"m:latest": B})
    assert versions.forget("w2")
    assert versions.text == ""
    versions.told("w2", {"m:latest": B})
    versions.told("w2", {})
    assert versions.text == ""


def test_many_differences_are_told_in_few_words() -> None:
    versions = Versions()
    for nth in range(9):
        versions.told(f"w{nth}", {f"m{one}:1b": A if nth else B for one in range(8)})
    assert "w1, w2, w3 and 5 more" in versions.text
    assert "and 3 more models" in versions.text
    assert len(versions.text) < 800


def test_the_version_with_most_slots_times_factor_is_chosen() -> None:
    slow = [holder("w1", A, factor=0.3), holder("w2", A, factor=0.3)]
    assert chosen([*slow, holder("w3", B)]) == B
    assert chosen([*slow, holder("w3", A, slots=2), holder("w4", B)]) == A


def test_a_worker_that_is_away_counts_only_where_all_are() -> None:
    away = holder("w1", A, slots=9, connected=False)
    assert chosen([away, holder("w2", B)]) == B
    assert chosen([away]) == A


def test_all_groups_must_be_served_by_one_version() -> None:
    first, second, both = holder("w1", A, slots=9), holder("w2", B), holder("w3", B)
    assert chosen([first, both], [second]) == B
    assert chosen([first], [second]) is None


def test_where_nobody_has_told_there_is_none() -> None:
    assert chosen([holder("w1", "")]) == ""
    assert chosen([]) == ""
