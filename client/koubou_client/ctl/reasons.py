"""Why a task failed, in a user's words, and what they can do about it."""

from koubou_common.errors import Code, ErrorClass, KoubouError
from koubou_common.messages.values import TaskState, TaskView

_WORDS = {
    ErrorClass.AGENT_LOST: ("its worker stopped answering", "look at that box: koubou-agent doctor"),
    ErrorClass.AGENT_RESTARTED: ("its worker's agent was restarted", "koubou-ctl retry {id}"),
    ErrorClass.DRAIN: ("its worker was shut down", "koubou-ctl retry {id}"),
    ErrorClass.INPUTS_UNAVAILABLE: ("its worker could not fetch the files", "koubou-ctl retry {id}"),
    ErrorClass.RUNNER_KILLED: (
        "Ollama's model runner died while answering",
        "its memory may be too small for the model: see Ollama's log on that box",
    ),
    ErrorClass.OLLAMA_UNREACHABLE: ("Ollama did not answer on the worker", "start it there: ollama serve"),
    ErrorClass.OLLAMA_ERROR: ("Ollama reported an error", "see Ollama's log on that box, then koubou-ctl retry {id}"),
    ErrorClass.OLLAMA_BUSY: (
        "Ollama's own queue was full",
        "something else uses that Ollama; lower max_concurrent_tasks, or retry later: koubou-ctl retry {id}",
    ),
    ErrorClass.CONNECTION_LOST: ("the answer broke off before its end", "koubou-ctl retry {id}"),
    ErrorClass.BAD_ANSWER: ("Ollama's answer could not be read", "see Ollama's log on that box"),
    ErrorClass.LOAD_TIMEOUT: ("the model did not load in time", "use a smaller model, or raise the limit load_s"),
    ErrorClass.STUCK: ("the model did not begin to answer in time", "restart Ollama on that box"),
    ErrorClass.STALLED: ("the answer stopped coming", "restart Ollama on that box, then koubou-ctl retry {id}"),
    ErrorClass.TIMEOUT: ("it took longer than one attempt may", "allow more with --timeout, or split the task"),
    ErrorClass.CLI_FAILED: ("gemini-repo-cli ended without an answer", "see koubou-ctl logs {id}"),
    ErrorClass.CLI_MISSING: (
        "gemini-repo-cli is not installed on the worker",
        "run there: koubou-agent setup-cli",
    ),
    ErrorClass.OUTPUT_MISMATCH: (
        "what gemini-repo-cli printed is not what the model said",
        "see koubou-ctl logs {id}",
    ),
    ErrorClass.AGENT_ERROR: ("the worker's agent failed itself", "look at that box: koubou-agent doctor"),
    ErrorClass.MODEL_MISSING: ("no worker has the model", "pull it on a worker: ollama pull {model}"),
    ErrorClass.MODEL_UNLOADABLE: ("the model cannot be loaded", "use another model, or more memory"),
    ErrorClass.CONTEXT_OVERFLOW: (
        "prompt and answer do not fit the model's window",
        "give fewer or shorter files, or raise num_ctx of a worker and ask for it with --min-context",
    ),
    ErrorClass.BAD_REQUEST: ("Ollama refused the request", "see koubou-ctl logs {id}"),
    ErrorClass.EMPTY_OUTPUT: ("the model answered nothing", "rephrase the prompt, or use another model"),
    ErrorClass.CUT_OUTPUT: (
        "the answer reached its length limit and was cut",
        "allow more with --option num_predict=N, or split the task",
    ),
    ErrorClass.DEGENERATE: ("the model repeated itself without end", "rephrase the prompt, or use another model"),
    ErrorClass.OUTPUT_TOO_LARGE: ("the answer is larger than results may be", "split the task"),
    ErrorClass.CHATTY_OUTPUT: (
        "the answer has prose around the file, which --strict-output forbids",
        "see it with koubou-ctl result {id} --raw",
    ),
    ErrorClass.CLOUD_MODEL: ("the model would run in a cloud", "use a model that runs on your own machines"),
    ErrorClass.REDIRECTED: ("Ollama tried to send the request elsewhere", "check that box's ollama_url"),
    ErrorClass.DEADLINE: ("its deadline passed", "allow more with --deadline"),
    ErrorClass.ATTEMPTS_EXHAUSTED: ("every attempt failed", "see them with koubou-ctl show {id}"),
    ErrorClass.POISON: ("worker after worker died on it", "see koubou-ctl show {id} before trying again"),
    ErrorClass.NO_WORKER_LEFT: ("no worker that could run it is left", "see koubou-ctl show {id}"),
    ErrorClass.QUEUE_TIMEOUT: (
        "no worker began it in the time it was given",
        "koubou-ctl retry {id} lets it wait for as long as it takes; koubou-ctl workers list shows who could be there",
    ),
    ErrorClass.OTHER: ("it failed in a way that only a newer Koubou has a word for", "see koubou-ctl logs {id}"),
}
# Of these the last attempt's failure tells more about the way out than the end itself.
_ENDED_BY_CAUSE = (ErrorClass.ATTEMPTS_EXHAUSTED, ErrorClass.NO_WORKER_LEFT)


def words_of(error_class: ErrorClass, cause: ErrorClass | None = None) -> str:
    """What happened, in a user's words; `cause` is the class of the last attempt's failure."""
    words = _WORDS[error_class][0]
    return f"{words}; the last: {_WORDS[cause][0]}" if cause is not None else words


def failure_of(task: TaskView) -> KoubouError:
    """The error a command ends with for a task that brought nothing."""
    if task.state is TaskState.CANCELLED:
        what = f"task {task.task_id} was cancelled"
        if task.error_message:
            what += f": {task.error_message}"
        return KoubouError(Code.TASK_FAILED, what, f"open it again: koubou-ctl retry {task.task_id}")
    if task.error_class is None:
        return KoubouError(Code.TASK_FAILED, f"task {task.task_id} failed", f"koubou-ctl show {task.task_id}")
    told_by = task.error_class
    if told_by in _ENDED_BY_CAUSE and task.error_cause is not None:
        told_by = task.error_cause
    hint = _WORDS[told_by][1]
    what = f"task {task.task_id} failed ({task.error_class}): {words_of(task.error_class, task.error_cause)}"
    if task.worker_id:
        what += f" (on {task.worker_id}, attempt {task.attempts})"
    if task.error_message:
        what += f"\n  {task.error_message}"
    return KoubouError(Code.TASK_FAILED, what, hint.format(id=task.task_id, model=task.model or "MODEL"))
