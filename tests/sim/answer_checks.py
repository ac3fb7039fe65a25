"""I4 of answers given again, and of those that one version of a model alone may give. Pure."""

from collections.abc import Iterator

from koubou_common.messages.values import TaskState
from sim.facts import Invariant, Violation
from sim.view import View


def earlier_answers(view: View) -> Iterator[Violation]:
    """An answer given again is that of a success, of the same person's same question."""
    facts = view.facts
    for task in facts.tasks:
        if task.state is not TaskState.SUCCEEDED or not task.is_cached:
            continue
        if task.task_id in facts.wants_new:
            yield Violation(Invariant.I4, task.task_id, "was given an earlier answer, and wanted a new one")
            continue
        asked = (task.principal, facts.questions.get(task.task_id))
        made_for = [view.tasks[one.task_id] for one in view.makers(task) if one.task_id in view.tasks]
        if all((one.principal, facts.questions.get(one.task_id)) != asked for one in made_for):
            of = ", ".join(f"task {one.task_id} of {one.principal}" for one in made_for) or "no success"
            text = f"{task.principal} was given the answer of {of}, which is not the same question"
            yield Violation(Invariant.I4, task.task_id, text)


def of_one_version(view: View) -> Iterator[Violation]:
    """What one version alone may answer was answered by it."""
    facts = view.facts
    for task_id, wanted in facts.version_of.items():
        others = _versions(view, task_id) - {wanted}
        if others:
            yield Violation(Invariant.I4, task_id, f"was answered by {sorted(others)}, asked for was {wanted}")


def alike(view: View) -> Iterator[Violation]:
    """Tasks that are to be answered by one version were."""
    for group in view.facts.alike:
        versions = set[str]().union(*(_versions(view, task_id) for task_id in group))
        if len(versions) > 1:
            yield Violation(Invariant.I4, min(group), f"it and its like were answered by {sorted(versions)}")


def _versions(view: View, task_id: int) -> set[str]:
    """Which version's answer a task has, as far as that is known."""
    task = view.tasks.get(task_id)
    if task is None or task.state is not TaskState.SUCCEEDED:
        return set()
    return {view.facts.versions[one.uid] for one in view.makers(task) if one.uid in view.facts.versions}
