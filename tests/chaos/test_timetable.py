"""When what happens to whom: drawn from a seed, each victim on a period of its own."""

from collections import Counter

import pytest

from chaos.timetable import Act, Cast, Deed, Rates, timetable

CAST = Cast(
    broker="broker",
    agents=("a1", "a2", "a3", "a4"),
    clients=("c1", "c2", "c3"),
    ollamas=("ollama a1", "ollama a2", "ollama a3"),
    boxed=("a4",),
)
SPAN_S = 600.0
RATES = Rates()


def acts(seed: int = 1, cast: Cast = CAST, rates: Rates = RATES) -> list[Act]:
    return timetable(seed, SPAN_S, cast, rates)


def test_one_seed_is_one_timetable() -> None:
    assert acts(1) == acts(1)
    assert acts(1) != acts(2)


def test_acts_are_in_order_and_within_the_run() -> None:
    times = [act.at_s for act in acts()]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < SPAN_S


@pytest.mark.parametrize(
    ("victims", "pause_s"),
    [(("broker",), RATES.kill_broker_s), (CAST.agents, RATES.kill_agent_s), (CAST.clients, RATES.kill_client_s)],
)
def test_kills_come_as_often_as_the_rate_says(victims: tuple[str, ...], pause_s: float) -> None:
    kills = Counter(act.victim for act in acts() if act.deed is Deed.KILL and act.victim in victims)
    assert sum(kills.values()) == pytest.approx(SPAN_S / pause_s, rel=0.2)
    assert set(kills) == set(victims)


def test_stops_last_between_five_and_forty_seconds() -> None:
    lasted = [act.lasts_s for seed in range(20) for act in acts(seed) if act.deed is Deed.FREEZE]
    assert min(lasted) >= 5
    assert 30 < max(lasted) <= 40


def test_every_kind_of_deed_is_there() -> None:
    assert {act.deed for act in acts()} == set(Deed)


def test_without_a_box_no_link_goes_down_and_a_rate_of_zero_is_never() -> None:
    no_box = Cast(CAST.broker, CAST.agents, CAST.clients, CAST.ollamas)
    assert not [act for act in acts(cast=no_box) if act.deed is Deed.LINK_DOWN]
    assert not [act for act in acts(rates=Rates(freeze_s=0)) if act.deed is Deed.FREEZE]
