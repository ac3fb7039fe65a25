"""What an ending means: every way in which Ollama's success is none, each by its name."""

from dataclasses import replace

import pytest

from koubou_agent.verdict import Asked, End, Observed, judge, plain
from koubou_common.errors import ErrorClass

ASKED = Asked(
    model="qwen3:8b",
    num_ctx=8192,
    num_predict=4096,
    num_predict_wanted=4096,
    prompt_bytes=3000,
    bytes_per_token=None,
    output_bytes_max=1000,
)
GOOD = Observed(
    End.COMPLETE,
    status=200,
    lines=18,
    text="Zebra",
    done=True,
    done_reason="stop",
    prompt_tokens=6,
    eval_tokens=17,
)


def status(code: int, text: str = "") -> Observed:
    return Observed(End.COMPLETE, status=code, error_text=text)


def line(text: str) -> Observed:
    return replace(GOOD, done=False, done_reason="", error_text=text)


def test_only_a_whole_answer_that_stopped_by_itself_is_a_success() -> None:
    assert judge(GOOD, ASKED).error_class is None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Observed(End.UNREACHABLE, detail="refused"), ErrorClass.OLLAMA_UNREACHABLE),
        (Observed(End.NOT_HTTP), ErrorClass.BAD_ANSWER),
        (Observed(End.CUT, detail="reset"), ErrorClass.CONNECTION_LOST),
        (replace(GOOD, end=End.CUT, done=False), ErrorClass.CONNECTION_LOST),
        (replace(GOOD, end=End.TOO_LARGE), ErrorClass.OUTPUT_TOO_LARGE),
        (replace(GOOD, done=False, malformed=True), ErrorClass.BAD_ANSWER),
        (Observed(End.COMPLETE, status=200), ErrorClass.BAD_ANSWER),
        (replace(GOOD, done=False, done_reason=""), ErrorClass.DEGENERATE),
        (replace(GOOD, text=""), ErrorClass.EMPTY_OUTPUT),
        (replace(GOOD, text=" \n"), ErrorClass.EMPTY_OUTPUT),
        (replace(GOOD, done_reason=""), ErrorClass.BAD_ANSWER),
        (replace(GOOD, done_reason="load"), ErrorClass.BAD_ANSWER),
        (replace(GOOD, done_reason="unload"), ErrorClass.BAD_ANSWER),
        (replace(GOOD, done_reason="length", eval_tokens=4096), ErrorClass.CUT_OUTPUT),
        (replace(GOOD, done_reason="length", eval_tokens=0), ErrorClass.CUT_OUTPUT),
        (replace(GOOD, done_reason="length", eval_tokens=4095), ErrorClass.CONTEXT_OVERFLOW),
        (replace(GOOD, done_reason="length", eval_tokens=0, text=""), ErrorClass.CUT_OUTPUT),
    ],
)
def test_every_other_ending_has_a_name(seen: Observed, expected: ErrorClass) -> None:
    verdict = judge(seen, ASKED)
    assert verdict.error_class is expected
    assert verdict.message
    assert not verdict.thought_away


@pytest.mark.parametrize(
    ("prompt", "answer", "reason", "fits"),
    [
        (8000, 192, "stop", True),
        (8000, 193, "stop", True),  # the end token is counted and needs no place
        (8000, 194, "stop", False),
        (8191, 2, "stop", True),
        (8192, 1, "stop", False),  # a prompt that fills the window lost its head
        (8193, 0, "stop", False),
    ],
)
def test_prompt_and_answer_must_fit_the_window_together(prompt: int, answer: int, reason: str, fits: bool) -> None:
    verdict = judge(replace(GOOD, prompt_tokens=prompt, eval_tokens=answer, done_reason=reason), ASKED)
    assert verdict.error_class is (None if fits else ErrorClass.CONTEXT_OVERFLOW)


def test_an_answer_at_its_limit_that_also_ran_over_the_window_is_an_overflow() -> None:
    seen = replace(GOOD, prompt_tokens=5000, eval_tokens=4096, done_reason="length")
    assert judge(seen, ASKED).error_class is ErrorClass.CONTEXT_OVERFLOW


def test_a_cut_at_a_limit_that_the_window_had_shortened_is_an_overflow() -> None:
    asked = replace(ASKED, num_predict=2000)
    seen = replace(GOOD, prompt_tokens=6000, eval_tokens=2000, done_reason="length")
    verdict = judge(seen, asked)
    assert verdict.error_class is ErrorClass.CONTEXT_OVERFLOW
    assert "2000 of 4096" in verdict.message


@pytest.mark.parametrize("count", [4098, 4099])
def test_a_prompt_cut_to_half_of_the_window_is_known_by_its_count_and_its_bytes(count: int) -> None:
    seen = replace(GOOD, prompt_tokens=count)
    assert judge(seen, replace(ASKED, prompt_bytes=40_000)).error_class is ErrorClass.CONTEXT_OVERFLOW
    assert judge(seen, replace(ASKED, prompt_bytes=16_000)).error_class is None  # an honest prompt of that count
    measured = replace(ASKED, prompt_bytes=40_000, bytes_per_token=9.5)
    assert judge(seen, measured).error_class is None
    assert judge(seen, replace(measured, bytes_per_token=4.0)).error_class is ErrorClass.CONTEXT_OVERFLOW


