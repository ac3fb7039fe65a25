"""How a request ends early: with Ollama's words, or because nobody listens any more."""

from typing import Final

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG: Final = "the input length exceeds the context length"
RUNNER_GONE: Final = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
RUNNER_DIED: Final = "an error was encountered while running the model: unexpected EOF"
RUNNER_EXITED: Final = "llama runner process no longer running: -1 "
CANCELED: Final = "request canceled"
NO_CLOUD: Final = "ollama cloud is disabled: remote model is unavailable"


class Gone(Exception):  # noqa: N818 - the client's decision, not an error of ours
    """The client closed its connection."""


class Refusal(Exception):  # noqa: N818 - an answer, said with a status
    """An error answer. `late` = it comes from the runner, which in a stream is framed differently."""

    def __init__(self, status: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.status, self.text, self.late = status, text, late


def not_found(name: str) -> Refusal:
    return Refusal(404, f"model '{name}' not found")
