"""The other provider: imported, because that is most of the real one's start, and never asked anything."""

import logging
import os
import sys

try:
    from google.genai import Client
    from google.genai.types import GenerateContentConfig
except ImportError:
    print("ERROR: google-genai library not found. Please install it: pip install google-genai")
    sys.exit(1)

from .base_api import BaseRepoAPI

DEFAULT_GEMINI_MODEL = "gemini-2.0-flash"

_log = logging.getLogger(__name__)


class GeminiRepoAPI(BaseRepoAPI):
    """Refuses without a key as the real one does, and with one because a stand-in sends nothing anywhere."""

    client_types = (Client, GenerateContentConfig)

    def __init__(self, api_key: str | None = None, model_name: str = DEFAULT_GEMINI_MODEL) -> None:
        super().__init__(model_name)
        if not (api_key or os.getenv("GEMINI_API_KEY")):
            _log.error({"event": "gemini_init_failed", "reason": "API key missing"})
            raise ValueError("GEMINI_API_KEY not provided or set in environment variables.")

    def generate_content(
        self,
        repo_name: str,  # noqa: ARG002 - the interface, as for the next three
        file_paths: list[str],  # noqa: ARG002
        target_file_name: str,  # noqa: ARG002
        prompt: str,  # noqa: ARG002
    ) -> str:
        """Always fails: this is a stand-in."""
        raise RuntimeError("this is a stand-in for gemini-repo-cli: it asks no Gemini")
