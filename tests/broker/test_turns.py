"""Law 1: effects go in order, and only when every earlier change is durable."""

from hypothesis import given
from hypothesis import strategies as st

from koubou_broker.effects import CountStates, Effect, Lookup, Save, Send
from koubou_broker.turns import Ledger, Turn
from koubou_common.errors import Code
from koubou_common.messages import Error, PartStaged
from support.store_play import a_blob, an_event


def a_send(number: int) -> Send:
    return Send(number, Error(Code.REFUSED, str(number)))


def a_turn(*effects: Effect) -> Turn:
    turn = Turn()
    turn.add(effects)
    return turn


def test_without_changes_everything_goes_at_once() -> None:
    assert Ledger().seal(a_turn(a_send(1), a_send(2))) == (None, [a_send(1), a_send(2)])


def test_what_follows_a_change_waits_for_it_even_if_it_changed_nothing_itself() -> None:
    ledger = Ledger()
    batch, now = ledger.seal(a_turn(Save((an_event(1),)), a_send(1)))
    assert batch
    assert now == []
    assert ledger.seal(a_turn(a_send(2), Lookup(1, CountStates("")))) == (None, [])
    assert ledger.durable(batch.number) == [a_send(1), a_send(2), Lookup(1, CountStates(""))]
    assert ledger.is_settled


def test_bodies_are_stored_for_tasks_parts_and_questions_but_not_for_refusals() -> None:
    blob = a_blob(b"bytes")
    for effect, is_kept in (
        (Save((an_event(),)), True),
        (Lookup(1, CountStates("")), True),
        (Send(1, PartStaged("r", 0)), True),
        (a_send(1), False),
    ):
        turn = Turn()
        turn.add([effect], None, (blob,))
        assert [entry.blobs for entry in turn.entries] == ([(blob,)] if is_kept else []), effect


def test_a_failed_term_takes_its_effects_along() -> None:
    ledger = Ledger()
    ledger.seal(a_turn(Save((an_event(),)), a_send(1)))
    ledger.fail()
    assert ledger.is_settled
    assert ledger.term == 1
    batch, _ = ledger.seal(a_turn(Save((an_event(),)), a_send(2)))
    assert batch
    assert (batch.number, batch.term) == (2, 1)
    assert ledger.durable(batch.number) == [a_send(2)]


def test_the_witness_learns_only_of_durable_events() -> None:
    ledger = Ledger()
    batch, _ = ledger.seal(a_turn(Save((an_event(7), an_event(9)))))
    assert ledger.event_seq == 0
    assert batch
    ledger.durable(batch.number)
    assert ledger.event_seq == 9


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=40))
def test_whatever_happens_nothing_overtakes_and_nothing_is_early(steps: list[tuple[bool, int]]) -> None:
    """Each step is a turn with or without a change; then so many batches become durable."""
    ledger = Ledger()
    sent: list[Effect] = []
    saved_before: list[int] = []  # by message: the last batch made before it
    made = durable = 0
    for number, (changes, commits) in enumerate(steps):
        batch, now = ledger.seal(a_turn(*((Save((an_event(number + 1),)),) if changes else ()), a_send(number)))
        made += batch is not None
        saved_before.append(made)
        sent += now
        if commits and durable < made:
            durable = min(made, durable + commits)
            sent += ledger.durable(durable)
        assert sent == [a_send(index) for index in range(len(sent))]
        assert all(saved_before[index] <= durable for index in range(len(sent)))
    sent += ledger.durable(made)
    assert sent == [a_send(index) for index in range(len(steps))]
