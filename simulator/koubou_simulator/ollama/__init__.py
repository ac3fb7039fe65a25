"""A simulated Ollama: an HTTP server that behaves like a recorded one, for tests and demos; no model runs in it."""

from .faults import Fault, FaultKind
from .log import LoggedRequest
from .models import SimModel, Thinking, model_named, text_models, tiny_models
from .settings import PRESETS, Mode, SimSettings, Timing
from .simulated import SimulatedOllama
from .world import Clock, ManualClock

__all__ = [
    "PRESETS",
    "Clock",
    "Fault",
    "FaultKind",
    "LoggedRequest",
    "ManualClock",
    "Mode",
    "SimModel",
    "SimSettings",
    "SimulatedOllama",
    "Thinking",
    "Timing",
    "model_named",
    "text_models",
    "tiny_models",
]