def test_all_tokens_thought_away_is_empty_with_the_numbers_and_may_be_tried_with_more() -> None:
    seen = replace(GOOD, text="", thinking_chunks=4096, eval_tokens=4096, done_reason="length")
    verdict = judge(seen, ASKED)
    assert verdict.error_class is ErrorClass.EMPTY_OUTPUT
    assert verdict.thought_away
    assert "4096" in verdict.message


def test_a_model_that_thinks_and_then_stops_gets_no_second_run() -> None:
    seen = replace(GOOD, text="\n", thinking_chunks=300, eval_tokens=310)
    verdict = judge(seen, ASKED)
    assert verdict.error_class is ErrorClass.EMPTY_OUTPUT
    assert not verdict.thought_away


def test_thinking_before_an_answer_changes_nothing() -> None:
    assert judge(replace(GOOD, thinking_chunks=10), ASKED).error_class is None


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (301, "", ErrorClass.REDIRECTED),
        (307, "moved", ErrorClass.REDIRECTED),
        (400, "missing request body", ErrorClass.BAD_REQUEST),
        (400, '"stop" does not support thinking', ErrorClass.BAD_REQUEST),
        (400, "the input length exceeds the context length", ErrorClass.CONTEXT_OVERFLOW),
        (
            400,
            "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
            ErrorClass.CONTEXT_OVERFLOW,
        ),
        (401, "unauthorized", ErrorClass.OLLAMA_ERROR),
        (403, "", ErrorClass.OLLAMA_ERROR),
        (403, "ollama cloud is disabled: remote model is unavailable", ErrorClass.CLOUD_MODEL),
        (404, "model 'qwen3:8b' not found", ErrorClass.MODEL_MISSING),
        (404, "", ErrorClass.BAD_ANSWER),
        (405, "", ErrorClass.BAD_ANSWER),
        (413, "too large", ErrorClass.BAD_REQUEST),
        (429, "", ErrorClass.OLLAMA_BUSY),
        (499, "request canceled", ErrorClass.OLLAMA_ERROR),
        (500, "", ErrorClass.OLLAMA_ERROR),
        (500, "something new", ErrorClass.OLLAMA_ERROR),
        (500, 'option "num_ctx" must be of type integer', ErrorClass.BAD_REQUEST),
        (500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object', ErrorClass.BAD_REQUEST),
        (500, "an error was encountered while running the model: unexpected EOF", ErrorClass.RUNNER_KILLED),
        (
            500,
            "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
            ErrorClass.RUNNER_KILLED,
        ),
        (500, "llama runner process has terminated: exit status 2", ErrorClass.RUNNER_KILLED),
        (
            500,
            "llama runner process has terminated: error loading model: missing tensor 'output_norm.weight'",
            ErrorClass.MODEL_UNLOADABLE,
        ),
        (
            500,
            "model requires more system memory (5.6 GiB) than is available (4.1 GiB)",
            ErrorClass.MODEL_UNLOADABLE,
        ),
        (500, "timed out waiting for llama runner to start", ErrorClass.LOAD_TIMEOUT),
        (500, "prediction aborted, token repeat limit reached", ErrorClass.DEGENERATE),
        (502, "", ErrorClass.OLLAMA_ERROR),
        (
            503,
            "server busy, please try again.  maximum pending requests exceeded",
            ErrorClass.OLLAMA_BUSY,
        ),
        (503, "", ErrorClass.OLLAMA_BUSY),
        (204, "", ErrorClass.OLLAMA_ERROR),
    ],
)
def test_every_status_has_a_name(code: int, text: str, expected: ErrorClass) -> None:
    verdict = judge(status(code, text), ASKED)
    assert verdict.error_class is expected
    assert verdict.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an error was encountered while running the model: unexpected EOF", ErrorClass.RUNNER_KILLED),
        ("prediction aborted, token repeat limit reached", ErrorClass.DEGENERATE),
        ("the input length exceeds the context length", ErrorClass.CONTEXT_OVERFLOW),
        ("whatever", ErrorClass.OLLAMA_ERROR),
    ],
)
def test_an_error_line_inside_a_success_is_a_failure_with_the_same_names(text: str, expected: ErrorClass) -> None:
    assert judge(line(text), ASKED).error_class is expected


def test_somebody_elses_text_is_shown_without_paths_or_control_sequences() -> None:
    text = "error loading model: \x1b[31mred\x07 /usr/share/ollama/.ollama/models/blobs/sha256-cc\npanic: more"
    shown = plain(text)
    assert shown == "error loading model:  [31mred  <path>"
    assert len(plain("x" * 5000)) == 300
    assert plain("http://127.0.0.1:11434: refused") == "http://127.0.0.1:11434: refused"
    assert plain("open:/var/lib/x: no such file") == "open:<path>: no such file"
    assert "<path>" in plain(r"open C:\Users\me\.ollama\x: denied")
