"""Whose message is next: a line for each, least used first, and rest for who used much."""

from koubou_broker.shares import MUCH, MUCH_TOGETHER, PRESENT_S, REMEMBER_S, Shares


def everybody(_: str) -> bool:
    return True


def served(shares: Shares[str], now_s: float = 0.0) -> list[str]:
    """All that one round serves."""
    shares.begin_round(now_s)
    order = []
    while (found := shares.next(everybody)) is not None:
        order.append(found[1])
    return order


def test_a_round_takes_one_message_of_each_line_in_the_order_they_came() -> None:
    shares: Shares[str] = Shares()
    for item in ("m1", "m2", "m3"):
        assert shares.add("mika", item, 1)
    shares.add("rin", "r1", 1)
    assert served(shares) == ["m1", "r1"]
    assert served(shares) == ["m2"]
    assert served(shares) == ["m3"]
    assert served(shares) == []


def test_who_used_least_lately_comes_first() -> None:
    shares: Shares[str] = Shares()
    shares.add("mika", "m1", 1)
    shares.add("rin", "r1", 1)
    shares.charge("mika", 0.1, 0.0)
    assert served(shares) == ["r1", "m1"]


def test_what_was_used_is_forgotten() -> None:
    shares: Shares[str] = Shares()
    shares.charge("mika", 0.1, 0.0)
    shares.charge("rin", 0.01, 5 * REMEMBER_S)
    shares.add("mika", "m1", 1)
    shares.add("rin", "r1", 1)
    assert served(shares, 5 * REMEMBER_S) == ["m1", "r1"]
    shares.begin_round(100 * REMEMBER_S)
    assert shares._uses == {}


def test_a_full_line_takes_no_more_and_others_do() -> None:
    shares: Shares[str] = Shares(messages=2, size_bytes=10)
    assert shares.add("mika", "m1", 4)
    assert shares.add("mika", "m2", 4)
    assert not shares.add("mika", "m3", 1)
    assert shares.add("rin", "r1", 4)
    assert not shares.add("rin", "r2", 7)
    served(shares)
    assert shares.add("mika", "m3", 1)
    assert shares.waiting() == {"mika": 2}


def test_one_message_is_taken_however_large() -> None:
    shares: Shares[str] = Shares(size_bytes=10)
    assert shares.add("mika", "m1", 1_000)


def test_who_may_not_go_keeps_its_place() -> None:
    shares: Shares[str] = Shares()
    shares.add("mika", "m1", 1)
    shares.add("rin", "r1", 1)
    shares.begin_round(0.0)
    assert shares.next(lambda who: who == "rin") == ("rin", "r1")
    assert shares.next(lambda who: who == "rin") is None
    assert not shares.can_go(lambda who: who == "rin")
    assert served(shares) == ["m1"]


def test_who_used_little_never_rests_and_those_who_used_much_rest_together() -> None:
    shares: Shares[str] = Shares()
    shares.charge("mika", MUCH * REMEMBER_S, 0.0)
    assert not shares.has_used_much("mika", 0.0)
    shares.charge("mika", 0.001, 0.0)
    assert shares.has_used_much("mika", 0.0)
    assert shares.rest_s("mika", 0.0) == 0.0
    shares.charge("mika", MUCH_TOGETHER * REMEMBER_S * 1.1, 0.0)
    rest_s = shares.rest_s("mika", 0.0)
    assert 0.0 < rest_s < REMEMBER_S
    assert shares.rest_s("mika", rest_s + 1e-6) == 0.0
    assert shares.rest_s("rin", 0.0) == 0.0


def test_a_flood_gets_no_more_than_what_all_such_get_together() -> None:
    shares: Shares[str] = Shares()
    now_s, worked_s = 0.0, 0.0
    while now_s < 60.0:
        if wait_s := shares.rest_s("mika", now_s):
            now_s += max(wait_s, 0.001)
            continue
        shares.charge("mika", 0.0004, now_s)
        now_s += 0.0004
        worked_s += 0.0004
    burst_s = 2 * REMEMBER_S * (MUCH + MUCH_TOGETHER)  # at first it had used little
    assert MUCH_TOGETHER * now_s * 0.7 < worked_s < MUCH_TOGETHER * now_s * 1.05 + burst_s


def test_only_who_used_little_and_was_heard_lately_is_a_reason_for_rest() -> None:
    shares: Shares[str] = Shares()
    assert not shares.has_light(0.0)
    shares.heard("mika", 0.0)
    assert shares.has_light(0.0)
    shares.charge("mika", 1.0, 0.0)
    assert not shares.has_light(0.0)
    shares.heard("rin", 0.0)
    assert shares.has_light(PRESENT_S)
    assert not shares.has_light(PRESENT_S + 0.01)
