"""Names of Ollama models: which two names mean the same, which lead out of the private network."""

import re
from functools import lru_cache

_DEFAULT_TAG = "latest"
_DEFAULT_PREFIXES = ("registry.ollama.ai/library/", "library/")
_NAMES_KEPT = 4_096  # a house has dozens, and every decision asks for them of every free worker
_NAME_CHARS_MAX = 255  # the limit of every name on the wire
# [host[:port]/][namespace/...]model[:tag]; each part begins with a letter, digit or underscore.
_NAME = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/)?"
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*"
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
)


@lru_cache(maxsize=_NAMES_KEPT)
def normal_model(name: str) -> str:
    """The one spelling of a model's name: `x`, `X:latest` and `library/x` are all `x:latest`.

    Ollama finds a model whatever the case of its name, and keeps no two that differ in it alone.
    """
    return full_model(name.lower())


def full_model(name: str) -> str:
    """A model's name with its tag, without what Ollama puts before it by itself, its case as written."""
    plain = name.strip()
    for prefix in _DEFAULT_PREFIXES:
        plain = plain.removeprefix(prefix)
    _, tag = _split(plain)
    return plain if tag else f"{plain}:{_DEFAULT_TAG}"


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model of one Ollama."""
    return normal_model(one) == normal_model(other)


def is_cloud_model(name: str) -> bool:
    """Whether Ollama would forward prompts for this name to its makers' servers."""
    plain = name.strip().lower().removesuffix(f":{_DEFAULT_TAG}")
    return plain.endswith((":cloud", "-cloud"))


def check_model_name(name: str) -> str:
    """What is wrong with a model's name, in a person's words; "" if nothing is."""
    if not name:
        return "a model's name is missing"
    if len(name) > _NAME_CHARS_MAX:
        return f"a model's name has at most {_NAME_CHARS_MAX} characters, this one has {len(name)}"
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a model's name: letters, digits, '.', '_', '-', '/' and one ':tag'"
    if is_cloud_model(name):
        return f"{name!r} runs on somebody else's servers: prompts would leave the private network"
    return ""


def _split(name: str) -> tuple[str, str]:
    """The name and its tag; a port of a host is no tag, as a slash follows it."""
    base, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, ""
    return base, tag
