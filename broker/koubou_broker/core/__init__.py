"""The broker's pure core: messages in, effects out; no socket, file, clock, randomness, thread."""

from koubou_broker.core.core import Core
from koubou_broker.core_settings import CoreSettings, Limits, Rule, WorkerSettings

__all__ = ["Core", "CoreSettings", "Limits", "Rule", "WorkerSettings"]
