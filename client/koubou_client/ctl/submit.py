"""`koubou-ctl submit`: one task from the command line, or many with --each or --jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from koubou_client.ctl import plan, submit_each, submit_jsonl
from koubou_client.ctl.finish import finish_batch, finish_one
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.params import Duration, model_options_of, pairs_of
from koubou_client.ctl.views import batch_name, task_json
from koubou_client.outputs import check_out_path, digest_of
from koubou_client.pending import PATIENCE_S
from koubou_client.tasks import TaskDraft, draft_task, new_idempotency_key
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import Submitted
from koubou_common.messages.limits import MIB

if TYPE_CHECKING:
    from koubou_client.client import Client

_READ_MOST_BYTES = 64 * MIB  # more than any broker takes: it must name its own limit, not the memory end

_EPILOG = """\b
Examples:
  koubou-ctl submit "Explain this module" -f src/a.py -o docs/a.md --wait
  git diff | koubou-ctl submit - -p high --wait
  koubou-ctl submit --prompt-file review.txt -f src/a.py --dry-run
  koubou-ctl submit -- "--help is what this prompt begins with"
  koubou-ctl submit "Write its docs" -f README.md --each 'src/**/*.py' -o 'docs/{stem}.md' --wait
  koubou-ctl submit --jsonl tasks.jsonl --wait

\b
A line of --jsonl:
  {"custom_id": "a", "prompt": "…", "files": ["src/a.py"], "out": "docs/a.md", "priority": 7}
Options beside --jsonl hold for every line that does not say otherwise.

\b
Tasks with the same prompt: the files that all of them have are put first, so that a model reads these
once. A line with "keep_order": true keeps its files as they are."""


class _SubmitCommand(click.Command):
    """Says where a prompt goes that looks like an option, and that a pattern is to be quoted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # click takes it apart
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = f"{error.format_message()} A prompt that begins with '-' goes after `--`."
            raise click.UsageError(hint, ctx) from error
        except click.UsageError as error:
            if "--each" not in given or "unexpected extra argument" not in error.message:
                raise
            hint = f"{error.message} Quote the pattern after --each, or the shell makes file names of it."
            raise click.UsageError(hint, ctx) from error


@click.command(cls=_SubmitCommand, epilog=_EPILOG)
@click.argument("prompt", required=False, metavar="PROMPT|-")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from a file.")
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="A context file, below --root; repeatable.")
@click.option("-o", "--output", "out", metavar="OUT", help="The file to write; it is the target too, unless -t.")
@click.option("-t", "--target", metavar="TARGET", help="The file the model is told to write.")
@click.option("-m", "--model", metavar="MODEL", help="Only workers with this model (default: the worker's own).")
@click.option("-p", "--priority", metavar="P", help="1 to 10, or low, normal, high; 10 goes first (normal, 5).")
@click.option("--type", "task_type", metavar="T", help="What kind of work: workers may be better at some (general).")
@click.option("--repo", metavar="NAME", help="The repository's name in the prompt (default: that of --root).")
@click.option("--root", metavar="DIR", default=".", help="Files and outputs are relative to it (default: here).")
@click.option("--worker", metavar="ID", help="Only this worker.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only workers with this label; repeatable.")
@click.option("--capability", "capabilities", multiple=True, metavar="WORD", help="Only workers with it; repeatable.")
@click.option("--same-digest", is_flag=True, help="One version of the model for all tasks: what most workers have now.")
@click.option("--min-context", type=click.IntRange(0), metavar="N", help="Only workers with a window of N tokens.")
@click.option("--option", "options", multiple=True, metavar="K=V", help="A model option: temperature=0.2; repeatable.")
@click.option("--timeout", type=Duration(), metavar="S", help="Longest time of one attempt: 600, 10m, 1h.")
@click.option("--deadline", type=Duration(), metavar="S", help="Longest time of the task, from now.")
@click.option("--queue-timeout", type=Duration(), metavar="S", help="Longest wait for a worker to begin it, from now.")
@click.option("--max-attempts", type=click.IntRange(1, 20), metavar="N", help="Attempts for passing troubles (5).")
@click.option("--strict-output", is_flag=True, help="Prose around the file is a failure, not a flag.")
@click.option("--no-cache", is_flag=True, help="A new answer, even if the broker's result cache holds one.")
@click.option("--allow-secrets", is_flag=True, help="Send files that look like secrets all the same.")
@click.option("--force", is_flag=True, help="OUT may exist: it is replaced unless it changes meanwhile.")
@click.option("--idempotency-key", metavar="KEY", help="Repeating a submission with the same key makes no new task.")
@click.option("--wait", "do_wait", is_flag=True, help="Wait; print the output, or write OUT. Ctrl-C detaches.")
@click.option(
    "--wait-timeout", type=Duration(), metavar="S", help="Give up waiting after S (exit 3); the task goes on."
)
@click.option(
    "--patience",
    type=Duration(may_be_zero=True),
    metavar="S",
    help="Wait so long for a full workshop to take it (10m with --jsonl, --wait or a pipe; else not at all).",
)
@click.option("--dry-run", is_flag=True, help="Say where it would go and why; submit nothing.")
@click.option(
    "--each", metavar="GLOB", help="A task for each file that matches; -o may hold {name} {stem} {dir} {path}."
)
@click.option("--jsonl", metavar="FILE|-", help="One task a line; all are accepted or none.")
@click.pass_obj
def command(output: Output, /, *, each: str | None, jsonl: str | None, **given: Any) -> int:
    """Submit a task: a prompt, the files it needs, the file it should produce."""
    root = Path(given["root"]).resolve()
    if not root.is_dir():
        raise KoubouError(Code.BAD_INPUT, f"--root {given['root']}: no such folder", "name a folder that exists")
    if given["wait_timeout"] is not None:
        given["do_wait"] = True
    if jsonl is not None:
        if each is not None:
            raise click.UsageError("--each and --jsonl exclude each other.")
        return _submit_lines(output, jsonl, root, given)
    if each is not None:
        return _submit_each(output, each, root, given)
    prompt = _read_prompt(given["prompt"], given["prompt_file"])
    with output.client() as client:
        out_path, out_digest = _check_out(given["out"], root, force=given["force"])
        draft = draft_task(
            prompt,
            files=given["files"],
            root=root,
            limits=client.limits(),
            allow_secrets=given["allow_secrets"],
            target=given["target"] or "",
            out_path=out_path,
            out_digest=out_digest,
            **_settings(given),
        )
        if given["dry_run"]:
            return plan.show_one(output, client.preview([draft])[0])
        patience_s = _patience_s(output, given)
        accepted = _submit(output, client, [draft], given["idempotency_key"], patience_s, as_batch=False)
        task_id = accepted.tasks[0].task_id
        if given["do_wait"]:
            return finish_one(output, client, task_id, root, timeout_s=given["wait_timeout"])
        _tell_task(output, client, accepted)
    return OK


