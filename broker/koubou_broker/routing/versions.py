"""Which version of each model is on which worker: who differs, and which one most can run. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from koubou_broker.routing.workers import LiveWorker

_SHOWN_CHARS = 12  # of a digest, as `ollama list` shows it
_MODELS_NAMED = 5
_WORKERS_NAMED = 3


def short_digest(digest: str) -> str:
    """A digest as people compare it."""
    return digest.removeprefix("sha256:")[:_SHOWN_CHARS]


def differs_text(worker: LiveWorker, model: str, digest: str) -> str:
    """Why a worker is not given a task of this version."""
    name, has = worker.model_for(model), worker.digest_of(model)
    if not has:
        return f"has not told which version of {name} it has"
    return f"has version {short_digest(has)} of {name}, not {short_digest(digest)} that --same-digest chose"


class Versions:
    """Remembers who has which version, so that each report costs only what it changed."""

    def __init__(self) -> None:
        self._of_model: dict[str, dict[str, str]] = {}  # model -> worker_id -> digest
        self._of_worker: dict[str, Mapping[str, str]] = {}
        self._differing: dict[str, None] = {}

    def told(self, worker_id: str, digests: Mapping[str, str]) -> bool:
        """Take over a worker's versions, only of models it may be sent; true when any changed."""
        before = self._of_worker.get(worker_id, {})
        if before == digests:
            return False
        self._of_worker[worker_id] = dict(digests)
        for model in before.keys() | digests.keys():
            digest = digests.get(model, "")
            if digest == before.get(model, ""):
                continue
            holders = self._of_model.setdefault(model, {})
            if digest:
                holders[worker_id] = digest
            else:
                holders.pop(worker_id, None)
            if len(set(holders.values())) > 1:
                self._differing[model] = None
            else:
                self._differing.pop(model, None)
            if not holders:
                del self._of_model[model]
        return True

    def forget(self, worker_id: str) -> bool:
        """A worker is gone for good."""
        return self.told(worker_id, {})

    @property
    def text(self) -> str:
        """What a person should know; empty: all have the same."""
        if not self._differing:
            return ""
        named = [self._one(model) for model in sorted(self._differing)[:_MODELS_NAMED]]
        unnamed = len(self._differing) - _MODELS_NAMED
        more = f", and {unnamed} more models" if unnamed > 0 else ""
        return (
            f"workers have different versions of a model under one name: {'; '.join(named)}{more}."
            " `ollama pull MODEL` on each brings the newest; a task with --same-digest keeps to one"
        )

    def _one(self, model: str) -> str:
        groups: dict[str, list[str]] = {}
        for worker_id, digest in sorted(self._of_model[model].items()):
            groups.setdefault(digest, []).append(worker_id)
        parts = []
        for digest, workers in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
            more = f" and {len(workers) - _WORKERS_NAMED} more" if len(workers) > _WORKERS_NAMED else ""
            parts.append(f"{short_digest(digest)} on {', '.join(workers[:_WORKERS_NAMED])}{more}")
        return f"{model} is {', '.join(parts)}"


def most_capable(
    groups: Iterable[Sequence[LiveWorker]], model: str, factor: Callable[[LiveWorker], float]
) -> str | None:
    """The version that serves a task of every group, by the workers with most slots x factor.

    Each group: the workers that could run one kind of task. Those connected now count, where any is. None: no
    version serves all; empty: nobody has told any version.
    """
    weights: dict[str, dict[str, float]] = {}
    common: set[str] | None = None
    for able in groups:
        known = [worker for worker in able if worker.digest_of(model)]
        there = [worker for worker in known if worker.session] or known
        told = {worker.digest_of(model) for worker in there}
        common = told if common is None else common & told
        for worker in there:
            weights.setdefault(worker.digest_of(model), {})[worker.worker_id] = worker.slots * factor(worker)
    if not weights:
        return ""
    if not common:
        return None
    return max(common, key=lambda digest: (sum(weights[digest].values()), digest))
