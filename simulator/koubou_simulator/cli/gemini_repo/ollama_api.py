"""The provider that counts: Ollama, through its own Python client, with the real one's fixed options."""

import logging
import sys

try:
    import ollama
except ImportError:
    print("ERROR: ollama library not found. Please install it: pip install ollama")
    sys.exit(1)

from .base_api import BaseRepoAPI

DEFAULT_OLLAMA_MODEL = "qwen2.5-coder:1.5b"
DEFAULT_OLLAMA_HOST = "http://localhost:11434"

_log = logging.getLogger(__name__)


class OllamaRepoAPI(BaseRepoAPI):
    """No timeout, no retry, and every answer counts as success: that is how the real one behaves."""

    def __init__(self, model_name: str = DEFAULT_OLLAMA_MODEL, host: str | None = DEFAULT_OLLAMA_HOST) -> None:
        super().__init__(model_name)
        self.host = host
        self.client = ollama.Client(host=host)
        self.options: dict[str, float] = {"temperature": 0.3, "num_ctx": 4096}
        _log.info({"event": "ollama_client_init", "status": "success", "model_name": model_name, "host": host})

    def generate_content(self, repo_name: str, file_paths: list[str], target_file_name: str, prompt: str) -> str:
        """The answer, stripped; whatever goes wrong is told by the message alone."""
        try:
            answer = self.client.generate(
                model=self.model_name,
                prompt=self.compose(repo_name, file_paths, target_file_name, prompt),
                stream=False,
                options=self.options,
            )
            text: str = answer.get("response", "").strip()
        except FileNotFoundError as error:
            self._failed("context_file_not_found", error)
            raise
        except ollama.ResponseError as error:
            self._failed("api_response_error", error, status_code=error.status_code)
            raise RuntimeError(f"Ollama API error (status {error.status_code}): {error}") from error
        except Exception as error:
            self._failed("api_error", error)
            raise RuntimeError(f"An error occurred during Ollama content generation: {error}") from error
        _log.info({"event": "ollama_generation_complete", "status": "success", "output_length": len(text)})
        return text

    def _failed(self, reason: str, error: Exception, **more: int) -> None:
        _log.error({"event": "ollama_generation_failed", "reason": reason, "error": str(error), **more})
