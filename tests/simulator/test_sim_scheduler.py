"""What the simulated Ollama loads, when, and who waits for it; time is moved by the tests."""

from dataclasses import replace

import pytest

from koubou_simulator.ollama import PRESETS, Fault, FaultKind, Mode, SimModel, SimSettings, Timing, model_named
from support.ollama_stage import Stage, a_stage

# 1 s to load, 100 tokens/s to read, 10 tokens/s to write: every duration below can be worked out in the head.
PACE = Timing(load_s=1.0, prompt_tokens_per_s=100, eval_tokens_per_s=10, contention=0.0, on_gpu=False)


def a_model(name: str = "qwen2.5-coder:1.5b", timing: Timing = PACE) -> SimModel:
    return replace(model_named(name), timing=timing)


ONE, TWO, THREE = a_model("one:1b"), a_model("two:1b"), a_model("three:1b")
TEN_TOKENS = "[[sim: length=9]]"  # and the end token


def loaded(stage: Stage) -> list[str]:
    return [model["name"] for model in stage.get("/api/ps")["models"]]


def test_a_first_request_waits_for_the_load_and_says_so() -> None:
    with a_stage([ONE]) as stage:
        answer = stage.answer(stage.ask(ONE.name, TEN_TOKENS))
        assert answer["load_duration"] == pytest.approx(1e9)
        assert answer["prompt_eval_count"] == 5
        assert answer["prompt_eval_duration"] == pytest.approx(5e7)
        assert answer["eval_count"] == 10
        assert answer["eval_duration"] == pytest.approx(0.9e9)
        again = stage.answer(stage.ask(ONE.name, TEN_TOKENS))
        assert again["load_duration"] < 1e6


def test_the_slot_is_given_in_the_order_of_arrival_and_the_wait_is_only_in_the_total() -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, ""))
        calls = [stage.ask(ONE.name, TEN_TOKENS) for _ in range(4)]
        answers = [stage.answer(call) for call in calls]
        ends = [call.result.ended_s for call in calls]
        assert ends == sorted(ends, key=lambda end: end or 0)
        assert len(set(ends)) == 4
        last = answers[-1]
        parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
        assert last["total_duration"] - parts > 2.5e9
        assert stage.sim.state()["loaded"][0]["most_active"] == 1  # type: ignore[index]


def test_never_more_answers_at_once_than_slots() -> None:
    with a_stage([ONE], SimSettings(num_parallel=2)) as stage:
        calls = [stage.ask(ONE.name, TEN_TOKENS) for _ in range(6)]
        for call in calls:
            stage.answer(call)
        state = stage.sim.state()["loaded"][0]  # type: ignore[index]
        assert (state["slots"], state["most_active"]) == (2, 2)


def test_some_families_have_one_slot_whatever_is_set() -> None:
    one_slot = replace(ONE, family="qwen3vl")
    with a_stage([one_slot], SimSettings(num_parallel=4)) as stage:
        stage.answer(stage.ask(one_slot.name, ""))
        assert stage.sim.state()["loaded"][0]["slots"] == 1  # type: ignore[index]


def test_two_answers_at_once_are_slower_each_by_the_contention() -> None:
    shared = replace(ONE, timing=replace(PACE, contention=1.0))
    with a_stage([shared], SimSettings(num_parallel=2)) as stage:
        stage.answer(stage.ask(shared.name, ""))
        calls = [stage.ask(shared.name, TEN_TOKENS) for _ in range(2)]
        assert stage.answer(calls[0])["eval_duration"] == pytest.approx(1.8e9)


@pytest.mark.parametrize(
    ("first", "second", "reloads"),
    [
        ({"num_ctx": 2048}, {"num_ctx": 2048, "temperature": 0.5, "seed": 4, "num_predict": 3}, False),
        ({"num_ctx": 2048}, {"num_ctx": 1024}, True),
        ({"num_ctx": 2048}, {}, True),
        ({}, {"num_ctx": 4096}, False),
        ({"num_batch": 512}, {"num_batch": 256}, True),
        ({"num_thread": 2}, {}, True),
        ({}, {"num_gpu": 10}, False),
        ({"num_gpu": 10}, {"num_gpu": 11}, True),
        ({"num_ctx": 900_000}, {"num_ctx": 900_000}, False),
    ],
)
def test_only_options_of_the_load_make_a_model_load_again(
    first: dict[str, object], second: dict[str, object], reloads: bool
) -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, "", options=first))
        stage.answer(stage.ask(ONE.name, "", options=second))
        assert len(stage.sim.scheduler.loads) == (2 if reloads else 1)


def test_a_window_is_capped_at_the_trained_length_and_never_below_four() -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, "", options={"num_ctx": 900_000}))
        stage.answer(stage.ask(ONE.name, "", options={"num_ctx": -5}))
        assert [num_ctx for _, num_ctx in stage.sim.scheduler.loads] == [ONE.train_ctx, 4]


