"""`koubou-ctl status`: the workshop at a glance."""

import click

from koubou_client.ctl.output import OK, Output
from koubou_client.ctl.tables import shorten, table
from koubou_client.ctl.times import age, duration, rfc3339
from koubou_client.ctl.views import worker_json, worker_state
from koubou_common.messages import Status
from koubou_common.messages.values import TaskState

_ISSUE_COLUMNS = 50


@click.command()
@click.pass_obj
def command(output: Output) -> int:
    """Broker, workers, queue, and what needs you."""
    with output.client() as client:
        status = client.status()
    counts = dict.fromkeys(TaskState, 0) | {entry.state: entry.count for entry in status.counts}
    if output.as_json:
        output.data(
            {
                "version": status.version,
                "principal": status.principal,
                "role": status.role.value,
                "started_at": rfc3339(status.started_ms),
                "now": rfc3339(status.now_ms),
                "tasks": {state.value: count for state, count in counts.items()},
                "oldest_queued_at": rfc3339(status.oldest_queued_ms),
                "workers": [worker_json(worker) for worker in status.workers],
                "alerts": [
                    {"code": alert.code, "message": alert.message, "since": rfc3339(alert.since_ms)}
                    for alert in status.alerts
                ],
            }
        )
        return OK
    up = duration(status.now_ms - status.started_ms)
    output.say(f"Broker  {status.version}, up {up}; you are {status.principal} ({status.role})")
    waits = ""
    if status.oldest_queued_ms:
        waits = f"; the oldest waits {duration(status.now_ms - status.oldest_queued_ms)}"
    output.say("Tasks   " + ", ".join(f"{count} {state}" for state, count in counts.items()) + waits)
    _say_workers(output, status)
    _say_alerts(output, status)
    return OK


def _say_workers(output: Output, status: Status) -> None:
    output.say()
    if not status.workers:
        output.say("No workers yet: koubou-ctl workers invite NAME")
        return
    rows = [
        (
            worker.worker_id,
            worker_state(worker),
            f"{worker.running}/{worker.slots}",
            worker.default_model or "-",
            f"{worker.performance_factor:.2f}",
            f"{worker.success_rate:.0%}",
            age(worker.last_seen_ms, status.now_ms),
            shorten(worker.issue, _ISSUE_COLUMNS) or "-",
        )
        for worker in status.workers
    ]
    output.say(table(("WORKER", "STATE", "SLOTS", "MODEL", "FACTOR", "OK", "SEEN", "ISSUE"), rows))


def _say_alerts(output: Output, status: Status) -> None:
    if not status.alerts:
        return
    output.say()
    output.say("Needs you:")
    for alert in status.alerts:
        output.say(f"  {alert.code}: {alert.message} (for {age(alert.since_ms, status.now_ms)})")
