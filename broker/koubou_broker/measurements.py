"""What the rows of ended attempts come to, worker by worker: get_worker_stats, speeds, the history of factors."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, select

from koubou_broker import rows, schema
from koubou_broker.effects import FindSpeeds, FindStats, Found
from koubou_broker.records import FactorChange
from koubou_broker.routing.speeds import FAST_READING, Speed, by_normal_model
from koubou_common.messages.values import ErrorCount, WorkerStats

ATTEMPTS_MOST = 20_000  # the newest, of which speeds are made: enough for every worker, and soon read
FACTORS_MOST = 100  # changes that one answer shows, the newest
_WORKERS_MOST = 500  # of one answer
_ERRORS_MOST = 16  # kinds that one worker is shown with, the most frequent


def find_speeds(connection: Connection, query: FindSpeeds) -> Found:
    """Sums over successful attempts for each worker and model, in one statement."""
    metrics = schema.worker_metrics.c
    newest = select(func.coalesce(func.max(metrics.metric_id), 0) - ATTEMPTS_MOST).scalar_subquery()
    wanted = (metrics.success, metrics.measured_at >= query.since_ms, metrics.metric_id > newest)
    usual = (
        select(
            metrics.worker_id, metrics.model, func.avg(metrics.prompt_ms * 1.0 / metrics.prompt_tokens).label("pace")
        )
        .where(*wanted, metrics.prompt_tokens > 0, metrics.prompt_ms > 0)
        .group_by(metrics.worker_id, metrics.model)
        .subquery()
    )
    # The same as `speeds.speeds_of`, which simulations use.
    was_read = and_(metrics.prompt_ms > 0, metrics.prompt_ms >= FAST_READING * usual.c.pace * metrics.prompt_tokens)
    sums = (
        select(
            metrics.worker_id,
            metrics.model,
            func.count(),
            _sum(metrics.prompt_tokens),
            _sum(case((was_read, metrics.prompt_tokens), else_=0)),
            _sum(case((was_read, metrics.prompt_ms), else_=0)),
            _sum(metrics.output_tokens + func.coalesce(metrics.thinking_tokens, 0)),
            _sum(metrics.eval_ms),
            _sum(case((metrics.load_ms > 0, 1), else_=0)),
            _sum(metrics.load_ms),
        )
        .select_from(
            schema.worker_metrics.outerjoin(
                usual, and_(usual.c.worker_id == metrics.worker_id, usual.c.model == metrics.model)
            )
        )
        .where(*wanted)
        .group_by(metrics.worker_id, metrics.model)
        .order_by(metrics.worker_id, metrics.model)
    )
    found = (Speed(one[0], one[1], *(int(number) for number in one[2:])) for one in connection.execute(sums))
    return Found(speeds=by_normal_model(found))


def find_stats(connection: Connection, query: FindStats) -> Found:
    """The requirements' get_worker_stats for one worker or all, and how their factors went."""
    metrics, factors = schema.worker_metrics.c, schema.worker_factors.c
    # An attempt without an error succeeded: grouping by the error tells both apart in one statement.
    sums = (
        select(
            metrics.worker_id,
            metrics.success,
            metrics.error_type,
            func.count().label("total"),
            func.avg(metrics.execution_time_ms).label("avg_ms"),
            func.min(metrics.execution_time_ms).label("min_ms"),
            func.max(metrics.execution_time_ms).label("max_ms"),
            _sum(metrics.prompt_tokens).label("prompt_tokens"),
            _sum(metrics.output_tokens + func.coalesce(metrics.thinking_tokens, 0)).label("output_tokens"),
            _sum(metrics.prompt_ms).label("prompt_ms"),
            _sum(metrics.eval_ms).label("eval_ms"),
            func.avg(case((metrics.first_token_ms > 0, metrics.first_token_ms))).label("first_token_ms"),
            func.avg(case((metrics.load_ms > 0, metrics.load_ms))).label("load_ms"),
            func.count(case((metrics.load_ms > 0, 1))).label("loads"),
            func.avg(metrics.slot_wait_ms).label("slot_wait_ms"),
        )
        .where(metrics.measured_at >= query.since_ms)
        .group_by(metrics.worker_id, metrics.success, metrics.error_type)
        .order_by(metrics.worker_id)
    )
    changes = select(schema.worker_factors).where(factors.at_ms >= query.since_ms)
    if query.worker_id:
        sums = sums.where(metrics.worker_id == query.worker_id)
        changes = changes.where(factors.worker_id == query.worker_id)
    of_worker: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(sums):
        of_worker.setdefault(row.worker_id, []).append(row)
    newest = changes.order_by(factors.factor_id.desc()).limit(FACTORS_MOST)
    history: tuple[FactorChange, ...] = tuple(rows.factor_change(row) for row in connection.execute(newest))
    return Found(
        stats=tuple(_stats(worker_id, groups) for worker_id, groups in list(of_worker.items())[:_WORKERS_MOST]),
        factors=history,
    )


def _stats(worker_id: str, groups: Sequence[Row[Any]]) -> WorkerStats:
    total = sum(group.total for group in groups)
    good = next((group for group in groups if group.success), None)
    errors = sorted(
        (ErrorCount(group.error_type or "", group.total) for group in groups if not group.success), key=_rank
    )
    tokens = sum(int(group.prompt_tokens) for group in groups), sum(int(group.output_tokens) for group in groups)
    if good is None:
        return WorkerStats(worker_id, total, 0, 0.0, 0, 0, 0.0, *tokens, errors=tuple(errors[:_ERRORS_MOST]))
    return WorkerStats(
        worker_id=worker_id,
        total=total,
        successful=good.total,
        avg_ms=float(good.avg_ms),
        min_ms=good.min_ms,
        max_ms=good.max_ms,
        success_rate=good.total / total,
        prompt_tokens=tokens[0],
        output_tokens=tokens[1],
        prompt_tokens_per_s=_per_s(good.prompt_tokens, good.prompt_ms),
        output_tokens_per_s=_per_s(good.output_tokens, good.eval_ms),
        first_token_ms=round(good.first_token_ms or 0),
        load_ms=round(good.load_ms or 0),
        loads=good.loads,
        slot_wait_ms=round(good.slot_wait_ms or 0),
        errors=tuple(errors[:_ERRORS_MOST]),
    )


def _rank(error: ErrorCount) -> tuple[int, str]:
    return -error.count, error.error_type


def _sum(numbers: ColumnElement[Any]) -> ColumnElement[Any]:
    """Of nothing: 0. Rows of older releases lack some columns."""
    return func.coalesce(func.sum(numbers), 0)


def _per_s(tokens: int, over_ms: int) -> float:
    return float(tokens) * 1000 / float(over_ms) if over_ms else 0.0
