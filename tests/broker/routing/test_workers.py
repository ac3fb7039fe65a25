"""Slots, models and the breaker of one worker."""

from dataclasses import replace

import pytest

from koubou_broker.core_settings import CoreSettings
from koubou_broker.routing.workers import LiveWorker
from koubou_common.errors import ErrorClass
from koubou_common.messages.values import AgentHealth, Option
from support.core_play import MODEL, a_worker

SETTINGS = CoreSettings(breaker_failures=3, breaker_cooldown_s=60.0)


def a_live_worker(slots: int = 2, free: int | None = None, models: tuple[str, ...] | None = None) -> LiveWorker:
    worker = LiveWorker(a_worker(slots=slots, models=models))
    worker.connect(1, "b1", 0.0, 0)
    worker.heard(0.0, 0)
    worker.health = AgentHealth(ollama_ok=True)
    worker.report([], slots if free is None else free, 0, 0.0)
    return worker


def test_the_smaller_count_of_free_slots_is_offered() -> None:
    assert a_live_worker(slots=2, free=1).free == 1
    assert a_live_worker(slots=2, free=9).free == 2


def test_what_was_sent_since_the_agent_spoke_comes_off_its_own_count() -> None:
    worker = a_live_worker(slots=2, free=1)
    worker.dispatched("u1")
    assert worker.free == 0


def test_the_agents_ceiling_beats_the_file() -> None:
    worker = a_live_worker(slots=4)
    worker.slots_ceiling = 1
    assert (worker.slots, worker.free) == (1, 1)


def test_a_dispatch_takes_a_slot_until_the_agent_speaks_of_it() -> None:
    worker = a_live_worker(slots=2)
    worker.dispatched("u1")
    assert worker.free == 1
    worker.report([], 2, 0, 1.0)  # said before it arrived
    assert worker.free == 1
    worker.report(["u1"], 1, 1, 2.0)
    assert (worker.free, worker.in_use) == (1, 1)
    worker.report([], 2, 1, 3.0)
    assert (worker.free, worker.in_use) == (2, 0)


def test_a_releasing_slot_is_not_offered() -> None:
    worker = a_live_worker(slots=1)
    worker.dispatched("u1")
    worker.report([], 0, 1, 1.0)  # over, and Ollama still busy with it
    assert worker.free == 0


def test_an_attempt_nobody_knows_takes_a_slot_all_the_same() -> None:
    worker = a_live_worker(slots=1)
    worker.report(["stranger"], 1, 0, 1.0)
    assert worker.free == 0


def test_a_given_up_dispatch_frees_its_slot() -> None:
    worker = a_live_worker(slots=1)
    worker.dispatched("u1")
    worker.release("u1")
    assert worker.free == 1


def test_numbers_go_on_where_the_agent_may_still_be() -> None:
    worker = a_live_worker()
    worker.connect(2, "b1", 0.0, 7)
    assert worker.dispatched("u1") == 8


def test_it_is_fed_no_more_after_three_missed_heartbeats() -> None:
    worker = a_live_worker()
    assert worker.is_alive(15.0, SETTINGS)
    assert not worker.is_alive(15.1, SETTINGS)


def test_a_star_worker_has_what_it_reported_and_before_that_perhaps_anything() -> None:
    worker = LiveWorker(a_worker(models=("*",)))
    assert worker.may_have_model("other:7b")
    assert not worker.has_model("other:7b")
    worker.connect(1, "b1", 0.0, 0)
    worker.tags = ("some:7b",)
    assert not worker.may_have_model("other:7b")
    assert worker.has_model("some:7b")


def test_a_listed_model_counts_under_any_spelling() -> None:
    worker = LiveWorker(a_worker(model="", models=("qwen",)))
    assert worker.has_model("qwen:latest")
    assert not worker.has_model("")


def test_a_listed_model_is_absent_once_its_ollama_has_told_others_and_may_come() -> None:
    worker = LiveWorker(a_worker(model="Qwen", models=("qwen", "some:7b")))
    worker.tags = ("some:7b",)
    assert [worker.has_model(name) for name in ("", "qwen:latest", "some:7b")] == [False, False, True]
    assert [worker.may_have_model(name) for name in ("", "qwen:latest", "other:1b")] == [True, True, False]


def test_people_are_told_each_model_once() -> None:
    worker = LiveWorker(a_worker(model="Qwen", models=("*",)))
    worker.tags = ("qwen:latest", "some:7b")
    assert worker.known_models() == ("Qwen", "some:7b")


