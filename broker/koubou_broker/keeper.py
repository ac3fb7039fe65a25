"""What an operator has done to the database as a whole: copies of it, and the removal of texts."""

from koubou_broker.backup import Answer, Backups
from koubou_broker.effects import AskBackup, Erase
from koubou_broker.store import Store


class Keeper:
    """Hands each order to the thread that carries it out; the store tells itself what it has erased."""

    def __init__(self, store: Store, backups: Backups) -> None:
        self._store = store
        self._backups = backups

    def ask(self, order: AskBackup | Erase) -> list[Answer]:
        """Carry this out; what can be said at once."""
        if isinstance(order, AskBackup):
            return self._backups.ask(order)
        self._store.erase(order)
        return []

    def take(self) -> list[Answer]:
        """What is to be said since the last time, in order."""
        return self._backups.take()
