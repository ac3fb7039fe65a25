"""Who gets a task, and why."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.core_settings import CoreSettings, Rule, WorkerSettings
from koubou_broker.queue import Need
from koubou_broker.records import NewTask
from koubou_broker.routing import TaskRouter
from koubou_broker.workers import LiveWorker
from koubou_common.messages.values import AgentHealth, Label, WorkerMode
from support.core_play import MODEL, a_new_task, a_worker

RULES = (
    Rule(8, 10, ("local",), "fast first"),
    Rule(5, 7, ("local", "remote"), "balance"),
    Rule(1, 4, ("remote",), "keep local free"),
)


class Bench:
    """A router over connected workers."""

    def __init__(self, *workers: WorkerSettings, rules: tuple[Rule, ...] = ()) -> None:
        self.settings = CoreSettings(workers=workers, rules=rules)
        self.workers: dict[str, LiveWorker] = {}
        for nth, one in enumerate(workers, 1):
            worker = self.workers[one.worker_id] = LiveWorker(one)
            worker.connect(nth, "b1", 0.0, 0)
            worker.heard(0.0, 0)
            worker.health = AgentHealth(ollama_ok=True)
            worker.report([], one.slots, 0, 0.0)
        self.router = TaskRouter(self.settings, self.workers)

    def need(self, spec: NewTask, avoid: str = "") -> Need:
        return self.router.need_of(spec, (), avoid)

    def place(self, spec: NewTask | None = None, *, avoid: str = "", waited_s: float = 0.0) -> str:
        worker = self.router.place(self.need(spec or a_new_task(), avoid), 0.0, waited_s)
        return worker.worker_id if worker is not None else ""

    def fill(self, worker_id: str) -> None:
        worker = self.workers[worker_id]
        while worker.free:
            worker.dispatched(f"{worker_id}-{worker.dispatches}")


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


def test_each_obstacle_has_its_words() -> None:
    bench = Bench(a_worker("a"))
    worker = bench.workers["a"]
    need = bench.need(a_new_task())
    assert bench.router.obstacle(need, worker, 0.0) == ""
    assert bench.router.obstacle(need, worker, 99.0) == "stopped answering"
    worker.mode = WorkerMode.PAUSED
    assert bench.router.obstacle(need, worker, 0.0) == "paused"
    worker.mode = WorkerMode.ACTIVE
    worker.health = AgentHealth(can_work=False, issue="gemini-repo-cli is missing")
    assert bench.router.obstacle(need, worker, 0.0) == "gemini-repo-cli is missing"
    worker.health = AgentHealth()
    worker.cooling_until_s = 10.0
    assert bench.router.obstacle(need, worker, 0.0) == "cooling down after failures"
    worker.cooling_until_s = None
    worker.disconnect()
    assert bench.router.obstacle(need, worker, 0.0) == "not connected"


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
            assert bool(bench.router.misfit(spec, (), worker)) == (worker_id not in able), worker_id


def test_a_measured_ratio_narrows_what_surely_cannot_fit() -> None:
    bench = Bench(a_worker("a", num_ctx=8_192))
    spec = a_new_task(prompt_bytes=100_000)
    assert bench.place(spec) == "a"
    bench.router.measured(MODEL, 4.0)
    assert bench.place(spec) == ""
    assert bench.router.estimate_tokens(MODEL, 4_000) == 1_000


def test_a_placement_names_the_winner_the_next_and_the_reasons() -> None:
    workers = [a_worker(f"w{nth}", factor=1 + nth / 10) for nth in range(10)]
    bench = Bench(*workers, rules=RULES)
    bench.fill("w9")
    bench.workers["w8"].mode = WorkerMode.PAUSED
    winner = bench.workers[bench.place(a_new_task(priority=9))]
    text = bench.router.placement(a_new_task(priority=9), (), "", winner, 0.0)
    assert text == (
        "priority 8-10: local (fast first); w7 270 > w6 260 > w5 250 > w4 240 > w3 230 > w2 220 > w1 210 > w0 200;"
        " not: 1 busy: 1 of 1 slots in use, 1 paused"
    )


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
        assert candidates[placed].score == max(one.score for one in rivals)
