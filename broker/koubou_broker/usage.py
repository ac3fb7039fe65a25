"""What each principal has under way and has made the loop work: what its next message may have to wait for. Pure."""

from collections import Counter

READS_EACH = 32  # pieces that are read for one principal at a time: 16 MiB, what eight downloads ask for ahead
LOOKUPS_EACH = 16  # questions to the store of one principal at a time: others' wait behind so many
LOOKUPS_OF_MANY = 2  # the same of one that used much: an answer with a page is the longest work there is
OWED_EACH = 64  # rows of one principal that wait for the disk: others' wait behind so many


class Usage:
    """Counted by principal: all keys of a name share what is allowed to one."""

    def __init__(self) -> None:
        self._reads: Counter[str] = Counter()  # pieces under way
        self._asked: dict[int, str] = {}  # look-ups of this core under way: token -> principal
        self._lookups: Counter[str] = Counter()  # the same, counted
        self._spent: dict[str, float] = {}  # on answers, until `take_spent`

    def asked(self, token: int, who: str) -> None:
        """A look-up of this core goes to the reader."""
        self._asked[token] = who
        self._lookups[who] += 1

    def answered(self, token: int) -> str:
        """A look-up is over: whose it was."""
        who = self._asked.pop(token, "")
        if who:
            _one_less(self._lookups, who)
        return who

    def reading(self, who: str) -> None:
        """A piece of a body is to be read."""
        self._reads[who] += 1

    def read(self, who: str) -> None:
        """A piece was read, or could not be."""
        _one_less(self._reads, who)

    def spend(self, who: str, took_s: float) -> None:
        """An answer took so long."""
        self._spent[who] = self._spent.get(who, 0.0) + took_s

    def take_spent(self) -> dict[str, float]:
        """Time that answers took since the last time, by principal."""
        spent, self._spent = self._spent, {}
        return spent

    def has_room(self, who: str, *, used_much: bool) -> bool:
        """Whether the reader may get more to do for a principal."""
        lookups_most = LOOKUPS_OF_MANY if used_much else LOOKUPS_EACH
        return self._lookups[who] < lookups_most and self._reads[who] < READS_EACH

    def forget(self) -> None:
        """A new core begins: nothing is under way."""
        self._reads.clear()
        self._asked.clear()
        self._lookups.clear()


def _one_less(counts: Counter[str], who: str) -> None:
    counts[who] -= 1
    if counts[who] <= 0:
        del counts[who]
