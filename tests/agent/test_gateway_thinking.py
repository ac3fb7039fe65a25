"""Thinking: off where it can be, counted, never output; one more run where all of it was thought away."""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import pytest

from koubou_agent.gateway import CallPlan, Gateway
from koubou_common.errors import ErrorClass
from support.gateway_calls import a_gateway, a_plan, ask, cli_body
from support.scripted_ollama import Peer, ScriptedOllama


def gpt_oss(**changes: object) -> CallPlan:
    fields: dict[str, object] = {"model": "gpt-oss:20b", "family": "gptoss", "can_think": True, "num_predict": 512}
    return a_plan(**{**fields, **changes})


BODY = cli_body(model="gpt-oss:20b")


def thinks(tokens: int, answer: str = "", prompt: int = 100) -> Callable[[Peer], None]:
    """Thinks `tokens` tokens, or as many as it may, and then says `answer` if there is room."""

    def script(peer: Peer) -> None:
        options = cast(Mapping[str, int], peer.asked.body["options"])
        room = options["num_predict"]
        peer.head()
        for _ in range(min(tokens, room)):
            peer.thought("hm")
        if tokens < room and answer:
            peer.token(answer)
            peer.end("stop", prompt, tokens + 2)
        else:
            peer.end("length", prompt, room)

    return script


@pytest.fixture
def server() -> Iterator[ScriptedOllama]:
    with ScriptedOllama(thinks(20, "the answer")) as server:
        yield server


@pytest.fixture
def gateway(server: ScriptedOllama) -> Iterator[Gateway]:
    with a_gateway(server.url) as gateway:
        yield gateway


def sent(server: ScriptedOllama) -> list[tuple[object, int]]:
    return [(one["think"], cast(Mapping[str, int], one["options"])["num_predict"]) for one in server.generated]


def test_gpt_oss_gets_low_and_its_allowance_on_top(gateway: Gateway, server: ScriptedOllama) -> None:
    door = gateway.open("uid", gpt_oss())
    told = ask(door, BODY)
    assert told.fields["response"] == "the answer"
    assert "thinking" not in told.fields
    assert sent(server) == [("low", 512 + 2048)]
    report = door.close()
    assert report.text == "the answer"
    assert (report.thinking_tokens, report.output_tokens) == (20, 2)
    assert report.error_class is None
    assert not report.wants_more_thinking


def test_a_model_that_can_stop_thinking_is_told_to_and_gets_no_allowance(
    gateway: Gateway, server: ScriptedOllama
) -> None:
    ask(gateway.open("uid", gpt_oss(family="qwen3")), BODY)
    assert sent(server) == [(False, 512)]


def test_all_tokens_thought_away_gets_one_more_run_with_twice_the_allowance(
    gateway: Gateway, server: ScriptedOllama
) -> None:
    server.script = thinks(3000, "the answer")
    door = gateway.open("uid", gpt_oss())
    told = ask(door, BODY)
    assert told.status == 502
    assert "2560 tokens on thinking" in str(told.fields["error"])
    assert door.report().wants_more_thinking
    assert door.allow_more_thinking()
    assert not door.allow_more_thinking()
    assert ask(door, BODY).fields["response"] == "the answer"
    assert sent(server) == [("low", 2560), ("low", 512 + 4096)]
    report = door.close()
    assert (report.error_class, report.calls, report.thinking_tokens) == (None, 2, 3000)


def test_thought_away_a_second_time_is_empty_output_with_the_numbers(gateway: Gateway, server: ScriptedOllama) -> None:
    server.script = thinks(100_000)
    door = gateway.open("uid", gpt_oss())
    ask(door, BODY)
    assert door.allow_more_thinking()
    ask(door, BODY)
    assert not door.allow_more_thinking()
    assert ask(door, BODY).status == 409
    report = door.close()
    assert report.error_class is ErrorClass.EMPTY_OUTPUT
    assert "4608 tokens" in report.message
    assert (report.thinking_tokens, report.output_tokens, report.calls) == (4608, 0, 2)
    assert not report.wants_more_thinking


def test_the_second_run_gets_what_the_window_has_by_ollamas_own_count(gateway: Gateway, server: ScriptedOllama) -> None:
    server.script = thinks(100_000, prompt=1000)
    door = gateway.open("uid", gpt_oss(num_ctx=4096))
    ask(door, BODY)
    assert door.allow_more_thinking()
    ask(door, BODY)
    assert sent(server) == [("low", 2560), ("low", 3096)]


def test_where_the_window_has_no_more_room_there_is_no_second_run(gateway: Gateway, server: ScriptedOllama) -> None:
    server.script = thinks(100_000, prompt=1536)
    door = gateway.open("uid", gpt_oss(num_ctx=4096))  # 1536 + 2560: full
    ask(door, BODY)
    assert not door.allow_more_thinking()
    report = door.close()
    assert report.error_class is ErrorClass.EMPTY_OUTPUT
    assert not report.wants_more_thinking


def test_no_second_run_without_a_first_after_success_or_after_another_failure(
    gateway: Gateway, server: ScriptedOllama
) -> None:
    door = gateway.open("uid", gpt_oss())
    assert not door.allow_more_thinking()
    ask(door, BODY)
    assert not door.allow_more_thinking()
    server.script = lambda peer: peer.fields(500, error="boom")
    other = gateway.open("uid2", gpt_oss())
    ask(other, BODY)
    assert not other.allow_more_thinking()


def test_no_second_run_once_the_attempt_is_aborted(gateway: Gateway, server: ScriptedOllama) -> None:
    server.script = thinks(100_000)
    door = gateway.open("uid", gpt_oss())
    ask(door, BODY)
    door.abort(None, "cancelled")
    assert not door.allow_more_thinking()
    report = door.close()
    assert report.error_class is ErrorClass.EMPTY_OUTPUT
    assert report.wants_more_thinking


def test_a_model_that_thinks_although_told_not_to_gets_the_second_run_too(
    gateway: Gateway, server: ScriptedOllama
) -> None:
    server.script = thinks(1000, "the answer")
    door = gateway.open("uid", gpt_oss(family="stubborn"))
    ask(door, BODY)
    assert door.allow_more_thinking()
    assert ask(door, BODY).status == 200
    assert sent(server) == [(False, 512), (False, 4608)]


def test_thinking_without_an_answer_at_a_stop_is_empty_and_final(gateway: Gateway, server: ScriptedOllama) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.thought("hm")
        peer.end("stop", 100, 2)

    server.script = script
    door = gateway.open("uid", gpt_oss())
    ask(door, BODY)
    assert not door.allow_more_thinking()
    assert door.close().error_class is ErrorClass.EMPTY_OUTPUT
