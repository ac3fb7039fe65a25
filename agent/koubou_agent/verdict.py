"""What the ending of a call to Ollama means: from what was observed to success or a named failure. Pure."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from koubou_common.errors import ErrorClass

# A path of two parts or more, of either kind of system; a URL is none.
_PATH = re.compile(r"(?<![\w/\\])(?:[A-Za-z]:)?(?:\\|/(?!/))[^\s'\":,;)]*[\\/][^\s'\":,;)]*")
_MESSAGE_CHARS = 300  # of somebody else's text in a message of ours
_SIGNATURE_RATIO = 6.0  # bytes a token: twice what code and prose have; only a halved prompt shows it
_SIGNATURE_SURPLUS = 1.5  # times the counted tokens, where this model's ratio is measured


class End(Enum):
    """How the connection to Ollama ended."""

    COMPLETE = auto()  # the HTTP message ended as it announced
    CUT = auto()  # the connection ended first
    UNREACHABLE = auto()  # there never was a connection
    NOT_HTTP = auto()  # what came is no HTTP
    TOO_LARGE = auto()  # we stopped reading: more output than allowed


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything seen of one answer; zero and "" mean not seen."""

    end: End
    status: int = 0
    detail: str = ""  # the system's words on a broken connection
    error_text: str = ""  # Ollama's words: of an error body, or of an error line inside a 200
    malformed: bool = False  # some line was not an object of JSON with an answer or an error in it
    lines: int = 0
    text: str = ""
    done: bool = False
    done_reason: str = ""
    prompt_tokens: int = 0
    eval_tokens: int = 0  # thinking and the end token included
    thinking_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer is measured against."""

    model: str
    num_ctx: int
    num_predict: int  # as sent
    num_predict_wanted: int  # as configured, thinking allowance included
    prompt_bytes: int
    bytes_per_token: float | None
    output_bytes_max: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error_class` None is success; `thought_away` says every token went into thinking."""

    error_class: ErrorClass | None
    message: str = ""
    thought_away: bool = False


def judge(seen: Observed, asked: Asked) -> Verdict:
    """The one meaning of an ending; success is the last case left."""
    match seen.end:
        case End.UNREACHABLE:
            return _failed(ErrorClass.OLLAMA_UNREACHABLE, f"cannot connect to Ollama: {plain(seen.detail)}")
        case End.NOT_HTTP:
            return _failed(ErrorClass.BAD_ANSWER, f"what answered is not Ollama: {plain(seen.detail)}")
        case End.TOO_LARGE:
            limit = asked.output_bytes_max
            return _failed(ErrorClass.OUTPUT_TOO_LARGE, f"the answer passed the limit of {limit} bytes")
        case End.COMPLETE | End.CUT:
            pass
    if seen.status and seen.status != 200:
        return _judge_status(seen, asked)
    if seen.error_text:
        return _judge_text(500, seen.error_text)
    if seen.end is End.CUT and not seen.done:
        how = plain(seen.detail) or "the connection closed"
        return _failed(ErrorClass.CONNECTION_LOST, f"Ollama's answer stopped before its end: {how}")
    if seen.malformed or seen.lines == 0:
        return _failed(ErrorClass.BAD_ANSWER, f"Ollama's answer cannot be read: {plain(seen.detail) or 'no JSON'}")
    if not seen.done:
        return _failed(
            ErrorClass.DEGENERATE,
            f"Ollama gave up after {seen.lines} tokens (done: false): one token over and over",
        )
    return _judge_done(seen, asked)


def plain(text: str) -> str:
    """Somebody else's text made fit for a message: one line, no paths, no control characters, short."""
    line = text.strip().split("\n", 1)[0]
    line = "".join(char if char.isprintable() else " " for char in line)
    line = _PATH.sub("<path>", line)
    return line if len(line) <= _MESSAGE_CHARS else f"{line[: _MESSAGE_CHARS - 3]}..."


def _judge_done(seen: Observed, asked: Asked) -> Verdict:
    used = seen.prompt_tokens + seen.eval_tokens
    counts = f"{seen.prompt_tokens} + {seen.eval_tokens} tokens in a window of {asked.num_ctx}"
    if seen.done_reason not in {"stop", "length"}:
        return _failed(
            ErrorClass.BAD_ANSWER,
            f"Ollama ended the answer for a reason of its own: {plain(seen.done_reason) or 'none given'}",
        )
    # The end token of a stop is counted and needs no place in the window.
    fits = asked.num_ctx + (1 if seen.done_reason == "stop" else 0)
    if seen.prompt_tokens >= asked.num_ctx or used > fits:
        return _failed(ErrorClass.CONTEXT_OVERFLOW, f"prompt and answer do not fit together: {counts}")
    if _looks_truncated(seen, asked):
        return _failed(ErrorClass.CONTEXT_OVERFLOW, f"Ollama cut the prompt to half of the window: {counts}")
    empty = not seen.text.strip()
    if empty and seen.thinking_chunks:
        return _thought_away(seen)
    if seen.done_reason == "length":
        return _cut(seen, asked, counts)
    if empty:
        return _failed(ErrorClass.EMPTY_OUTPUT, f"the model said nothing ({seen.eval_tokens} tokens)")
    return Verdict(None)


