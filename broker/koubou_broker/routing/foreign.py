"""Signs that an Ollama works for others too: models nobody here asked for, first tokens that come late. Pure."""

from collections.abc import Callable, Collection

from koubou_common.models import normal_model

OURS_S = 600.0  # what was sent there so long ago may still be loaded: Ollama unloads after 5 min, work takes its time
LATE_TIMES = 3.0  # the expected reading, then a first token is late
LATE_S = 5.0  # and later than this: below, the network and a busy moment explain it
LATE_IN_ROW = 3  # then somebody else seems to be at work
LATE_LASTS_S = 600.0  # without a further sign: an idle worker must not stay held back for ever
_NAMED = 3  # models in a sentence


class ForeignLoad:
    """One worker's; every sign ends by itself."""

    def __init__(self) -> None:
        self._sent_s: dict[str, float] = {}  # model -> when it was last dispatched there
        self._session_s = 0.0
        self._was_there: frozenset[str] | None = None  # loaded when the session began, perhaps by us; None: not told
        self._strange: tuple[str, ...] = ()
        self._late = 0  # attempts in a row
        self._late_at_s = 0.0
        self._last_late = ""

    @property
    def is_there(self) -> bool:
        """Whether somebody else seems to use it now."""
        return bool(self._strange) or self._late >= LATE_IN_ROW

    @property
    def text(self) -> str:
        """The signs in words; empty: none."""
        signs = []
        if self._strange:
            names = ", ".join(self._strange[:_NAMED])
            signs.append(f"{names} {'is' if len(self._strange) == 1 else 'are'} loaded there, not for this broker")
        if self._late >= LATE_IN_ROW:
            signs.append(f"the last {self._late} first tokens came late ({self._last_late})")
        return "; ".join(signs)

    def session_begins(self, now_s: float) -> None:
        """Its agent is back: what is loaded now may be left from work of before, unless it was strange then."""
        self._session_s = now_s
        self._was_there = None

    def dispatched(self, model: str, now_s: float) -> None:
        """A task of `model` was sent there."""
        name = normal_model(model)
        self._sent_s[name] = now_s
        self._strange = tuple(one for one in self._strange if one != name)

    def reported(self, loaded: Collection[str], may_be_ours: Callable[[str], bool], now_s: float) -> None:
        """What is loaded now. `may_be_ours`: whether the worker could ever be sent that model."""
        names = {normal_model(model) for model in loaded}
        if self._was_there is None:
            # A model kept loaded for ever (OLLAMA_KEEP_ALIVE=-1) must not look like somebody else's after a restart.
            self._was_there = frozenset(name for name in names - set(self._strange) if may_be_ours(name))
        self._was_there &= names
        self._sent_s = {name: at_s for name, at_s in self._sent_s.items() if self._is_recent(at_s, now_s)}
        self._strange = tuple(sorted(names - self._was_there - self._sent_s.keys()))
        if self._late and now_s - self._late_at_s > LATE_LASTS_S:
            self._late = 0

    def answered(self, first_token_s: float, expected_s: float, slots: int, now_s: float) -> None:
        """An attempt's first token came so long after the model was loaded.

        `expected_s`: by the worker's own measured speed; 0: not measured. `slots`: so many of our own may have
        been read at the same time.
        """
        if not expected_s:
            return
        if first_token_s <= max(LATE_S, LATE_TIMES * expected_s * max(1, slots)):
            self._late = 0
            return
        self._late += 1
        self._late_at_s = now_s
        self._last_late = f"{first_token_s:.0f} s, about {expected_s:.1f} s were expected"

    def _is_recent(self, at_s: float, now_s: float) -> bool:
        return at_s >= self._session_s or now_s - at_s <= OURS_S
