"""The simulated box: speeds, slots that share, models that displace each other, prompts read before."""

from dataclasses import replace

import pytest

from koubou_simulator.lan.box import Box
from koubou_simulator.lan.things import MODEL, OTHER_MODEL, OVERHEAD_S, BoxSpec, Job

TEN_S = Job(0.0, prompt_tokens=1_000, output_tokens=280)  # 2 s of reading, 8 s of answering


def a_box(**changes: object) -> Box:
    """A box with its model loaded."""
    spec = BoxSpec("box", models=(MODEL, OTHER_MODEL), starts_loaded=True)
    return Box(replace(spec, **changes))  # type: ignore[arg-type] # names are checked by replace itself


def ends_s(box: Box) -> dict[int, float]:
    """When each task ends if nothing more comes."""
    ends: dict[int, float] = {}
    while box.runs:
        box.go_on(box.next_s)
        ends |= {run.task_id: round(box.now_s, 3) for run in box.ended()}
    return ends


def test_a_task_takes_its_work_over_the_speed_and_the_overhead() -> None:
    box = a_box(speed=0.5)
    box.take("u1", 1, TEN_S, 0.0)
    assert ends_s(box) == {1: 20.0 + OVERHEAD_S}
    assert box.busy_s == pytest.approx(20.0)


def test_two_slots_share_the_gpu_and_together_give_more_than_one() -> None:
    box = a_box(slots=2)
    box.take("u1", 1, TEN_S, 0.0)
    box.take("u2", 2, TEN_S, 0.0)
    assert ends_s(box) == {1: 13.0 + OVERHEAD_S, 2: 13.0 + OVERHEAD_S}


def test_who_is_left_alone_goes_on_at_full_speed() -> None:
    box = a_box(slots=2)
    box.take("u1", 1, TEN_S, 0.0)
    box.take("u2", 2, replace(TEN_S, output_tokens=280 + 350), 0.0)
    assert ends_s(box) == {1: 13.0 + OVERHEAD_S, 2: 23.0 + OVERHEAD_S}


def test_a_model_that_is_not_loaded_is_loaded_in_the_others_place() -> None:
    box = a_box()
    box.take("u1", 1, replace(TEN_S, model=OTHER_MODEL), 0.0)
    assert ends_s(box) == {1: 30.0 + OVERHEAD_S}
    assert [(load.model, load.displaced) for load in box.loads] == [(OTHER_MODEL, MODEL)]
    assert list(box.loaded) == [OTHER_MODEL]


def test_with_memory_for_two_nothing_is_displaced() -> None:
    box = a_box(memory_models=2)
    box.take("u1", 1, replace(TEN_S, model=OTHER_MODEL), 0.0)
    ends_s(box)
    assert [load.displaced for load in box.loads] == [""]
    assert set(box.loaded) == {MODEL, OTHER_MODEL}


def test_a_model_in_use_is_not_displaced_and_holds_back_what_came_later() -> None:
    box = a_box(slots=3)
    box.take("u1", 1, TEN_S, 0.0)
    box.take("u2", 2, replace(TEN_S, model=OTHER_MODEL), 0.0)
    box.take("u3", 3, TEN_S, 0.0)
    began = ends_s(box)
    assert began[1] == 10.0 + OVERHEAD_S
    assert began[2] == 40.0 + OVERHEAD_S
    # The third needs the first model, which was there when it came; the second was before it.
    assert began[3] == 70.0 + OVERHEAD_S


def test_the_beginning_of_a_prompt_is_read_once_a_slot() -> None:
    job = Job(0.0, 5_500, 35, prefix="common", prefix_tokens=5_000)
    box = a_box()
    box.take("u1", 1, job, 0.0)
    first_s = ends_s(box)[1]
    box.take("u2", 2, job, box.now_s)
    assert first_s == 12.0 + OVERHEAD_S
    assert ends_s(box)[2] - first_s == pytest.approx(2.0 + OVERHEAD_S)


def test_another_prompt_between_and_a_swap_forget_the_beginning() -> None:
    job = Job(0.0, 5_500, 35, prefix="common", prefix_tokens=5_000)
    for other in (TEN_S, replace(TEN_S, model=OTHER_MODEL)):
        box = a_box()
        box.take("u1", 1, job, 0.0)
        ends_s(box)
        box.take("u2", 2, other, box.now_s)
        ends_s(box)
        box.take("u3", 3, job, box.now_s)
        ends_s(box)
        assert box.busy_s == pytest.approx(12.0 + 10.0 + 12.0)


def test_a_box_that_fails_fails_soon() -> None:
    box = a_box(fails_after_s=0.05)
    box.take("u1", 1, TEN_S, 0.0)
    assert ends_s(box) == {1: 0.05}


def test_what_is_dropped_frees_the_gpu() -> None:
    box = a_box(slots=2)
    box.take("u1", 1, TEN_S, 0.0)
    box.take("u2", 2, TEN_S, 0.0)
    box.drop("u1", OVERHEAD_S)
    assert ends_s(box) == {2: 10.0 + OVERHEAD_S}


def test_a_box_with_jitter_is_as_fast_on_average_and_the_same_again() -> None:
    def took_s() -> list[float]:
        box = a_box(jitter=0.1)
        before_s, took = 0.0, []
        for nth in range(200):
            box.take(f"u{nth}", nth, TEN_S, box.now_s)
            ends_s(box)
            took.append(box.now_s - before_s - OVERHEAD_S)
            before_s = box.now_s
        return took

    times = took_s()
    assert len(set(times)) == 200
    assert sum(times) / 200 == pytest.approx(10.0, rel=0.03)
    assert took_s() == times
