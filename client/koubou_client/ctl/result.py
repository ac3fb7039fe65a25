"""`koubou-ctl result`: print an output, or put outputs into files."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from koubou_client.ctl.finish import put
from koubou_client.ctl.ids import resolve
from koubou_client.ctl.output import A_TASK_FAILED, OK, Output, exit_code_of
from koubou_client.ctl.reasons import failure_of
from koubou_client.ctl.views import task_json
from koubou_client.outputs import check_out_path, digest_of, write_output
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.values import TaskState, TaskView

if TYPE_CHECKING:
    from koubou_client.client import Client


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@click.option("-o", "--output", "out", metavar="OUT", help="Write it to this file.")
@click.option("-d", "--directory", metavar="DIR", help="Write every output into this folder, under its target's name.")
@click.option("--write", is_flag=True, help="Write every output where its task was submitted for (-o), below --root.")
@click.option("--root", metavar="DIR", default=".", help="Files to write are relative to it (default: here).")
@click.option("--force", is_flag=True, help="Replace files that are there or changed since the submission.")
@click.option("--raw", is_flag=True, help="All the model said, not only the file in it.")
@click.pass_obj
def command(
    output: Output,
    /,
    *,
    task_ids: tuple[str, ...],
    out: str | None,
    directory: str | None,
    write: bool,
    root: str,
    force: bool,
    raw: bool,
) -> int:
    """The output of a task; exit 1 with the reason if it brought none. Batches need -d DIR or --write."""
    if sum((out is not None, directory is not None, write)) > 1:
        raise click.UsageError("Choose one of -o, -d and --write.")
    root_path = Path(root).resolve()
    if not root_path.is_dir():
        raise KoubouError(Code.BAD_INPUT, f"--root {root}: no such folder", "name a folder that exists")
    with output.client() as client:
        tasks = resolve(client, task_ids)
        if directory is not None:
            folder = Path(directory).absolute()
            return _Writer(output, client, folder, force=force, raw=raw).write(tasks, names_in_folder(tasks))
        if write:
            return _Writer(output, client, root_path, force=force, raw=raw).write(tasks, None)
        if len(tasks) != 1:
            raise KoubouError(
                Code.BAD_INPUT,
                f"{' '.join(task_ids)}: {len(tasks)} tasks, and stdout takes one",
                "write them to files: -d DIR, or --write for the paths given at submit",
            )
        return _one(output, client, tasks[0], root_path, out, force=force, raw=raw)


def names_in_folder(tasks: list[TaskView]) -> dict[int, str]:
    """A file name for every task: its target's, below a folder of its own where several have the same."""
    names = {task.task_id: task.out_path or task.target or f"{task.task_id}.txt" for task in tasks}
    taken = Counter(name.casefold() for name in names.values())  # some file systems know no case
    return {task_id: name if taken[name.casefold()] == 1 else f"{task_id}/{name}" for task_id, name in names.items()}


def _one(
    output: Output, client: "Client", task: TaskView, root: Path, out: str | None, *, force: bool, raw: bool
) -> int:
    if out is not None:
        name = check_out_path(out, root)
        if not force and digest_of(root, name):
            raise KoubouError(Code.CONFLICT, f"{name}: exists already", "replace it with --force, or choose another")
    reply, data = client.result(task.task_id, raw=raw)
    task = reply.task
    if task.state is not TaskState.SUCCEEDED and not (raw and data):
        if output.as_json:
            output.data(task_json(task))
        raise _no_output(task)
    if out is not None:
        path = write_output(root, check_out_path(out, root), data, expected_digest=None, force=force)
        output.note(f"wrote {path} ({len(data)} bytes)")
    if output.as_json:
        output.data(task_json(task, data.decode("utf-8", "replace")))
    elif out is None:
        output.raw(data)
    return OK


class _Writer:
    """Puts many outputs into files; what is wrong with one keeps none of the others back."""

    def __init__(self, output: Output, client: "Client", root: Path, *, force: bool, raw: bool) -> None:
        self._output = output
        self._client = client
        self._root = root
        self._force = force
        self._raw = raw
        self._written: list[dict[str, Any]] = []
        self._errors: list[KoubouError] = []
        self._failed: list[TaskView] = []

    def write(self, tasks: list[TaskView], names: dict[int, str] | None) -> int:
        """Write them under `names`, or where they were submitted for; the exit code of the worst that happened."""
        for task in tasks:
            try:
                self._write(task, names)
            except KoubouError as error:
                self._output.error(error)
                self._errors.append(error)
        if self._output.as_json:
            failed = [task_json(task) for task in self._failed]
            self._output.data({"written": self._written, "failed": failed})
        if len(tasks) > 1:
            self._output.note(f"{len(self._written)} of {len(tasks)} outputs written")
        if self._failed:
            return A_TASK_FAILED
        return exit_code_of(self._errors[0]) if self._errors else OK

    def _write(self, task: TaskView, names: dict[int, str] | None) -> None:
        reply, data = self._client.result(task.task_id, raw=self._raw)
        if reply.task.state is not TaskState.SUCCEEDED:
            if reply.task.state.is_terminal:
                self._failed.append(reply.task)
            raise _no_output(reply.task)
        if names is not None:
            name = names[task.task_id]
            self._root.mkdir(parents=True, exist_ok=True)
            path = write_output(self._root, name, data, expected_digest=None, force=self._force)
            self._output.note(f"wrote {path} ({len(data)} bytes)")
        elif task.out_path:
            path = put(self._output, reply, data, self._root, force=self._force)
        else:
            raise KoubouError(
                Code.BAD_INPUT,
                f"task {task.task_id} was submitted without -o, so it has no path of its own",
                f"koubou-ctl result {task.task_id} -o OUT, or -d DIR",
            )
        self._written.append({"id": task.task_id, "path": str(path), "bytes": len(data)})


def _no_output(task: TaskView) -> KoubouError:
    if task.state.is_terminal:
        return failure_of(task)
    state = "still running" if task.state is TaskState.RUNNING else "waiting"
    if task.waiting_for:
        state += f" for {task.waiting_for}"
    return KoubouError(
        Code.REFUSED,
        f"task {task.task_id} is {state}: there is no output yet",
        f"koubou-ctl wait {task.task_id}",
    )
