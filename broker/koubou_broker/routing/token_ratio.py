"""How many bytes a token of each model has, as measured, and how far estimates by it are off. Pure."""

from dataclasses import dataclass

from koubou_common.models import normal_model

BYTES_PER_TOKEN_MOST = 16.0  # real text reaches 10: beyond this a prompt surely does not fit
BYTES_PER_TOKEN_USUAL = 3.5  # for the estimate people are shown where nothing is measured
MEASURED_MARGIN = 2.0  # a measured ratio is an average over other texts
_PROMPT_TOKENS_LEAST = 200  # a shorter prompt says little about the ratio
_WEIGHT_LEAST = 0.1  # of one more measurement, once there are enough
_ERROR_UNKNOWN = 0.5  # code and text that is not English stray so far from the usual ratio
_ERROR_LEAST = 0.1  # a few prompts of one kind say little about the next
_ERRORS_SURE = 2.0  # twice the mean error holds for some nine of ten prompts
_NEWS = 0.05  # a change below leaves what was computed as it is


@dataclass(slots=True)
class _Ratio:
    bytes_per_token: float
    samples: int = 0  # measured since the start
    error: float = 0.0  # mean, relative
    errors: int = 0
    used: tuple[float, float] = (0.0, 0.0)  # ratio and error that others have computed with


class TokenRatios:
    """Smoothed by model; fed with every prompt that Ollama has counted."""

    def __init__(self) -> None:
        self._of_model: dict[str, _Ratio] = {}

    def take_over(self, model: str, bytes_per_token: float) -> bool:
        """Set a ratio measured before; true when what was computed by another one is out of date."""
        if not model or bytes_per_token <= 0:
            return False
        ratio = self._of_model.setdefault(normal_model(model), _Ratio(bytes_per_token))
        ratio.bytes_per_token = bytes_per_token
        return _is_news(ratio)

    def observe(self, model: str, size_bytes: int, tokens: int) -> bool:
        """One more prompt was counted; true as `take_over`."""
        if not model or tokens < _PROMPT_TOKENS_LEAST:
            return False
        seen = size_bytes / tokens
        name = normal_model(model)
        ratio = self._of_model.get(name)
        if ratio is None:
            ratio = self._of_model[name] = _Ratio(seen)
        else:
            # Of the estimate as it was made, in parts of what it should have been.
            off = abs(seen / ratio.bytes_per_token - 1.0)
            ratio.errors += 1
            ratio.error += max(_WEIGHT_LEAST, 1.0 / ratio.errors) * (off - ratio.error)
        ratio.samples += 1
        # A ratio taken over from before counts as one measurement among the first.
        weight = max(_WEIGHT_LEAST, 1.0 / (ratio.samples + 1))
        ratio.bytes_per_token += weight * (seen - ratio.bytes_per_token)
        return _is_news(ratio)

    def bytes_per_token(self, model: str) -> float:
        """What was measured; 0: nothing."""
        ratio = self._known(model)
        return ratio.bytes_per_token if ratio is not None else 0.0

    def error(self, model: str) -> float:
        """Mean relative error of estimates so far; 0: nothing was measured yet."""
        ratio = self._known(model)
        return ratio.error if ratio is not None else 0.0

    def usual(self, model: str) -> float:
        """Bytes a token for the best estimate."""
        return self.bytes_per_token(model) or BYTES_PER_TOKEN_USUAL

    def most(self, model: str) -> float:
        """Bytes a token that no text of this model surely exceeds."""
        measured = self.bytes_per_token(model)
        return min(BYTES_PER_TOKEN_MOST, measured * MEASURED_MARGIN) if measured else BYTES_PER_TOKEN_MOST

    def sure(self, model: str) -> float:
        """Bytes a token that most texts of this model have at least: the estimate with its error on top."""
        ratio = self._known(model)
        error = max(_ERROR_LEAST, _ERRORS_SURE * ratio.error) if ratio is not None and ratio.errors else _ERROR_UNKNOWN
        return self.usual(model) / (1.0 + error)

    def _known(self, model: str) -> _Ratio | None:
        return self._of_model.get(normal_model(model)) if model else None


def _is_news(ratio: _Ratio) -> bool:
    """Whether ratio or error moved so far from what others computed with that they should do so again."""
    by, error = ratio.used
    if abs(ratio.bytes_per_token - by) <= _NEWS * by and abs(ratio.error - error) <= _NEWS:
        return False
    ratio.used = (ratio.bytes_per_token, ratio.error)
    return True
