"""What a submission may ask for: every refusal says what is wrong, names the limit and a way out."""

from koubou_broker.core.state import Refusal, State
from koubou_broker.records import BodyRef, NewTask
from koubou_broker.routing.fitting import largest_window, size_bytes_of
from koubou_broker.routing.workers import LiveWorker
from koubou_common.errors import Code
from koubou_common.messages.limits import PRIORITY_HIGHEST, PRIORITY_LOWEST
from koubou_common.messages.values import Body, File, TaskSpec
from koubou_common.models import check_model_name, normal_model
from koubou_common.names import name_fault
from koubou_common.options import check_options
from koubou_common.reasons import Reason

_MODELS_NAMED = 20  # in a refusal
_NAME_CHARS_SHOWN = 80  # of a bad name in its refusal


def new_task(state: State, spec: TaskSpec, principal: str) -> NewTask:
    """The task as it will be stored, without its ids; unset numbers take their defaults."""
    deadline_ms = state.now.wall_ms + round(spec.deadline_s * 1000) if spec.deadline_s else 0
    return NewTask(
        task_id=0,
        batch_id=0,
        batch_index=0,
        principal=principal,
        custom_id=spec.custom_id,
        idempotency_key="",
        prompt=BodyRef(spec.prompt.sha256, spec.prompt.size_bytes),
        files=tuple(File(file.name, Body(file.body.sha256, file.body.size_bytes)) for file in spec.files),
        target=spec.target,
        repo=spec.repo,
        model=normal_model(spec.model) if spec.model else "",
        priority=spec.priority,
        task_type=spec.task_type,
        options=spec.options,
        worker=spec.worker,
        labels=spec.labels,
        min_context=spec.min_context,
        timeout_s=spec.timeout_s,
        deadline_ms=deadline_ms,
        capabilities=tuple(sorted(set(spec.capabilities))),
        max_attempts=spec.max_attempts or state.settings.transient_attempts,
        strict_output=spec.strict_output,
        out_path=spec.out_path,
        out_digest=spec.out_digest,
        submitted_ms=state.now.wall_ms,
        queue_timeout_s=spec.queue_timeout_s,
        use_cache=spec.use_cache,
        prefix_files=min(spec.prefix_files, len(spec.files)),
    )


def check_spec(state: State, spec: TaskSpec, task: NewTask) -> None:
    """Raise the Refusal of the first thing that is wrong."""
    _check_sizes(state, spec)
    _check_names(state, spec)
    _check_numbers(spec)
    faults = check_options({option.name: option.value for option in spec.options}, from_task=True)
    if len({option.name for option in spec.options}) < len(spec.options):
        faults.append("an option is named twice")
    if faults:
        raise Refusal(Code.BAD_INPUT, "; ".join(faults))
    _check_workers(state, task)


def _check_sizes(state: State, spec: TaskSpec) -> None:
    limits = state.settings.limits
    prompt_bytes = spec.prompt.size_bytes
    if prompt_bytes == 0:
        raise Refusal(Code.BAD_INPUT, "the prompt is empty")
    if prompt_bytes > limits.prompt_bytes:
        raise _too_large("the prompt", prompt_bytes, "prompt_bytes", limits.prompt_bytes)
    if len(spec.files) > limits.task_files:
        text = f"the task has {len(spec.files)} files; the limit task_files is {limits.task_files}"
        raise Refusal(Code.TOO_LARGE, text, "split the task")
    for file in spec.files:
        if file.body.size_bytes > limits.file_bytes:
            raise _too_large(f"the file {file.name}", file.body.size_bytes, "file_bytes", limits.file_bytes)
    total = prompt_bytes + sum(file.body.size_bytes for file in spec.files)
    if total > limits.task_bytes:
        raise _too_large("prompt and files together", total, "task_bytes", limits.task_bytes)


def _check_names(state: State, spec: TaskSpec) -> None:
    names = [file.name for file in spec.files]
    for name in (*names, *([spec.target] if spec.target else ())):
        if fault := name_fault(name, state.settings.limits.name_bytes):
            shown = repr(name if len(name) <= _NAME_CHARS_SHOWN else f"{name[:_NAME_CHARS_SHOWN]}...")
            raise Refusal(Code.BAD_INPUT, f"{shown}: {fault}", "name files relative to the repository's root")
    known = set(names)
    if len(known) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal(Code.BAD_INPUT, f"the file {twice} is there twice")
    for name in names:
        folder = name.rpartition("/")[0]
        while folder:
            if folder in known:
                raise Refusal(Code.BAD_INPUT, f"{folder} is a file and the folder of {name}")
            folder = folder.rpartition("/")[0]
    for what, text in (("repository's name", spec.repo), ("task's type", spec.task_type)):
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
            raise Refusal(Code.BAD_INPUT, f"the {what} has control characters")


def _check_numbers(spec: TaskSpec) -> None:
    if not PRIORITY_LOWEST <= spec.priority <= PRIORITY_HIGHEST:
        text = f"priority {spec.priority} is outside of {PRIORITY_LOWEST}-{PRIORITY_HIGHEST}"
        raise Refusal(Code.BAD_INPUT, text, "10 is first; low, normal and high mean 2, 5 and 8")
    if spec.deadline_s is not None and spec.deadline_s <= 0:
        raise Refusal(Code.BAD_INPUT, "the deadline must be more than 0 s away")
    if spec.queue_timeout_s is not None and spec.queue_timeout_s <= 0:
        raise Refusal(Code.BAD_INPUT, "the queue time limit must be more than 0 s")
    if spec.timeout_s is not None and spec.timeout_s <= 0:
        raise Refusal(Code.BAD_INPUT, "the timeout of an attempt must be more than 0 s")


