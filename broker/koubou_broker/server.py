"""The broker's loop: one thread owns the ROUTER, and reads on while what it was told is being written."""

import logging
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from koubou_broker.access import AccessControl, user_key
from koubou_broker.backup import Backups
from koubou_broker.batches import Failed, FailureKind
from koubou_broker.conductor import Conductor
from koubou_broker.core_settings import CoreSettings
from koubou_broker.database import said
from koubou_broker.disk_watch import DiskWatch
from koubou_broker.effects import Now, Snapshot
from koubou_broker.keeper import Keeper
from koubou_broker.lock import note_progress
from koubou_broker.lookups import read_meta, read_snapshot, read_uploads
from koubou_broker.loop_clock import LoopClock
from koubou_broker.parts import Parts, StopBroker
from koubou_broker.reader import Reader
from koubou_broker.reception import TURN_S, Reception
from koubou_broker.reserve import Reserve
from koubou_broker.sessions import RETRY_S, NoSuchPeerError, PeerFullError
from koubou_broker.store import Store
from koubou_broker.wake import Wake
from koubou_common.notify import sd_notify, watchdog_interval_s

READ_MESSAGES = 256  # in one turn: beyond, answers would come late; one of each connection comes before two of any
READ_S = 0.0005  # the same in time
READ_BYTES = 512 * 1024  # the same in bytes: a message of the largest size is taken all the same
REST_S = 0.002  # without reading, when who sends found its line full: the time is better spent on what waits
TICK_S = 0.25  # without a tick at most, while there is always something waiting
SLEEP_S = 0.5  # the longest: deadlines, threads and gaps are looked at so often
GAP_S = 1.0  # a longer pause in reading was ours (disk, SIGSTOP): leases must not pay for it
CHECK_S = 5.0  # between looks at the disk, and notes for the witness
LOG_MOST_BYTES = 256 * 1024 * 1024  # of the database's log: four times what it shrinks back to
LOG_LARGE = (
    f"the log of the database has more than {LOG_MOST_BYTES // 2**20} MiB: some program reads the database without end"
    " (fuser -v koubou.db names it), end it before the disk is full"
)
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
    backups: Backups
    snapshots: Engine  # a reading engine of the loop's own
    wake: Wake
    reserve: Reserve
    database: Path
    witness: Path
    epoch: int
    settings: CoreSettings


