"""A request for text as Ollama understands it: which types it insists on, what it ignores, how it refuses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .errors import Refusal
from .gojson import MAX_DURATION_NS, BadJson, Json, decode_object, encode, json_kind, parse_duration_ns
from .runner import LoadOptions

_GO_TYPES: Final = {
    "model": "string", "prompt": "string", "suffix": "string", "system": "string", "template": "string", "raw": "bool",
    "stream": "bool", "truncate": "bool", "shift": "bool", "context": "[]int", "images": "[]api.ImageData",
    "options": "map[string]interface {}", "logprobs": "bool", "top_logprobs": "int", "messages": "[]api.Message",
}  # fmt: skip
_JSON_KINDS: Final = {"string": "string", "bool": "bool", "int": "number", "map[string]interface {}": "object"}
_RUNTIME_INTEGERS: Final = ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n")
_LOAD_INTEGERS: Final = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread")
_INTEGERS: Final = frozenset((*_RUNTIME_INTEGERS, *_LOAD_INTEGERS))
_FLOATS: Final = frozenset(
    ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
)
_LEAST_CTX: Final = 4  # whatever is asked for


@dataclass(frozen=True, slots=True)
class Asked:
    """A decoded request. `options` are those that Ollama knows, by value; `body` is the whole of it."""

    model: str
    prompt: str
    system: str = ""
    suffix: str = ""
    raw: bool = False
    stream: bool = True
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    images: int = 0
    format: Json = None
    keep_alive_s: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    body: Mapping[str, Json] = field(default_factory=dict)

    def load_options(self, default_num_ctx: int) -> LoadOptions:
        """Raises Refusal for an option of the wrong type: only now does Ollama look at them."""
        values = checked_options(self.options)
        mmap = values.get("use_mmap")
        return LoadOptions(
            num_ctx=max(_whole(values, "num_ctx", default_num_ctx), _LEAST_CTX),
            num_batch=_whole(values, "num_batch", 512),
            num_gpu=_whole(values, "num_gpu", -1),
            main_gpu=_whole(values, "main_gpu", 0),
            use_mmap=mmap if isinstance(mmap, bool) else None,
            num_thread=_whole(values, "num_thread", 0),
        )

    def whole_option(self, name: str, default: int) -> int:
        return _whole(checked_options(self.options), name, default)

    @property
    def stops(self) -> tuple[str, ...]:
        given = self.options.get("stop")
        return tuple(str(stop) for stop in given) if isinstance(given, list) else ()


def read_asked(body: bytes, go_type: str) -> Asked:
    """Raises Refusal 400 with Ollama's text."""
    try:
        values = decode_object(body, go_type)
        for name, value in values.items():
            _check_type(name, value, go_type)
        keep_alive = values.get("keep_alive")
        keep_alive_s = None if keep_alive is None else _keep_alive_s(keep_alive)
        think = _think(values.get("think"))
    except BadJson as error:
        raise Refusal(400, str(error)) from None

    def text(name: str) -> str:
        value = values.get(name)
        return value if isinstance(value, str) else ""

    def flag(name: str, default: bool) -> bool:
        value = values.get(name)
        return value if isinstance(value, bool) else default

    prompt = _chat_text(values.get("messages")) if go_type == "ChatRequest" else text("prompt")
    options, images = values.get("options"), values.get("images")
    return Asked(
        model=text("model"),
        prompt=prompt,
        system=text("system"),
        suffix=text("suffix"),
        raw=flag("raw", False),
        stream=flag("stream", True),
        think=think,
        truncate=flag("truncate", True),
        shift=flag("shift", True),
        images=len(images) if isinstance(images, list) else 0,
        format=values.get("format"),
        keep_alive_s=keep_alive_s,
        options=dict(options) if isinstance(options, dict) else {},
        body=values,
    )


def checked_options(options: Mapping[str, object]) -> dict[str, object]:
    """The options Ollama knows. Raises Refusal 500 for a wrong type; fractions are cut, unknown names ignored."""
    known: dict[str, object] = {}
    for name, value in options.items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS:
            if not number:
                raise Refusal(500, f'option "{name}" must be of type integer')
            assert isinstance(value, int | float)
            known[name] = math.trunc(value)
        elif name in _FLOATS:
            if not number:
                raise Refusal(500, f'option "{name}" must be of type float32')
            known[name] = value
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise Refusal(500, f'option "{name}" must be of type boolean')
            known[name] = value
        elif name == "stop":
            if not isinstance(value, list):
                raise Refusal(500, f'option "{name}" must be of type array')
            if not all(isinstance(stop, str) for stop in value):
                raise Refusal(500, f'option "{name}" must be of an array of strings')
            known[name] = value
    return known


def check_format(format_: Json) -> Json:
    """None where nothing is asked for. Raises Refusal 500: the runner is the one to look."""
    if format_ is None or format_ == "":
        return None
    if format_ == "json" or isinstance(format_, dict):
        return format_
    given = encode({"": format_}).decode()[4:-1]
    quoted = given.replace("\\", "\\\\").replace('"', '\\"')
    raise Refusal(500, f'invalid format: "{quoted}"; expected "json" or a valid JSON Schema object', late=True)


def _chat_text(messages: Json) -> str:
    if not isinstance(messages, list):
        return ""
    return "\n\n".join(str(message.get("content") or "") for message in messages if isinstance(message, dict))


def _whole(values: Mapping[str, object], name: str, default: int) -> int:
    value = values.get(name, default)
    return value if isinstance(value, int) else default


def _check_type(name: str, value: Json, go_type: str) -> None:
    wanted = _GO_TYPES.get(name)
    if wanted is None or value is None:
        return
    kind = json_kind(value)
    if kind != _JSON_KINDS.get(wanted, "array"):
        raise BadJson(f"json: cannot unmarshal {kind} into Go struct field {go_type}.{name} of type {wanted}")


def _keep_alive_s(value: Json) -> float:
    if isinstance(value, str):
        nanos = parse_duration_ns(value)
        return (MAX_DURATION_NS if nanos < 0 else nanos) / 1e9
    if isinstance(value, int | float) and not isinstance(value, bool):
        return MAX_DURATION_NS / 1e9 if value < 0 else float(value)
    go_kind = {"bool": "bool", "array": "[]interface {}", "object": "map[string]interface {}"}[json_kind(value)]
    raise BadJson(f"Unsupported type: '{go_kind}'")


def _think(value: Json) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    allowed = '"high", "medium", "low", "max", true, or false'
    if not isinstance(value, str):
        raise BadJson(f"think must be a boolean or string ({allowed})")
    if value not in ("high", "medium", "low", "max"):
        raise BadJson(f'invalid think value: "{value}" (must be {allowed})')
    return value
