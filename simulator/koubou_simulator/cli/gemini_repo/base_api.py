"""What both providers share: the prompt, composed of the task and the context files."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path

_log = logging.getLogger(__name__)

# Written into the current folder by every run, as the real one does.
PROMPT_DUMP = "gemini-repo-cli_generated_prompt.txt"

# These words are the format: what the model is sent must be, byte for byte, what the real one sends.
_INSTRUCTION = " ".join(
    (
        "You are provided with context from multiple files in the repository.",
        "Analyze the repository as a whole, considering relationships between files,",
        "overall architecture, and cross-file dependencies.",
        "When generating the target file, ensure it integrates correctly with the rest of the repository.",
        "If relevant, reference or utilize patterns, classes, or functions defined in other files.",
        "Do not simply summarize individual files; reason at the repository level.",
    )
)


class BaseRepoAPI(ABC):
    """One provider and the model it asks."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        provider = type(self).__name__
        _log.info({"event": "base_api_init", "provider": provider, "model_name": model_name})

    @abstractmethod
    def generate_content(self, repo_name: str, file_paths: list[str], target_file_name: str, prompt: str) -> str:
        """The model's answer, stripped."""

    def compose(self, repo_name: str, file_paths: list[str], target_file_name: str, prompt: str) -> str:
        """The whole prompt; a copy of it is left in the current folder."""
        files = "".join(f"\n### File: {path}\n```\n{self._read_file_content(path)}\n```\n" for path in file_paths)
        context = f"--- File Context ---\n{files}\n--- End File Context ---\n"
        composed = "\n".join(
            (
                _section("User Task", prompt),
                _section("Repo-Level Instruction", _INSTRUCTION),
                _section("Repository Context", f"Repository Name: {repo_name}"),
                context if file_paths else "--- No File Context Provided ---\n",
                _section("Generation Target", f"Generate the complete content for the file: {target_file_name}"),
                "--- Output ---",
            )
        )
        try:
            Path(PROMPT_DUMP).write_text(composed, encoding="utf-8")
        except (OSError, ValueError) as error:
            _log.warning({"event": "prompt_save_failed", "error": str(error)})
        return composed

    def _read_file_content(self, file_path: str) -> str:
        try:
            content = Path(file_path).read_bytes()
        except FileNotFoundError as error:
            _log.error({"event": "read_file_attempt", "status": "failed", "error": "File not found"})
            raise FileNotFoundError(f"Context file not found: {file_path}") from error
        except OSError as error:
            _log.exception({"event": "read_file_attempt", "status": "failed", "error": str(error)})
            raise OSError(f"Error reading file {file_path}: {error}") from error
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            _log.warning({"event": "read_file_decode_fallback", "encoding": "latin-1"})
            return content.decode("latin-1")


def _section(title: str, body: str) -> str:
    return f"--- {title} ---\n{body}\n"
