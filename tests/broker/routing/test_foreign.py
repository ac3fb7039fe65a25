"""Signs that somebody else uses an Ollama, and their end."""

from koubou_broker.routing.foreign import LATE_IN_ROW, LATE_LASTS_S, OURS_S, ForeignLoad


def a_watch(*, since_s: float = 0.0) -> ForeignLoad:
    """Of a session that has just begun, with nothing loaded."""
    watch = ForeignLoad()
    watch.session_begins(since_s)
    watch.reported([], lambda _model: True, since_s)
    return watch


def look(watch: ForeignLoad, now_s: float, *loaded: str, lists: bool = True) -> bool:
    watch.reported(loaded, lambda _model: lists, now_s)
    return watch.is_there


def answer_late(watch: ForeignLoad, times: int, now_s: float = 0.0) -> None:
    for _ in range(times):
        watch.answered(40.0, 1.0, 1, now_s)


def test_a_model_that_nobody_here_asked_for_is_a_sign_until_it_is_gone() -> None:
    watch = a_watch()
    assert look(watch, 1.0, "llama3:8b")
    assert watch.text == "llama3:8b is loaded there, not for this broker"
    assert not look(watch, 2.0)
    assert watch.text == ""


def test_a_model_that_was_sent_there_is_ours_under_every_spelling() -> None:
    watch = a_watch()
    watch.dispatched("Llama3", 1.0)
    assert not look(watch, 2.0, "llama3:latest")


def test_a_dispatch_of_the_strange_model_makes_it_ours_at_once() -> None:
    watch = a_watch()
    assert look(watch, 1.0, "llama3:8b")
    watch.dispatched("llama3:8b", 2.0)
    assert not watch.is_there


def test_what_was_sent_in_this_session_stays_ours_however_long_ollama_keeps_it() -> None:
    watch = a_watch()
    watch.dispatched("llama3:8b", 1.0)
    assert not look(watch, 100 * OURS_S, "llama3:8b")


def test_what_was_sent_before_a_reconnection_is_ours_for_a_while() -> None:
    watch = a_watch()
    watch.dispatched("llama3:8b", 1.0)
    watch.session_begins(100.0)
    assert not look(watch, 100.0, lists=False)
    assert not look(watch, OURS_S, "llama3:8b", lists=False)
    assert look(watch, OURS_S + 2.0, "llama3:8b", lists=False)


def test_a_model_loaded_when_the_session_began_may_be_left_from_our_own_work() -> None:
    watch = ForeignLoad()
    watch.session_begins(0.0)
    assert not look(watch, 0.0, "llama3:8b")
    assert not look(watch, 10 * OURS_S, "llama3:8b"), "OLLAMA_KEEP_ALIVE=-1 keeps it for ever"
    assert not look(watch, 11 * OURS_S)
    assert look(watch, 12 * OURS_S, "llama3:8b"), "it went and came back, and not for us"


def test_a_model_that_the_worker_could_never_be_sent_is_strange_from_the_first_look() -> None:
    watch = ForeignLoad()
    watch.session_begins(0.0)
    assert look(watch, 0.0, "llama3:8b", lists=False)


def test_a_reconnection_does_not_make_a_strange_model_ours() -> None:
    watch = a_watch()
    assert look(watch, 1.0, "llama3:8b")
    watch.session_begins(2.0)
    assert look(watch, 2.0, "llama3:8b")


def test_several_late_first_tokens_in_a_row_are_a_sign() -> None:
    watch = a_watch()
    answer_late(watch, LATE_IN_ROW - 1)
    assert not watch.is_there
    answer_late(watch, 1)
    assert watch.is_there
    assert watch.text == "the last 3 first tokens came late (40 s, about 1.0 s were expected)"


def test_one_in_time_ends_it() -> None:
    watch = a_watch()
    answer_late(watch, LATE_IN_ROW)
    watch.answered(2.0, 1.0, 1, 0.0)
    assert not watch.is_there


def test_it_ends_by_itself_where_no_further_work_comes() -> None:
    watch = a_watch()
    answer_late(watch, LATE_IN_ROW, now_s=10.0)
    assert look(watch, 10.0 + LATE_LASTS_S)
    assert not look(watch, 10.1 + LATE_LASTS_S)


def test_what_explains_itself_is_no_sign() -> None:
    for first_token_s, expected_s, slots in [
        (5.0, 0.1, 1),  # short in itself
        (30.0, 10.0, 1),  # within three times what reading takes
        (40.0, 10.0, 2),  # our own other attempt was read at the same time
        (40.0, 0.0, 1),  # nothing was measured
    ]:
        watch = a_watch()
        for _ in range(2 * LATE_IN_ROW):
            watch.answered(first_token_s, expected_s, slots, 0.0)
        assert not watch.is_there, (first_token_s, expected_s, slots)


def test_both_signs_are_told() -> None:
    watch = a_watch()
    answer_late(watch, LATE_IN_ROW)
    look(watch, 1.0, "a:1b", "b:1b")
    assert watch.text.startswith("a:1b, b:1b are loaded there, not for this broker; the last 3 first tokens")
