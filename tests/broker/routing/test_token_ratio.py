"""Bytes a token, as measured, and how far estimates by it are off."""

import pytest

from koubou_broker.routing.token_ratio import BYTES_PER_TOKEN_MOST, BYTES_PER_TOKEN_USUAL, TokenRatios


def measured(*ratios: float, model: str = "m:1b") -> TokenRatios:
    known = TokenRatios()
    for ratio in ratios:
        known.observe(model, round(ratio * 1_000), 1_000)
    return known


def test_nothing_is_known_before_anything_was_measured() -> None:
    known = TokenRatios()
    assert (known.bytes_per_token("m:1b"), known.error("m:1b")) == (0.0, 0.0)
    assert known.usual("m:1b") == BYTES_PER_TOKEN_USUAL
    assert known.most("m:1b") == BYTES_PER_TOKEN_MOST
    assert known.sure("m:1b") == pytest.approx(BYTES_PER_TOKEN_USUAL / 1.5)


def test_the_first_measurement_counts_as_it_is() -> None:
    assert measured(4.0).bytes_per_token("m:1b") == 4.0


def test_a_short_prompt_says_nothing() -> None:
    known = TokenRatios()
    known.observe("m:1b", 2_000, 199)
    assert known.bytes_per_token("m:1b") == 0.0


def test_a_ratio_follows_texts_that_differ_a_little_every_time() -> None:
    """Each step is below what makes others compute anew; they must add up all the same."""
    known = measured(4.0, *[4.4] * 60)
    assert known.bytes_per_token("m:1b") == pytest.approx(4.4, rel=0.01)


def test_what_was_computed_is_out_of_date_once_small_steps_add_up() -> None:
    known = measured(4.0, *[4.0] * 30)
    news = [known.observe("m:1b", 4_600, 1_000) for _ in range(20)]
    assert not news[0]
    assert any(news)
    assert sum(news) < 6, "not at every prompt"


def test_the_error_is_the_mean_of_how_far_estimates_were_off() -> None:
    known = measured(*[4.0, 5.0] * 50)
    assert 0.08 < known.error("m:1b") < 0.16
    assert measured(*[4.0] * 50).error("m:1b") == 0.0


def test_the_wider_the_error_the_more_room_a_text_surely_needs() -> None:
    even, odd = measured(*[4.0] * 50), measured(*[2.0, 6.0] * 25)
    assert even.sure("m:1b") == pytest.approx(4.0 / 1.1)
    assert odd.sure("m:1b") < 0.6 * odd.usual("m:1b")


def test_a_ratio_of_before_a_restart_counts_as_one_measurement() -> None:
    known = TokenRatios()
    assert known.take_over("M:1B", 4.0)
    known.observe("m:1b", 6_000, 1_000)
    assert known.bytes_per_token("m:1b") == pytest.approx(5.0)
    assert known.error("m:1b") == pytest.approx(0.5)
