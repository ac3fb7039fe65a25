"""The store's part in a simulated run: what the core asks of its past, answered from memory."""

from collections import deque

from koubou_broker.effects import FindSpeeds, Found, Query
from koubou_broker.records import FactorChange, Record, WorkerMetric
from koubou_broker.routing.speeds import speeds_of

_METRICS_KEPT = 100  # of each worker, the newest: enough for its speed, and a look-up stays cheap in long runs


class Answers:
    """Keeps the rows that the core asks for again; all others are dropped."""

    def __init__(self) -> None:
        self.factors: dict[str, float] = {}  # measured, by worker; as last stored
        self._metrics: dict[str, deque[WorkerMetric]] = {}

    def keep(self, record: Record) -> None:
        """A row was written."""
        if isinstance(record, WorkerMetric):
            self._metrics.setdefault(record.worker_id, deque(maxlen=_METRICS_KEPT)).append(record)
        elif isinstance(record, FactorChange):
            self.factors[record.worker_id] = record.factor

    def find(self, query: Query) -> Found:
        """The rows of a look-up; nothing of what these runs do not ask."""
        if isinstance(query, FindSpeeds):
            rows = [metric for metrics in self._metrics.values() for metric in metrics]
            return Found(speeds=speeds_of(rows, query.since_ms))
        return Found()
