"""YAML with places: every fault of form is one problem at its line and column."""

import os
from pathlib import Path

import pytest

from koubou_common.errors import Code, ConfigError
from koubou_common.yaml_marks import FILE_BYTES_MAX, Document, Problem, parse_document, read_document


def parsed(text: str | bytes) -> Document:
    return parse_document(text.encode() if isinstance(text, str) else text, "f.yaml")


def only_problem(text: str | bytes) -> Problem:
    document = parsed(text)
    assert len(document.problems) == 1, document.problems
    return document.problems[0]


def test_values_and_keys_know_their_places() -> None:
    document = parsed("a: 1\nb:\n  - c: 'x'\n    d: [true, 2.5, null]\n")
    assert document.data == {"a": 1, "b": [{"c": "x", "d": [True, 2.5, None]}]}
    assert document.problems == ()
    place = document.values[("b", 0, "d", 1)]
    assert (place.line, place.column) == (4, 15)
    assert (document.keys[("b", 0, "d")].line, document.keys[("b", 0, "d")].column) == (4, 5)


def test_a_problem_of_what_is_missing_is_shown_at_what_should_hold_it() -> None:
    problem = parsed("a:\n  - b: 1\n").problem(("a", 0, "c"), "is required")
    assert (problem.line, problem.column, problem.path) == (2, 5, "a.0.c")


def test_duplicate_keys_are_all_reported_and_the_first_value_stays() -> None:
    document = parsed("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert document.data == {"a": 1, "b": {"c": 1}}
    assert [str(problem).splitlines()[0] for problem in document.problems] == [
        "f.yaml:2:11: b: duplicate key 'c' (first at line 2)",
        "f.yaml:3:1: duplicate key 'a' (first at line 1)",
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_holds_nothing_and_is_no_fault(text: str) -> None:
    document = parsed(text)
    assert (document.data, document.problems) == (None, ())


def test_anchors_aliases_and_merges_are_read() -> None:
    document = parsed("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nboth: {<<: [*b, {z: 9}]}\nsame: *b\n")
    assert document.problems == ()
    assert document.data == {
        "base": {"x": 1, "y": 2},
        "use": {"x": 1, "y": 3},
        "both": {"x": 1, "y": 2, "z": 9},
        "same": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a:\n\tb: 1\n", 2, 1, "a tab cannot indent YAML"),
        ("a: 'x\n", 2, 1, "a quote is opened and never closed"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document begins here"),
        ("a: [1\n", 2, 1, "expected ',' or ']'"),
        ("a: !!python/object:os.system x\n", 1, 4, "is not allowed"),
        ("a: &a [*a]\n", 1, 4, "contains itself"),
        ("a: &a {<<: *a}\n", 1, 4, "contains itself"),
        ("a: 2026-02-30\n", 1, 4, "cannot be read"),
        ("1: a\n", 1, 1, "the key 1 is not text"),
        ("ab\x07: 1\n", 1, 3, "not allowed in YAML"),
        ("a: *nowhere\n", 1, 4, "undefined alias"),
        ("<<: 3\na: 1\n", 1, 5, "'<<' takes a mapping"),
    ],
)
def test_faults_of_form_have_a_place(text: str, line: int, column: int, message: str) -> None:
    problem = only_problem(text)
    assert (problem.line, problem.column) == (line, column), str(problem)
    assert message in problem.message


def test_text_that_is_not_utf8_is_shown_at_its_first_wrong_byte() -> None:
    problem = only_problem("a: 1\nb: 日".encode() + b"\xff\n")
    assert (problem.line, problem.column) == (2, 5)
    assert "UTF-8" in problem.message


def test_a_byte_order_mark_and_windows_line_ends_do_not_disturb() -> None:
    document = parsed(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert (document.data, document.problems) == ({"a": 1, "b": 2}, ())
    assert document.values[("b",)].line == 2


def test_aliases_that_multiply_are_refused_quickly() -> None:
    rows = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    rows += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert only_problem("\n".join(rows)).message == "too many values"


def test_merges_that_multiply_are_refused_quickly() -> None:
    rows = ["a0: &a0 {x: 1}"]
    rows += [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    assert only_problem("\n".join(rows)).message == "too many values"


def test_values_nested_too_deeply_are_a_problem_and_no_crash() -> None:
    assert "nested too deeply" in only_problem("[" * 100_000).message


def test_the_caret_stands_under_the_character_also_after_wide_ones() -> None:
    document = parsed("a: 1\n工房: [x, y]\n")
    lines = str(document.problem(("工房", 1), "is wrong", "a hint")).splitlines()
    assert lines[0] == "f.yaml:2:9: 工房.1: is wrong"
    assert lines[1] == "     2 | 工房: [x, y]"
    # 工 and 房 take two columns each, so that the caret is two further right than its column says.
    assert lines[2] == "       | " + " " * 10 + "^"
    assert lines[3] == "  hint: a hint"


def test_a_long_line_is_shown_around_its_fault() -> None:
    document = parsed(f"a: [{'x, ' * 500}HERE, {'y, ' * 500}]\n")
    shown = str(document.problem(("a", 500), "is wrong")).splitlines()
    assert len(shown[1]) < 200
    assert shown[1][shown[2].index("^") :].startswith("HERE")


def test_what_would_steer_a_terminal_is_never_printed() -> None:
    document = parsed('"\\e]0;x\\a": 1\n')
    route = next(iter(document.keys))
    assert "\x1b" in str(route[0])
    text = str(document.problem(route, "unknown setting", f"not {route[0]}"))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_missing_file_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(tmp_path / "no.yaml")
    assert caught.value.code is Code.BAD_CONFIGURATION
    assert str(tmp_path / "no.yaml") in caught.value.message
    assert caught.value.hint


def test_a_folder_a_pipe_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        read_document(tmp_path)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_document(huge)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="not an ordinary file"):
            read_document(tmp_path / "pipe")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file, Windows has no modes"
)
def test_a_file_this_account_may_not_read_names_the_command_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert f"chmod u+r {path}" in caught.value.hint
