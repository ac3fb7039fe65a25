"""What a bad network does to one connection: drawn from a seed, so that a run can be repeated. Pure."""

import random
from dataclasses import dataclass
from enum import StrEnum

LONGEST_S = 3_600.0  # no connection of a run lives longer


class Kind(StrEnum):
    """What happens to a connection."""

    RESET = "reset"  # both ends get an RST
    CLOSE = "close"  # both ends are closed in the ordinary way
    STALL = "stall"  # no byte for a while, then all of them
    HALF_OPEN = "half_open"  # one direction swallows everything, nobody is told
    DELAY = "delay"  # every byte is late
    THROTTLE = "throttle"  # few bytes a second


@dataclass(frozen=True, slots=True)
class Gust:
    """One fault of one connection, so long after its beginning."""

    kind: Kind
    after_s: float
    lasts_s: float = 0.0  # of a half-open one: until both ends are cut
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    upwards: bool = True  # which direction of a half-open connection is dead: towards the target


@dataclass(frozen=True, slots=True)
class Climate:
    """How bad it is; every bound is drawn from uniformly."""

    mean_pause_s: float = 12.0  # between two faults of a connection; 0: fair weather
    stall_most_s: float = 8.0
    half_open_most_s: float = 20.0  # longer than the 15 s after which ZeroMQ gives a silent connection up
    delay_most_s: float = 0.4
    slow_most_s: float = 6.0  # how long delay and throttle last
    throttle_least: float = 4_000.0  # bytes/s
    throttle_most: float = 60_000.0


FAIR = Climate(mean_pause_s=0.0)
_SHARES = {  # of all faults; the milder ones leave the connection alive for the next
    Kind.RESET: 3,
    Kind.CLOSE: 2,
    Kind.STALL: 3,
    Kind.HALF_OPEN: 2,
    Kind.DELAY: 3,
    Kind.THROTTLE: 3,
}
_ENDS = (Kind.RESET, Kind.CLOSE, Kind.HALF_OPEN)


def draw(dice: random.Random, climate: Climate) -> list[Gust]:
    """The faults of one connection, in order; the last one ends it."""
    gusts: list[Gust] = []
    if climate.mean_pause_s <= 0:
        return gusts
    after_s = 0.0
    while after_s < LONGEST_S:
        after_s += dice.expovariate(1 / climate.mean_pause_s)
        gust = _gust(dice, climate, after_s)
        gusts.append(gust)
        if gust.kind in _ENDS:
            break
        after_s += gust.lasts_s
    return gusts


def _gust(dice: random.Random, climate: Climate, after_s: float) -> Gust:
    kind = dice.choices(list(_SHARES), list(_SHARES.values()))[0]
    match kind:
        case Kind.STALL:
            return Gust(kind, after_s, dice.uniform(0.5, climate.stall_most_s))
        case Kind.HALF_OPEN:
            return Gust(kind, after_s, dice.uniform(2.0, climate.half_open_most_s), upwards=dice.random() < 0.5)
        case Kind.DELAY:
            lasts_s = dice.uniform(1.0, climate.slow_most_s)
            return Gust(kind, after_s, lasts_s, latency_s=dice.uniform(0.02, climate.delay_most_s))
        case Kind.THROTTLE:
            rate = dice.uniform(climate.throttle_least, climate.throttle_most)
            return Gust(kind, after_s, dice.uniform(1.0, climate.slow_most_s), bytes_per_s=rate)
        case _:
            return Gust(kind, after_s)
