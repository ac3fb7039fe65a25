"""JSON that obeys a schema: what a simulated model answers when `format` asks for structure."""

import json
from collections.abc import Mapping

from .gojson import Json

_DEPTH = 8  # a schema that refers to itself ends here


def json_for(format_: Json, label: str) -> str:
    """Any valid document for a schema, or a small object for "json"; strings begin with the label."""
    if not isinstance(format_, dict):
        return json.dumps({"simulated": True, "text": f"{label} made up".strip()})
    return json.dumps(_value(format_, format_, label, _DEPTH), ensure_ascii=False)


def _value(schema: Json, root: Mapping[str, Json], label: str, depth: int) -> Json:
    if not isinstance(schema, dict) or depth == 0:
        return None
    if "const" in schema:
        return schema["const"]
    match schema.get("enum"):
        case [first, *_]:
            return first
        case _:
            pass
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _value(_resolve(reference, root), root, label, depth - 1)
    for several in ("anyOf", "oneOf", "allOf"):
        match schema.get(several):
            case [first, *_]:
                return _value(first, root, label, depth - 1)
            case _:
                pass
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        return {name: _value(inner, root, label, depth - 1) for name, inner in named.items()}
    if kind == "array":
        count = schema.get("minItems")
        size = count if isinstance(count, int) else 1
        return [_value(schema.get("items"), root, label, depth - 1) for _ in range(size)]
    return _scalar(kind, schema, label)


def _scalar(kind: Json, schema: Mapping[str, Json], label: str) -> Json:
    match kind:
        case "integer" | "number":
            least = schema.get("minimum")
            return least if isinstance(least, int | float) else 0
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return f"{label} made up".strip()


def _resolve(reference: str, root: Mapping[str, Json]) -> Json:
    found: Json = dict(root)
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
