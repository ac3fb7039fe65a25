"""Moving what is committed from SQLite's log into the database, with an ear for the disk's answer."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from koubou_broker.batches import FailureKind
from koubou_broker.database import folder_of, kind_of, said

PAGES = 1_000  # in the log since the last time: SQLite's own number, 4 MiB
AGAIN_S = 5.0  # after one that the disk had no room for

_PAGE_BYTES = 4_096
_PAGES_PER_ROW = 2  # the row's and an index's: rows of one transaction share more, of many fewer

log = logging.getLogger("koubou_broker")


class Checkpoints:
    """Used by the store thread alone. The log is written from its start again once all of it was moved."""

    def __init__(self, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._mono_s = mono_s
        self._pages = 0  # written since the last one, about
        self._rows = 0  # written by the connection so far
        self._not_before_s = 0.0
        self._has_failed = False  # the last time

    def step(self, connection: Connection, body_bytes: int) -> None:
        """After a transaction that stored bodies of so many bytes: move what has gathered, if it is enough."""
        rows = connection.connection.driver_connection.total_changes  # type: ignore[union-attr] # sqlite3's own
        self._pages += (rows - self._rows) * _PAGES_PER_ROW + body_bytes // _PAGE_BYTES
        self._rows = rows
        if self._pages >= PAGES and self._mono_s() >= self._not_before_s:
            self.run(connection)

    def run(self, connection: Connection) -> bool:
        """Move what can be moved now, waiting for nobody; False if the disk has no room for it.

        Raises what a broken disk raises: the log still has it all, but whoever goes on would not know how long.
        """
        plain = connection.connection.driver_connection
        assert plain is not None, "a closed connection"
        try:
            plain.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except Exception as error:
            if kind_of(error, folder_of(connection.engine)) not in (FailureKind.FULL, FailureKind.BUSY):
                raise
            self._not_before_s = self._mono_s() + AGAIN_S
            level = logging.DEBUG if self._has_failed else logging.WARNING
            log.log(level, "the pages of the database's log cannot be moved: %s", said(error))
            self._has_failed = True
            return False
        self._has_failed = False
        self._pages = 0
        return True
