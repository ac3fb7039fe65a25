"""Which models a box has loaded, and what it read last."""

from koubou_broker.routing.residency import Residency

A, B, C = "llama3:8b", "gpt-oss:20b", "nomic:latest"


def a_residency(*loaded: str) -> Residency:
    """A box whose agent said what is loaded."""
    residency = Residency()
    residency.reported(loaded)
    return residency


def test_what_was_reported_loaded_is_resident() -> None:
    box = a_residency(A)
    assert box.is_resident(A)
    assert not box.is_resident(B)
    assert not box.would_swap(A)
    assert box.would_swap(B)


def test_a_box_that_unloaded_everything_has_nothing_to_swap() -> None:
    box = a_residency(A)
    box.reported([])
    assert not box.is_resident(A)
    assert not box.would_swap(A)
    assert not box.would_swap(B)


def test_the_model_sent_last_is_resident_at_once_and_what_it_displaces_is_not() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    assert box.is_resident(B)
    assert not box.is_resident(A)
    assert box.would_swap(A)


def test_news_from_before_the_dispatch_took_effect_change_nothing() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    box.reported([A])
    assert box.is_resident(B)
    assert not box.is_resident(A)
    box.reported([])
    assert box.is_resident(B)


def test_a_model_reported_beside_the_one_sent_last_stays() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    box.reported([A, B])
    assert box.is_resident(A)
    assert box.is_resident(B)
    assert box.would_swap(C)


def test_models_once_reported_together_do_not_push_each_other_out() -> None:
    box = a_residency(A, B)
    box.reported([A])
    assert not box.would_swap(B)
    box.dispatched(B, "", 1)
    assert box.is_resident(A)
    assert box.is_resident(B)


def test_models_that_had_no_room_beside_each_other_are_seen_to_swap_again() -> None:
    box = a_residency(A, B)
    box.reported([A])
    box.dispatched(B, "", 1)
    box.reported([B])
    box.reported([A])
    assert box.would_swap(B)


def test_a_model_that_never_came_is_given_up_when_nothing_runs_there() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    box.idle()
    assert box.is_resident(A)
    assert not box.is_resident(B)


def test_an_answer_shows_that_its_model_was_loaded() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    box.answered(B)
    box.idle()
    assert box.is_resident(B)
    assert not box.is_resident(A)


def test_an_answer_of_the_model_before_does_not_hide_the_one_that_is_coming() -> None:
    box = a_residency(A)
    box.dispatched(B, "", 1)
    box.answered(A)
    assert box.is_resident(B)
    assert not box.is_resident(A)


def test_two_spellings_of_a_model_are_one() -> None:
    box = a_residency("library/nomic")
    assert box.is_resident("nomic:latest")
    assert not box.would_swap("nomic")


def test_a_prefix_is_held_until_another_prompt_takes_its_place() -> None:
    box = a_residency(A)
    box.dispatched(A, "p", 1)
    assert box.holds_prefix(A, "p")
    assert not box.holds_prefix(B, "p")
    box.dispatched(A, "", 1)
    assert not box.holds_prefix(A, "p")
    assert not box.holds_prefix(A, "")


def test_as_many_prefixes_are_held_as_there_are_slots_and_use_renews_one() -> None:
    box = a_residency(A)
    for prefix in ("p", "q", "p", "r"):
        box.dispatched(A, prefix, 2)
    assert box.holds_prefix(A, "p")
    assert box.holds_prefix(A, "r")
    assert not box.holds_prefix(A, "q")


def test_it_tells_which_prefixes_a_model_has_read() -> None:
    box = a_residency(A)
    assert box.prefixes_of(A) == frozenset()
    for prefix in ("p", "", "q"):
        box.dispatched(A, prefix, 3)
    assert box.prefixes_of(A) == {"p", "q"}
    assert box.prefixes_of(B) == frozenset()


def test_a_model_that_is_pushed_out_forgets_what_it_read() -> None:
    box = a_residency(A)
    box.dispatched(A, "p", 4)
    box.reported([A])
    box.dispatched(B, "", 4)
    box.dispatched(A, "", 4)
    assert not box.holds_prefix(A, "p")
