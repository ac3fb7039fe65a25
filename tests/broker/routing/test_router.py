"""Who gets a task, and why."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.core_settings import Rule
from koubou_broker.routing.placing import Held, Placed, placement_text
from koubou_common.messages.values import AgentHealth, Candidate, Label, WorkerMode
from koubou_common.reasons import Reason
from support.core_play import MODEL, a_new_task, a_worker
from support.routing_bench import RULES, Bench


def test_the_faster_worker_wins() -> None:
    assert Bench(a_worker("slow", factor=0.5), a_worker("fast", factor=1.0)).place() == "fast"


def test_a_worker_with_every_slot_busy_is_not_available() -> None:
    bench = Bench(a_worker("slow", factor=0.5), a_worker("fast", factor=1.0))
    bench.fill("fast")
    assert bench.place() == "slow"
    bench.fill("slow")
    assert bench.place() == ""


def test_an_idle_worker_beats_an_equal_one_with_a_slot_in_use() -> None:
    bench = Bench(a_worker("a", slots=2), a_worker("b", slots=2))
    bench.workers["a"].dispatched("u")
    assert bench.place() == "b"


def test_the_longest_idle_wins_a_tie_and_then_the_name() -> None:
    bench = Bench(a_worker("b"), a_worker("a"))
    assert bench.place() == "a"
    bench.workers["a"].idle_since_s = 5.0
    assert bench.place() == "b"


def test_a_capability_is_worth_twenty() -> None:
    bench = Bench(a_worker("a", factor=1.0), a_worker("b", factor=0.9, capabilities=("review",)))
    assert bench.place(a_new_task(task_type="review")) == "b"
    assert bench.place(a_new_task(task_type="unheard of")) == "a"


def test_the_success_rate_is_worth_thirty() -> None:
    bench = Bench(a_worker("a", factor=1.0), a_worker("b", factor=0.9))
    bench.workers["a"].restore_scores(0, 100)
    assert bench.place() == "b"


def test_rules_prefer_groups_in_order() -> None:
    bench = Bench(a_worker("l", factor=0.5), a_worker("r", location="remote", factor=2.0), rules=RULES)
    assert bench.place(a_new_task(priority=9)) == "l"
    assert bench.place(a_new_task(priority=6)) == "l"
    assert bench.place(a_new_task(priority=3)) == "r"


def test_the_middle_priorities_balance_when_the_first_group_is_busy() -> None:
    bench = Bench(a_worker("l"), a_worker("r", location="remote"), rules=RULES)
    bench.fill("l")
    assert bench.place(a_new_task(priority=6)) == "r"


def test_without_a_preferred_worker_any_available_one_takes_it() -> None:
    bench = Bench(a_worker("l"), rules=RULES)
    assert bench.place(a_new_task(priority=2)) == "l"


def test_a_rule_may_say_to_wait_before_others_take_it() -> None:
    rule = Rule(1, 10, ("local",), overflow_after_s=60.0)
    bench = Bench(a_worker("l"), a_worker("r", location="remote"), rules=(rule,))
    bench.fill("l")
    assert bench.place(waited_s=59.0) == ""
    assert bench.place(waited_s=60.0) == "r"


def test_a_rule_may_name_a_worker_and_an_unknown_word_means_everyone() -> None:
    bench = Bench(a_worker("a"), a_worker("b"), rules=(Rule(1, 5, ("b",)), Rule(6, 10, ("gpu",))))
    assert bench.place(a_new_task(priority=1)) == "b"
    assert bench.place(a_new_task(priority=6)) == "a"


def test_a_priority_without_a_rule_goes_anywhere() -> None:
    bench = Bench(a_worker("a"), rules=(Rule(8, 10, ("local",)),))
    assert bench.place(a_new_task(priority=1)) == "a"


def test_the_worker_that_failed_last_is_avoided_while_another_is_eligible() -> None:
    bench = Bench(a_worker("a"), a_worker("b"))
    assert bench.place(avoid="a") == "b"
    bench.fill("b")
    assert bench.place(avoid="a") == ""
    bench.workers["b"].disconnect()
    assert bench.place(avoid="a") == "a"


def test_each_obstacle_has_its_reason() -> None:
    bench = Bench(a_worker("a"))
    worker = bench.workers["a"]
    need = bench.need(a_new_task())
    assert bench.router.obstacle(need, worker, 0.0) is None
    assert bench.router.obstacle(need, worker, 99.0) is Reason.STOPPED_ANSWERING
    worker.mode = WorkerMode.PAUSED
    assert bench.router.obstacle(need, worker, 0.0) is Reason.PAUSED
    worker.mode = WorkerMode.DRAINING
    assert bench.router.obstacle(need, worker, 0.0) is Reason.DRAINING
    worker.mode = WorkerMode.ACTIVE
    worker.health = AgentHealth(can_work=False, issue="gemini-repo-cli is missing")
    assert bench.router.obstacle(need, worker, 0.0) is Reason.CANNOT_WORK
    assert bench.why("a") == "gemini-repo-cli is missing"
    worker.health = AgentHealth()
    worker.cooling_until_s = 10.0
    assert bench.router.obstacle(need, worker, 0.0) is Reason.COOLING_DOWN
    worker.cooling_until_s = None
    worker.tags = ("other:7b",)
    assert bench.router.obstacle(need, worker, 0.0) is Reason.MODEL_ABSENT
    assert bench.why("a") == f"its Ollama does not have {MODEL} now"
    worker.disconnect()
    assert bench.router.obstacle(need, worker, 0.0) is Reason.NOT_CONNECTED


def test_who_is_weighed_has_its_reason_in_one_word_and_in_words() -> None:
    bench = Bench(a_worker("busy", slots=2), a_worker("avoided"), a_worker("free"), a_worker("elsewhere"))
    bench.fill("busy")
    spec = replace(a_new_task(), labels=())
    told = {one.worker_id: one for one in bench.router.weigh(spec, ("elsewhere",), "avoided", 0.0)}
    assert [(one.code, one.eligible, one.available) for one in told.values()] == [
        (None, True, True),
        (Reason.AVOIDED, True, False),
        (Reason.BUSY, True, False),
        (Reason.EXCLUDED, False, False),
    ]
    assert told["busy"].reason == "busy: 2 of 2 slots in use"
    assert told["avoided"].reason == Reason.AVOIDED.text
    assert told["free"].reason == ""
    assert all(one.reason for one in told.values() if one.code is not None)


def test_who_waits_for_a_preferred_worker_is_told_so_while_the_rule_says_so() -> None:
    rule = Rule(1, 10, ("local",), overflow_after_s=60.0)
    bench = Bench(a_worker("l"), a_worker("r", location="remote"), rules=(rule,))
    bench.fill("l")
    codes = [
        [one.code for one in bench.router.weigh(a_new_task(), (), "", 0.0, waited_s)] for waited_s in (59.0, 60.0, None)
    ]
    assert codes == [
        [Reason.BUSY, Reason.WAITS_FOR_PREFERRED],
        [None, Reason.BUSY],
        [None, Reason.BUSY],
    ]
    held = bench.placed(a_new_task(), waited_s=59.0)
    assert isinstance(held, Held)
    assert held.reason is Reason.WAITS_FOR_PREFERRED


def test_what_a_task_asks_for_decides_who_can_never_run_it() -> None:
    gpu = Label("gpu", "yes")
    bench = Bench(
        a_worker("plain"),
        a_worker("gpu", labels=[gpu]),
        a_worker("wide", num_ctx=65_536),
        a_worker("other", model="other:7b"),
    )
    everyone = {"plain", "gpu", "wide", "other"}
    for spec, able in [
        (a_new_task(), everyone),
        (a_new_task(worker="wide"), {"wide"}),
        (a_new_task(labels=(gpu,)), {"gpu"}),
        (a_new_task(min_context=10_000), {"wide"}),
        (a_new_task(prompt_bytes=8_192 * 16), {"wide"}),
        (a_new_task(model=MODEL), {"plain", "gpu", "wide"}),
    ]:
        assert everyone - bench.need(spec).unfit == able, spec
        for worker_id, worker in bench.workers.items():
            assert bool(bench.router.fitting.misfit(spec, (), worker)) == (worker_id not in able), worker_id


def test_a_measured_ratio_narrows_what_surely_cannot_fit() -> None:
    bench = Bench(a_worker("a", num_ctx=8_192))
    spec = a_new_task(prompt_bytes=100_000)
    assert bench.place(spec) == "a"
    bench.router.fitting.measured(MODEL, 4.0)
    assert bench.place(spec) == ""
    assert bench.router.fitting.estimate_tokens(MODEL, 4_000) == 1_000


def test_a_decision_names_the_winner_the_next_seven_and_counts_the_rest() -> None:
    workers = [a_worker(f"w{nth}", factor=1 + nth / 10) for nth in range(11)]
    bench = Bench(*workers, a_worker("far", location="remote", model="other:7b"), rules=RULES)
    bench.fill("w10")
    bench.workers["w9"].mode = WorkerMode.PAUSED
    spec = replace(a_new_task(model=MODEL), priority=9)
    placed = bench.placed(spec)
    assert isinstance(placed, Placed)
    decision = bench.router.decision(spec, (), bench.need(spec), placed)
    assert decision.strategy == "priority_based"
    assert decision.rule == "priority 8-10: local (fast first)"
    assert [one.worker_id for one in decision.candidates] == [f"w{nth}" for nth in range(8, 0, -1)]
    assert {(one.reason, one.count) for one in decision.reasons} == {
        (Reason.BUSY, 1),
        (Reason.PAUSED, 1),
        (Reason.MODEL_NOT_LISTED, 1),
    }
    winner = decision.candidates[0]
    assert (winner.score, winner.group, winner.eligible, winner.available) == (280.0, 0, True, True)
    assert {part.name for part in winner.parts} == {"factor", "idle", "success", "capability", "residency"}
    assert winner.finish_s > 0


def test_a_placement_is_the_decision_in_one_line() -> None:
    workers = [a_worker(f"w{nth}", factor=1 + nth / 10) for nth in range(4)]
    bench = Bench(*workers, rules=RULES, loaded=True)
    bench.fill("w3")
    bench.workers["w2"].mode = WorkerMode.PAUSED
    spec = a_new_task(priority=9)
    placed = bench.placed(spec)
    assert isinstance(placed, Placed)
    text = placement_text(bench.router.decision(spec, (), bench.need(spec), placed))
    assert text == "priority 8-10: local (fast first); w1 210 > w0 200; not: 1 busy, 1 paused"


def test_a_placement_shows_what_came_beside_the_score() -> None:
    bench = Bench(a_worker("a", factor=1.0), a_worker("b", factor=0.9))
    bench.load("b")
    spec = a_new_task()
    placed = bench.placed(spec)
    assert isinstance(placed, Placed)
    text = placement_text(bench.router.decision(spec, (), bench.need(spec), placed))
    assert text.startswith("no rule: all workers; b 190 > a 200 (residency -53)")


def test_the_reasons_count_every_worker_that_was_not_chosen_among() -> None:
    bench = Bench(a_worker("l"), a_worker("r", location="remote"), a_worker("s", location="remote"), rules=RULES)
    bench.workers["s"].disconnect()
    rule = replace(RULES[0], overflow_after_s=60.0)
    waiting = Bench(*(one.settings for one in bench.workers.values()), rules=(rule,))
    spec = a_new_task(priority=9)
    placed = waiting.placed(spec)
    assert isinstance(placed, Placed)
    decision = waiting.router.decision(spec, (), waiting.need(spec), placed)
    assert [(one.reason, one.count) for one in decision.reasons] == [(Reason.WAITS_FOR_PREFERRED, 2)]


workers_drawn = st.lists(
    st.tuples(
        st.sampled_from(["local", "remote"]),
        st.floats(0.1, 2.0),
        st.integers(0, 2),  # slots in use of two
        st.booleans(),  # connected
        st.booleans(),  # lists the model
    ),
    max_size=6,
)


@given(workers_drawn, st.integers(1, 10), st.booleans())
def test_a_place_is_always_available_and_found_when_there_is_one(
    drawn: list[tuple[str, float, int, bool, bool]], priority: int, asks_model: bool
) -> None:
    bench = Bench(
        *(
            a_worker(f"w{nth}", location=where, factor=factor, slots=2, model=MODEL if lists else "other:7b")
            for nth, (where, factor, _, _, lists) in enumerate(drawn)
        ),
        rules=RULES,
    )
    for nth, (_, _, used, connected, _) in enumerate(drawn):
        for slot in range(used):
            bench.workers[f"w{nth}"].dispatched(str(slot))
        if not connected:
            bench.workers[f"w{nth}"].disconnect()
    spec = replace(a_new_task(), priority=priority, model=MODEL if asks_model else "")
    candidates = {one.worker_id: one for one in bench.router.weigh(spec, (), "", 0.0)}
    placed = bench.place(spec)
    assert bool(placed) == any(one.available for one in candidates.values())
    if placed:
        assert next(iter(candidates)) == placed, "who would get it is named first"
        preferred = {2: "remote", 3: "remote", 4: "remote", 1: "remote"}.get(priority, "local")
        chosen = bench.workers[placed].settings.location
        others = [one for one in candidates.values() if one.available]
        if chosen != preferred:
            assert all(bench.workers[one.worker_id].settings.location != preferred for one in others)
        rivals = [one for one in others if bench.workers[one.worker_id].settings.location == chosen]
        assert points(candidates[placed]) >= max(points(one) for one in rivals) - 0.5, "each part is rounded"


def points(one: Candidate) -> float:
    return sum(part.points for part in one.parts)
