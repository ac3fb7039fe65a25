"""Putting a broker together: lock, database, keys, threads and socket, in the one order that is safe."""

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from koubou_broker import migrate, rows, schema, statements
from koubou_broker.access import AccessControl, Grant, check_bind, open_router, self_test
from koubou_broker.backup import Backups
from koubou_broker.batches import FailureKind
from koubou_broker.checkpoints import Checkpoints
from koubou_broker.config import Configuration, core_settings
from koubou_broker.database import is_damage, kind_of, open_reader, open_writer, said
from koubou_broker.lock import BrokerLock, begin_term
from koubou_broker.parts import StopBroker
from koubou_broker.reader import Reader
from koubou_broker.records import Principal
from koubou_broker.reserve import Reserve
from koubou_broker.retention import Keep, Sweep, wall_ms
from koubou_broker.server import Machine, Server
from koubou_broker.soundness import damaged, note_surroundings, trusted
from koubou_broker.store import Store
from koubou_broker.wake import Wake
from koubou_common.errors import Code, KoubouError
from koubou_common.home import Home
from koubou_common.keys import (
    KeyPair,
    fingerprint,
    new_key_pair,
    read_key_pair,
    read_public,
    write_key_pair,
    write_public,
)
from koubou_common.messages.values import Role

OPERATOR_NAME = "operator"  # the key of the first start: whoever may read KOUBOU_HOME operates the broker
_TROUBLES = (OSError, DBAPIError, sqlite3.Error)  # of the disk or the database
_THREADS_S = 1.0  # what a thread is given to end: one that a disk holds up goes with the process

log = logging.getLogger("koubou_broker")


@dataclass(frozen=True, slots=True)
class Places:
    """The broker's own files below a home."""

    home: Home

    @property
    def database(self) -> Path:
        """All that must survive."""
        return self.home.state / "koubou.db"

    @property
    def address(self) -> Path:
        """Where programs of the same host find the running broker."""
        return self.home.state / "broker.address"

    @property
    def public_key(self) -> Path:
        """What programs of the same host recognise the broker by."""
        return self.home.keys / "broker.pub"


@dataclass(frozen=True, slots=True)
class Keys:
    """The broker's own key, and that of its first operator."""

    broker: KeyPair
    operator: KeyPair
    are_new: bool


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that is ready to serve."""

    server: Server
    addresses: tuple[str, ...]
    fingerprint: str
    is_first_start: bool


def prepare(home: Home) -> Keys:
    """Folders and keys; what is there is kept."""
    home.create()
    are_new = not home.key_file("broker").exists()
    keys = Keys(_key(home, "broker"), _key(home, OPERATOR_NAME), are_new)
    if not _says(Places(home).public_key, keys.broker.public):  # a start on a full disk writes nothing in vain
        write_public(Places(home).public_key, keys.broker.public, replace=True)
    return keys


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the one lock that a broker, a migration and nobody else holds."""
    home.create()
    with BrokerLock(home.state / "broker.lock"):
        yield


@contextmanager
def running(home: Home, configuration: Configuration) -> Iterator[Running]:
    """A broker from its lock to its self-test; everything is taken down again on the way out.

    KoubouError if its disk or its database keeps it from starting. A full disk gets the reserve's room first:
    a broker that runs can take results in.
    """
    reserve = _reserve(home, configuration)
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(_running(home, configuration))
        except _TROUBLES as error:
            if kind_of(error, home.state) is not FailureKind.FULL or not reserve.give_up():
                raise _trouble(home, error) from error
            log.warning("the disk is full: its reserve is given up for this start")
            try:
                broker = stack.enter_context(_running(home, configuration))
            except _TROUBLES as again:
                raise _trouble(home, again) from again
        except StopBroker as stop:
            if isinstance(stop.__cause__, DBAPIError):  # what is stored could not be read
                raise _trouble(home, stop.__cause__) from stop
            raise
        yield broker


@contextmanager
def _running(home: Home, configuration: Configuration) -> Iterator[Running]:
    places = Places(home)
    with ExitStack() as stack:
        stack.enter_context(locked(home))
        keys = prepare(home)
        migrate.prepare(places.database)
        note_surroundings(places.database)
        stack.enter_context(trusted(places.database, home.state / "in_use"))
        writer = _disposed(stack, open_writer(places.database))
        _write_out(writer)
        term = begin_term(writer, home.state / "epoch", wall_ms())
        _enlist_operator(writer, keys.operator.public)
        reserve = _reserve(home, configuration)
        reserve.hold()
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        access = AccessControl(context)
        # Before the socket binds: whoever comes back in the first instant must find its key on the list,
        # or it would be told that it is not enrolled.
        access.replace_all(_known_keys(writer))
        access.start()
        stack.callback(access.stop)
        router, addresses = _bind(context, access, keys.broker, configuration)
        stack.callback(router.close, 500)
        with _unheard(logging.getLogger("koubou_broker.access")):  # its refusals are what is wanted
            self_test(addresses[0], keys.broker.public)
        wake = Wake()
        stack.callback(wake.close)
        store = Store(writer, term.epoch, wake.set, Sweep(_keep(configuration)))
        reader = Reader(_disposed(stack, open_reader(places.database)), wake.set)
        min_free_bytes = configuration.broker.disk.min_free_bytes
        backups = Backups(places.database, lambda: reserve.room().free_bytes - min_free_bytes, wake.set)
        for thread in (store, reader, backups):
            thread.start()
            stack.callback(thread.stop, _THREADS_S)
        machine = Machine(
            router=router,
            access=access,
            store=store,
            reader=reader,
            backups=backups,
            snapshots=_disposed(stack, open_reader(places.database)),
            wake=wake,
            reserve=reserve,
            database=places.database,
            witness=home.state / "epoch",
            epoch=term.epoch,
            settings=core_settings(configuration, tuple(_reachable(one, socket.gethostname()) for one in addresses)),
        )
        server = Server(machine, was_restored=term.was_restored)
        _write_address(places.address, _reachable(addresses[0], "127.0.0.1"))
        stack.callback(_remove, places.address)
        yield Running(server, addresses, fingerprint(keys.broker.public), keys.are_new)