class Server:
    """Runs until told to stop, or until nothing can be trusted any more (StopBroker)."""

    def __init__(self, machine: Machine, *, was_restored: bool = False) -> None:
        self._machine = machine
        self._clock = LoopClock(cpu_s=time.thread_time, mono_s=time.monotonic)
        parts = Parts(
            machine.access,
            machine.store,
            machine.reader,
            machine.settings,
            machine.epoch,
            self._transmit,
            Keeper(machine.store, machine.backups),
            self._clock,
        )
        self._conductor = Conductor(parts, self._snapshot(), _seed(), _now())
        with self._reading() as connection:
            self._conductor.know_uploads(read_uploads(connection), _now())
        self._reception = Reception(self._conductor, cpu_s=self._clock, mono_s=time.monotonic)
        self._is_stopping = False
        self._read_s = time.monotonic()  # when the ROUTER was last read
        self._rest_until_s = 0.0  # nothing is read before
        self._tick_s = 0.0
        self._disk = DiskWatch(machine.reserve)
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
            may_listen = self._can_read() and time.monotonic() >= self._rest_until_s
            if may_listen != listening:
                # Unread messages would wake the poller at once, again and again.
                poller.modify(self._machine.router, zmq.POLLIN if may_listen else 0)
                listening = may_listen
            poller.poll(math.ceil(self._sleep_s() * 1_000))
            self._turn()
            if watchdog_s and time.monotonic() - pinged_s >= watchdog_s and self._has_answered:
                # Only when the store has answered: a loop that waits for a dead disk is not alive.
                sd_notify("WATCHDOG=1")
                pinged_s = time.monotonic()
        sd_notify("STOPPING=1")
        self._settle()
        return self._conductor.is_settled

    def _turn(self) -> None:
        now = _now()
        self._clock.begin_turn()
        self._machine.wake.clear()
        self._conductor.hear(now, lambda: time.monotonic() - now.mono_s >= TURN_S)
        if self._conductor.failed:
            self._recover(self._conductor.failed)
        self._check(now)
        if self._can_read():
            self._read()
            self._reception.serve(_now())
            # After serving: what had arrived in time must not be late because we were.
            if self._reception.rest_s(now.mono_s) is None or now.mono_s - self._tick_s >= TICK_S:
                self._tick_s = now.mono_s
                self._conductor.tick(_now())
        self._conductor.end_turn(_now())
        self._clock.end_turn()

    def _can_read(self) -> bool:
        return not self._conductor.is_full and not self._conductor.is_held_up

    @property
    def _has_answered(self) -> bool:
        """Whether the store owes nothing; a full disk is no dead one."""
        return self._conductor.is_settled or (not self._conductor.is_writable and not self._disk.is_waiting_for_store)

    def _sleep_s(self) -> float:
        if self._conductor.has_work:
            return 0.0
        sleep_s = RETRY_S if self._conductor.is_sending else SLEEP_S
        now_s = time.monotonic()
        if self._rest_until_s > now_s:
            sleep_s = min(sleep_s, self._rest_until_s - now_s)
        if self._can_read() and (rest_s := self._reception.rest_s(now_s)) is not None:
            sleep_s = min(sleep_s, rest_s)
        deadline_s = self._conductor.next_deadline
        if deadline_s is not None and self._can_read() and self._conductor.is_writable:
            sleep_s = min(sleep_s, deadline_s - time.monotonic())
        return max(0.0, sleep_s)

    def _read(self) -> None:
        """Take in what has arrived; ZeroMQ gives one message of each connection before the next of any."""
        now = _now()
        if now.mono_s < self._rest_until_s:
            return
        gap_s = now.mono_s - self._read_s
        if gap_s > GAP_S:
            log.warning("nothing was read for %.1f s: leases are extended by that", gap_s)
            self._conductor.stretch(gap_s, now)
        router, reception = self._machine.router, self._reception
        is_all_taken, size_bytes = True, 0
        for _ in range(READ_MESSAGES):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            public_key = user_key(frames[-1])
            if public_key is None:
                continue  # access control lets nobody in without a key: this is never reached by a peer's doing
            data = frames[1].bytes if len(frames) == 2 else None
            is_all_taken = reception.take(frames[0].bytes, public_key, data, now) and is_all_taken
            size_bytes += len(data or b"")
            if size_bytes >= READ_BYTES or time.monotonic() - now.mono_s >= READ_S:
                break
        self._read_s = now.mono_s
        if not is_all_taken:
            self._rest_until_s = time.monotonic() + REST_S

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
                self._disk.failed(now.mono_s)
                self._conductor.pause(now)
                self._conductor.refuse(self._disk.look(now.mono_s, 0))
            case FailureKind.BROKEN:
                pass
        self._conductor.rebuild(self._snapshot(), _seed(), now)

    def _check(self, now: Now) -> None:
        """Look at what can fail beside the loop."""
        if not self._machine.access.is_alive():
            raise StopBroker("access control has stopped: nobody could come back")
        threads = (self._machine.store, self._machine.reader, self._machine.backups)
        if not all(thread.is_alive() for thread in threads):
            raise StopBroker("a database thread has stopped")
        self._ask_disk(now)
        if now.mono_s - self._check_s < CHECK_S:
            return
        self._check_s = now.mono_s
        self._look_at_epoch()
        self._look_at_disk(now)
        self._look_at_log(now)
        self._write_witness()
        self._reception.show(now)

    def _ask_disk(self, now: Now) -> None:
        """After a failure: find out what can be written again."""
        probed, self._conductor.probed = self._conductor.probed, None
        if probed is not None:
            if self._disk.probed(probed, now.mono_s):
                log.info("the disk takes something again: results are stored")
                self._conductor.resume(now)
            self._look_at_disk(now)
        if self._disk.wants_probe(now.mono_s):
            self._machine.store.probe()

    def _look_at_epoch(self) -> None:
        """Every commit is fenced, but a replaced broker with nothing to write would answer its peers for ever."""
        with self._reading() as connection:
            stored = read_meta(connection, "epoch")
        if stored != self._machine.epoch:
            raise StopBroker(f"another broker took over: the database is in epoch {stored}, not {self._machine.epoch}")

    def _look_at_disk(self, now: Now) -> None:
        reason = self._disk.look(now.mono_s, self._spare_bytes())
        if reason:
            self._conductor.refuse(reason)
        elif self._conductor.refusal:
            log.info("there is room on the disk again: new tasks are taken")
            self._conductor.accept()

    def _look_at_log(self, now: Now) -> None:
        """A log that is read without end cannot be begun anew, and would fill the disk."""
        with suppress(OSError):
            path = self._machine.database
            log_bytes = path.with_name(f"{path.name}-wal").stat().st_size
            self._conductor.alert("log_large", LOG_LARGE if log_bytes > LOG_MOST_BYTES else "", now)

    def _spare_bytes(self) -> int:
        """Of the database: what was in them is forgotten, and what comes is written there first."""
        with self._reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            page_bytes = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        return int(pages) * int(page_bytes)

    def _write_witness(self) -> None:
        if self._conductor.event_seq <= self._witnessed:
            return
        self._witnessed = self._conductor.event_seq
        try:
            note_progress(self._machine.witness, self._machine.epoch, self._witnessed)
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
        with self._reading() as connection:
            return read_snapshot(connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._machine.snapshots.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise StopBroker(f"the database cannot be read: {said(error)}") from error


def _seed() -> int:
    return secrets.randbits(128)


def _now() -> Now:
    return Now(time.monotonic(), time.time_ns() // 1_000_000)
