"""The gateway, the probe and the preloader against the simulated Ollama: every fault it knows, both generations."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import pytest

from koubou_agent.call_plan import CallPlan, parse_version
from koubou_agent.gateway import CallReport, Gateway, Limits, Phase
from koubou_agent.preload import Preloader
from koubou_agent.probe import Probe
from koubou_common.errors import ErrorClass
from koubou_simulator.ollama import PRESETS, Fault, FaultKind, Mode, SimSettings, SimulatedOllama, model_named
from support.gateway_calls import Asking, a_gateway, a_plan, ask, cli_body
from support.waiting import eventually

MODEL = "qwen2.5-coder:1.5b"
THINKER = "gpt-oss:20b"
PATIENT = Limits(connect_s=2, load_s=20, first_token_s=20, idle_s=20, total_s=20)
SHORT = replace(PATIENT, load_s=0.5, first_token_s=0.3, idle_s=0.3)  # where running into them is the point


@pytest.fixture(params=[Mode.LEGACY, Mode.LLAMA_SERVER], ids=["0.24", "0.30"])
def sim(request: pytest.FixtureRequest) -> Iterator[SimulatedOllama]:
    settings = SimSettings(mode=request.param, max_loaded=1)
    names = (MODEL, THINKER, "qwen3:8b")
    models = [model_named(name, "tiny") for name in names]
    recorded = ("stop", "endless", "repeat", "mute", "utf8", "badbytes", "broken")
    tiny = [replace(model_named(name), timing=PRESETS["tiny"]) for name in recorded]
    with SimulatedOllama(settings, [*models, *tiny]) as sim:
        yield sim


@pytest.fixture
def gateway(sim: SimulatedOllama) -> Iterator[Gateway]:
    with a_gateway(sim.url) as gateway:
        yield gateway


def plan_for(sim: SimulatedOllama, model: str = MODEL, **changes: object) -> CallPlan:
    """What the agent would plan from what the probe tells."""
    health = Probe(sim.url).check()
    seen = next(one for one in health.models if one.name.removesuffix(":latest") == model)
    fields: dict[str, object] = {
        "model": model,
        "family": seen.family,
        "can_think": "thinking" in seen.capabilities,
        "ollama_version": parse_version(health.version),
        "prompt_tokens_per_s": 1e6,
        "limits": PATIENT,
    }
    return a_plan(**{**fields, **changes})


def run(gateway: Gateway, plan: CallPlan, prompt: str = "write") -> CallReport:
    door = gateway.open("uid", plan)
    told = ask(door, cli_body(model=plan.model, prompt=prompt))
    report = door.close()
    assert (told.status == 200) == (report.error_class is None)
    if report.error_class is None:
        assert told.fields["response"] == report.text
    return report


def test_a_good_answer_comes_through_whole_with_ollamas_counts(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, plan_for(sim))
    assert report.error_class is None
    assert report.text.startswith("[SIMULATED]")
    [logged] = sim.requests
    eventually(lambda: logged.ended)  # the simulator notes it after the last byte
    assert (report.prompt_tokens, report.output_tokens) == (logged.prompt_tokens, logged.output_tokens)
    assert report.prompt_tokens > 0
    assert report.first_token_ms >= 0
    assert gateway.busy == 0


def test_the_request_that_reaches_ollama_is_the_plans(sim: SimulatedOllama, gateway: Gateway) -> None:
    run(gateway, plan_for(sim, num_ctx=16384, num_predict=300))
    [logged] = sim.requests
    assert logged.options == {"temperature": 0.2, "seed": 7, "num_ctx": 16384, "num_predict": 300}
    assert (logged.stream, logged.truncate, logged.think, logged.keep_alive) == (True, False, False, None)
    assert logged.shift is (False if sim.settings.mode is Mode.LEGACY else None)
    assert "File Context" in logged.system


FAULTS: Mapping[str, tuple[Fault, ErrorClass]] = {
    "hang": (Fault(FaultKind.HANG), ErrorClass.STUCK),
    "headers_hang": (Fault(FaultKind.HEADERS_HANG), ErrorClass.STUCK),
    "drip": (Fault(FaultKind.DRIP, delay_s=0.004), ErrorClass.STUCK),
    "reset at once": (Fault(FaultKind.RESET), ErrorClass.CONNECTION_LOST),
    "reset later": (Fault(FaultKind.RESET, after=400), ErrorClass.CONNECTION_LOST),
    "eof at once": (Fault(FaultKind.EOF), ErrorClass.CONNECTION_LOST),
    "eof later": (Fault(FaultKind.EOF, after=400), ErrorClass.CONNECTION_LOST),
    "invalid_json": (Fault(FaultKind.INVALID_JSON), ErrorClass.BAD_ANSWER),
    "html": (Fault(FaultKind.HTML), ErrorClass.BAD_ANSWER),
    "redirect": (Fault(FaultKind.REDIRECT, status=302, text="http://127.0.0.1:9/"), ErrorClass.REDIRECTED),
    "error": (Fault(FaultKind.ERROR, status=500, text="something new"), ErrorClass.OLLAMA_ERROR),
    "not_found": (Fault(FaultKind.NOT_FOUND), ErrorClass.MODEL_MISSING),
    "context": (Fault(FaultKind.CONTEXT), ErrorClass.CONTEXT_OVERFLOW),
    "canceled": (Fault(FaultKind.CANCELED), ErrorClass.OLLAMA_ERROR),
    "busy": (Fault(FaultKind.BUSY), ErrorClass.OLLAMA_BUSY),
    "crashed": (Fault(FaultKind.CRASHED), ErrorClass.RUNNER_KILLED),
    "done_false": (Fault(FaultKind.DONE_FALSE, after=5), ErrorClass.DEGENERATE),
    "empty": (Fault(FaultKind.EMPTY), ErrorClass.EMPTY_OUTPUT),
    "null_response": (Fault(FaultKind.NULL_RESPONSE), ErrorClass.BAD_ANSWER),
    "length below": (Fault(FaultKind.LENGTH, after=5), ErrorClass.CONTEXT_OVERFLOW),
    "stream_error": (Fault(FaultKind.STREAM_ERROR, after=5, text="something new"), ErrorClass.OLLAMA_ERROR),
    "kill": (Fault(FaultKind.KILL, after=5), ErrorClass.RUNNER_KILLED),
    "stall": (Fault(FaultKind.STALL, after=5), ErrorClass.STALLED),
    "load_failure": (
        Fault(FaultKind.LOAD_FAILURE, text="llama runner process has terminated: error loading model: missing tensor"),
        ErrorClass.MODEL_UNLOADABLE,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_gets_its_name_and_the_next_attempt_succeeds(sim: SimulatedOllama, gateway: Gateway, name: str) -> None:
    fault, expected = FAULTS[name]
    plan = plan_for(sim)
    if fault.kind is not FaultKind.LOAD_FAILURE:
        assert run(gateway, plan).error_class is None  # the model is loaded: no silence is taken for a load
    sim.faults.add(fault)
    report = run(gateway, replace(plan, limits=SHORT) if expected in (ErrorClass.STUCK, ErrorClass.STALLED) else plan)
    assert report.error_class is expected, report.message
    assert report.message
    sim.faults.clear()
    if fault.kind is FaultKind.DRIP:
        eventually(lambda: gateway.busy == 0)  # up to 0.24 it keeps the slot until its head is through
    assert run(gateway, plan).error_class is None


def test_every_fault_of_the_simulator_that_an_answer_can_show_is_tried() -> None:
    elsewhere = {
        FaultKind.REFUSE,
        FaultKind.SLOW_LOAD,
        FaultKind.FOREIGN_CLIENT,
        FaultKind.RESTART,
        FaultKind.EVICT_DEADLOCK,
        FaultKind.CPU_FALLBACK,
        FaultKind.CLOCK_SKEW,
        FaultKind.CLOUD_MODEL,
    }
    assert {fault.kind for fault, _ in FAULTS.values()} == set(FaultKind) - elsewhere


def test_a_server_that_is_away_is_unreachable_and_seen_so(sim: SimulatedOllama, gateway: Gateway) -> None:
    plan = plan_for(sim)
    number = sim.faults.add(Fault(FaultKind.REFUSE))
    assert run(gateway, plan).error_class is ErrorClass.OLLAMA_UNREACHABLE
    assert "nothing answers" in Probe(sim.url).check().issue
    sim.faults.remove(number)
    assert run(gateway, plan).error_class is None


def test_a_server_that_restarts_while_answering_is_a_lost_connection(sim: SimulatedOllama, gateway: Gateway) -> None:
    sim.faults.add(Fault(FaultKind.STALL, after=2))
    door = gateway.open("uid", plan_for(sim))
    asking = Asking(door, cli_body(model=MODEL))
    eventually(lambda: door.progress().phase is Phase.ANSWERING)
    sim.restart()
    assert asking.told().status == 502
    assert door.close().error_class is ErrorClass.CONNECTION_LOST


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("stop", None),
        ("utf8", None),
        ("badbytes", None),
        ("endless", ErrorClass.CUT_OUTPUT),
        ("repeat", ErrorClass.DEGENERATE),
        ("mute", ErrorClass.EMPTY_OUTPUT),
        ("broken", ErrorClass.MODEL_UNLOADABLE),
    ],
)
def test_the_recorded_models_end_as_they_did(
    sim: SimulatedOllama, gateway: Gateway, model: str, expected: ErrorClass | None
) -> None:
    plan = plan_for(sim, model, num_predict=300)
    assert run(gateway, plan, "hello").error_class is expected


def test_a_prompt_beyond_the_window_is_refused_by_ollama_and_named(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, plan_for(sim, num_ctx=1024, num_predict=300), "words " * 2000)
    assert report.error_class is ErrorClass.CONTEXT_OVERFLOW
    assert report.text == ""


def test_a_window_that_fills_while_answering_is_an_overflow(sim: SimulatedOllama, gateway: Gateway) -> None:
    plan = plan_for(sim, num_ctx=1024, num_predict=900)
    report = run(gateway, plan, "[[sim: endless]] " + "words " * 300)
    assert report.error_class is ErrorClass.CONTEXT_OVERFLOW


def test_an_answer_of_the_configured_length_is_cut(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, plan_for(sim, num_predict=300), "[[sim: endless]]")
    assert report.error_class is ErrorClass.CUT_OUTPUT
    assert report.output_tokens == 300
    assert report.done_reason == "length"


def test_a_missing_model_is_named(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, a_plan(model="nope"))
    assert report.error_class is ErrorClass.MODEL_MISSING
    assert "nope" in report.message


def test_gpt_oss_thinks_low_and_its_thinking_is_counted_and_not_output(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, plan_for(sim, THINKER, num_predict=600), "[[sim: think=50, length=40]]")
    assert report.error_class is None
    assert report.thinking_tokens == 50
    assert report.text.startswith("[SIMULATED]")
    [logged] = sim.requests
    assert (logged.think, logged.options["num_predict"]) == ("low", 600 + 2048)


def test_gpt_oss_that_thinks_everything_away_succeeds_with_twice_the_allowance(
    sim: SimulatedOllama, gateway: Gateway
) -> None:
    plan = plan_for(sim, THINKER, num_predict=300, thinking_allowance=200)
    door = gateway.open("uid", plan)
    body = cli_body(model=THINKER, prompt="[[sim: think=600, length=40]]")
    assert "thinking" in str(ask(door, body).fields["error"])
    assert door.allow_more_thinking()
    assert ask(door, body).status == 200
    assert [cast(int, one.options["num_predict"]) for one in sim.requests] == [500, 700]
    report = door.close()
    assert (report.error_class, report.thinking_tokens, report.calls) == (None, 600, 2)


def test_a_model_that_can_stop_thinking_does(sim: SimulatedOllama, gateway: Gateway) -> None:
    report = run(gateway, plan_for(sim, "qwen3:8b"), "[[sim: think=50]]")
    assert (report.error_class, report.thinking_tokens) == (None, 0)
    assert sim.requests[0].think is False


def test_an_abort_while_the_prompt_is_read_frees_the_slot_when_ollama_is_free(sim: SimulatedOllama) -> None:
    slow = model_named("slow-reader:7b", "tiny")
    # The prompt below takes more than half a second to read.
    slow = replace(slow, timing=replace(slow.timing, prompt_tokens_per_s=250.0))
    settings = SimSettings(mode=sim.settings.mode)
    with SimulatedOllama(settings, [slow]) as server, a_gateway(server.url) as gateway:
        plan = plan_for(server, "slow-reader:7b", limits=Limits())
        door = gateway.open("uid", plan)
        asking = Asking(door, cli_body(model=plan.model, prompt="word " * 40))
        eventually(lambda: server.state()["loaded"])
        eventually(lambda: door.progress().phase is Phase.READING)
        door.abort(None, "cancelled")
        assert asking.told().status == 499
        if sim.settings.mode is Mode.LEGACY:
            assert gateway.busy == 1
            assert door.progress().phase is Phase.RELEASING
        eventually(lambda: gateway.busy == 0)
        # What busy said is true: nothing of the aborted call is left in Ollama.
        eventually(lambda: active(server) == 0, timeout_s=2.0)


def active(server: SimulatedOllama) -> int:
    loaded = cast(list[Mapping[str, int]], server.state()["loaded"])
    return sum(one["active"] for one in loaded)


def test_a_slow_load_is_waited_for_and_preloading_spares_the_task_the_wait(sim: SimulatedOllama) -> None:
    sim.faults.add(Fault(FaultKind.SLOW_LOAD, delay_s=0.6))
    preloader = Preloader(sim.url)
    plan = plan_for(sim)
    hasty = preloader.ensure(replace(plan, limits=Limits(load_s=0.1)))
    assert hasty.error_class is ErrorClass.LOAD_TIMEOUT
    assert preloader.ensure(replace(plan, limits=Limits(load_s=20))).error_class is None
    eventually(lambda: [request.ended for request in sim.requests] == ["load"])  # one load, never aborted
    seen = next(one for one in Probe(sim.url).check().models if one.name == MODEL)
    assert (seen.loaded, seen.loaded_ctx) == (True, plan.num_ctx)
    with a_gateway(sim.url) as gateway:
        report = run(gateway, plan)
        assert report.error_class is None
        assert report.load_ms < 500
    preloader.stop()


def test_a_load_that_never_ends_is_a_load_timeout_where_it_can_be_seen(sim: SimulatedOllama, gateway: Gateway) -> None:
    sim.faults.add(Fault(FaultKind.SLOW_LOAD, delay_s=600))
    report = run(gateway, plan_for(sim, limits=SHORT))
    # Up to 0.24 a model that is being loaded is listed as loaded: all that is known is that no token came.
    expected = ErrorClass.STUCK if sim.settings.mode is Mode.LEGACY else ErrorClass.LOAD_TIMEOUT
    assert report.error_class is expected
    assert gateway.busy == 1  # and its load is not aborted


def test_the_eviction_that_never_happens_is_a_load_timeout(sim: SimulatedOllama, gateway: Gateway) -> None:
    run(gateway, plan_for(sim))
    sim.faults.add(Fault(FaultKind.EVICT_DEADLOCK))
    assert run(gateway, plan_for(sim, "qwen3:8b", limits=SHORT)).error_class is ErrorClass.LOAD_TIMEOUT
    assert gateway.busy == 1


def test_a_broken_model_is_unloadable_at_preload_already(sim: SimulatedOllama) -> None:
    preloader = Preloader(sim.url)
    report = preloader.ensure(plan_for(sim, "broken"))
    assert report.error_class is ErrorClass.MODEL_UNLOADABLE
    assert "/" not in report.message.replace("<path>", "")


def test_the_probe_sees_what_the_simulated_box_is(sim: SimulatedOllama, gateway: Gateway) -> None:
    run(gateway, plan_for(sim))
    health = Probe(sim.url).check()
    assert health.ok
    assert health.version == sim.settings.shown_version
    by_name = {one.name: one for one in health.models}
    assert "thinking" in by_name[THINKER].capabilities
    assert by_name[THINKER].family == "gptoss"
    assert by_name["stop:latest"].context_length == 32768
    assert [one.name for one in health.models if one.loaded] == [MODEL]
    assert by_name[MODEL].vram_bytes > 0
    sim.faults.add(Fault(FaultKind.CPU_FALLBACK))
    assert next(one for one in Probe(sim.url).check().models if one.name == MODEL).vram_bytes == 0


def test_a_cloud_model_in_the_list_is_never_offered(sim: SimulatedOllama) -> None:
    before = Probe(sim.url).check().models
    sim.faults.add(Fault(FaultKind.CLOUD_MODEL, model="remote-without-a-telling-name:7b"))
    health = Probe(sim.url).check()
    assert health.ok
    assert health.models == before


def test_another_clients_window_is_seen_and_the_preloader_loads_ours_again(sim: SimulatedOllama) -> None:
    preloader = Preloader(sim.url)
    plan = plan_for(sim)
    assert preloader.ensure(plan).error_class is None
    sim.faults.add(Fault(FaultKind.FOREIGN_CLIENT, model=MODEL, num_ctx=2048))
    eventually(lambda: [one.loaded_ctx for one in Probe(sim.url).check().models if one.loaded] == [2048])
    assert preloader.ensure(plan).error_class is None
    assert [one.loaded_ctx for one in Probe(sim.url).check().models if one.loaded] == [plan.num_ctx]
