"""The doctor's view over the wire: the broker, its clock and version, its workers and alerts."""

import os
import time
from collections.abc import Iterator

from koubou_client.client import Client
from koubou_client.ctl.findings import Check, fail, failed, ok, warn
from koubou_client.ctl.times import age, duration
from koubou_client.ctl.views import worker_state
from koubou_client.where import find_broker
from koubou_common import __version__
from koubou_common.errors import KoubouError
from koubou_common.home import Home
from koubou_common.keys import fingerprint
from koubou_common.messages import Status
from koubou_common.messages.values import Role, WorkerView

CLOCK_SKEW_MS = 5_000  # from here on invitations seem to expire too early or too late


def look_at_broker(home: Home, connect_timeout_s: float) -> Iterator[Check]:
    """Everything that a connection to the broker tells; one fault where there is none."""
    has_agent_only = not home.public_key_file("broker").exists() and any(home.config.glob("agent*.yaml"))
    if has_agent_only and not home.config_file("client").exists():
        yield ok("client", "only an agent is set up here; to submit from here: koubou-ctl join TOKEN")
        return
    try:
        where = find_broker(os.environ, home.root)
        yield ok("key", f"{fingerprint(where.pair.public)}, for the broker at {', '.join(where.addresses)}")
        before_ms = time.time() * 1000
        with Client(where=where, connect_timeout_s=connect_timeout_s) as client:
            client.welcome()
            asked_ms = time.time() * 1000
            status = client.status()
            answered_ms = time.time() * 1000
    except KoubouError as error:
        yield from failed("broker", error)
        return
    up = duration(status.now_ms - status.started_ms)
    took = f"{answered_ms - before_ms:.0f} ms to connect and ask"
    yield ok("broker", f"{status.version}, up {up}; it knows us as {status.principal} ({status.role}); {took}")
    yield _version(status)
    yield _clock(status, (asked_ms + answered_ms) / 2, answered_ms - asked_ms)
    yield from _workers(status)
    yield from _alerts(status)


def _alerts(status: Status) -> Iterator[Check]:
    for alert in status.alerts:
        yield warn("alert", f"{alert.message} (for {age(alert.since_ms, status.now_ms)})")


def _version(status: Status) -> Check:
    if status.version == __version__:
        return ok("version", f"{__version__} on both sides")
    return warn(
        "version",
        f"the broker has {status.version}, we have {__version__}",
        "neighbouring versions work together; bring both to the same one when you can",
    )


def _clock(status: Status, ours_ms: float, uncertain_ms: float) -> Check:
    skew_ms = status.now_ms - ours_ms
    if abs(skew_ms) <= CLOCK_SKEW_MS + uncertain_ms:
        return ok("clock", "agrees with the broker's")
    ahead = "ahead of" if skew_ms > 0 else "behind"
    return warn(
        "clock",
        f"the broker's clock is {duration(int(abs(skew_ms)))} {ahead} ours: invitations expire at the wrong time",
        "let both hosts keep their time: timedatectl set-ntp true",
    )


def _workers(status: Status) -> Iterator[Check]:
    if not status.workers:
        text = "no worker is known: tasks wait"
        yield fail("workers", text, "one machine: koubou-ctl up; a box: koubou-ctl workers invite NAME")
        return
    ready = [worker for worker in status.workers if worker.connected and not worker.issue]
    yield (ok if ready else fail)("workers", f"{len(ready)} of {len(status.workers)} can work")
    for worker in status.workers:
        yield from _worker(worker, status)


def _worker(worker: WorkerView, status: Status) -> Iterator[Check]:
    name = f"worker {worker.worker_id}"
    if not worker.connected:
        if worker.last_seen_ms:
            gone = f"has been away for {age(worker.last_seen_ms, status.now_ms)}"
            yield warn(name, gone, "start it on its box: koubou-agent; then there: koubou-agent doctor")
        else:
            who = "an operator runs: " if status.role is not Role.OPERATOR else ""
            yield warn(name, "has never been seen", f"{who}koubou-ctl workers invite {worker.worker_id}")
    elif worker.issue:
        yield warn(name, worker.issue, f"on its box: koubou-agent doctor --worker-id {worker.worker_id}")
    elif worker_state(worker) in ("paused", "draining"):
        yield warn(name, f"is {worker_state(worker)}", f"koubou-ctl workers resume {worker.worker_id}")
    elif worker.cooling_down:
        yield warn(name, "rests after several failures in a row", f"koubou-ctl workers show {worker.worker_id}")
