"""From what a person asks to what is sent: drafts with their bytes, and the parts a submission travels in."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from koubou_client.inputs import ContextFile, InputLimits, body_of, check_prompt, read_context
from koubou_common import codec
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import Submit
from koubou_common.messages.limits import (
    BATCH_TASKS,
    INLINE_BYTES,
    PART_TASKS,
    PRIORITY_DEFAULT,
    PRIORITY_HIGHEST,
    PRIORITY_LOWEST,
)
from koubou_common.messages.values import Body, File, Label, Option, Scalar, TaskSpec
from koubou_common.names import name_fault
from koubou_common.options import check_options

PRIORITY_WORDS = {"low": 2, "normal": PRIORITY_DEFAULT, "high": 8}
_SPEC_BYTES = 600_000  # of a message's 1,000,000: room for what a part carries beside its tasks


@dataclass(frozen=True, slots=True)
class TaskDraft:
    """A task ready to be submitted: its specification and the bytes it names."""

    spec: TaskSpec
    bodies: dict[bytes, bytes] = field(default_factory=dict)


def draft_task(
    prompt: str | bytes,
    *,
    files: Sequence[str] = (),
    root: Path | None = None,
    limits: InputLimits | None = None,
    allow_secrets: bool = False,
    target: str = "",
    repo: str = "",
    model: str = "",
    priority: int | str = PRIORITY_DEFAULT,
    task_type: str = "general",
    options: Mapping[str, Scalar | Sequence[str]] | None = None,
    worker: str = "",
    labels: Mapping[str, str] | None = None,
    capabilities: Sequence[str] = (),
    same_digest: bool = False,
    min_context: int = 0,
    timeout_s: float | None = None,
    deadline_s: float | None = None,
    queue_timeout_s: float | None = None,
    max_attempts: int | None = None,
    strict_output: bool = False,
    use_cache: bool = True,
    custom_id: str = "",
    out_path: str = "",
    out_digest: str = "",
) -> TaskDraft:
    """Check and read all that a task needs; KoubouError names the first fault and its remedy."""
    root = (root or Path.cwd()).resolve()
    limits = limits or InputLimits()
    prompt_bytes = check_prompt(prompt, limits)
    context = read_context(files, root, limits, allow_secrets=allow_secrets)
    total = len(prompt_bytes) + sum(len(file.data) for file in context)
    if total > limits.task_bytes:
        raise KoubouError(
            Code.TOO_LARGE,
            f"prompt and files together: {total} bytes, at most {limits.task_bytes} are allowed (limit task_bytes)",
            "leave files out, or split the task",
        )
    if faults := check_options(dict(options or {}), from_task=True):
        hint = "ask for a large enough window with --min-context N" if "num_ctx" in (options or {}) else ""
        raise KoubouError(
            Code.BAD_INPUT, "; ".join(faults), hint or "their names and types: koubou-ctl config schema workers"
        )
    for what, name in (("target", target), ("output", out_path)):
        if name and (fault := name_fault(name)):
            raise KoubouError(Code.BAD_INPUT, f"{what} {name}: {fault}", "choose a relative path")
    spec = TaskSpec(
        prompt=body_of(prompt_bytes),
        files=tuple(File(file.name, body_of(file.data)) for file in context),
        target=target or out_path,
        repo=repo or root.name or "repository",
        model=model,
        priority=read_priority(priority),
        task_type=task_type,
        options=tuple(
            Option(name, value if isinstance(value, bool | int | float | str) else tuple(value))
            for name, value in sorted((options or {}).items())
        ),
        worker=worker,
        labels=tuple(Label(key, value) for key, value in sorted((labels or {}).items())),
        capabilities=tuple(sorted(set(capabilities))),
        same_digest=same_digest,
        min_context=min_context,
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        queue_timeout_s=queue_timeout_s,
        max_attempts=max_attempts,
        strict_output=strict_output,
        custom_id=custom_id,
        out_path=out_path,
        out_digest=out_digest,
        use_cache=use_cache,
    )
    _check_bounds(spec)
    return TaskDraft(spec, _bodies(prompt_bytes, context))


def read_priority(priority: int | str) -> int:
    """1 to 10 (10 first), or low, normal, high; KoubouError (bad_input) otherwise."""
    text = str(priority).strip().lower()
    if text in PRIORITY_WORDS:
        return PRIORITY_WORDS[text]
    if text.isascii() and text.isdigit() and PRIORITY_LOWEST <= int(text) <= PRIORITY_HIGHEST:
        return int(text)
    raise KoubouError(
        Code.BAD_INPUT,
        f"priority {priority!r}: 1 to 10 or {', '.join(PRIORITY_WORDS)} is allowed",
        "10 goes first, 5 is normal",
    )


def parts_of(
    drafts: Sequence[TaskDraft], request_ids: Sequence[str], key: str, *, as_batch: bool, dry_run: bool
) -> list[tuple[Submit, dict[bytes, bytes]]]:
    """The messages of one submission, each with the bodies that the broker will have to pull.

    Small bodies travel inline while a message stays below INLINE_BYTES.
    """
    if len(drafts) > BATCH_TASKS:
        raise KoubouError(
            Code.TOO_LARGE,
            f"{len(drafts)} tasks in one submission, at most {BATCH_TASKS} are allowed",
            "submit several batches",
        )
    groups = _groups(drafts)
    parts: list[tuple[Submit, dict[bytes, bytes]]] = []
    for index, group in enumerate(groups):
        tasks, pulled = _inline(group)
        request_id = request_ids[index]
        message = Submit(request_id, key, tasks, as_batch, index, len(groups), dry_run)
        parts.append((message, pulled))
    return parts


def new_idempotency_key() -> str:
    """A key that makes repeating this submission harmless."""
    return secrets.token_hex(16)


def _check_bounds(spec: TaskSpec) -> None:
    """Refuse here what the broker could not read: it drops such a message, and nobody would hear why."""
    try:
        codec.unpack(codec.pack(spec), TaskSpec)
    except UnicodeEncodeError as error:
        raise KoubouError(Code.BAD_INPUT, "a name holds half a character", "names are UTF-8 text") from error
    except codec.DecodeError as error:
        raise KoubouError(
            Code.BAD_INPUT, str(error).removeprefix("value."), "see `koubou-ctl submit --help`"
        ) from error


def _groups(drafts: Sequence[TaskDraft]) -> list[list[TaskDraft]]:
    """Consecutive drafts whose specifications fit one message together."""
    groups: list[list[TaskDraft]] = [[]]
    size = 0
    for draft in drafts:
        # Names and options only: a body is 32 bytes of hash and its length.
        weight = 400 + sum(60 + len(file.name.encode()) for file in draft.spec.files)
        if groups[-1] and (len(groups[-1]) >= PART_TASKS or size + weight > _SPEC_BYTES - INLINE_BYTES):
            groups.append([])
            size = 0
        groups[-1].append(draft)
        size += weight
    return groups


def _inline(group: Sequence[TaskDraft]) -> tuple[tuple[TaskSpec, ...], dict[bytes, bytes]]:
    room = INLINE_BYTES
    sent: set[bytes] = set()
    pulled: dict[bytes, bytes] = {}
    tasks: list[TaskSpec] = []
    for draft in group:
        bodies: list[Body] = []
        for body in (draft.spec.prompt, *(file.body for file in draft.spec.files)):
            data = draft.bodies[body.sha256]
            if body.sha256 not in sent and len(data) <= room and body.sha256 not in pulled:
                room -= len(data)
                sent.add(body.sha256)
                bodies.append(replace(body, inline=data))
            else:
                bodies.append(body)
                if body.sha256 not in sent:
                    pulled[body.sha256] = data
        files = tuple(replace(file, body=body) for file, body in zip(draft.spec.files, bodies[1:], strict=True))
        tasks.append(replace(draft.spec, prompt=bodies[0], files=files))
    return tuple(tasks), pulled


def _bodies(prompt: bytes, context: Sequence[ContextFile]) -> dict[bytes, bytes]:
    return {body_of(data).sha256: data for data in (prompt, *(file.data for file in context))}
