"""Why a task went where it did, and where it would go while it waits."""

from dataclasses import replace

from koubou_broker.core.estimate import start_of
from koubou_broker.core.requests import one_task
from koubou_broker.core.standings import candidates_for, waited_s
from koubou_broker.core.state import Session, State
from koubou_broker.core.views import attempt_views, candidate_views, overlaid, task_view
from koubou_broker.effects import FindStory, Found
from koubou_broker.routing.placing import count_reasons
from koubou_broker.task import Task
from koubou_common.messages import Explain, Explanation
from koubou_common.messages.values import TaskState

_CANDIDATES_SHOWN = 100  # who would get it first; the counts by reason speak of all


class Explanations:
    """Answers from the decisions that were stored, and from the workers as they are now."""

    def __init__(self, state: State) -> None:
        self._state = state

    def explain(self, session: Session, message: Explain) -> None:
        """The decision behind each attempt; of a task that waits, who could take it, why not, about when."""
        state = self._state

        def then(found: Found) -> None:
            task = one_task(state, session, message.task_id, found)
            decisions = {one.attempt_uid: one.decision for one in found.decisions}
            answer = Explanation(
                request_id=message.request_id,
                task=task_view(state, task, brief=False, proto=session.proto),
                attempts=attempt_views(overlaid(state, found.attempts), decisions),
                rule=state.router.rule_text(state.router.rule_of(task.spec.priority))[:2_000],
                strategy=state.router.strategy.name,
            )
            if task.state is TaskState.QUEUED:
                answer = self._waiting(task, answer)
            state.send(session.session, answer)

        state.lookup(session.session, FindStory(message.task_id, with_decisions=True), then, message.request_id)

    def _waiting(self, task: Task, answer: Explanation) -> Explanation:
        state = self._state
        candidates = candidates_for(state, task)
        ahead = _ahead_of(state, task)
        pause_s = max(0.0, (task.not_before_ms - state.now.wall_ms) / 1_000)
        start = start_of(state, task.spec, candidates, ahead, waited_s=waited_s(state, task), pause_s=pause_s)
        return replace(
            answer,
            candidates=candidate_views(candidates, _CANDIDATES_SHOWN),
            reasons=count_reasons(candidates),
            effective_priority=_effective_priority(state, task),
            ahead=ahead,
            starts_in_s=start.in_s,
            starts_basis=start.basis,
        )


def _effective_priority(state: State, task: Task) -> float:
    if task.task_id not in state.queue:
        return float(task.spec.priority)  # it pauses between two attempts: it has no place among those that wait
    return float(state.queue.head_of(task.task_id, state.now.mono_s).effective)


def _ahead_of(state: State, task: Task) -> int:
    return state.queue.ahead_of(task.task_id, state.now.mono_s) if task.task_id in state.queue else 0
