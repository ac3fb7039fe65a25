"""A batch's files in the order that lets a model read what its tasks share only once. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from koubou_client.tasks import TaskDraft
from koubou_common.messages.values import File, TaskSpec

_Shared = tuple[str, bytes]  # a file as the model sees it: its name and its text
_Head = tuple[bytes, str, str]


def lay_out(drafts: Sequence[TaskDraft], keep_order: Collection[int] = ()) -> list[TaskDraft]:
    """Put first, in each task, the files that all tasks of its kind have, in the order of the first of them.

    Ollama reads only what differs from the prompt before it. gemini-repo-cli writes prompt, repository and files in
    this order, so tasks that differ in prompt, repository or model share nothing, whatever their files: these make the
    kinds. A task alone of its kind stays as it is, and so do those at the indexes of `keep_order`.
    """
    kinds: dict[_Head, list[int]] = {}
    for index, draft in enumerate(drafts):
        if index not in keep_order:
            kinds.setdefault(_head(draft.spec), []).append(index)
    laid_out = list(drafts)
    for indexes in kinds.values():
        if len(indexes) < 2:
            continue
        shared = _shared_by([drafts[index].spec for index in indexes])
        if shared:
            for index in indexes:
                laid_out[index] = replace(drafts[index], spec=_with_first(drafts[index].spec, shared))
    return laid_out


def _head(spec: TaskSpec) -> _Head:
    return spec.prompt.sha256, spec.repo, spec.model


def _shared_by(specs: Sequence[TaskSpec]) -> list[_Shared]:
    common = set.intersection(*({_seen(file) for file in spec.files} for spec in specs))
    return [seen for file in specs[0].files if (seen := _seen(file)) in common]


def _with_first(spec: TaskSpec, shared: Sequence[_Shared]) -> TaskSpec:
    files = {_seen(file): file for file in spec.files}
    first = [files.pop(seen) for seen in shared]
    return replace(spec, files=(*first, *files.values()), prefix_files=len(first))


def _seen(file: File) -> _Shared:
    return file.name, file.body.sha256
