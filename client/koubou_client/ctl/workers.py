"""`koubou-ctl workers`: who works, and what an operator asks of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.params import Duration
from koubou_client.ctl.stats import error_texts, stats_json
from koubou_client.ctl.tables import short_digest, shorten, table
from koubou_client.ctl.times import age, duration
from koubou_client.ctl.views import worker_json, worker_state
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import GetWorkers, RemoveWorker, SetWorkerMode, Stats, Workers
from koubou_common.messages.values import Role, WorkerMode, WorkerView

if TYPE_CHECKING:
    from koubou_client.client import Client

_POLL_S = 1.0  # how often a drain looks whether the last task is over
_CELL_COLUMNS = 50
_HOUR = "1h"
_STATS_SINCE = 2  # the protocol that knows GetStats
_CHANGES_SHOWN = 5  # of the factor, the newest

_ids = click.argument("worker_ids", metavar="ID...", nargs=-1, required=True)


@click.group()
def command() -> None:
    """List, show, invite, pause, resume, drain, remove workers."""


@command.command("list")
@click.pass_obj
def list_workers(output: Output) -> int:
    """Every worker, what it may run, and what is the matter with it."""
    with output.client() as client:
        workers = _ask(client)
    if output.as_json:
        output.data([worker_json(worker) for worker in workers])
    elif not workers:
        output.say("No workers yet: koubou-ctl workers invite NAME")
    else:
        now_ms = _now_ms()
        rows = [_row(worker, now_ms) for worker in workers]
        output.say(
            table(("WORKER", "STATE", "WHERE", "SLOTS", "FACTOR", "OK", "SEEN", "PING", "MODELS", "ISSUE"), rows)
        )
    return OK


@command.command()
@click.argument("worker_id", metavar="ID")
@click.pass_obj
def show(output: Output, worker_id: str) -> int:
    """All that is known of one worker."""
    with output.client() as client:
        worker = _ask(client, worker_id)[0]
        stats = client.stats(worker_id=worker_id) if client.welcome().proto >= _STATS_SINCE else None
    if output.as_json:
        told = stats_json(stats) if stats is not None else {"workers": [], "factors": []}
        output.data(worker_json(worker) | {"last_24_h": (told["workers"] or [None])[0], "factors": told["factors"]})
        return OK
    now_ms = _now_ms()
    facts = [
        *_facts(worker, now_ms),
        *_foreign(worker),
        *_windows(worker),
        *(_measured(stats, now_ms) if stats is not None else ()),
    ]
    for name, value in facts:
        output.say(f"{name:<10}{value}")
    return OK


@command.command()
@click.argument("worker_id", metavar="ID")
@click.option("--ttl", type=Duration(), default=_HOUR, show_default=True, help="How long the invitation is good.")
@click.option("-q", "--quiet", "token_only", is_flag=True, help="Print the token alone.")
@click.pass_obj
def invite(output: Output, worker_id: str, ttl: float, token_only: bool) -> int:
    """Print the one line that lets a box join as worker ID."""
    from koubou_client.ctl.invitation import invite_holder  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    return invite_holder(output, worker_id, Role.WORKER, ttl, token_only=token_only)


@command.command()
@_ids
@click.pass_obj
def pause(output: Output, worker_ids: Sequence[str]) -> int:
    """Give a worker nothing new; what runs there goes on."""
    return _set_mode(output, worker_ids, WorkerMode.PAUSED)


@command.command()
@_ids
@click.pass_obj
def resume(output: Output, worker_ids: Sequence[str]) -> int:
    """End a pause or a drain."""
    return _set_mode(output, worker_ids, WorkerMode.ACTIVE)


@command.command()
@_ids
@click.option("--wait", is_flag=True, help="Wait until nothing runs there any more.")
@click.option("--wait-timeout", type=Duration(), help="Wait at most so long (exit 3); implies --wait.")
@click.pass_obj
def drain(output: Output, worker_ids: Sequence[str], wait: bool, wait_timeout: float | None) -> int:
    """Let a worker finish what runs, hand back the rest, and take nothing new."""
    if not wait and wait_timeout is None:
        return _set_mode(output, worker_ids, WorkerMode.DRAINING)
    deadline_s = None if wait_timeout is None else time.monotonic() + wait_timeout
    with output.client() as client:
        workers = _each(client, worker_ids, lambda one: SetWorkerMode(_request_id(), one, WorkerMode.DRAINING))
        while busy := [worker for worker in workers if worker.running]:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise KoubouError(
                    Code.WAIT_TIMED_OUT,
                    "; ".join(f"{worker.worker_id} still runs {_tasks(worker.running)}" for worker in busy),
                    "they drain all the same: `koubou-ctl workers list` shows how far they are",
                )
            time.sleep(_POLL_S if deadline_s is None else max(0.0, min(_POLL_S, deadline_s - time.monotonic())))
            workers = [_ask(client, worker_id)[0] for worker_id in worker_ids]
    return _tell(output, workers)


@command.command()
@_ids
@click.pass_obj
def remove(output: Output, worker_ids: Sequence[str]) -> int:
    """Shut a worker out: its tasks go elsewhere, its agent wipes its caches and ends."""
    with output.client() as client:
        workers = _each(client, worker_ids, lambda one: RemoveWorker(_request_id(), one))
    if output.as_json:
        output.data([worker_json(worker) for worker in workers])
        return OK
    for worker_id in worker_ids:
        output.say(f"{worker_id} is removed; to have it back: koubou-ctl workers invite {worker_id}")
    return OK


def _set_mode(output: Output, worker_ids: Sequence[str], mode: WorkerMode) -> int:
    with output.client() as client:
        workers = _each(client, worker_ids, lambda one: SetWorkerMode(_request_id(), one, mode))
    return _tell(output, workers)


def _tell(output: Output, workers: Sequence[WorkerView]) -> int:
    if output.as_json:
        output.data([worker_json(worker) for worker in workers])
        return OK
    for worker in workers:
        runs = f", {_tasks(worker.running)} still running" if worker.running else ""
        output.say(f"{worker.worker_id} is {worker_state(worker)}{runs}")
    return OK


def _ask(client: "Client", worker_id: str = "") -> tuple[WorkerView, ...]:
    return client.connection.call(GetWorkers(_request_id(), worker_id), Workers).workers


def _each(
    client: "Client", worker_ids: Sequence[str], request: Callable[[str], SetWorkerMode | RemoveWorker]
) -> list[WorkerView]:
    for worker_id in worker_ids:  # a misspelt one must not leave the others half done
        _ask(client, worker_id)
    return [
        worker
        for worker_id in worker_ids
        for worker in client.connection.call(request(worker_id), Workers).workers
        if worker.worker_id == worker_id
    ]


def _row(worker: WorkerView, now_ms: int) -> tuple[object, ...]:
    return (
        worker.worker_id,
        worker_state(worker),
        worker.location,
        f"{worker.running}/{worker.slots}",
        f"{worker.performance_factor:.2f}",
        f"{worker.success_rate:.0%}",
        age(worker.last_seen_ms, now_ms),
        duration(worker.latency_ms) if worker.connected else "-",
        shorten(", ".join(worker.models) or "-", _CELL_COLUMNS),
        shorten(worker.issue or worker.foreign, _CELL_COLUMNS) or "-",
    )


def _facts(worker: WorkerView, now_ms: int) -> list[tuple[str, str]]:
    seen = f"{age(worker.last_seen_ms, now_ms)} ago" if worker.last_seen_ms else "never"
    if worker.connected:
        seen += f", answers in {duration(worker.latency_ms)}"
    return [
        ("Worker", f"{worker.worker_id} ({worker.location})"),
        ("State", worker_state(worker)),
        ("Issue", worker.issue or "none"),
        ("Slots", f"{worker.running} of {worker.slots} in use"),
        ("Model", worker.default_model or "none of its own"),
        ("Models", ", ".join(worker.models) or "-"),
        ("Loaded", ", ".join(worker.loaded) or "-"),
        ("Factor", _factor(worker)),
        ("Success", f"{worker.success_rate:.0%} ({worker.succeeded} succeeded, {worker.failed} failed)"),
        ("Seen", seen),
        ("Ollama", f"{worker.ollama_version or 'version unknown'} at {worker.address or '-'}"),
        ("Agent", worker.agent or "-"),
    ]


def _factor(worker: WorkerView) -> str:
    counts = f"{worker.performance_factor:.2f}"
    if not worker.configured_factor:  # an older broker tells one alone
        return counts
    if not worker.factor_samples:
        return f"{counts} as configured; not measured yet"
    return f"{counts} measured over {_runs(worker.factor_samples)}; configured {worker.configured_factor:.2f}"


def _foreign(worker: WorkerView) -> Iterator[tuple[str, str]]:
    if worker.foreign:
        yield "Others", worker.foreign


def _windows(worker: WorkerView) -> Iterator[tuple[str, str]]:
    """Each model's window and speed, and the limits that follow from it."""
    for nth, one in enumerate(worker.windows):
        version = f", version {short_digest(one.digest)}" if one.digest else ""
        yield "" if nth else "Windows", f"{one.model}: {one.num_ctx:,} tokens{version}"
        if one.output_tokens_per_s:
            yield "", f"  reads {one.prompt_tokens_per_s:,.0f}, says {one.output_tokens_per_s:,.1f} tokens a second"
        if one.total_limit_s:
            first, total = duration(round(one.first_token_limit_s * 1000)), duration(round(one.total_limit_s * 1000))
            yield "", f"  a full window gets {first} to its first token, {total} altogether"
    if worker.windows and not any(one.total_limit_s for one in worker.windows):
        yield "", "limits as in workers.yaml: too few runs are measured"


def _measured(stats: Stats, now_ms: int) -> Iterator[tuple[str, str]]:
    """The last 24 hours, and how the factor went in them."""
    for one in stats.workers:
        yield "24 hours", f"{one.total} attempts ended, {one.success_rate:.0%} succeeded"
        if one.successful:
            average, least, most = (duration(round(ms)) for ms in (one.avg_ms, one.min_ms, one.max_ms))
            yield "", f"  {average} on average, {least} to {most}; {one.loads} loaded a model"
        if one.errors:
            yield "", f"  {error_texts(one)}"
    for nth, change in enumerate(stats.factors[:_CHANGES_SHOWN]):
        why = f"{_runs(change.samples)} against {change.baseline}" if change.samples else change.baseline
        yield "" if nth else "History", f"factor {change.factor:.2f} set {age(change.at_ms, now_ms)} ago: {why}"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _now_ms() -> int:
    return int(time.time() * 1000)


def _request_id() -> str:
    from koubou_client.connection import new_request_id  # noqa: PLC0415 - pulls in ZeroMQ, which --help must not

    return new_request_id()
