"""`koubou-ctl stats`: what the workers did in the last hours."""

from typing import Any

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.tables import shorten, table
from koubou_client.ctl.times import duration, rfc3339
from koubou_common.messages import Stats
from koubou_common.messages.values import WorkerStats

_HOURS_MOST = 8_760  # the history that is kept
_ERROR_COLUMNS = 50
_HEADERS = ("WORKER", "TRIES", "OK", "AVG", "MIN", "MAX", "READS/S", "SAYS/S", "LOADS", "ERRORS")


@click.command()
@click.argument("worker_id", metavar="[WORKER]", required=False, default="")
@click.option(
    "--hours", type=click.IntRange(1, _HOURS_MOST), default=24, show_default=True, help="How far to look back."
)
@click.pass_obj
def command(output: Output, worker_id: str, hours: int) -> int:
    """What the workers did: attempts, times, tokens, errors."""
    with output.client() as client:
        stats = client.stats(hours, worker_id=worker_id)
    if output.as_json:
        output.data(stats_json(stats))
    elif not stats.workers:
        who = f"{worker_id} has ended no attempt" if worker_id else "No attempt has ended"
        output.say(f"{who} in the last {hours_text(hours)}.")
    else:
        output.say(table(_HEADERS, [_row(one) for one in stats.workers]))
        output.say(
            f"\nThe last {hours_text(hours)}. Times and tokens a second are of attempts that succeeded;\n"
            "prompts that Ollama knew already make reading look fast."
        )
    return OK


def stats_json(stats: Stats) -> dict[str, Any]:
    """The answer for scripts."""
    return {
        "hours": stats.hours,
        "workers": [_worker_json(one) for one in stats.workers],
        "factors": [
            {
                "worker": one.worker_id,
                "at": rfc3339(one.at_ms),
                "factor": one.factor,
                "samples": one.samples,
                "baseline": one.baseline,
            }
            for one in stats.factors
        ],
    }


def error_texts(stats: WorkerStats) -> str:
    """`3 stalled, 1 agent_lost`; empty: none."""
    return ", ".join(f"{one.count} {one.error_type}" for one in stats.errors)


def hours_text(hours: int) -> str:
    """`hour`, `24 hours`, `7 days`."""
    if hours == 1:
        return "hour"
    return f"{hours} hours" if hours <= 48 or hours % 24 else f"{hours // 24} days"


def _worker_json(stats: WorkerStats) -> dict[str, Any]:
    return {
        "id": stats.worker_id,
        "total": stats.total,
        "successful": stats.successful,
        "success_rate": stats.success_rate,
        "avg_ms": stats.avg_ms,
        "min_ms": stats.min_ms,
        "max_ms": stats.max_ms,
        "tokens": {"prompt": stats.prompt_tokens, "output": stats.output_tokens},
        "prompt_tokens_per_s": stats.prompt_tokens_per_s or None,
        "output_tokens_per_s": stats.output_tokens_per_s or None,
        "first_token_ms": stats.first_token_ms,
        "load_ms": stats.load_ms,
        "loads": stats.loads,
        "slot_wait_ms": stats.slot_wait_ms,
        "errors": {one.error_type: one.count for one in stats.errors},
    }


def _row(stats: WorkerStats) -> tuple[object, ...]:
    times = (stats.avg_ms, stats.min_ms, stats.max_ms)
    return (
        stats.worker_id,
        stats.total,
        f"{stats.success_rate:.0%}",
        *(duration(round(ms)) if stats.successful else "-" for ms in times),
        _rate(stats.prompt_tokens_per_s),
        _rate(stats.output_tokens_per_s),
        stats.loads,
        shorten(error_texts(stats) or "-", _ERROR_COLUMNS),
    )


def _rate(tokens_per_s: float) -> str:
    if not tokens_per_s:
        return "-"
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"
