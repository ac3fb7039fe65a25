"""What a submission would do (`--dry-run`): where each task would go now, and about when; nothing is changed."""

from koubou_broker.core.checks import check_spec, new_task
from koubou_broker.core.estimate import start_of, tasks_before_new
from koubou_broker.core.same_version import with_versions
from koubou_broker.core.state import Refusal, State
from koubou_broker.core.views import candidate_views
from koubou_broker.records import NewTask
from koubou_broker.routing.fitting import model_bytes_of
from koubou_broker.routing.placing import count_reasons
from koubou_common.errors import Code
from koubou_common.messages import Submit
from koubou_common.messages.values import Plan

# In one message: each is weighed against every worker, and the loop serves nobody meanwhile (clients send ten).
_PLANNED_MOST = 50
_CANDIDATES_SHOWN = 500  # over all plans of one message: with the longest reasons and all parts 1.6 kB each


def plans_of(state: State, principal: str, message: Submit) -> tuple[Plan, ...]:
    """The plan of each task, as if it were alone."""
    if len(message.tasks) > _PLANNED_MOST:
        text = f"{len(message.tasks):,} tasks in one dry run; at most {_PLANNED_MOST} are planned at a time"
        raise Refusal(Code.TOO_LARGE, text, "ask again for fewer")
    most = max(1, _CANDIDATES_SHOWN // max(1, len(message.tasks)))
    plans: list[Plan] = []
    for spec in message.tasks:
        task = new_task(state, spec, principal)
        refusal = ""
        try:
            check_spec(state, spec, task)
            task = with_versions(state, [task], [spec.same_digest])[0]
        except Refusal as refused:
            refusal = refused.message
        plans.append(_plan(state, task, refusal, most))
    return tuple(plans)


def _plan(state: State, task: NewTask, refusal: str, most: int) -> Plan:
    candidates = state.router.weigh(task, (), "", state.now.mono_s, 0.0)
    model = task.model
    if not model and candidates:
        model = state.workers[candidates[0].worker_id].settings.default_model
    start = None if refusal else start_of(state, task, candidates, tasks_before_new(state, task))
    return Plan(
        model=model,
        prompt_tokens=state.router.fitting.estimate_tokens(model, model_bytes_of(task)),
        rule=state.router.rule_text(state.router.rule_of(task.priority))[:2_000],
        candidates=candidate_views(candidates, most),
        refusal=refusal[:2_000],
        token_error=state.router.fitting.token_error(model),
        digest=task.digest,
        reasons=count_reasons(candidates),
        starts_in_s=start.in_s if start is not None else None,
        starts_basis=start.basis if start is not None else "",
    )
