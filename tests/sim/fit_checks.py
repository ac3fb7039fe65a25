"""What a task asks of its worker, as a check on every dispatch: written apart from the broker's own rules."""

from collections.abc import Iterable

from koubou_broker.core import WorkerSettings
from koubou_common.messages import Dispatch, Message
from koubou_common.messages.values import Option
from support.shelf import Shelf


def check_fit(disk: Shelf, workers: Iterable[WorkerSettings], name: str, message: Message) -> None:
    """AssertionError where a task is given to a worker that cannot do what it asks for."""
    if not isinstance(message, Dispatch):
        return
    task = disk.tasks[message.task_id]
    worker = next(one for one in workers if one.worker_id == name)
    about = f"task {task.task_id} is given to {name}, which has not"
    assert set(task.capabilities) <= set(worker.capabilities), f"{about} all of {task.capabilities}"
    assert set(task.labels) <= set(worker.labels), f"{about} all of {task.labels}"
    model = task.model.removesuffix(":latest")
    assert model in worker.models, f"{about} the model {model}"
    num_ctx = _num_ctx((*worker.options, *dict(worker.model_options).get(model, ())))
    assert num_ctx >= task.min_context, f"{about} a window of {task.min_context} tokens but {num_ctx}"
    told = _num_ctx((*worker.options, *message.model_options))
    assert told == num_ctx, f"task {task.task_id}: {name} is told a window of {told} tokens, it has {num_ctx}"


def _num_ctx(options: Iterable[Option]) -> int:
    found = {option.name: option.value for option in options}.get("num_ctx", 0)
    assert isinstance(found, int)
    return found
