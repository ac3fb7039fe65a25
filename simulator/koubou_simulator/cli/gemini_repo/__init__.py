"""The stand-in for gemini-repo-cli's package; it says so by `__simulated__`."""

from .base_api import BaseRepoAPI
from .gemini_api import DEFAULT_GEMINI_MODEL, GeminiRepoAPI
from .ollama_api import DEFAULT_OLLAMA_HOST, DEFAULT_OLLAMA_MODEL, OllamaRepoAPI

__simulated__ = True
__version__ = "stand-in"

__all__ = [
    "DEFAULT_GEMINI_MODEL",
    "DEFAULT_OLLAMA_HOST",
    "DEFAULT_OLLAMA_MODEL",
    "BaseRepoAPI",
    "GeminiRepoAPI",
    "OllamaRepoAPI",
]