def _reserve(home: Home, configuration: Configuration) -> Reserve:
    disk = configuration.broker.disk
    return Reserve(home.state / "reserve", disk.reserve_bytes, disk.min_free_bytes)


def _trouble(home: Home, error: Exception) -> KoubouError:
    """What keeps a broker from starting, in a person's words."""
    kind = kind_of(error, home.state)
    if kind is FailureKind.FULL:
        return KoubouError(
            Code.STORE_FULL,
            f"the broker cannot start: the disk of {home.state} takes nothing more ({said(error)})",
            "make room there, raise the quota or make it writable again, then start: nothing was lost or changed",
        )
    if isinstance(error, DBAPIError | sqlite3.Error):
        if is_damage(error):
            return damaged(Places(home).database, [said(error)])
        hint = "look after the disk: dmesg, smartctl; then koubou-broker check-database"
        return KoubouError(Code.INTERNAL, f"{Places(home).database} cannot be used: {said(error)}", hint)
    return KoubouError(Code.INTERNAL, f"the broker cannot run: {said(error)}")


@contextmanager
def _unheard(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _key(home: Home, name: str) -> KeyPair:
    path = home.key_file(name)
    credential = os.environ.get("CREDENTIALS_DIRECTORY")
    if credential and (Path(credential) / path.name).exists():
        return read_key_pair(Path(credential) / path.name)
    if not path.exists():
        write_key_pair(path, new_key_pair())
    return read_key_pair(path)


def _says(path: Path, public_key: str) -> bool:
    try:
        return read_public(path) == public_key
    except (OSError, KoubouError):
        return False


def _write_out(writer: Engine) -> None:
    """Move what the last broker left in the log into the database, before anything is said that rests on it.

    After an fsync that failed, commits are read from the kernel's memory that are not on the disk, and no later fsync
    writes them: only writing them again does. On a full disk the log stays as it is.
    """
    with writer.connect() as connection:
        Checkpoints().run(connection)


def _enlist_operator(writer: Engine, public_key: str) -> None:
    """The operator key of this home is good for what it says, unless it was revoked."""
    principals = schema.principals
    with writer.begin() as connection:
        if connection.scalar(select(principals.c.name).where(principals.c.public_key == public_key)) is None:
            operator = Principal(public_key, OPERATOR_NAME, Role.OPERATOR, None, wall_ms(), 0, 0, "")
            connection.execute(statements.PUT_PRINCIPAL, rows.principal_row(operator))


def _known_keys(writer: Engine) -> dict[str, Grant]:
    """All keys that are not revoked; the core sorts out expired invitations in its first step."""
    principals = schema.principals
    with writer.begin() as connection:
        found = connection.execute(select(principals).where(principals.c.revoked_ms == 0))
        return {row.public_key: Grant(row.name, Role(row.role)) for row in found}


def _bind(
    context: zmq.Context[zmq.Socket[bytes]], access: AccessControl, pair: KeyPair, configuration: Configuration
) -> tuple[zmq.Socket[bytes], tuple[str, ...]]:
    first, *more = configuration.broker.bind
    allow_public = configuration.broker.allow_public
    router = open_router(context, access, pair, first, allow_public=allow_public)
    addresses = [router.get_string(zmq.LAST_ENDPOINT)]
    for address in more:
        check_bind(address, allow_public=allow_public)
        try:
            router.ipv6 = address.startswith("tcp://[")
            router.bind(address)
        except zmq.ZMQError as error:
            router.close(0)
            raise KoubouError(
                Code.BAD_CONFIGURATION,
                f"cannot listen on {address}: {error.strerror}",
                "is another broker running there? Does this host have that address?",
            ) from error
        addresses.append(router.get_string(zmq.LAST_ENDPOINT))
    return router, tuple(addresses)


def _reachable(address: str, host: str) -> str:
    """What one can connect to: an address that means every interface, with a host in its place."""
    for everywhere in ("tcp://0.0.0.0:", "tcp://[::]:"):
        if address.startswith(everywhere):
            return f"tcp://{host}:{address.removeprefix(everywhere)}"
    return address


def _keep(configuration: Configuration) -> Keep:
    retention = configuration.broker.retention
    return Keep(retention.bodies_days, retention.history_days, configuration.broker.result_cache.keep_days)


def _write_address(path: Path, address: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(f"{address}\n", "ascii")
    partial.replace(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _disposed(stack: ExitStack, engine: Engine) -> Engine:
    stack.callback(engine.dispose)
    return engine
