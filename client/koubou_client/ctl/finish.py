"""What `submit --wait` does after the acceptance: wait, then print or write the outputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from koubou_client.ctl.output import A_TASK_FAILED, OK, Output
from koubou_client.ctl.reasons import failure_of
from koubou_client.ctl.views import CACHED, batch_name, task_json
from koubou_client.ctl.waiting import Waiter
from koubou_client.outputs import write_output
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import Submitted, TaskResult
from koubou_common.messages.values import TaskMark, TaskState, TaskView

if TYPE_CHECKING:
    from koubou_client.client import Client


def finish_one(output: Output, client: "Client", task_id: int, root: Path, *, timeout_s: float | None) -> int:
    """Wait for a task; print its output, or write the file that was asked for."""
    Waiter(client, output, [task_id], str(task_id)).wait(timeout_s=timeout_s)
    reply, data = client.result(task_id)
    task = reply.task
    if task.state is not TaskState.SUCCEEDED:
        if output.as_json:
            output.data(task_json(task))
        raise failure_of(task)
    if task.out_path:
        put(output, reply, data, root)
    if output.as_json:
        output.data(task_json(task, data.decode("utf-8", "replace")))
    elif not task.out_path:
        output.raw(data)
    for flag in task.flags:
        if flag == CACHED:
            output.note(f"task {task_id}: answered from the result cache; --no-cache asks anew")
        else:
            output.note(f"task {task_id} is flagged: {flag} (all the model said: koubou-ctl result {task_id} --raw)")
    return OK


def finish_batch(output: Output, client: "Client", accepted: Submitted, root: Path, *, timeout_s: float | None) -> int:
    """Wait for a batch; write its files as their tasks end; with --json, a line for every task that ended."""
    name = batch_name(accepted.batch_id)
    ended: list[TaskView] = []
    conflicts: list[KoubouError] = []

    def on_end(mark: TaskMark) -> None:
        reply, data = client.result(mark.task_id)
        task = reply.task
        ended.append(task)
        succeeded = task.state is TaskState.SUCCEEDED
        if succeeded and task.out_path:
            try:
                put(output, reply, data, root)
            except KoubouError as error:
                conflicts.append(error)
                output.error(error)
        elif not succeeded and not output.as_json:
            output.error(failure_of(task))
        if output.as_json:
            output.data(task_json(task, data.decode("utf-8", "replace") if succeeded else None))

    waiter = Waiter(client, output, [ref.task_id for ref in accepted.tasks], name)
    waiter.wait(timeout_s=timeout_s, on_end=on_end)
    output.note(f"batch {name}: {summary(ended)}")
    if any(task.state is not TaskState.SUCCEEDED for task in ended):
        return A_TASK_FAILED
    if conflicts:
        raise KoubouError(
            Code.CONFLICT,
            f"{len(conflicts)} of {len(ended)} outputs were not written",
            f"koubou-ctl result {name} --write --force, or -d DIR",
        )
    if not output.as_json and not any(task.out_path for task in ended):
        output.note(f"  outputs: koubou-ctl result {name} -d DIR")
    return OK


def put(output: Output, reply: TaskResult, data: bytes, root: Path, *, force: bool = False) -> Path:
    """Write an output where its task was submitted for, unless the file changed since."""
    task = reply.task
    try:
        path = write_output(root, task.out_path, data, expected_digest=reply.out_digest or None, force=force)
    except KoubouError as error:
        raise KoubouError(
            error.code,
            error.message,
            f"{error.hint}; the output is kept: koubou-ctl result {task.task_id}",
        ) from error
    output.note(f"wrote {task.out_path} ({len(data)} bytes)")
    return path


def summary(tasks: list[TaskView]) -> str:
    """`30 tasks: 28 succeeded, 2 failed`."""
    counts = {state: sum(task.state is state for task in tasks) for state in TaskState}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{len(tasks)} task{'s' * (len(tasks) != 1)}" + (f": {', '.join(parts)}" if parts else "")