def test_tags_of_an_older_release_are_read_in_the_one_spelling() -> None:
    worker = LiveWorker(a_worker(models=("*",)))
    worker.restore(replace(worker.record(), models=("Some-GGUF:Q4",), boot_id="b1"))
    assert worker.has_model("some-gguf:q4")


def test_failures_in_a_row_open_the_breaker_and_a_success_closes_it() -> None:
    worker = a_live_worker()
    opened = [worker.note_failure(ErrorClass.OLLAMA_ERROR, "b1", 10.0, SETTINGS) for _ in range(3)]
    assert opened == [False, False, True]
    assert worker.is_cooling(69.9)
    assert not worker.is_cooling(70.0)
    worker.dispatched("trial")
    assert worker.is_cooling(70.0)
    assert worker.note_success()
    assert not worker.is_cooling(70.0)


def test_a_failed_trial_opens_the_breaker_again_at_once() -> None:
    worker = a_live_worker()
    for _ in range(3):
        worker.note_failure(ErrorClass.OLLAMA_ERROR, "b1", 10.0, SETTINGS)
    assert worker.note_failure(ErrorClass.OLLAMA_ERROR, "b1", 80.0, SETTINGS)
    assert worker.is_cooling(139.0)


@pytest.mark.parametrize(
    "error_class",
    [ErrorClass.EMPTY_OUTPUT, ErrorClass.DRAIN, ErrorClass.CONTEXT_OVERFLOW, ErrorClass.INPUTS_UNAVAILABLE],
)
def test_what_does_not_speak_about_the_worker_does_not_count(error_class: ErrorClass) -> None:
    worker = a_live_worker()
    for _ in range(10):
        assert not worker.note_failure(error_class, "b1", 0.0, SETTINGS)
    assert (worker.failed, worker.success_rate) == (0, 1.0)


def test_one_death_counts_once_however_many_attempts_it_took_along() -> None:
    worker = a_live_worker()
    for _ in range(4):
        worker.note_failure(ErrorClass.AGENT_LOST, "b1", 0.0, SETTINGS)
    assert worker.failures_in_row == 1
    worker.note_failure(ErrorClass.AGENT_RESTARTED, "b2", 0.0, SETTINGS)
    assert worker.failures_in_row == 2


def test_the_success_rate_forgets_old_attempts() -> None:
    worker = a_live_worker()
    worker.restore_scores(0, 1_000)
    for _ in range(300):
        worker.note_success()
    assert worker.success_rate > 0.9
    assert (worker.succeeded, worker.failed) == (300, 1_000)


def test_an_agent_is_told_the_default_models_own_options_so_that_it_loads_the_window_tasks_will_ask_for() -> None:
    own = (Option("num_ctx", 16_384),)
    worker = LiveWorker(replace(a_worker("w1"), model_options=((MODEL, own), ("other", (Option("num_ctx", 1_024),)))))
    assert worker.config().default_model_options == own
    assert LiveWorker(a_worker("w1")).config().default_model_options == ()


def test_a_worker_that_has_not_succeeded_yet_is_offered_no_more_than_its_breaker_bears() -> None:
    worker = LiveWorker(a_worker(slots=8), breaker_failures=3)
    worker.connect(1, "b1", 0.0, 0)
    worker.report([], 8, 0, 0.0)
    assert (worker.free, worker.is_doubted) == (3, False)
    for nth in range(3):
        worker.dispatched(f"u{nth}")
    assert (worker.free, worker.is_doubted) == (0, True)
    worker.note_success()
    assert (worker.free, worker.is_doubted) == (5, False)


def test_failures_in_a_row_leave_a_worker_what_the_breaker_leaves() -> None:
    worker = a_live_worker(slots=8)
    worker.restore_scores(100, 0)
    assert worker.free == 8
    for left in (4, 3, 2, 1):
        assert not worker.note_failure(ErrorClass.STALLED, "b1", 0.0, CoreSettings())
        assert worker.free == left
    worker.note_success()
    assert worker.free == 8


def test_a_failure_that_says_nothing_about_the_worker_costs_it_no_trust() -> None:
    worker = a_live_worker(slots=8)
    worker.restore_scores(100, 0)
    worker.note_failure(ErrorClass.EMPTY_OUTPUT, "b1", 0.0, CoreSettings())
    assert worker.free == 8


def test_the_first_failures_weigh_little_and_many_weigh_fully() -> None:
    worker = a_live_worker()
    assert worker.success_rate == 1.0
    worker.note_failure(ErrorClass.STALLED, "b1", 0.0, CoreSettings())
    assert worker.success_rate == 0.75
    worker.restore_scores(0, 100)
    assert worker.success_rate < 0.05
