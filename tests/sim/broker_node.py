"""The broker's host: its disk, the processes that run on it, and what befalls them: crashes, power cuts, restores."""

from collections.abc import Callable
from dataclasses import dataclass, field

from koubou_broker.core import CoreSettings
from koubou_broker.lock import RESTORED_MARK
from koubou_common.messages import Message
from koubou_common.messages.values import Role
from sim.bugs import Bugs
from sim.core_process import CoreProcess
from sim.disk import Disk
from sim.process import HEARTBEAT_TIMEOUT_S, Connection, Process, Start
from sim.server_node import ServerProcess
from sim.world import World
from support.shelf import Shelf

__all__ = ["BrokerNode", "Bugs", "Connection"]

_RESTART_S = (0.1, 0.5, 3.0, 10.0, 40.0, 100.0)  # from systemd's answer to beyond the lease
_LOOK_S = 5.0  # how often a broker looks whether another has begun its term
_PAUSE_S = (5.0, 40.0)
_FOUND_S = 60.0  # until somebody finds that the old broker is awake again
_TO_THE_OLD = 0.2  # of the peers' attempts that find the process which was replaced


@dataclass(slots=True)
class BrokerNode:
    """At most one process is the broker; those it replaced may not know yet."""

    world: World
    settings: CoreSettings
    disk: Disk
    is_whole: bool  # the whole server around the core, and messages as bytes
    bugs: Bugs = field(default_factory=Bugs)
    process: Process | None = None
    starts: int = 0
    #: the epoch of the term that began with a restored database; 0: none was restored
    restored_epoch: int = 0
    on_restore: Callable[[], None] = lambda: None  # the older disk is in place, nobody knows yet
    _replaced: list[Process] = field(default_factory=list)
    _stranded: Process | None = None  # on a host of its own, with a disk of its own
    _backup: Shelf | None = None
    _was_replaced: bool = False

    def start(self) -> None:
        """A new process on the same disk."""
        if self.process is not None:
            return
        self.starts += 1
        term = self.disk.begin_term()
        if term.was_restored or self._was_replaced:
            self.restored_epoch = term.epoch
            self._was_replaced = False
        seed = self.world.seed * 1_000 + self.starts
        kind = ServerProcess if self.is_whole else CoreProcess
        self.world.note(f"broker starts, epoch {term.epoch}{', restored' if term.was_restored else ''}")
        self.process = kind(Start(self.world, self.disk, term, self.settings, seed, self.bugs, self._died))
        for old in self._replaced:
            old.is_replaced = True
        self.process.begin()

    def connect(
        self,
        node: str,
        public_key: str,
        reaches: Callable[[Message, int, Connection], None],
        broken: Callable[[Connection], None],
    ) -> Connection | None:
        """A new connection; None where nobody answers, or the key is not let in."""
        process = self.process
        awake = [one for one in self._replaced if one.is_alive and not one.is_paused]
        if awake and self.world.happens(_TO_THE_OLD):
            process = awake[0]
        if process is None or process.is_paused or self.world.is_cut_off(node) or not process.admits(public_key):
            return None
        connection = Connection(process, node, public_key, reaches, broken)
        process.accept(connection)
        return connection

    def admits(self, public_key: str) -> bool | None:
        """Whether the broker lets a key in; None while there is none to say."""
        if self.process is None or self.process.is_paused:
            return None
        return self.process.admits(public_key)

    def has_removed(self, public_key: str, epoch: int) -> bool:
        """Whether a worker's key is good no more, or was so for a broker whose database was taken back since."""
        row = self.disk.now.principals.get(public_key)
        is_good = row is not None and not row.revoked_ms and row.role is Role.WORKER
        return not is_good or epoch < self.restored_epoch

    def crash(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.world.note("broker crashes")
            self.process.kill()

    def power_cut(self) -> None:
        """The host goes dark: processes, and what was not synced."""
        self.world.note("the broker's host loses its power")
        for process in (*self._replaced, *([self.process] if self.process else [])):
            process.kill(silently=True)
        self.disk.power_cut()

    def pause(self) -> None:
        """SIGSTOP, or suspend."""
        if self.process is not None:
            length_s = self.world.draws.uniform(*_PAUSE_S)
            self.process.pause(length_s, is_suspend=self.world.draws.random() < 0.3)

    def take_over(self) -> None:
        """A second broker begins, while the first one stands still and does not know."""
        old = self.process
        if old is None or old.is_paused:
            return
        length_s = self.world.draws.uniform(2.0, 60.0)
        self.world.note("a second broker takes over")
        old.pause(length_s, is_suspend=False)
        self._replaced.append(old)
        self.process = None
        old.after(_LOOK_S, lambda: self._look_at_epoch(old))
        for connection in list(old.connections):
            self.world.after(self.world.draws.uniform(0.1, 5.0), _cut(connection, length_s))
        self.world.after(self.world.draws.uniform(0.1, 5.0), self.start)

    def back_up(self) -> None:
        """`koubou-ctl backup`."""
        self._backup = self.disk.back_up()

    def restore(self) -> None:
        """Stop the broker, put the backup in the place of its database; it starts some time later."""
        if self._backup is None or self.process is None or self._replaced or self._stranded:
            return
        self.world.note("an older copy of the database is put in place")
        backup, self._backup = self._backup, None
        self.process.note_progress(at_once=True)
        self.restored_epoch = self.process.epoch + 1  # the next term's is no lower
        if self.world.happens(self.world.faults.split):
            self._move_away(self.process, backup)
        else:
            self.process.kill()
            self.disk.put_in_place(backup)
        self._was_replaced = True
        self.on_restore()

    def _move_away(self, old: Process, backup: Shelf) -> None:
        """The broker goes on elsewhere; the old one wakes on its own disk, and nothing fences it until it is found."""
        length_s = self.world.draws.uniform(2.0, 60.0)
        if not old.pause(length_s, is_suspend=False):
            old.kill()
        else:
            self._stranded = old
            for connection in list(old.connections):
                self.world.after(self.world.draws.uniform(0.1, 5.0), _cut(connection, length_s))
            self.world.after(length_s + _FOUND_S, old.kill)
            self.world.after(self.world.draws.uniform(0.1, 5.0), self.start)
        self.process = None
        backup.meta[RESTORED_MARK] = 1  # as `koubou-broker restore` leaves it
        self.disk = self.disk.on_another_host(backup)

    def fill_disk(self) -> None:
        """No space, for a while."""
        self.disk.is_full = True
        self.world.note("the broker's disk is full")

        def free() -> None:
            self.disk.is_full = False
            self.world.note("the broker's disk has room again")

        self.world.after(self.world.draws.choice((3.0, 30.0, 90.0)), free)

    def lock_database(self) -> None:
        """Another program holds the database's lock, for a while."""
        length_s = self.world.draws.choice((2.0, 20.0, 90.0))
        self.world.note(f"the database is locked for {length_s:g} s")
        self.disk.busy_until_s = self.world.now_s + length_s

    def heal(self) -> None:
        """Nothing is wrong with the host any more."""
        self.disk.is_full = False
        self.disk.busy_until_s = 0.0
        self.start()

    def _look_at_epoch(self, process: Process) -> None:
        def look() -> None:
            if self.disk.now.meta["epoch"] != process.epoch:
                self.world.note("a broker finds that it was replaced")
                process.kill()
            else:
                process.after(_LOOK_S, lambda: self._look_at_epoch(process))

        # Not at once when it wakes: it speaks before it looks.
        process.after(self.world.draws.uniform(0.0, _LOOK_S), look)

    def _died(self, process: Process) -> None:
        if process in self._replaced:
            self._replaced.remove(process)
        if process is self._stranded:
            self._stranded = None
        if process is self.process:
            self.process = None
            longest_s = self.world.draws.choice(_RESTART_S)
            self.world.after(0.1 if self.world.healed else longest_s, self.start)


def _cut(connection: Connection, length_s: float) -> Callable[[], None]:
    def cut() -> None:
        if connection.is_open:
            # The old process goes on speaking into it when it wakes, until it notices.
            connection.close(unnoticed_s=length_s + HEARTBEAT_TIMEOUT_S)
            connection.broken(connection)

    return cut
