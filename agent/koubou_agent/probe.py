"""Ollama's health: is it there, what does it have, what is loaded. It says nothing about generating."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests
import urllib3

from koubou_agent.upstream import Address
from koubou_agent.verdict import plain
from koubou_common.models import is_cloud_model, normal_model

_MODELS_MAX = 1000  # of one Ollama; more is not a list of models
_BODY_BYTES_MAX = 8 * 2**20  # a model's /api/show has its template and licence in it
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """One model of this Ollama, by its normal name."""

    name: str
    digest: str
    size_bytes: int
    family: str
    capabilities: tuple[str, ...]  # () where an old Ollama does not tell
    context_length: int  # trained; 0 where it does not tell
    loaded: bool  # a hint: a runner that died stays listed
    vram_bytes: int
    loaded_ctx: int  # num_ctx it is loaded with; 0 while it is not


@dataclass(frozen=True, slots=True)
class Health:
    """What one look at Ollama found; `issue` says in a person's words why `ok` is False."""

    ok: bool
    version: str
    models: tuple[ModelSeen, ...]
    issue: str
    latency_ms: int


class Probe:
    """Looks at one Ollama, from one thread at a time; what a model can do is asked once per digest."""

    def __init__(self, ollama_url: str, timeout_s: float = 5.0) -> None:
        self._url = Address.of(ollama_url).url
        self._timeout_s = timeout_s
        self._abilities: dict[str, _Ability] = {}

    def check(self) -> Health:
        """One look; never raises."""
        version, latency_ms = "", 0
        try:
            with _session() as session:
                started = time.monotonic()
                version = _text(self._get(session, "/api/version"), "version")
                latency_ms = int((time.monotonic() - started) * 1000)
                if not version:
                    return Health(False, "", (), f"what answers at {self._url} is not Ollama", latency_ms)
                tags = _list(self._get(session, "/api/tags"), "models")
                loaded = _loaded(_list(self._get(session, "/api/ps"), "models"))
                models = tuple(self._models(session, tags, loaded))
        except requests.RequestException as error:
            return Health(False, version, (), self._issue(error), latency_ms)
        return Health(True, version, models, "", latency_ms)

    def _models(
        self,
        session: requests.Session,
        tags: list[Mapping[str, object]],
        loaded: Mapping[str, "_Loaded"],
    ) -> list[ModelSeen]:
        models: list[ModelSeen] = []
        for tag in tags[:_MODELS_MAX]:
            name, digest = _text(tag, "name") or _text(tag, "model"), _text(tag, "digest")
            # A cloud model is only a name here: its prompts would leave the private network.
            if not name or is_cloud_model(name) or tag.get("remote_host") or tag.get("remote_model"):
                continue
            ability = self._ability(session, name, digest)
            now = loaded.get(normal_model(name))
            models.append(
                ModelSeen(
                    name=normal_model(name),
                    digest=digest,
                    size_bytes=_number(tag, "size"),
                    family=_text(_fields(tag, "details"), "family"),
                    capabilities=ability.capabilities,
                    context_length=ability.context_length,
                    loaded=now is not None,
                    vram_bytes=now.vram_bytes if now else 0,
                    loaded_ctx=now.num_ctx if now else 0,
                )
            )
        self._abilities = {m.digest: self._abilities[m.digest] for m in models if m.digest in self._abilities}
        return models

    def _ability(self, session: requests.Session, name: str, digest: str) -> "_Ability":
        known = self._abilities.get(digest)
        if known is not None:
            return known
        try:
            shown = self._fetch(session, "POST", "/api/show", {"model": name})
        except requests.HTTPError:
            return _Ability((), 0)  # removed meanwhile, or damaged: asked again next time
        info = _fields(shown, "model_info")
        capabilities = shown.get("capabilities")
        ability = _Ability(
            tuple(one for one in capabilities if isinstance(one, str)) if isinstance(capabilities, list) else (),
            _number(info, f"{_text(info, 'general.architecture')}.context_length"),
        )
        if digest:
            self._abilities[digest] = ability
        return ability

    def _get(self, session: requests.Session, path: str) -> Mapping[str, object]:
        return self._fetch(session, "GET", path, None)

    def _fetch(
        self, session: requests.Session, method: str, path: str, body: Mapping[str, object] | None
    ) -> Mapping[str, object]:
        return _fetch(session, method, f"{self._url}{path}", self._timeout_s, body)

    def _issue(self, error: requests.RequestException) -> str:
        match error:
            case requests.Timeout():
                return f"Ollama at {self._url} does not answer within {self._timeout_s:g} s"
            case requests.ConnectionError():
                return f"nothing answers at {self._url}: is Ollama running there?"
            case _:
                return f"Ollama at {self._url}: {plain(str(error))}"


def loaded_models(ollama_url: str, timeout_s: float) -> frozenset[tuple[str, int]] | None:
    """(normal name, num_ctx) of what is loaded now; None where Ollama does not tell."""
    try:
        with _session() as session:
            answer = _fetch(session, "GET", f"{Address.of(ollama_url).url}/api/ps", timeout_s, None)
    except requests.RequestException:
        return None
    return frozenset((name, one.num_ctx) for name, one in _loaded(_list(answer, "models")).items())


@dataclass(frozen=True, slots=True)
class _Ability:
    capabilities: tuple[str, ...]
    context_length: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    vram_bytes: int
    num_ctx: int


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy variable must not lead us elsewhere
    session.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
    return session


def _fetch(
    session: requests.Session, method: str, url: str, timeout_s: float, body: Mapping[str, object] | None
) -> Mapping[str, object]:
    """One exchange within `timeout_s` in all; raises requests' errors, also for what is no object of JSON."""
    deadline = time.monotonic() + timeout_s
    # A kept connection may be closed under the next request, which then looks like an Ollama that is down.
    session.close()
    with session.request(method, url, json=body, timeout=timeout_s, allow_redirects=False, stream=True) as response:
        if response.is_redirect or response.status_code != 200:
            raise requests.HTTPError(f"{method} answered with status {response.status_code}")
        return _json(_content(response, deadline))


def _content(response: requests.Response, deadline_mono_s: float) -> bytes:
    content = bytearray()
    try:
        # Not iter_content: it waits for whole chunks, and an answer that drips would never end.
        while chunk := response.raw.read1(_CHUNK_BYTES):
            content += chunk
            if len(content) > _BODY_BYTES_MAX:
                raise requests.exceptions.InvalidJSONError(f"an answer over {_BODY_BYTES_MAX} bytes")
            if time.monotonic() > deadline_mono_s:
                raise requests.Timeout
    except urllib3.exceptions.TimeoutError as error:
        raise requests.Timeout from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError from error
    return bytes(content)


def _json(content: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise requests.exceptions.InvalidJSONError("what answers is not Ollama: no JSON") from error
    if not isinstance(value, dict):
        raise requests.exceptions.InvalidJSONError("what answers is not Ollama: no object of JSON")
    return value


def _loaded(models: list[Mapping[str, object]]) -> dict[str, _Loaded]:
    return {
        normal_model(_text(one, "name") or _text(one, "model")): _Loaded(
            _number(one, "size_vram"), _number(one, "context_length")
        )
        for one in models
    }


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _fields(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _list(fields: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    value = fields.get(name)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
