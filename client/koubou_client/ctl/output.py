"""What koubou-ctl prints: JSON for scripts, clean text for people, errors with their remedy, exit codes."""

import json
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from koubou_common.errors import Code, KoubouError

if TYPE_CHECKING:
    from koubou_client.client import Client

OK, A_TASK_FAILED, USAGE, WAIT_TIMED_OUT, NOT_AUTHORISED = 0, 1, 2, 3, 4
NOT_FOUND, UNREACHABLE, REFUSED, BAD_CONFIGURATION, DETACHED = 5, 6, 7, 8, 130

_EXIT_CODES = {
    Code.TASK_FAILED: A_TASK_FAILED,
    Code.BAD_INPUT: USAGE,
    Code.WAIT_TIMED_OUT: WAIT_TIMED_OUT,
    Code.NOT_AUTHORISED: NOT_AUTHORISED,
    Code.KEY_NOT_ENROLLED: NOT_AUTHORISED,
    Code.NOT_FOUND: NOT_FOUND,
    Code.BROKER_UNREACHABLE: UNREACHABLE,
    Code.WRONG_BROKER_KEY: UNREACHABLE,
    Code.NOT_A_BROKER: UNREACHABLE,
    Code.BAD_CONFIGURATION: BAD_CONFIGURATION,
    Code.DETACHED: DETACHED,
}

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co"})  # controls, invisible and bidi marks, private use


def exit_code_of(error: KoubouError) -> int:
    """The documented exit code; what is not listed was refused."""
    return _EXIT_CODES.get(error.code, REFUSED)


@dataclass(frozen=True, slots=True)
class Output:
    """How this run speaks, and where its home is."""

    as_json: bool = False
    home: str | None = None
    connect_timeout_s: float = 5.0

    def client(self) -> "Client":
        """A connection to the broker of this home; close it, or use it in a `with`."""
        from koubou_client.client import Client  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not pay for
        from koubou_common import __version__  # noqa: PLC0415

        return Client(home=self.home, connect_timeout_s=self.connect_timeout_s, software=f"koubou-ctl {__version__}")

    def data(self, value: Any) -> None:
        """Print the JSON document of a command."""
        print_json({"v": 1, "data": value})

    def say(self, text: str = "") -> None:
        """Print a line for people; control sequences of others are taken out."""
        sys.stdout.write(clean(text) + "\n")
        sys.stdout.flush()

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads stdout."""
        return sys.stdout.isatty()

    def raw(self, data: bytes) -> None:
        """Print what a model said: byte for byte to a file or pipe, harmless text to a terminal."""
        if self.is_terminal:
            text = data.decode("utf-8", "replace")
            self.say(text.removesuffix("\n"))
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line on stderr: progress and hints, never in JSON mode."""
        if not self.as_json:
            sys.stderr.write(clean(text) + "\n")
            sys.stderr.flush()

    def error(self, error: KoubouError) -> None:
        """Print an error: what happened, how to fix it."""
        if self.as_json:
            document = {"code": error.code.value, "message": error.message, "hint": error.hint}
            sys.stderr.write(json.dumps({"v": 1, "error": document}) + "\n")
        elif error.code is Code.DETACHED:  # what the user asked for, by Ctrl-C: no error
            sys.stderr.write(f"{clean(error.message)}\n  {clean(error.hint)}\n")
        else:
            sys.stderr.write(f"error[{error.code.value.replace('_', '-')}]: {clean(error.message)}\n")
            if error.hint:
                sys.stderr.write(f"  fix: {clean(error.hint)}\n")
        sys.stderr.flush()


def print_json(document: Any) -> None:
    """One JSON document on one line; ASCII only where the terminal cannot take more."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    sys.stdout.write(json.dumps(document, ensure_ascii=encoding != "utf8") + "\n")
    sys.stdout.flush()


def clean(text: str) -> str:
    """`text` without anything that a terminal would obey: only newline and tab are left of the controls."""
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) not in _UNSAFE
    )