def test_another_window_waits_for_the_running_answer_and_the_load_holds_the_wait() -> None:
    with a_stage([ONE]) as stage:
        running = stage.ask(ONE.name, "[[sim: length=49]]", options={"num_ctx": 2048})
        stage.advance(2.0)
        other = stage.ask(ONE.name, TEN_TOKENS, options={"num_ctx": 1024})
        stage.answer(running)
        answer = stage.answer(other)
        assert answer["load_duration"] > 4.9e9


def test_requests_of_a_loaded_model_pass_those_that_wait_for_an_eviction() -> None:
    with a_stage([ONE, TWO], SimSettings(max_loaded=1)) as stage:
        running = stage.ask(ONE.name, "[[sim: length=30]]")
        stage.advance(2.0)
        waiting = stage.ask(TWO.name, TEN_TOKENS)
        passing = stage.ask(ONE.name, TEN_TOKENS)
        ends = [stage.finish(call).ended_s for call in (running, passing, waiting)]
        assert ends == sorted(ends, key=lambda end: end or 0)


def test_only_requests_that_wait_for_a_load_are_counted_and_refused() -> None:
    with a_stage([ONE, TWO, THREE], SimSettings(max_loaded=1, max_queue=1)) as stage:
        stage.ask(ONE.name, "[[sim: length=40]]")
        stage.advance(1.5)
        waiting = [stage.ask(TWO.name), stage.ask(THREE.name)]
        refused = stage.ask(THREE.name)
        assert refused.is_over
        assert stage.error(refused) == (503, "server busy, please try again.  maximum pending requests exceeded")
        queued = [stage.ask(ONE.name, TEN_TOKENS) for _ in range(5)]
        for call in [*queued, *waiting]:
            stage.answer(call)


def test_the_model_with_the_shortest_keep_alive_is_evicted_first_and_idle_ones_before_busy_ones() -> None:
    with a_stage([ONE, TWO, THREE], SimSettings(max_loaded=2)) as stage:
        stage.answer(stage.ask(ONE.name, "", keep_alive="1h"))
        stage.answer(stage.ask(TWO.name, "", keep_alive="2m"))
        stage.answer(stage.ask(THREE.name, ""))
        assert set(loaded(stage)) == {ONE.name, THREE.name}
        busy = stage.ask(THREE.name, "[[sim: length=90]]")
        stage.answer(stage.ask(TWO.name, ""))
        assert set(loaded(stage)) == {TWO.name, THREE.name}
        assert not busy.is_over


def test_models_that_do_not_fit_the_memory_together_evict_each_other() -> None:
    room_for_one = ONE.memory_bytes(4096) + TWO.memory_bytes(4096) - 1
    with a_stage([ONE, TWO], SimSettings(vram_bytes=room_for_one)) as stage:
        stage.answer(stage.ask(ONE.name, ""))
        stage.answer(stage.ask(TWO.name, ""))
        assert loaded(stage) == [TWO.name]


def test_a_cards_memory_comes_back_some_time_after_an_unload() -> None:
    gpu = [replace(model, timing=replace(PACE, on_gpu=True)) for model in (ONE, TWO)]
    with a_stage(gpu, SimSettings(max_loaded=1, vram_recovery_s=1.5)) as stage:
        stage.answer(stage.ask(gpu[0].name, ""))
        began_s = stage.now_s()
        stage.answer(stage.ask(gpu[1].name, ""))
        assert stage.now_s() - began_s == pytest.approx(2.5)


def test_a_second_load_of_the_same_file_is_quicker_on_a_card() -> None:
    gpu = replace(ONE, timing=replace(PACE, on_gpu=True))
    with a_stage([gpu]) as stage:
        stage.answer(stage.ask(gpu.name, "", keep_alive=1))
        stage.advance(2)
        assert stage.answer(stage.ask(gpu.name, TEN_TOKENS))["load_duration"] == pytest.approx(0.3e9)


def test_keep_alive_unloads_after_the_last_answer_not_after_the_first() -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, "", keep_alive="10s"))
        stage.advance(8)
        stage.answer(stage.ask(ONE.name, TEN_TOKENS))
        stage.advance(9)
        assert loaded(stage) == [ONE.name]
        stage.advance(2)
        assert loaded(stage) == []


def test_a_model_is_not_unloaded_while_it_answers_longer_than_its_keep_alive() -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, "", keep_alive="2s"))
        call = stage.ask(ONE.name, "[[sim: length=99]]")
        stage.advance(8)
        assert loaded(stage) == [ONE.name]
        assert stage.answer(call)["eval_count"] == 100
        stage.advance(2.5)
        assert loaded(stage) == []


def test_a_client_that_leaves_gives_its_model_back_even_while_its_prompt_is_being_read() -> None:
    with a_stage([ONE, TWO], SimSettings(max_loaded=1)) as stage:
        stage.answer(stage.ask(ONE.name, ""))
        call = stage.ask(ONE.name, "x" * 7000)  # 20 s of reading
        stage.advance(1)
        stage.hang_up(call)
        assert stage.sim.state()["loaded"][0]["active"] == 1  # type: ignore[index]
        stage.answer(stage.ask(TWO.name, ""))
        assert stage.now_s() == pytest.approx(3.0)


