"""The answer made into a file: fences, chatter, and what is left as it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koubou_agent.answer import Answer, extract, same_as_printed

CODE = "def f():\n    return 1"


def output(raw: str, target: str) -> str:
    answer = extract(raw, target)
    return raw.encode()[answer.offset : answer.offset + answer.length].decode()


@pytest.mark.parametrize("raw", ["  text \n", "```python\nx\n```", "Here:\n```\nx\n```\nBye", "濯é\n"])
def test_without_a_target_the_text_is_untouched(raw: str) -> None:
    assert extract(raw, "") == Answer(0, len(raw.encode()), chatty=False, flags=())


@pytest.mark.parametrize("info", ["python", "py", "", "markdown", "python title=x.py", " python "])
@pytest.mark.parametrize("edges", [("", ""), ("\n\n", "\n"), ("  ", "  \n\n")])
def test_one_enclosing_fence_goes_for_any_target_but_markdown(info: str, edges: tuple[str, str]) -> None:
    raw = f"{edges[0]}```{info}\n{CODE}\n```{edges[1]}"
    assert output(raw, "src/a.py") == CODE
    assert extract(raw, "src/a.py").flags == ("fence_removed",)
    assert not extract(raw, "src/a.py").chatty


@pytest.mark.parametrize("info", ["markdown", "md", "Markdown", "MD"])
@pytest.mark.parametrize("target", ["README.md", "docs/a.markdown", "A.MD"])
def test_a_markdown_target_loses_an_enclosing_fence_that_says_markdown(info: str, target: str) -> None:
    assert output(f"```{info}\n# Title\n\ntext\n```\n", target) == "# Title\n\ntext"


@pytest.mark.parametrize("info", ["", "python", "text", "mdx"])
def test_a_markdown_target_keeps_any_other_enclosing_fence(info: str) -> None:
    raw = f"```{info}\n# Title\n```"
    assert output(raw, "README.md") == raw
    assert extract(raw, "README.md").flags == ()


def test_a_markdown_document_with_code_blocks_inside_its_fence_is_taken_whole() -> None:
    document = "# Title\n\n```python\nx = 1\n```\n\nmore\n\n```sh\nls\n```\nend"
    assert output(f"```markdown\n{document}\n```", "a.md") == document


def test_two_markdown_blocks_that_begin_and_end_the_text_are_no_enclosing_fence() -> None:
    raw = "```markdown\nA\n```\nbetween\n```markdown\nB\n```"
    assert output(raw, "a.md") == raw
    assert not extract(raw, "a.md").chatty


def test_prose_around_a_block_is_what_a_markdown_target_is_made_of() -> None:
    raw = "# Title\n\n```python\nx\n```\n\nMore prose."
    assert extract(raw, "a.md") == Answer(0, len(raw), chatty=False, flags=())


@pytest.mark.parametrize(
    ("before", "after"),
    [("Here is the file:\n\n", ""), ("", "\n\nLet me know."), ("Sure!\nHere it is:\n", "\nBye.\n"), ("a\nb\nc\n", "")],
)
def test_one_block_with_at_most_three_short_lines_around_it_is_the_output(before: str, after: str) -> None:
    raw = f"{before}```python\n{CODE}\n```{after}"
    assert output(raw, "a.py") == CODE
    assert extract(raw, "a.py").flags == ("block_taken",)
    assert not extract(raw, "a.py").chatty


@pytest.mark.parametrize(
    "raw",
    [
        f"a\nb\n```python\n{CODE}\n```\nc\nd",  # four lines
        f"{'long ' * 40}\n```python\n{CODE}\n```",  # one long line
        f"```python\n{CODE}\n```\n```python\n{CODE}\n```",  # two blocks
        f"First:\n```python\n{CODE}\n```\nthen:\n```sh\nls\n```",
        f"```python\n{CODE}",  # never closed
        f"Here:\n```python\n{CODE}\n",
        f"```python\n{CODE}\n```\n```python\n",
    ],
)
def test_more_prose_or_more_blocks_stay_as_they_are_and_are_called_chatty(raw: str) -> None:
    assert output(raw, "a.py") == raw.strip()
    assert extract(raw, "a.py").flags == ("chatty",)
    assert extract(raw, "a.py").chatty


def test_an_answer_without_fences_is_the_file() -> None:
    assert extract(CODE, "a.py") == Answer(0, len(CODE), chatty=False, flags=())


def test_blank_lines_at_the_edges_go_and_the_first_line_keeps_its_indentation() -> None:
    assert output(f"\n \n    {CODE}\n\n", "a.py") == f"    {CODE}"


@pytest.mark.parametrize("target", ["a.py", "a.md"])
def test_offsets_count_bytes_of_utf_8(target: str) -> None:
    raw = "\n\n```markdown\n濯é 😀\n```\n"
    assert extract(raw, target).offset == 14
    assert output(raw, target) == "濯é 😀"


def test_a_longer_fence_holds_shorter_ones_and_tildes() -> None:
    inside = "text\n```\nx\n```\n~~~\ny\n~~~"
    assert output(f"````\n{inside}\n````", "a.txt") == inside
    assert output(f"~~~~\n{inside}\n~~~~", "a.txt") == inside


def test_inline_code_and_deeply_indented_marks_are_no_fences() -> None:
    raw = "```inline``` text\n    ```\n    x\n    ```"
    assert extract(raw, "a.txt") == Answer(0, len(raw), chatty=False, flags=())


def test_lines_that_end_in_crlf_are_lines() -> None:
    assert output("Here:\r\n```python\r\nx = 1\r\ny = 2\r\n```\r\n", "a.py") == "x = 1\r\ny = 2"


def test_a_form_feed_or_a_line_separator_ends_no_line() -> None:
    inside = "a\x0c```\u2028```b"
    assert output(f"```\n{inside}\n```", "a.txt") == inside


@pytest.mark.parametrize("raw", ["```python\n```", "```\n\n  \n```", "Here:\n```\n```"])
def test_a_fence_with_nothing_in_it_is_flagged_empty(raw: str) -> None:
    answer = extract(raw, "a.py")
    assert answer.length == 0
    assert "empty" in answer.flags


@settings(max_examples=300, deadline=None)
@given(
    raw=st.lists(
        st.sampled_from(["```", "```python", "~~~", "````", "text", "", "  ", "    ```", "濯", "```md", "\r", "\ud800"])
    ).map("\n".join),
    target=st.sampled_from(["", "a.py", "a.md"]),
)
def test_any_text_gives_a_part_of_itself(raw: str, target: str) -> None:
    answer = extract(raw, target)
    whole = raw.encode("utf-8", "replace")
    assert 0 <= answer.offset <= answer.offset + answer.length <= len(whole)
    whole[answer.offset : answer.offset + answer.length].decode()  # no letter is cut
    assert answer.chatty == ("chatty" in answer.flags)


def test_what_the_cli_prints_is_the_text_stripped_and_one_newline() -> None:
    assert same_as_printed("  x\ny \n\n", b"x\ny\n")
    assert same_as_printed("濯 ", "濯\r\n".encode())
    assert not same_as_printed("x\ny", b"x\n")
    assert not same_as_printed("x", b"\nprefix x\n")
