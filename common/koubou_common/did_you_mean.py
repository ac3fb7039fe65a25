"""What a person probably meant by a word that is not known."""

import difflib
from collections.abc import Iterable

_LIKENESS = 0.6  # difflib's own default: one or two wrong letters in a word of eight


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`; "" if none is like it."""
    # Dashes for underscores and capitals are the commonest slips, and cost the most likeness.
    spelt = {name.lower().replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), spelt, n=1, cutoff=_LIKENESS)
    return spelt[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint `did you mean 'x'?`; "" if nothing is like `word`."""
    name = closest(word, known)
    return f"did you mean {name!r}?" if name else ""
