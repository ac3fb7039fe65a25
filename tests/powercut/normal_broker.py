"""The control: the broker with `synchronous=NORMAL`, whose commits are not on the disk when it speaks.

Called as `koubou-broker` is. Nothing in the product can be set so; this program changes it from outside.
"""

import sqlite3
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry

from koubou_broker import start
from koubou_broker.__main__ import main
from koubou_broker.database import open_writer


def _open_weakly(path: Path) -> Engine:
    engine = open_writer(path)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA synchronous = NORMAL").close()  # after the engine's own, which sets and checks FULL

    return engine


if __name__ == "__main__":
    setattr(start, "open_writer", _open_weakly)  # noqa: B010 - a name that the module imported, not one it offers
    main()
