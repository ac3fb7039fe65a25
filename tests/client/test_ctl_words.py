"""How koubou-ctl writes tables and times, and reads values."""

import click
import pytest

from koubou_client.ctl.ids import Selection, names_batch, parse_batch, parse_ids
from koubou_client.ctl.params import Duration, model_options_of, pairs_of
from koubou_client.ctl.reasons import failure_of, words_of
from koubou_client.ctl.tables import display_width, shorten, table
from koubou_client.ctl.times import age, duration, local_time, rfc3339
from koubou_common.errors import ErrorClass, KoubouError
from koubou_common.messages.values import TaskState
from support.fake_workshop import a_view


def test_columns_line_up_and_numbers_stand_to_the_right() -> None:
    shown = table(("NAME", "N"), [("工房", 7), ("a", 12)])
    assert shown == "NAME   N\n工房   7\na     12"


def test_an_empty_table_is_its_header() -> None:
    assert table(("A", "B"), []) == "A  B"


def test_a_cell_cannot_break_its_row() -> None:
    assert table(("A",), [("x\ny\tz\x1b[1m",)]) == "A\nx y z[1m"


def test_wide_letters_take_two_columns_and_marks_none() -> None:
    assert display_width("工房") == 4
    assert display_width("e\u0301") == 1


def test_text_is_shortened_to_its_columns() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("工房工房", 5) == "工房…"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0 ms"),
        (450, "450 ms"),
        (1_000, "1 s"),
        (131_000, "2 m 11 s"),
        (3_600_000, "1 h"),
        (7_262_000, "2 h 1 m"),
        (90_061_000, "1 d 1 h"),
    ],
)
def test_durations_have_their_two_largest_units(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_what_has_not_come_yet_has_no_time() -> None:
    assert age(0, 5) == "-"
    assert rfc3339(0) is None
    assert rfc3339(1_750_000_000_123) == "2025-06-15T15:06:40.123Z"
    assert len(local_time(1_750_000_000_123)) == 19


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("1.5H", 5400), ("2 d", 172_800)]
)
def test_durations_are_read_with_or_without_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "0", "1w", "nan", "inf", "1e3", "5 5", "99999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_model_options_have_the_types_that_their_values_show() -> None:
    given = ["temperature=0.2", "seed=7", "stop=END", 'stop2=["a", "b"]', "mirostat=true", "name=x=y", "text={}"]
    assert model_options_of(given) == {
        "temperature": 0.2,
        "seed": 7,
        "stop": ["END"],
        "stop2": ["a", "b"],
        "mirostat": True,
        "name": "x=y",
        "text": "{}",
    }
    assert model_options_of(["stop=5"]) == {"stop": ["5"]}
    assert model_options_of(['stop="END"']) == {"stop": ["END"]}


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert pairs_of(["a=b=c", "d="], "--label") == {"a": "b=c", "d": ""}
    with pytest.raises(KoubouError, match="NAME=VALUE"):
        pairs_of(["=x"], "--label")


def test_ids_are_read_as_people_write_them() -> None:
    assert parse_ids(["1-3,7", "b12", "B12.7", "last"]) == (
        Selection((1, 2, 3)),
        Selection((7,)),
        Selection(batch_id=12),
        Selection(batch_id=12, index=7),
        Selection(is_last=True),
    )


def test_a_whole_batch_is_told_from_its_tasks() -> None:
    assert (names_batch(["b12"]), names_batch(["b12.1"]), names_batch(["b1", "b2"]), names_batch(["12"])) == (
        12,
        0,
        0,
        0,
    )
    assert (parse_batch("b12"), parse_batch("12")) == (12, 12)


@pytest.mark.parametrize("error_class", list(ErrorClass))
def test_every_class_of_failure_has_words_and_a_remedy(error_class: ErrorClass) -> None:
    error = failure_of(a_view(7, state=TaskState.FAILED, error_class=error_class, worker_id="lan_001", attempts=2))
    assert words_of(error_class) in error.message
    assert error.hint
    assert "{" not in error.hint


def test_a_task_that_used_up_its_attempts_says_why_and_what_mends_that() -> None:
    task = a_view(
        7,
        state=TaskState.FAILED,
        error_class=ErrorClass.ATTEMPTS_EXHAUSTED,
        error_cause=ErrorClass.OLLAMA_UNREACHABLE,
        error_message="5 attempts failed; the last: ollama_unreachable: connection refused",
    )
    error = failure_of(task)
    assert "(attempts_exhausted): every attempt failed; the last: Ollama did not answer on the worker" in error.message
    assert error.hint == "start it there: ollama serve"


def test_a_task_that_missed_its_deadline_keeps_the_deadlines_remedy() -> None:
    task = a_view(7, state=TaskState.FAILED, error_class=ErrorClass.DEADLINE, error_cause=ErrorClass.OLLAMA_UNREACHABLE)
    assert failure_of(task).hint == "allow more with --deadline"


def test_a_cancelled_task_says_how_to_open_it_again() -> None:
    error = failure_of(a_view(7, state=TaskState.CANCELLED, error_message="cancelled by mika"))
    assert error.message == "task 7 was cancelled: cancelled by mika"
    assert "koubou-ctl retry 7" in error.hint