def test_a_fraction_for_a_window_is_cut() -> None:
    with a_stage([ONE]) as stage:
        stage.answer(stage.ask(ONE.name, "", options={"num_ctx": 512.9}))
        assert stage.sim.scheduler.loads == [(ONE.name, 512)]


def test_keep_alive_zero_unloads_when_the_answer_is_given() -> None:
    with a_stage([ONE]) as stage:
        call = stage.ask(ONE.name, TEN_TOKENS, keep_alive=0)
        stage.advance(1.2)
        assert loaded(stage) == [ONE.name]
        stage.answer(call)
        assert loaded(stage) == []


def test_unloading_by_an_empty_prompt_waits_for_the_running_answer() -> None:
    with a_stage([ONE]) as stage:
        running = stage.ask(ONE.name, TEN_TOKENS)
        stage.advance(1.5)
        assert stage.answer(stage.ask(ONE.name, "", keep_alive=0))["done_reason"] == "unload"
        assert loaded(stage) == [ONE.name]
        stage.answer(running)
        assert loaded(stage) == []


def test_hanging_up_while_a_model_loads_aborts_the_load() -> None:
    with a_stage([ONE]) as stage:
        call = stage.ask(ONE.name)
        stage.advance(0.9)
        assert loaded(stage) == [ONE.name]
        stage.hang_up(call)
        assert loaded(stage) == []
        assert stage.sim.requests[0].ended == "hung up"
        assert stage.answer(stage.ask(ONE.name, TEN_TOKENS))["load_duration"] == pytest.approx(1e9)


def test_a_request_that_left_while_it_waited_for_a_load_is_skipped() -> None:
    with a_stage([ONE, TWO], SimSettings(max_loaded=1)) as stage:
        running = stage.ask(ONE.name, TEN_TOKENS)
        stage.advance(1.2)
        first = stage.ask(TWO.name)
        second = stage.ask(TWO.name, options={"num_ctx": 512})
        stage.hang_up(second)
        stage.answer(running)
        stage.answer(first)
        stage.advance(5)
        assert stage.sim.scheduler.loads == [(ONE.name, 4096), (TWO.name, 4096)]


def test_a_request_of_the_model_that_loads_does_not_count_as_waiting() -> None:
    with a_stage([ONE], SimSettings(max_queue=1)) as stage:
        calls = [stage.ask(ONE.name, TEN_TOKENS) for _ in range(4)]
        for call in calls:
            stage.answer(call)
        assert len(stage.sim.scheduler.loads) == 1


@pytest.mark.parametrize(("bug", "waits_s"), [(True, 60.0), (False, 1.0)])
def test_a_keep_alive_sent_during_an_eviction_delays_it(bug: bool, waits_s: float) -> None:
    with a_stage([ONE, TWO], SimSettings(max_loaded=1, bug_17408=bug)) as stage:
        running = stage.ask(ONE.name, "[[sim: length=20]]")
        stage.advance(1.5)
        waiting = stage.ask(TWO.name, "")
        passing = stage.ask(ONE.name, TEN_TOKENS, keep_alive="1m")
        stage.answer(running)
        stage.answer(passing)
        began_s = stage.now_s()
        stage.answer(waiting)
        assert stage.now_s() - began_s == pytest.approx(waits_s, abs=1.1)


def test_an_eviction_that_hangs_blocks_every_later_load_but_not_the_loaded_model() -> None:
    with a_stage([ONE, TWO, THREE], SimSettings(max_loaded=1)) as stage:
        stage.answer(stage.ask(ONE.name, "", keep_alive=-1))
        held = stage.sim.faults.add(Fault(FaultKind.EVICT_DEADLOCK))
        stuck = [stage.ask(TWO.name, ""), stage.ask(THREE.name, "")]
        stage.advance(600)
        assert not any(call.is_over for call in stuck)
        assert stage.send("GET", "/api/version").is_over
        stage.sim.faults.remove(held)
        for call in stuck:
            stage.answer(call)


def test_a_model_that_is_loading_is_listed_before_0_30_only() -> None:
    for mode, seen in ((Mode.LEGACY, [ONE.name]), (Mode.LLAMA_SERVER, [])):
        with a_stage([ONE], SimSettings(mode=mode)) as stage:
            call = stage.ask(ONE.name, "")
            stage.advance(0.5)
            assert loaded(stage) == seen
            stage.answer(call)
            assert loaded(stage) == [ONE.name]


def test_presets_without_work_answer_without_time() -> None:
    with a_stage([a_model("any:7b", PRESETS["tiny"])]) as stage:
        call = stage.ask("any:7b", "Write something")
        assert call.is_over
        assert stage.answer(call)["done_reason"] == "stop"
