"""The first workers.yaml: one local worker with a model that the Ollama of this host has."""

import contextlib
import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

from koubou_common.errors import ConfigError
from koubou_common.joining import write_settings
from koubou_common.models import check_model_name
from koubou_common.settings import WorkersFile, example
from koubou_common.settings.example import EXAMPLE_WORKERS

WORKER_ID = "local_001"

_TIMEOUT_S = 5.0
_ANSWER_BYTES_MAX = 8 * 2**20  # a list of thousands of models
_EMBEDDING_FAMILY = "bert"  # bert, nomic-bert, nomic-bert-moe: they answer with numbers, not with text
_OTHERWISE = "or write {path} by hand: config/workers.yaml of the distribution shows every setting"


def write_first_workers(path: Path, ollama_url: str) -> str:
    """Write a commented workers.yaml for this host; returns the model chosen. ConfigError says what is missing."""
    otherwise = _OTHERWISE.format(path=path)
    model = _first_model(ollama_url, otherwise)
    values = {
        "workers": {
            "local_workers": [
                {
                    "worker_id": WORKER_ID,
                    "worker_type": "local",
                    "model": model,
                    "server_host": ollama_url,
                    "models": ["*"],
                }
            ]
        },
        "routing_policy": EXAMPLE_WORKERS["routing_policy"],
    }
    write_settings(path, example(WorkersFile, values))
    return model


def _first_model(ollama_url: str, otherwise: str) -> str:
    """The model used last of those that write text and run here."""
    for entry in _tags(ollama_url, otherwise):
        name, family = _name_and_family(entry)
        if name and not check_model_name(name) and not family.endswith(_EMBEDDING_FAMILY) and "embed" not in name:
            return name
    raise ConfigError(
        f"the Ollama at {ollama_url} has no model that could write text on this host",
        f"fetch one, `ollama pull gpt-oss:20b` for example, and try again; {otherwise}",
    )


def _tags(ollama_url: str, otherwise: str) -> list[object]:
    # Not through urllib: it would obey proxy settings and follow redirects off this host.
    parts = urlsplit(ollama_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/api/tags", headers={"Accept": "application/json"})
            with connection.getresponse() as answer:
                document = json.loads(answer.read(_ANSWER_BYTES_MAX)) if answer.status == http.client.OK else None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ConfigError(
                f"there is no workers.yaml yet, and no Ollama answers at {ollama_url} ({str(error) or 'no answer'})",
                f"start it, `ollama serve`, and try again; {otherwise}",
            ) from error
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list):
        raise ConfigError(
            f"what answers at {ollama_url} is not an Ollama (HTTP status {answer.status})",
            f"name the right address with --ollama-url; {otherwise}",
        )
    return models


def _name_and_family(entry: object) -> tuple[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return "", ""
    if entry.get("remote_host"):  # a name of this Ollama for a model on its makers' servers
        return "", ""
    details = entry.get("details")
    family = details.get("family") if isinstance(details, dict) else ""
    return entry["name"], family if isinstance(family, str) else ""