def _check_workers(state: State, task: NewTask) -> None:
    if not task.model or not check_model_name(task.model):
        unfit = state.router.fitting.unfit(task, ())
        if any(id_ not in unfit and worker.may_have_model(task.model) for id_, worker in state.workers.items()):
            return  # as nearly every task does: the pass over all workers below is for the words of a refusal
    workers = list(state.workers.values())
    if task.worker:
        if task.worker not in state.workers:
            known = ", ".join(state.workers) or "none"
            raise Refusal(Code.NOT_FOUND, f"no worker {task.worker!r} is known", f"known are: {known}")
        workers = [state.workers[task.worker]]
    if task.labels:
        wanted = ", ".join(f"{label.key}={label.value}" for label in task.labels)
        workers = [worker for worker in workers if all(label in worker.settings.labels for label in task.labels)]
        if not workers:
            labels = {f"{one.key}={one.value}" for worker in state.workers.values() for one in worker.settings.labels}
            known = ", ".join(sorted(labels)) or "none"
            raise Refusal(Code.REFUSED, f"no worker has the labels {wanted}", f"known labels are: {known}")
    if task.capabilities:
        workers = _with_capabilities(state, task, workers)
    if task.model:
        workers = _with_model(state, task, workers)
    if workers:
        _check_window(state, task, workers)


def _with_capabilities(state: State, task: NewTask, workers: list[LiveWorker]) -> list[LiveWorker]:
    having = [worker for worker in workers if all(word in worker.settings.capabilities for word in task.capabilities)]
    if having:
        return having
    known = sorted({word for worker in state.workers.values() for word in worker.settings.capabilities})
    if "" in task.capabilities:
        raise Refusal(
            Code.BAD_INPUT, "a capability has no name", "leave it out, or write one of a worker's capabilities"
        )
    where = f"worker {task.worker} does not have" if task.worker else "no worker with these labels has"
    if not task.worker and not task.labels:
        where = "no worker has"
    wanted = ", ".join(task.capabilities)
    raise Refusal(
        Code.REFUSED,
        f"{where} {'the capability' if len(task.capabilities) == 1 else 'all the capabilities'} {wanted}",
        f"known capabilities are: {', '.join(known) or 'none'}; they stand in workers.yaml",
    )


def _with_model(state: State, task: NewTask, workers: list[LiveWorker]) -> list[LiveWorker]:
    fault = check_model_name(task.model)
    if fault:
        raise Refusal(Code.UNKNOWN_MODEL, fault, "name a model that a worker has: koubou-ctl workers list")
    having = [worker for worker in workers if worker.may_have_model(task.model)]
    if having:
        return having
    where = f"worker {task.worker}" if task.worker else "no worker that is asked for" if task.labels else "no worker"
    known = sorted({name for worker in state.workers.values() for name in worker.known_models()})
    names = ", ".join(known[:_MODELS_NAMED]) or "none"
    verb = "does not list" if task.worker else "lists"
    raise Refusal(Code.UNKNOWN_MODEL, f"{where} {verb} the model {task.model}", f"known models are: {names}")


def _check_window(state: State, task: NewTask, workers: list[LiveWorker]) -> None:
    wide = [worker for worker in workers if worker.num_ctx_for(task.model) >= task.min_context]
    if not wide:
        largest = largest_window(task.model, workers)
        assert largest is not None, "there are workers"
        raise Refusal(
            Code.CONTEXT_TOO_SMALL,
            f"no worker has a window of {task.min_context:,} tokens{'' if task.model else ' with its default model'};"
            f" the largest is num_ctx {largest.num_ctx_for(task.model):,} on {largest.worker_id}",
            "ask for a smaller --min-context or another model, or raise num_ctx of a worker in workers.yaml",
        )
    misfits = {worker.worker_id: state.router.fitting.misfit(task, (), worker) for worker in wide}
    if None in misfits.values():
        return
    # A worker without a default model takes no task without one: that may change, the size will not.
    cramped = [
        state.workers[worker_id]
        for worker_id, misfit in misfits.items()
        if misfit is not None and misfit.reason is Reason.WINDOW_TOO_SMALL
    ]
    largest = largest_window(task.model, cramped)
    if largest is None:
        return
    size, tokens = size_bytes_of(task), state.router.fitting.fewest_tokens(task.model, task, largest)
    raise Refusal(
        Code.CONTEXT_TOO_SMALL,
        f"the prompt and its files ({size:,} bytes, at least {tokens:,} tokens) surely"
        f" cannot fit the largest window there is: num_ctx {largest.num_ctx_for(task.model):,} on {largest.worker_id}",
        "send fewer files, split the task, or raise num_ctx of a worker in workers.yaml",
    )


def _too_large(what: str, size: int, limit: str, most: int) -> Refusal:
    return Refusal(Code.TOO_LARGE, f"{what}: {size:,} bytes; the limit {limit} is {most:,} bytes")
