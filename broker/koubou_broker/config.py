"""From files to what the core is told: broker.yaml and workers.yaml become CoreSettings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from koubou_broker import core_settings as core
from koubou_broker.access import check_bind
from koubou_common import __version__
from koubou_common.errors import ConfigError
from koubou_common.home import Home
from koubou_common.messages.values import Label
from koubou_common.settings import BrokerSettings, WorkersFile, load
from koubou_common.worker_settings import WorkerSettings, wire_options
from koubou_common.yaml_marks import read_document


@dataclass(frozen=True, slots=True)
class Configuration:
    """Both files, read and checked."""

    broker: BrokerSettings
    workers: WorkersFile

    @property
    def driven_from_here(self) -> tuple[str, ...]:
        """Workers of `agent: here`: their Ollamas are open to the network."""
        return tuple(one.worker_id for one in self.workers.all_workers() if one.agent == "here")


def read_configuration(home: Home, config_file: Path | None, bind: Sequence[str] = ()) -> Configuration:
    """Read what is configured; ConfigError lists every fault of a file. Missing files mean defaults."""
    path = config_file or home.config_file("broker")
    broker = load(path, BrokerSettings, missing_ok=config_file is None)
    if bind:
        for address in bind:
            check_bind(address, broker.allow_public)  # the command line obeys the rules of the file
        broker = broker.model_copy(update={"bind": tuple(bind)})
    workers_path = home.resolve(broker.workers_file)
    is_default = "workers_file" not in broker.model_fields_set
    workers = load(workers_path, WorkersFile, missing_ok=is_default)
    if not broker.allow_remote_ollama:
        _refuse_here(workers_path, workers)
    return Configuration(broker, workers)


def core_settings(configuration: Configuration, addresses: tuple[str, ...]) -> core.CoreSettings:
    """All that the core needs of the two files; `addresses` are where the broker was bound."""
    broker, workers = configuration.broker, configuration.workers
    limits = core.Limits(
        prompt_bytes=broker.limits.prompt_bytes,
        file_bytes=broker.limits.file_bytes,
        task_bytes=broker.limits.task_bytes,
        task_files=broker.limits.files,
        result_bytes=broker.limits.result_bytes,
        name_bytes=broker.limits.name_bytes,
        queue_tasks=broker.limits.queue_tasks,
        queue_per_client=broker.limits.queue_per_client,
        files_per_client=broker.limits.files_per_client,
        bytes_per_client=broker.limits.bytes_per_client,
        unreferenced_bytes_per_client=broker.limits.unreferenced_bytes_per_client,
        sessions_max=broker.limits.max_sessions,
        sessions_per_client=broker.limits.sessions_per_client,
    )
    return core.CoreSettings(
        workers=tuple(_worker(one, broker.limits.result_bytes) for one in workers.all_workers()),
        rules=tuple(
            core.Rule(
                lowest=rule.priority_range[0],
                highest=rule.priority_range[1],
                preferred_workers=rule.preferred_workers,
                reason=rule.reason,
                overflow_after_s=rule.overflow_after_s,
            )
            for rule in workers.routing_policy.rules
        ),
        strategy=workers.routing_policy.strategy,
        aging_s=workers.routing_policy.aging_s,
        patience_s=workers.routing_policy.patience_s,
        performance=core.PerformanceSettings(
            update_s=workers.performance.update_s,
            window_s=workers.performance.window_h * 3_600.0,
            min_samples=workers.performance.min_samples,
        ),
        min_workers=workers.manager.min_workers,
        max_workers=min(workers.max_workers, broker.limits.max_workers),
        default_slots=workers.manager.max_active_tasks,
        lease_s=broker.lease_s,
        heartbeat_s=broker.heartbeat_s,
        transient_attempts=broker.retry.transient_attempts,
        total_attempts=broker.retry.total_attempts,
        poison_deaths=broker.retry.poison_deaths,
        backoff_base_s=broker.retry.backoff_base_s,
        backoff_cap_s=broker.retry.backoff_cap_s,
        breaker_failures=broker.breaker.failures,
        breaker_cooldown_s=broker.breaker.cooldown_s,
        limits=limits,
        cache_days=_cache_days(broker),
        addresses=broker.advertise or addresses,
        version=__version__,
    )


def _cache_days(broker: BrokerSettings) -> float:
    # An answer whose text is about to go must not be given again: the two would meet in one transaction.
    return min(broker.result_cache.keep_days, broker.retention.bodies_days) if broker.result_cache.enabled else 0.0


def _refuse_here(path: Path, workers: WorkersFile) -> None:
    numbers = [number for number, one in enumerate(workers.workers.remote_workers) if one.agent == "here"]
    if not numbers:
        return
    document = read_document(path)
    problems = [
        document.problem(
            ("workers", "remote_workers", number, "agent"),
            "is not allowed: that Ollama would have to be open to the whole network",
            "run koubou-agent on the box instead, or set allow_remote_ollama: true in broker.yaml",
        )
        for number in numbers
    ]
    raise ConfigError("\n".join(str(problem) for problem in problems))


def _worker(one: WorkerSettings, result_bytes: int) -> core.WorkerSettings:
    told = one.config(output_bytes=result_bytes)
    return core.WorkerSettings(
        worker_id=one.worker_id,
        location=one.location,
        default_model=one.model,
        models=one.models,
        slots=one.max_concurrent_tasks,
        performance_factor=one.performance_factor,
        capabilities=one.capabilities,
        labels=tuple(Label(key, value) for key, value in one.labels.items()),
        options=told.options,
        model_options=tuple((model, wire_options(options)) for model, options in one.model_options.items()),
        thinking_allowance=one.thinking_allowance,
        limits=told.limits,
        total_least_s=one.total_least_s,
        endpoint_url=one.endpoint_url,
        agent_here=one.agent == "here",
    )