def _submit_lines(output: Output, jsonl: str, root: Path, given: dict[str, Any]) -> int:
    for name, option in (
        ("prompt", "PROMPT"),
        ("prompt_file", "--prompt-file"),
        ("files", "-f"),
        ("out", "-o"),
        ("target", "-t"),
    ):
        if given[name]:
            raise click.UsageError(f"{option} and --jsonl exclude each other: every line says its own.")
    name = "stdin" if jsonl == "-" else jsonl
    data = _read(jsonl)
    with output.client() as client:
        drafts = submit_jsonl.read_drafts(
            data,
            name=name,
            root=root,
            limits=client.limits(),
            defaults=_settings(given),
            allow_secrets=given["allow_secrets"],
            force=given["force"],
        )
        return _submit_batch(output, client, drafts, root, given, name=name)


def _submit_each(output: Output, pattern: str, root: Path, given: dict[str, Any]) -> int:
    prompt = _read_prompt(given["prompt"], given["prompt_file"])
    with output.client() as client:
        lines = submit_each.read_each(
            pattern,
            prompt,
            files=given["files"],
            root=root,
            limits=client.limits(),
            out=given["out"] or "",
            target=given["target"] or "",
            settings=_settings(given),
            allow_secrets=given["allow_secrets"],
            force=given["force"],
        )
        return _submit_batch(output, client, lines, root, given, name="--each")


