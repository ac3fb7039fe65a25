"""The broker's loop: one thread owns the ROUTER, and reads on while what it was told is being written."""

import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import zmq
from sqlalchemy import Engine

from koubou_broker.access import AccessControl, user_key
from koubou_broker.batches import Failed, FailureKind
from koubou_broker.conductor import Conductor, Parts, StopBroker
from koubou_broker.core_settings import CoreSettings
from koubou_broker.effects import Now, Snapshot
from koubou_broker.lock import Witness, write_witness
from koubou_broker.lookups import read_snapshot
from koubou_broker.reader import Reader
from koubou_broker.reserve import Reserve
from koubou_broker.sessions import RETRY_S, NoSuchPeerError, PeerFullError
from koubou_broker.store import Store
from koubou_broker.wake import Wake
from koubou_common.messages.limits import MIB
from koubou_common.notify import sd_notify, watchdog_interval_s

DRAIN_MESSAGES = 1_000  # in one turn: beyond, ticks and answers would come late
SLEEP_S = 0.5  # the longest: deadlines, threads and gaps are looked at so often
GAP_S = 1.0  # a longer pause in reading was ours (disk, SIGSTOP): leases must not pay for it
CHECK_S = 5.0  # between looks at the disk, and notes for the witness
FULL_PAUSE_S = (1.0, 30.0)  # between tries to write to a full disk: the first, the longest
SETTLE_S = 2.5  # what a stop waits for the disk: what it does not take was told to nobody, and will be said again
GOODBYE_S = 1.0  # what a stop waits for connections that are full

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the loop runs on; `start.py` puts it together."""

    router: zmq.Socket[bytes]
    access: AccessControl
    store: Store
    reader: Reader
    snapshots: Engine  # a reading engine of the loop's own
    wake: Wake
    reserve: Reserve
    witness: Path
    epoch: int
    settings: CoreSettings


class Server:
    """Runs until told to stop, or until nothing can be trusted any more (StopBroker)."""

    def __init__(self, machine: Machine, *, was_restored: bool = False) -> None:
        self._machine = machine
        parts = Parts(machine.access, machine.store, machine.reader, machine.settings, machine.epoch, self._transmit)
        self._conductor = Conductor(parts, self._snapshot(), _seed(), _now())
        self._is_stopping = False
        self._read_s = time.monotonic()  # when the ROUTER was last drained
        self._paused_until_s = 0.0
        self._pause_s = 0.0
        self._check_s = 0.0
        self._witnessed = 0
        if was_restored:
            text = "the database was restored from a backup: results of tasks it does not know are kept apart"
            self._conductor.alert("restored", text, _now())

    def stop(self) -> None:
        """Ask the loop to end, from a signal handler or another thread."""
        self._is_stopping = True
        self._machine.wake.set()

    def run(self) -> bool:
        """Serve until `stop`; whether everything taken in is durable, or the disk took too long."""
        poller = zmq.Poller()
        poller.register(self._machine.router, zmq.POLLIN)
        poller.register(self._machine.wake.fileno(), zmq.POLLIN)
        listening = True
        watchdog_s = watchdog_interval_s()
        pinged_s = 0.0
        sd_notify("READY=1")
        while not self._is_stopping:
            can_read = self._can_read()
            if can_read != listening:
                # Unread messages would wake the poller at once, again and again.
                poller.modify(self._machine.router, zmq.POLLIN if can_read else 0)
                listening = can_read
            poller.poll(round(self._sleep_s() * 1_000))
            self._turn()
            if watchdog_s and time.monotonic() - pinged_s >= watchdog_s and self._conductor.is_settled:
                # Only when the store has answered: a loop that waits for a dead disk is not alive.
                sd_notify("WATCHDOG=1")
                pinged_s = time.monotonic()
        sd_notify("STOPPING=1")
        self._settle()
        return self._conductor.is_settled

    def _turn(self) -> None:
        now = _now()
        self._machine.wake.clear()
        self._conductor.hear(now)
        if self._conductor.failed:
            self._recover(self._conductor.failed)
        self._check(now)
        if self._can_read():
            self._drain()
            # After draining: what had arrived in time must not be late because we were.
            self._conductor.tick(_now())
        self._conductor.end_turn(_now())

    def _can_read(self) -> bool:
        return not self._conductor.is_full and time.monotonic() >= self._paused_until_s

    def _sleep_s(self) -> float:
        if self._conductor.has_work:
            return 0.0
        sleep_s = RETRY_S if self._conductor.is_sending else SLEEP_S
        deadline_s = self._conductor.next_deadline
        if deadline_s is not None and self._can_read():
            sleep_s = min(sleep_s, deadline_s - time.monotonic())
        return max(0.0, sleep_s)

    def _drain(self) -> None:
        now = _now()
        gap_s = now.mono_s - self._read_s
        if gap_s > GAP_S:
            log.warning("nothing was read for %.1f s: leases are extended by that", gap_s)
            self._conductor.stretch(gap_s, now)
        router = self._machine.router
        for _ in range(DRAIN_MESSAGES):
            if self._conductor.is_full:
                break
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            public_key = user_key(frames[-1])
            if public_key is None:
                continue  # access control lets nobody in without a key: this is never reached by a peer's doing
            if len(frames) == 2:
                self._conductor.receive(frames[0].bytes, public_key, frames[1].bytes, now)
            else:
                self._conductor.bad_frames(frames[0].bytes, public_key, now)
        self._read_s = now.mono_s

    def _transmit(self, route: bytes, data: bytes) -> None:
        try:
            self._machine.router.send_multipart([route, data], zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerFullError from error
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise NoSuchPeerError from error

    def _recover(self, failed: Failed) -> None:
        now = _now()
        match failed.kind:
            case FailureKind.FATAL | FailureKind.BUSY:
                raise StopBroker(f"the database cannot be written: {failed.error}")
            case FailureKind.FULL:
                self._machine.reserve.give_up()
                first_s, longest_s = FULL_PAUSE_S
                self._pause_s = min(longest_s, self._pause_s * 2) if self._pause_s else first_s
                self._paused_until_s = now.mono_s + self._pause_s
                self._conductor.is_writable = False
                self._conductor.refuse("the broker's disk is full or cannot be written")
            case FailureKind.BROKEN:
                pass
        self._conductor.rebuild(self._snapshot(), _seed(), now)

    def _check(self, now: Now) -> None:
        """Look at what can fail beside the loop."""
        if not self._machine.access.is_alive():
            raise StopBroker("access control has stopped: nobody could come back")
        if not self._machine.store.is_alive() or not self._machine.reader.is_alive():
            raise StopBroker("a database thread has stopped")
        if now.mono_s - self._check_s < CHECK_S:
            return
        self._check_s = now.mono_s
        self._check_disk(now)
        self._write_witness()

    def _check_disk(self, now: Now) -> None:
        reserve = self._machine.reserve
        if now.mono_s < self._paused_until_s:
            return
        if reserve.has_room() and reserve.hold():
            if not self._conductor.is_writable:
                self._machine.store.probe()  # a quota may still say no: the next check hears the answer
                return
            if self._conductor.refusal:
                log.info("there is room on the disk again")
            self._pause_s = 0.0
            self._conductor.accept()
        else:
            free_mib = reserve.room().free_bytes // MIB
            self._conductor.refuse(f"the broker's disk is nearly full: {free_mib} MiB are left (disk.min_free_bytes)")

    def _write_witness(self) -> None:
        if self._conductor.event_seq <= self._witnessed:
            return
        self._witnessed = self._conductor.event_seq
        try:
            write_witness(self._machine.witness, Witness(self._machine.epoch, self._witnessed), is_urgent=False)
        except OSError as error:  # a full disk: the next one will do
            log.warning("the witness file cannot be written: %s", error)

    def _settle(self) -> None:
        """Take nothing more in; wait until all that was taken in is durable, and say so to whom it concerns."""
        deadline_s = time.monotonic() + SETTLE_S
        poller = zmq.Poller()
        poller.register(self._machine.wake.fileno(), zmq.POLLIN)
        self._conductor.end_turn(_now())
        while not self._conductor.is_settled and not self._conductor.failed and time.monotonic() < deadline_s:
            poller.poll(50)
            self._machine.wake.clear()
            self._conductor.hear(_now())
            self._conductor.end_turn(_now())
        deadline_s = min(deadline_s, time.monotonic() + GOODBYE_S)
        while self._conductor.is_sending and time.monotonic() < deadline_s:
            time.sleep(RETRY_S)
            self._conductor.flush(_now())
        self._write_witness()

    def _snapshot(self) -> Snapshot:
        with self._machine.snapshots.begin() as connection:
            return read_snapshot(connection)


def _seed() -> int:
    return secrets.randbits(128)


def _now() -> Now:
    return Now(time.monotonic(), time.time_ns() // 1_000_000)
