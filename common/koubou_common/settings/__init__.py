"""Settings of broker, agent and workers: one frozen model each, read from YAML (needs pydantic)."""

from koubou_common.settings.agent import AgentLimits, AgentSettings
from koubou_common.settings.broker import (
    Breaker,
    BrokerLimits,
    BrokerSettings,
    Disk,
    Retention,
    Retry,
)
from koubou_common.settings.example import example
from koubou_common.settings.load import Shown, check, load, loads, schema, show
from koubou_common.settings.performance import Performance
from koubou_common.settings.routing import RoutingPolicy, Rule
from koubou_common.settings.workers import (
    LocalWorker,
    Manager,
    RemoteWorker,
    Workers,
    WorkersFile,
)

__all__ = [
    "AgentLimits",
    "AgentSettings",
    "Breaker",
    "BrokerLimits",
    "BrokerSettings",
    "Disk",
    "LocalWorker",
    "Manager",
    "Performance",
    "RemoteWorker",
    "Retention",
    "Retry",
    "RoutingPolicy",
    "Rule",
    "Shown",
    "Workers",
    "WorkersFile",
    "check",
    "example",
    "load",
    "loads",
    "schema",
    "show",
]
