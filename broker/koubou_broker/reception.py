"""Reception: what arrived waits in its principal's line until the conductor takes it, in slices of a turn.

A turn ends when its time is up, so that who comes meanwhile waits for that at most. What finds its line full is not
taken: every request is repeated until it is answered, and some are answered that they should be.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from koubou_broker.conductor import Conductor
from koubou_broker.effects import Now
from koubou_broker.shares import Shares

TURN_S = 0.002  # of one turn's work: what a quiet peer waits for behind a flood
BUSY_MOST = 500  # messages a second of one principal that are answered with "busy"; further ones are dropped unread
BUSY_BYTES = 4_096  # larger ones are dropped unread: to look into them is the work that is to be saved
SHOWN_S = 15.0  # that somebody is held back, unless it goes on


@dataclass(frozen=True, slots=True)
class _Letter:
    """One message as it came; no data: it had several frames."""

    route: bytes
    public_key: str
    data: bytes | None


class Reception:
    """Between the socket and the conductor."""

    def __init__(self, conductor: Conductor, *, cpu_s: Callable[[], float], mono_s: Callable[[], float]) -> None:
        """`cpu_s`: time that this thread has used; `mono_s`: time that has passed."""
        self._conductor = conductor
        self._cpu_s = cpu_s
        self._mono_s = mono_s
        self._shares: Shares[_Letter] = Shares()
        self._refused: Counter[str] = Counter()  # found their line full since the last look
        self._answered: Counter[str] = Counter()  # of these were told so, in this second
        self._answered_s = 0.0
        self._shown_s = mono_s()

    def take(self, route: bytes, public_key: str, data: bytes | None, now: Now) -> bool:
        """A message came; False: its line is full, and it was not taken."""
        who = self._conductor.principal_of(public_key)
        if not self._conductor.is_worker(public_key):
            self._shares.heard(who, now.mono_s)
        if self._shares.add(who, _Letter(route, public_key, data), len(data or b"")):
            return True
        began_s = self._cpu_s()
        self._refused[who] += 1
        if now.mono_s - self._answered_s >= 1.0:
            self._answered_s = now.mono_s
            self._answered.clear()
        if data is not None and len(data) <= BUSY_BYTES and self._answered[who] < BUSY_MOST:
            self._answered[who] += 1
            self._conductor.put_off(route, public_key, data, now)
        self._shares.charge(who, self._cpu_s() - began_s, now.mono_s)
        return False

    def serve(self, now: Now) -> None:
        """One turn's share of what waits; who used least lately comes first, and then again."""
        until_s = self._mono_s() + TURN_S
        conductor, shares = self._conductor, self._shares
        for who, spent_s in conductor.usage.take_spent().items():
            shares.charge(who, spent_s, now.mono_s)
        has_light = shares.has_light(now.mono_s)

        def may_go(who: str) -> bool:
            if not has_light:
                return conductor.may_go(who)
            used_much = shares.has_used_much(who, now.mono_s)
            return conductor.may_go(who, used_much=used_much) and not shares.rest_s(who, now.mono_s)

        while shares.can_go(may_go):
            shares.begin_round(now.mono_s)
            while (found := shares.next(may_go)) is not None:
                who, letter = found
                began_s = self._cpu_s()
                if letter.data is None:
                    conductor.bad_frames(letter.route, letter.public_key, now)
                else:
                    conductor.receive(letter.route, letter.public_key, letter.data, now)
                shares.charge(who, self._cpu_s() - began_s, now.mono_s)
                if self._mono_s() >= until_s or conductor.is_full or conductor.is_held_up:
                    return

    def rest_s(self, now_s: float) -> float | None:
        """How long nobody's turn can come; None: until something happens."""
        shares, conductor = self._shares, self._conductor
        if not shares.has_light(now_s):
            return 0.0 if any(conductor.may_go(who) for who in shares.waiting()) else None
        waiting = (who for who in shares.waiting() if conductor.may_go(who, used_much=shares.has_used_much(who, now_s)))
        return min((shares.rest_s(who, now_s) for who in waiting), default=None)

    def show(self, now: Now) -> None:
        """Tell people who was held back since the last call; it ends by itself."""
        waiting = self._shares.waiting()
        for who, refused in self._refused.items():
            text = (
                f"{who} sends more than is served: {waiting.get(who, 0):,} of its messages wait,"
                f" {refused:,} were put off in {now.mono_s - self._shown_s:.0f} s"
            )
            self._conductor.show(f"held_back:{who}", text, SHOWN_S, now)
        self._refused.clear()
        self._shown_s = now.mono_s