def _submit_batch(
    output: Output,
    client: "Client",
    lines: Sequence[submit_jsonl.Line],
    root: Path,
    given: dict[str, Any],
    *,
    name: str,
) -> int:
    drafts = [line.draft for line in lines]
    if given["dry_run"]:
        return plan.show_many(output, lines, client.preview(drafts), name)
    patience_s = PATIENCE_S if given["patience"] is None else given["patience"]
    accepted = _submit(output, client, drafts, given["idempotency_key"], patience_s, as_batch=True)
    if given["do_wait"]:
        return finish_batch(output, client, accepted, root, timeout_s=given["wait_timeout"])
    _tell_batch(output, accepted)
    return OK


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """What `draft_task` is told beside prompt, files and output; only what was given."""
    wanted = {
        "model": given["model"],
        "priority": given["priority"],
        "task_type": given["task_type"],
        "repo": given["repo"],
        "worker": given["worker"],
        "labels": pairs_of(given["labels"], "--label") or None,
        "capabilities": given["capabilities"] or None,
        "same_digest": given["same_digest"] or None,
        "min_context": given["min_context"],
        "options": model_options_of(given["options"]) or None,
        "timeout_s": given["timeout"],
        "deadline_s": given["deadline"],
        "queue_timeout_s": given["queue_timeout"],
        "max_attempts": given["max_attempts"],
        "strict_output": given["strict_output"] or None,
        "use_cache": False if given["no_cache"] else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str | bytes:
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("Give one prompt: PROMPT, - for stdin, or --prompt-file FILE (or tasks: --jsonl FILE).")
    if prompt_file is not None:
        return _read(prompt_file)
    assert prompt is not None
    return _read("-") if prompt == "-" else prompt


def _read(path: str) -> bytes:
    """A file's bytes, or stdin's for `-`."""

    def read(file: IO[bytes]) -> bytes:
        data = file.read(_READ_MOST_BYTES + 1)
        if len(data) > _READ_MOST_BYTES:
            raise KoubouError(Code.TOO_LARGE, f"{path}: more than {_READ_MOST_BYTES} bytes", "split it")
        return data

    try:
        if path == "-":
            return read(sys.stdin.buffer)
        with Path(path).open("rb") as file:
            return read(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KoubouError(Code.BAD_INPUT, f"{path}: {reason}", "check the file's name") from error


def _check_out(out: str | None, root: Path, *, force: bool) -> tuple[str, str]:
    """The output's relative name and the digest of what is there now."""
    if not out:
        return "", ""
    name = check_out_path(out, root)
    digest = digest_of(root, name)
    if digest and not force:
        raise KoubouError(Code.BAD_INPUT, f"{name}: exists already", "replace it with --force, or choose another path")
    return name, digest


def _patience_s(output: Output, given: dict[str, Any]) -> float:
    """Who sits at a terminal and waits for nothing is told at once; a script is better served by waiting."""
    if given["patience"] is not None:
        return float(given["patience"])
    return PATIENCE_S if given["do_wait"] or not output.is_terminal else 0.0


def _submit(
    output: Output,
    client: "Client",
    drafts: Sequence[TaskDraft],
    key: str | None,
    patience_s: float,
    *,
    as_batch: bool,
) -> Submitted:
    key = key or new_idempotency_key()

    def on_wait(error: KoubouError, wait_s: float) -> None:
        output.note(f"the workshop takes no new tasks: {error.message}; trying again in {wait_s:.0f} s")

    try:
        accepted = client.submit_drafts(drafts, key=key, as_batch=as_batch, patience_s=patience_s, on_wait=on_wait)
    except KeyboardInterrupt:
        raise KoubouError(
            Code.DETACHED,
            "interrupted before the broker's answer: it may have accepted this or not",
            f"the same command with --idempotency-key {key} makes sure, and never makes it twice",
        ) from None
    if not accepted.tasks:
        raise KoubouError(
            Code.NOT_FOUND,
            f"this was submitted under the key {key} before, and its tasks have been removed since",
            "submit it under a new key",
        )
    return accepted


def _tell_task(output: Output, client: "Client", accepted: Submitted) -> None:
    ref = accepted.tasks[0]
    if not output.as_json and not output.is_terminal:
        output.say(str(ref.task_id))
        return
    task = client.tasks(task_ids=[ref.task_id])[0]
    if output.as_json:
        output.data(task_json(task))
    elif ref.existing:
        output.say(f"Task {ref.task_id} had been submitted under this key before; it is {task.state}.")
    else:
        why = f"; waits for {task.waiting_for}" if task.waiting_for else ""
        output.say(f"Task {ref.task_id} accepted: {task.state}, priority {task.priority}{why}.")
        output.note(f"  follow: koubou-ctl wait {ref.task_id}   output: koubou-ctl result {ref.task_id}")


def _tell_batch(output: Output, accepted: Submitted) -> None:
    name = batch_name(accepted.batch_id)
    if output.as_json:
        refs = [{"id": ref.task_id, "state": ref.state.value, "existing": ref.existing} for ref in accepted.tasks]
        output.data({"batch": name, "tasks": refs})
    elif not output.is_terminal:
        output.say(name)
    else:
        known = " (submitted under this key before)" if accepted.tasks[0].existing else ""
        output.say(f"Batch {name} accepted: {len(accepted.tasks)} tasks{known}.")
        output.note(f"  follow: koubou-ctl wait {name}   outputs: koubou-ctl result {name} --write")
