"""`--same-digest`: one version of the model for all tasks of a submission, chosen when it is accepted."""

from collections.abc import Sequence
from dataclasses import replace

from koubou_broker.core.state import Refusal, State
from koubou_broker.records import NewTask
from koubou_broker.routing.versions import most_capable
from koubou_broker.routing.workers import LiveWorker
from koubou_common.errors import Code
from koubou_common.models import normal_model

_NAMED = 5  # workers in a refusal


def with_versions(state: State, tasks: Sequence[NewTask], asked: Sequence[bool]) -> list[NewTask]:
    """The tasks, those that asked for it with the version that most can run now; Refusal where there is none."""
    #: by model: of the tasks that ask for it, who could run each, every set of workers once
    groups: dict[str, dict[frozenset[str], list[LiveWorker]]] = {}
    models: list[str] = []
    for task, wish in zip(tasks, asked, strict=True):
        if not wish:
            models.append("")
            continue
        unfit = state.router.fitting.unfit(task, ())
        known = groups.get(task.model, {}).get(unfit) if task.model else None
        able = known if known is not None else _able(state, task, unfit)
        models.append(task.model or _default_model(able))
        groups.setdefault(models[-1], {}).setdefault(unfit, able)
    digests = {model: _chosen(state, model, list(of_model.values())) for model, of_model in groups.items()}
    return [replace(task, digest=digests[model]) if model else task for task, model in zip(tasks, models, strict=True)]


def _able(state: State, task: NewTask, unfit: frozenset[str]) -> list[LiveWorker]:
    return [one for one in state.workers.values() if one.worker_id not in unfit and one.may_have_model(task.model)]


def _default_model(able: Sequence[LiveWorker]) -> str:
    """The model of a task that names none, where that is the same wherever it may go."""
    defaults = {normal_model(worker.settings.default_model): worker.worker_id for worker in able}
    if len(defaults) == 1:
        return next(iter(defaults))
    named = ", ".join(f"{model} on {worker_id}" for model, worker_id in list(defaults.items())[:_NAMED])
    raise Refusal(
        Code.REFUSED,
        f"--same-digest needs a model: the workers that could take the task have different ones ({named})"
        if defaults
        else "--same-digest needs a model: no worker with a default model could take the task",
        "name it with --model",
    )


def _chosen(state: State, model: str, groups: Sequence[Sequence[LiveWorker]]) -> str:
    digest = most_capable(groups, model, state.router.performance.factor)
    if digest:
        return digest
    if digest is None:
        raise Refusal(
            Code.REFUSED,
            f"no one version of {model} is on a worker for every task of this submission",
            f"`ollama pull {model}` on all workers brings the newest, or submit the tasks apart",
        )
    names = sorted({worker.worker_id for group in groups for worker in group})
    who = ", ".join(names[:_NAMED]) or "none"
    raise Refusal(
        Code.REFUSED,
        f"no worker has told yet which version of {model} it has (could run it: {who})",
        "submit again when one of them is connected and has the model (koubou-ctl workers list),"
        " or leave --same-digest out",
    )
