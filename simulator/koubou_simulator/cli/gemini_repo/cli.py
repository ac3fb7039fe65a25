"""The command: arguments, JSON lines on standard error, the answer on standard output."""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import NoReturn

from . import DEFAULT_GEMINI_MODEL, DEFAULT_OLLAMA_MODEL, GeminiRepoAPI, OllamaRepoAPI
from .base_api import BaseRepoAPI

_QUIET = ("google", "urllib3", "ollama")

_log = logging.getLogger(__name__)


def main() -> None:
    """Exit code 0 when any answer came, 1 for every failure, 2 for arguments that are not understood."""
    arguments = _parser().parse_args()
    _log_as_json_lines(debug=arguments.debug)
    started_s = time.time()
    shown = {**vars(arguments), "gemini_api_key": "***REDACTED***" if arguments.gemini_api_key else None}
    _log.info({"event": "cli_start", "args": shown})
    api = _provider(arguments)
    answer = _answer(api, arguments)
    _deliver(answer, arguments.output)
    _log.info(
        {
            "event": "cli_end",
            "status": "success",
            "total_duration_seconds": round(time.time() - started_s, 3),
        }
    )


class _JsonLines(logging.Formatter):
    """One JSON object a line; a message that is a dictionary becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "name": record.name,
        }
        line |= record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info).replace("\n", "\\n")
        return json.dumps(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gemini-repo-cli",
        description="STAND-IN for gemini-repo-cli: generate file content from a prompt and repository files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--provider", "-p", choices=["gemini", "ollama"], default="gemini")
    parser.add_argument("repo_name", help="name of the repository, for the prompt")
    parser.add_argument("target_file", help="name of the file to generate, for the prompt")
    parser.add_argument("prompt", help="what is to be done")
    parser.add_argument("--files", "-f", nargs="+", default=[], metavar="FILE_PATH", help="context files")
    parser.add_argument("--output", "-o", metavar="OUTPUT_FILE", help="write there, not to standard output")
    parser.add_argument("--debug", "-d", action="store_true", help="log more")
    parser.add_argument("--gemini-api-key", help="else GEMINI_API_KEY")
    parser.add_argument("--gemini-model", default=DEFAULT_GEMINI_MODEL, help="model of Gemini")
    parser.add_argument("--ollama-model", default=DEFAULT_OLLAMA_MODEL, help="model of Ollama")
    parser.add_argument("--ollama-host", help="URL of Ollama, else OLLAMA_HOST")
    return parser


def _log_as_json_lines(*, debug: bool) -> None:
    level = logging.DEBUG if debug else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _provider(arguments: argparse.Namespace) -> BaseRepoAPI:
    try:
        if arguments.provider == "gemini":
            return GeminiRepoAPI(arguments.gemini_api_key, arguments.gemini_model)
        return OllamaRepoAPI(arguments.ollama_model, arguments.ollama_host)
    except ValueError as error:
        _fail({"event": "api_init"}, f"Initialization failed: {error}", error)
    except Exception as error:  # the real one answers every failure with exit code 1
        _fail({"event": "api_init"}, f"Unexpected error during initialization: {error}", error)


def _answer(api: BaseRepoAPI, arguments: argparse.Namespace) -> str:
    started_s = time.time()
    _log.info({"event": "generation_start", "provider": arguments.provider, "model": api.model_name})
    try:
        answer = api.generate_content(arguments.repo_name, arguments.files, arguments.target_file, arguments.prompt)
    except FileNotFoundError as error:
        _fail(
            {"event": "generation_end", "reason": "context_file_not_found"},
            f"Could not read context file: {error}",
            error,
        )
    except Exception as error:  # as above
        _fail({"event": "generation_end", "reason": "api_error"}, f"Failed to generate content: {error}", error)
    _log.info(
        {
            "event": "generation_end",
            "status": "success",
            "provider": arguments.provider,
            "duration_seconds": round(time.time() - started_s, 3),
            "output_length": len(answer),
        }
    )
    return answer


def _deliver(answer: str, output: str | None) -> None:
    destination = output or "stdout"
    try:
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            with Path(output).open("w", encoding="utf-8") as stream:
                stream.write(answer)
            print(f"Content successfully written to {output}", file=sys.stderr)
        else:
            print(answer)
    except Exception as error:  # as above
        _fail({"event": "output_write"}, f"Failed to write output to {destination}: {error}", error)
    _log.info({"event": "output_write", "status": "success", "destination": destination})


def _fail(event: dict[str, str], message: str, error: Exception) -> NoReturn:
    _log.error({**event, "status": "failed", "error": str(error)}, exc_info=error)
    print(f"ERROR: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
