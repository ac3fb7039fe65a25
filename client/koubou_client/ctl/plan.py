"""`submit --dry-run`: where tasks would go now, and why not elsewhere."""

from collections.abc import Sequence
from typing import Any

from koubou_client.ctl.candidates import candidate_lines, counts_text, fact_lines, start_text
from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.submit_jsonl import Line
from koubou_client.ctl.tables import short_digest, shorten, table
from koubou_client.ctl.views import candidate_json, reasons_json
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.values import Plan

_NAMES_COLUMNS = 40
_REFUSALS_SHOWN = 20


def show_one(output: Output, plan: Plan) -> int:
    """Print the plan of one task; KoubouError (refused) if it would not be accepted."""
    if output.as_json:
        output.data(_plan_json(plan))
    else:
        facts = [
            ("Model", plan.model or "the default of the worker that takes it"),
            ("Version", short_digest(plan.digest)),
            ("Prompt", tokens_text(plan)),
            ("Rule", plan.rule or "none matches: all workers"),
            ("Begins", "" if plan.refusal else start_text(plan.starts_in_s, plan.starts_basis)),
            ("Not now", counts_text(plan.reasons)),
        ]
        for line in fact_lines(facts):
            output.say(line)
        if plan.candidates:
            output.say()
            for line in candidate_lines(plan.candidates):
                output.say(line)
            output.say()
        if not plan.refusal:
            output.say(f"It would {_fate(plan)}. Nothing was submitted.")
    if plan.refusal:
        raise KoubouError(Code.REFUSED, plan.refusal, "nothing was submitted")
    return OK


def show_many(output: Output, lines: Sequence[Line], plans: Sequence[Plan], name: str) -> int:
    """Print the plans of a file's tasks, a row each; KoubouError (refused) if any would not be accepted."""
    if output.as_json:
        output.data(
            [
                {"line": line.number, "custom_id": line.draft.spec.custom_id or None, **_plan_json(plan)}
                for line, plan in zip(lines, plans, strict=True)
            ]
        )
    else:
        rows = [
            (
                line.number,
                line.draft.spec.custom_id or "-",
                plan.model or "-",
                plan.prompt_tokens,
                shorten(" ".join(_available(plan)), _NAMES_COLUMNS) or "-",
                plan.refusal or plan.rule or "-",
            )
            for line, plan in zip(lines, plans, strict=True)
        ]
        output.say(table(("LINE", "CUSTOM_ID", "MODEL", "TOKENS", "READY", "RULE OR REFUSAL"), rows))
        output.say(f"{len(lines)} task{'s' * (len(lines) != 1)}. Nothing was submitted.")
    refused = [(line, plan) for line, plan in zip(lines, plans, strict=True) if plan.refusal]
    if refused:
        raise KoubouError(
            Code.REFUSED,
            "\n".join(f"{name}:{line.number}: {plan.refusal}" for line, plan in refused[:_REFUSALS_SHOWN]),
            f"{len(refused)} of {len(lines)} tasks would be refused, and with them all",
        )
    return OK


def tokens_text(plan: Plan) -> str:
    """The estimate with its error: nobody shall take it for a count."""
    error = f"±{max(1, round(100 * plan.token_error))} %" if plan.token_error else "but nothing was measured yet"
    return f"about {plan.prompt_tokens:,} tokens, {error}"


def _fate(plan: Plan) -> str:
    if ready := _available(plan):
        return f"start at once on {ready[0]}"
    eligible = [candidate for candidate in plan.candidates if candidate.eligible]
    plans = [one.code.text for one in eligible if one.code is not None and one.code.is_plan]
    if plans and len(plans) == len(eligible):
        return f"wait: {plans[0]}"
    return "wait for a free slot" if eligible else "wait for a worker that can run it"


def _available(plan: Plan) -> list[str]:
    """The workers that could take it now, the one that would get it first."""
    return [candidate.worker_id for candidate in plan.candidates if candidate.available]


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model or None,
        "digest": plan.digest or None,
        "prompt_tokens": plan.prompt_tokens,
        "token_error": plan.token_error or None,
        "rule": plan.rule or None,
        "candidates": [candidate_json(candidate) for candidate in plan.candidates],
        "reasons": reasons_json(plan.reasons),
        "starts_in_s": plan.starts_in_s,
        "starts_basis": plan.starts_basis or None,
        "refusal": plan.refusal or None,
    }
