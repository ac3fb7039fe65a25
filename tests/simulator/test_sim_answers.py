"""What the made-up models say, how it is counted, and how it ends."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_simulator.ollama import Mode, SimSettings, model_named
from koubou_simulator.ollama.decoding import Decoder, Ending
from koubou_simulator.ollama.engine import Piece
from koubou_simulator.ollama.gojson import BadJson, decode_object, encode, parse_duration_ns, timestamp
from koubou_simulator.ollama.markers import read_marks
from koubou_simulator.ollama.texts import count_tokens, pieces_of
from support.ollama_stage import Stage, a_stage

GPT, QWEN, CODER = "gpt-oss:20b", "qwen3:8b", "qwen2.5-coder:1.5b"
FOR_A_FILE = (
    "--- User Task ---\n{task}\n\n--- Repo-Level Instruction ---\n[[sim: empty]] in a file chooses nothing\n\n"
    "--- Generation Target ---\nGenerate the complete content for the file: {target}\n\n--- Output ---"
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with a_stage([model_named(name, "tiny") for name in (GPT, QWEN, CODER)]) as made:
        yield made


def say(stage: Stage, prompt: str, model: str = CODER, **more: Any) -> Any:
    return stage.answer(stage.ask(model, prompt, **more))


def test_every_text_says_that_it_is_simulated_and_for_which_file(stage: Stage) -> None:
    for target in ("notes.md", "src/queue.py"):
        text = say(stage, FOR_A_FILE.format(task="Write it", target=target))["response"]
        assert text.startswith("[SIMULATED] ")
        assert target in text.splitlines()[0]
        assert ("def " in text) == target.endswith(".py")
        assert ("## " in text) == target.endswith(".md")


def test_the_same_question_gets_the_same_answer_and_another_seed_another(stage: Stage) -> None:
    first, again = (say(stage, "Explain", options={"seed": 1})["response"] for _ in range(2))
    assert first == again
    assert say(stage, "Explain", options={"seed": 2})["response"] != first
    assert say(stage, "Explain!", options={"seed": 1})["response"] != first
    assert say(stage, "Explain", model=QWEN, think=False, options={"seed": 1})["response"] != first


@pytest.mark.parametrize(
    ("shape", "begins", "fences"),
    [
        ("fenced", "```markdown\n[SIMULATED]", 2),
        ("fenced code", "[SIMULATED]", 0),  # the last one wins
        ("chatty", "[SIMULATED] Here is the file:\n\n```", 2),
        ("blocks", "[SIMULATED]", 4),
        ("markdown", "[SIMULATED]", 0),
        ("raw=only\\n\tthis", "only\n\tthis", 0),
    ],
)
def test_a_marker_in_the_prompt_chooses_the_shape(stage: Stage, shape: str, begins: str, fences: int) -> None:
    text = say(stage, f"Do it [[sim: {shape}]]")["response"]
    assert text.startswith(begins)
    assert text.count("```") == fences


def test_a_marker_in_a_context_file_chooses_nothing(stage: Stage) -> None:
    assert say(stage, FOR_A_FILE.format(task="Write", target="a.md"))["response"]
    assert not say(stage, FOR_A_FILE.format(task="Write [[sim: empty]]", target="a.md"))["response"]


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 1001])
def test_a_length_is_kept_to_the_token(stage: Stage, tokens: int) -> None:
    answer = say(stage, f"[[sim: length={tokens}]]")
    assert answer["eval_count"] == tokens + 1
    assert count_tokens(answer["response"]) == tokens
    assert answer["done_reason"] == "stop"


def test_num_predict_cuts_and_counts(stage: Stage) -> None:
    answer = say(stage, "[[sim: length=50]]", options={"num_predict": 20})
    assert (answer["eval_count"], answer["done_reason"]) == (20, "length")
    assert count_tokens(answer["response"]) == 20


def test_a_model_that_repeats_itself_is_given_up_without_an_end(stage: Stage) -> None:
    answer = say(stage, "[[sim: repeat]]")
    assert answer["done"] is False
    assert answer["response"].count("again ") == 31
    assert "eval_count" not in answer


def test_an_endless_answer_ends_at_ten_windows(stage: Stage) -> None:
    answer = say(stage, "[[sim: endless]]", options={"num_ctx": 64})
    assert (answer["eval_count"], answer["done_reason"]) == (640, "length")


@pytest.mark.parametrize(
    ("model", "think", "thinks"),
    [
        (GPT, None, 160),
        (GPT, False, 160),
        (GPT, "low", 48),
        (GPT, "high", 480),
        (GPT, "max", 480),
        (QWEN, None, 160),
        (QWEN, True, 160),
        (QWEN, False, 0),
        (QWEN, "low", 48),
        (CODER, None, 0),
        (CODER, False, 0),
    ],
)
def test_who_thinks_how_long(stage: Stage, model: str, think: bool | str | None, thinks: int) -> None:
    answer = say(stage, "[[sim: length=10]]", model, **({} if think is None else {"think": think}))
    assert answer["eval_count"] == thinks + 11
    assert ("thinking" in answer) == bool(thinks)
    assert answer["response"].startswith("[SIMULATED]")


def test_thinking_counts_against_num_predict_and_may_leave_nothing(stage: Stage) -> None:
    answer = say(stage, "[[sim: think=30]]", GPT, options={"num_predict": 25})
    assert (answer["response"], answer["done_reason"], answer["eval_count"]) == ("", "length", 25)
    assert count_tokens(answer["thinking"]) == 25


def test_thinking_comes_first_and_beside_an_empty_response_in_a_stream(stage: Stage) -> None:
    result = stage.finish(stage.ask(GPT, "[[sim: think=5, length=5]]", stream=True))
    lines = [json.loads(chunk) for chunk in result.chunks]
    assert [("thinking" in line, line["response"] != "") for line in lines] == [
        *[(True, False)] * 5,
        *[(False, True)] * 5,
        (False, False),
    ]
    assert list(lines[0]) == ["model", "created_at", "response", "thinking", "done"]


@pytest.mark.parametrize("think", [True, "low"])
def test_thinking_is_refused_where_the_model_cannot(stage: Stage, think: bool | str) -> None:
    refused = stage.error(stage.ask(CODER, "x", think=think))
    assert refused == (400, f'"{CODER}" does not support thinking')


def test_think_inside_the_options_is_ignored(stage: Stage) -> None:
    assert "thinking" in say(stage, "x", QWEN, options={"think": False})


def test_a_schema_is_obeyed(stage: Stage) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["b", "c"]},
            "size": {"type": "integer", "minimum": 3},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "inner": {"$ref": "#/$defs/inner"},
        },
        "$defs": {"inner": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
    }
    text = "[SIMULATED] made up"
    assert json.loads(say(stage, "x", format=schema)["response"]) == {
        "kind": "b",
        "size": 3,
        "tags": [text, text],
        "inner": {"ok": True},
    }
    assert json.loads(say(stage, "x", format="json")["response"])["simulated"] is True


def test_a_stop_string_ends_the_answer_before_it(stage: Stage) -> None:
    answer = say(stage, "[[sim: raw=one two three four]]", options={"stop": ["three"]})
    assert (answer["response"], answer["done_reason"]) == ("one two ", "stop")


def test_the_system_text_is_read_and_counted(stage: Stage) -> None:
    without, with_it = (say(stage, "x" * 35, system=system) for system in ("", "y" * 70))
    assert (without["prompt_eval_count"], with_it["prompt_eval_count"]) == (10, 31)


def test_a_raw_request_has_no_context_field(stage: Stage) -> None:
    assert "context" in say(stage, "x")
    assert "context" not in say(stage, "x", raw=True)


def test_chat_answers_with_a_message(stage: Stage) -> None:
    body = {"model": QWEN, "stream": False, "messages": [{"role": "user", "content": "[[sim: length=5, think=4]]"}]}
    answer = stage.answer(stage.send("POST", "/api/chat", body))
    assert list(answer)[:3] == ["model", "created_at", "message"]
    assert list(answer["message"]) == ["role", "content", "thinking"]
    assert answer["eval_count"] == 10


@pytest.mark.parametrize(
    ("mode", "tokens", "kept"),
    [
        (Mode.LEGACY, 300, 256),
        (Mode.LEGACY, 256, 256),
        # num_ctx - (num_ctx - num_keep) / 2, from num_ctx tokens on
        (Mode.LLAMA_SERVER, 300, 130),
        (Mode.LLAMA_SERVER, 256, 130),
        (Mode.LLAMA_SERVER, 255, 255),
    ],
)
def test_a_prompt_that_is_too_long_is_cut_in_silence(mode: Mode, tokens: int, kept: int) -> None:
    with a_stage([model_named(CODER, "tiny")], SimSettings(mode=mode)) as stage:
        answer = say(stage, "x" * (7 * tokens // 2), options={"num_ctx": 256, "num_predict": 1})
        assert answer["prompt_eval_count"] == kept


def test_a_prompt_that_is_too_long_is_refused_on_wish_in_each_modes_words() -> None:
    prompt, options = "x" * 1050, {"num_ctx": 256}
    with a_stage([model_named(CODER, "tiny")]) as stage:
        refused = stage.error(stage.ask(CODER, prompt, truncate=False, options=options))
        assert refused == (400, "the input length exceeds the context length")
    with a_stage([model_named(CODER, "tiny")], SimSettings(mode=Mode.LLAMA_SERVER)) as stage:
        status, text = stage.error(stage.ask(CODER, prompt, truncate=False, options=options))
        detail = json.loads(text)["error"]
        assert (status, detail["type"]) == (400, "exceed_context_size_error")
        assert (detail["n_prompt_tokens"], detail["n_ctx"]) == (300, 256)


def test_without_shift_an_answer_ends_with_the_window(stage: Stage) -> None:
    answer = say(stage, "x" * 700, options={"num_ctx": 256, "num_predict": 100}, shift=False)
    assert (answer["prompt_eval_count"], answer["eval_count"], answer["done_reason"]) == (200, 57, "length")


def test_a_common_beginning_is_read_once_and_counted_always() -> None:
    with a_stage([model_named(CODER, "rtx")]) as stage:
        head = "the same files " * 700
        cold = say(stage, head + "first", options={"num_predict": 1})
        warm = say(stage, head + "second", options={"num_predict": 1})
        moved = say(stage, "!" + head, options={"num_predict": 1})
    assert cold["prompt_eval_count"] == pytest.approx(warm["prompt_eval_count"], abs=1)
    assert warm["prompt_eval_duration"] < cold["prompt_eval_duration"] / 100
    assert moved["prompt_eval_duration"] > cold["prompt_eval_duration"] / 2


def test_hanging_up_while_a_prompt_is_read_is_noticed_within_a_second_since_0_30() -> None:
    for mode, seconds_s in ((Mode.LEGACY, 20), (Mode.LLAMA_SERVER, 1)):
        with a_stage([model_named(CODER, "cpu")], SimSettings(mode=mode)) as stage:
            say(stage, "")
            call = stage.ask(CODER, "x" * 3150)  # 20 s of reading
            stage.advance(0.5)
            stage.hang_up(call)
            left_s = stage.now_s()
            behind = stage.answer(stage.ask(CODER, "[[sim: length=1]]", options={"num_predict": 1}))
            waited_s = stage.now_s() - left_s
            assert seconds_s - 1 <= waited_s <= seconds_s + 1, mode
            assert behind["load_duration"] < 1e6


def test_nothing_is_charged_to_a_client_that_left(stage: Stage) -> None:
    with a_stage([model_named(CODER, "cpu")]) as slow:
        call = slow.ask(CODER, "[[sim: length=500]]")
        slow.advance(15)
        slow.hang_up(call)
        slow.advance(1)
        logged = slow.sim.requests[0]
        assert (logged.ended, logged.output_tokens, logged.status) == ("hung up", 0, None)
        assert slow.sim.state()["loaded"][0]["active"] == 0  # type: ignore[index]


def test_the_log_tells_what_a_request_named(stage: Stage) -> None:
    say(stage, "x", QWEN, think=False, truncate=False, system="s", options={"num_ctx": 512, "seed": 3})
    logged = stage.sim.requests[-1]
    assert (logged.model, logged.prompt, logged.system) == (QWEN, "x", "s")
    assert logged.options == {"num_ctx": 512, "seed": 3}
    assert (logged.think, logged.truncate, logged.shift, logged.keep_alive) == (False, False, None, None)
    assert "keep_alive" not in logged.fields
    assert (logged.status, logged.ended) == (200, "answered")


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    pieces = pieces_of(text)
    assert b"".join(pieces) == text.encode("utf-8", "replace")
    assert len(pieces) == count_tokens(text)
    for piece in pieces:
        piece.decode()


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=30), st.lists(st.text(min_size=1, max_size=2), max_size=2))
def test_a_decoder_ends_once_and_says_only_valid_text(data: list[bytes], stops: list[str]) -> None:
    decoder = Decoder(stops, -1, None)
    said = [part for piece in data for part in decoder.take(Piece(piece))]
    if not any(part.ending for part in said):
        said += decoder.take(None)
    endings = [part.ending for part in said if part.ending]
    assert endings[0] in set(Ending)
    text = "".join(part.text for part in said[: [part.ending for part in said].index(endings[0]) + 1])
    text.encode()
    for stop in stops:
        assert stop not in text or "\ufffd" in stop


@pytest.mark.parametrize(
    ("text", "nanos"),
    [("5m", 300e9), ("-1m", -60e9), ("1h2m3.5s", 3723.5e9), ("10ms", 10e6), ("0", 0), (".5s", 0.5e9)],
)
def test_durations_are_read_like_gos(text: str, nanos: float) -> None:
    assert parse_duration_ns(text) == nanos


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-1", 'time: missing unit in duration "-1"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("soon", 'time: invalid duration "soon"'),
        ("", 'time: invalid duration ""'),
    ],
)
def test_bad_durations_are_refused_in_gos_words(text: str, says: str) -> None:
    with pytest.raises(BadJson) as error:
        parse_duration_ns(text)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "missing request body"),
        (b'{"a":', "unexpected EOF"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1]", "json: cannot unmarshal array into Go value of type api.T"),
    ],
)
def test_bad_json_is_refused_in_gos_words(body: bytes, says: str) -> None:
    with pytest.raises(BadJson) as error:
        decode_object(body, "T")
    assert str(error.value) == says


def test_json_is_written_like_gos() -> None:
    assert encode({"a": "<&>\u2028é\x7f\x01\n"}) == '{"a":"\\u003c\\u0026\\u003e\\u2028é\x7f\\u0001\\n"}'.encode()
    assert timestamp(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert timestamp(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
    assert timestamp(10_980_000_000_000_000_000).startswith("2317-")


def test_markers_are_read_by_word() -> None:
    marks = read_marks("a [[sim: fenced, length=3 think=4]] b [[sim: chatty fault=hang]]")
    assert (marks.shape, marks.length_tokens, marks.think_tokens, marks.fault) == ("chatty", 3, 4, "hang")
    assert read_marks("[[sim: nonsense length=x]]") == read_marks("")
