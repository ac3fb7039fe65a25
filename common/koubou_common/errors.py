"""How things fail: the classes an attempt ends with, and the errors a person or a peer is told."""

from enum import StrEnum


class Category(StrEnum):
    """What the broker does about a failure (design, section 5)."""

    INFRA = "infra"  # nobody's fault: free retry, bounded by the poison limit
    TRANSIENT = "transient"  # may pass: retried with backoff, another worker preferred
    WORKER = "worker"  # this worker cannot: it is excluded, others may try
    PERMANENT = "permanent"  # no retry can help
    ENDED = "ended"  # given by the broker to a task it ends itself


class ErrorClass(StrEnum):
    """Why an attempt, or a task, failed: the word in SQL, JSON and on screen."""

    AGENT_LOST = "agent_lost"  # the agent stopped answering
    AGENT_RESTARTED = "agent_restarted"  # the agent came back without the attempt
    DRAIN = "drain"  # handed back because the agent was stopping
    INPUTS_UNAVAILABLE = "inputs_unavailable"  # the agent could not fetch what the task refers to
    RUNNER_KILLED = "runner_killed"  # Ollama's model runner died while answering

    OLLAMA_UNREACHABLE = "ollama_unreachable"  # nothing listens, or connecting took too long
    OLLAMA_ERROR = "ollama_error"  # 5xx without a better name
    OLLAMA_BUSY = "ollama_busy"  # 503: its queue is full
    CONNECTION_LOST = "connection_lost"  # the answer stopped before its end
    BAD_ANSWER = "bad_answer"  # what came is not what Ollama speaks (cut JSON, HTML)
    LOAD_TIMEOUT = "load_timeout"  # the model did not load in time
    STUCK = "stuck"  # no first token in time
    STALLED = "stalled"  # tokens stopped coming
    TIMEOUT = "timeout"  # the attempt's total time is over
    CLI_FAILED = "cli_failed"  # gemini-repo-cli ended without an answer and the gateway saw no reason
    CLI_MISSING = "cli_missing"  # gemini-repo-cli is not installed
    OUTPUT_MISMATCH = "output_mismatch"  # what the CLI printed is not what the model said
    AGENT_ERROR = "agent_error"  # the agent's own disk or code failed

    MODEL_MISSING = "model_missing"
    MODEL_UNLOADABLE = "model_unloadable"
    CONTEXT_OVERFLOW = "context_overflow"  # prompt and answer do not fit the window

    BAD_REQUEST = "bad_request"  # Ollama refused the request
    EMPTY_OUTPUT = "empty_output"
    CUT_OUTPUT = "cut_output"  # the answer reached num_predict
    DEGENERATE = "degenerate"  # one token over and over
    OUTPUT_TOO_LARGE = "output_too_large"
    CHATTY_OUTPUT = "chatty_output"  # prose around the file where --strict-output forbids it
    CLOUD_MODEL = "cloud_model"  # would leave the private network
    REDIRECTED = "redirected"  # Ollama answered with a redirect: refused

    DEADLINE = "deadline"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    POISON = "poison"  # agents keep dying on it
    NO_WORKER_LEFT = "no_worker_left"  # every worker that could is excluded
    QUEUE_TIMEOUT = "queue_timeout"  # no worker began it in time

    OTHER = "other"  # a word of a newer release, as the codec reads it: transient, like all that is not listed


_CATEGORIES = {
    Category.INFRA: {
        ErrorClass.AGENT_LOST,
        ErrorClass.AGENT_RESTARTED,
        ErrorClass.DRAIN,
        ErrorClass.INPUTS_UNAVAILABLE,
        ErrorClass.RUNNER_KILLED,
        ErrorClass.CLI_MISSING,
    },
    Category.WORKER: {ErrorClass.MODEL_MISSING, ErrorClass.MODEL_UNLOADABLE, ErrorClass.CONTEXT_OVERFLOW},
    Category.PERMANENT: {
        ErrorClass.BAD_REQUEST,
        ErrorClass.EMPTY_OUTPUT,
        ErrorClass.CUT_OUTPUT,
        ErrorClass.DEGENERATE,
        ErrorClass.OUTPUT_TOO_LARGE,
        ErrorClass.CHATTY_OUTPUT,
        ErrorClass.CLOUD_MODEL,
        ErrorClass.REDIRECTED,
    },
    Category.ENDED: {
        ErrorClass.DEADLINE,
        ErrorClass.ATTEMPTS_EXHAUSTED,
        ErrorClass.POISON,
        ErrorClass.NO_WORKER_LEFT,
        ErrorClass.QUEUE_TIMEOUT,
    },
}


def category_of(error_class: ErrorClass) -> Category:
    """The category that decides what happens next; what is not listed is transient."""
    for category, classes in _CATEGORIES.items():
        if error_class in classes:
            return category
    return Category.TRANSIENT


class Code(StrEnum):
    """The stable slug of an error a peer or a person is told (`error.code` in JSON)."""

    BAD_MESSAGE = "bad_message"
    HELLO_REQUIRED = "hello_required"
    NOT_AUTHORISED = "not_authorised"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    BUSY = "busy"  # try again after retry_after_s
    CONFLICT = "conflict"  # the same idempotency key with another body
    UNKNOWN_MODEL = "unknown_model"
    CONTEXT_TOO_SMALL = "context_too_small"
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - an error's name, not a secret
    TOKEN_USED = "token_used"  # noqa: S105 - an error's name, not a secret
    VERSION = "version"  # no common protocol version
    STORE_FULL = "store_full"
    BROKER_UNREACHABLE = "broker_unreachable"
    WRONG_BROKER_KEY = "wrong_broker_key"
    KEY_NOT_ENROLLED = "key_not_enrolled"
    NOT_A_BROKER = "not_a_broker"
    BAD_CONFIGURATION = "bad_configuration"
    BAD_INPUT = "bad_input"
    TASK_FAILED = "task_failed"
    WAIT_TIMED_OUT = "wait_timed_out"
    DETACHED = "detached"
    INTERNAL = "internal"


class KoubouError(Exception):
    """Something a person can be told: what happened, and how to fix it."""

    def __init__(self, code: Code, message: str, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s  # when the same may succeed; 0: waiting alone does not help


class ConfigError(KoubouError):
    """Configuration that cannot be used; `message` lists every fault, one a line."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Code.BAD_CONFIGURATION, message, hint)


class RefusedError(KoubouError):
    """A request that the rules do not allow; names the rule or limit."""
