"""Due times in one heap."""

from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.timers import Timer, Timers


def pop_all(timers: Timers, now_s: float) -> list[object]:
    popped = []
    while (due := timers.pop_due(now_s)) is not None:
        popped.append(due[1])
    return popped


def test_what_is_due_comes_in_order_and_once() -> None:
    timers = Timers()
    timers.set(Timer.LEASE, "b", 2.0)
    timers.set(Timer.LEASE, "a", 1.0)
    timers.set(Timer.LEASE, "c", 3.0)
    assert pop_all(timers, 2.0) == ["a", "b"]
    assert pop_all(timers, 2.0) == []
    assert timers.next_s == 3.0


def test_a_renewed_lease_is_not_due_at_its_old_time() -> None:
    timers = Timers()
    timers.set(Timer.LEASE, "a", 1.0)
    timers.set(Timer.LEASE, "a", 5.0)
    assert pop_all(timers, 4.9) == []
    assert pop_all(timers, 5.0) == ["a"]


def test_a_time_moved_forward_counts() -> None:
    timers = Timers()
    timers.set(Timer.LEASE, "a", 5.0)
    timers.set(Timer.LEASE, "a", 1.0)
    assert timers.next_s == 1.0
    assert pop_all(timers, 9.0) == ["a"]


def test_stretch_moves_one_kind() -> None:
    timers = Timers()
    timers.set(Timer.LEASE, "a", 1.0)
    timers.set(Timer.DEADLINE, 7, 1.0)
    timers.stretch(Timer.LEASE, 10.0)
    assert pop_all(timers, 5.0) == [7]
    assert pop_all(timers, 11.0) == ["a"]


def test_dropped_times_do_not_pile_up() -> None:
    timers = Timers()
    for nth in range(10_000):
        timers.set(Timer.NOT_BEFORE, nth, 1e9)
        timers.drop(Timer.NOT_BEFORE, nth)
    assert len(timers) == 0
    assert timers.next_s is None
    assert len(timers._heap) < 200


Step = tuple[str, int, float]


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "drop", "pop", "stretch"]), st.integers(0, 5), st.floats(0, 100)),
        max_size=60,
    )
)
def test_it_behaves_like_a_dictionary_of_times(steps: list[Step]) -> None:
    timers = Timers()
    model: dict[object, float] = {}
    for what, key, time_s in steps:
        match what:
            case "set":
                timers.set(Timer.LEASE, key, time_s)
                model[key] = time_s
            case "drop":
                timers.drop(Timer.LEASE, key)
                model.pop(key, None)
            case "stretch":
                timers.stretch(Timer.LEASE, time_s)
                model = {name: due_s + time_s for name, due_s in model.items()}
            case _:
                due = {name for name, due_s in model.items() if due_s <= time_s}
                assert set(pop_all(timers, time_s)) == due
                model = {name: due_s for name, due_s in model.items() if name not in due}
        first_s = min(model.values(), default=None)
        if first_s is None:
            assert timers.next_s is None
        else:
            assert timers.next_s is not None
            assert timers.next_s <= first_s