def _thought_away(seen: Observed) -> Verdict:
    message = f"the model spent all its {seen.eval_tokens} tokens on thinking and said nothing"
    if seen.done_reason == "stop":  # it had room left: more of it would change nothing
        return _failed(ErrorClass.EMPTY_OUTPUT, f"the model thought and then said nothing ({seen.eval_tokens} tokens)")
    return Verdict(ErrorClass.EMPTY_OUTPUT, message, thought_away=True)


def _cut(seen: Observed, asked: Asked, counts: str) -> Verdict:
    # Without a count of Ollama's own, the limit sent is what it must have reached.
    reached = seen.eval_tokens or asked.num_predict
    if reached < asked.num_predict_wanted:
        return _failed(
            ErrorClass.CONTEXT_OVERFLOW,
            f"the window left room for {reached} of {asked.num_predict_wanted} tokens of answer: {counts}",
        )
    return _failed(
        ErrorClass.CUT_OUTPUT,
        f"the answer reached num_predict ({asked.num_predict_wanted} tokens) and was cut",
    )


def _looks_truncated(seen: Observed, asked: Asked) -> bool:
    """The trace of llama-server's silent halving, for servers that do not know `truncate`.

    The count alone would hit an honest prompt now and then: the bytes must say the same.
    """
    if seen.prompt_tokens not in {asked.num_ctx // 2 + 2, asked.num_ctx // 2 + 3}:
        return False
    if asked.bytes_per_token:
        return asked.prompt_bytes / asked.bytes_per_token > seen.prompt_tokens * _SIGNATURE_SURPLUS
    return asked.prompt_bytes / seen.prompt_tokens > _SIGNATURE_RATIO


def _judge_status(seen: Observed, asked: Asked) -> Verdict:
    status, text = seen.status, plain(seen.error_text)
    if 300 <= status < 400:
        return _failed(ErrorClass.REDIRECTED, f"Ollama answered with a redirect ({status}); it is not followed")
    if seen.error_text:
        named = _judge_text(status, seen.error_text)
        if named.error_class is not ErrorClass.OLLAMA_ERROR:
            return named
    match status:
        case 404 if seen.error_text:
            return _failed(ErrorClass.MODEL_MISSING, f"Ollama does not have {asked.model}: {text}")
        case 404 | 405 | 501:
            return _failed(ErrorClass.BAD_ANSWER, f"what answered is not Ollama ({status})")
        case 401 | 403:
            return _failed(ErrorClass.OLLAMA_ERROR, f"Ollama refused access ({status}): {text or 'no reason given'}")
        case 400 | 413 | 422:
            return _failed(ErrorClass.BAD_REQUEST, f"Ollama refused the request ({status}): {text}")
        case 429 | 503:
            return _failed(ErrorClass.OLLAMA_BUSY, f"Ollama is overrun ({status}): {text}")
        case _:
            return _failed(ErrorClass.OLLAMA_ERROR, f"Ollama failed ({status}): {text or 'no reason given'}")


# Parts of Ollama's error texts, recorded or read in its source, in the order in which they are tried.
_TEXTS: tuple[tuple[str, ErrorClass, str], ...] = (
    (
        r"exceeds? the (?:available )?context|exceed_context_size|context length exceeded",
        ErrorClass.CONTEXT_OVERFLOW,
        "the prompt does not fit the window",
    ),
    (r"token repeat limit", ErrorClass.DEGENERATE, "one token over and over"),
    (r"ollama cloud|remote model", ErrorClass.CLOUD_MODEL, "the model runs on somebody else's servers"),
    (r"maximum pending requests|server busy", ErrorClass.OLLAMA_BUSY, "Ollama is overrun"),
    (
        r"timed out waiting for (?:llama|server|model)",
        ErrorClass.LOAD_TIMEOUT,
        "the model did not load in Ollama's own time",
    ),
    (
        r"(?:error loading|unable to load|failed to load|unsupported) model|requires more system memory",
        ErrorClass.MODEL_UNLOADABLE,
        "this Ollama cannot load the model",
    ),
    (
        r"unexpected EOF|unexpectedly stopped|process (?:no longer|has terminated)|while running the model",
        ErrorClass.RUNNER_KILLED,
        "Ollama's model runner died while answering",
    ),
    (
        r"must be of type|invalid format|does not support|cannot unmarshal|invalid options",
        ErrorClass.BAD_REQUEST,
        "Ollama refused the request",
    ),
    (r"^model .* not found", ErrorClass.MODEL_MISSING, "Ollama does not have the model"),
)
_TABLE = tuple((re.compile(pattern, re.IGNORECASE), cls, what) for pattern, cls, what in _TEXTS)


def _judge_text(status: int, error_text: str) -> Verdict:
    for pattern, error_class, what in _TABLE:
        if pattern.search(error_text):
            return _failed(error_class, f"{what}: {plain(error_text)}")
    return _failed(ErrorClass.OLLAMA_ERROR, f"Ollama failed ({status}): {plain(error_text)}")


def _failed(error_class: ErrorClass, message: str) -> Verdict:
    return Verdict(error_class, message)
