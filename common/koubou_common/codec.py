"""Bytes <-> messages: the only file that knows how a message becomes msgpack.

One message is one msgpack map: `v` (protocol version), `type` (the message's name in snake case), `epoch`
(from the broker), and the message's fields. Nested values are maps, tuples are arrays. Unknown fields are
ignored, so that a newer peer may say more, and an error class or a reason that only it knows is `other`;
everything else that does not fit the types and limits in `messages` is a DecodeError.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgpack

from koubou_common.errors import ErrorClass
from koubou_common.messages import Message
from koubou_common.messages.limits import BATCH_TASKS, MESSAGE_BYTES, Between, Chars, Count, Size
from koubou_common.reasons import Reason

_DEPTH_FIELDS = 64  # fields in any map: the widest message has fewer than 40
_VERSION = 1

Decoder = Callable[[object, str], Any]

_TYPE_NAMES: dict[Any, str] = {}  # these three are filled once a class
_FIELD_NAMES: dict[Any, tuple[str, ...]] = {}
_DATACLASS_DECODERS: dict[Any, Decoder] = {}


class CodecError(ValueError):
    """Bytes that are no message; the text says where and why."""


class DecodeError(CodecError):
    """What a peer sent cannot be read: counted and dropped."""


class _WrongTypeError(DecodeError):
    """The value is of another type than due: in a union the next member may fit."""


class EncodeError(CodecError):
    """What we were about to send breaks our own limits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded message with what travels around it. `epoch` is 0 from agents and clients."""

    message: Message
    epoch: int


def type_name(message: Message | type[Message]) -> str:
    """The wire name of a message: `AgentHello` -> `agent_hello`."""
    cls = message if isinstance(message, type) else type(message)
    name = _TYPE_NAMES.get(cls)
    if name is None:
        name = _TYPE_NAMES[cls] = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
    return name


def encode(message: Message, epoch: int = 0) -> bytes:
    """The bytes of `message`; EncodeError when they exceed MESSAGE_BYTES."""
    fields: dict[str, object] = {"v": _VERSION, "type": type_name(message)}
    if epoch:
        fields["epoch"] = epoch
    for name in _field_names(type(message)):
        fields[name] = _plain(getattr(message, name))
    data: bytes = msgpack.packb(fields, use_bin_type=True)
    if len(data) > MESSAGE_BYTES:
        raise EncodeError(f"{type_name(message)}: {len(data)} bytes, at most {MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Envelope:
    """The message in `data`; DecodeError for anything that is not exactly one of ours."""
    if len(data) > MESSAGE_BYTES:
        raise DecodeError(f"{len(data)} bytes, at most {MESSAGE_BYTES}")
    try:
        fields = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_no_duplicates,
            max_array_len=BATCH_TASKS,
            max_map_len=_DEPTH_FIELDS,
            max_str_len=MESSAGE_BYTES,
            max_bin_len=MESSAGE_BYTES,
            max_ext_len=0,
        )
    except DecodeError:
        raise
    except Exception as error:  # msgpack raises many kinds, StackError and UnicodeDecodeError too
        raise DecodeError(f"not msgpack: {type(error).__name__}: {error}") from error
    if not isinstance(fields, dict):
        raise DecodeError("not a map")
    if fields.get("v") != _VERSION or isinstance(fields["v"], bool):
        raise DecodeError(f"v: {fields.get('v')!r}, this release speaks {_VERSION}")
    name = fields.get("type")
    cls = _classes().get(name) if isinstance(name, str) else None
    if cls is None:
        raise DecodeError(f"type: unknown message {name!r:.80}")
    epoch = fields.get("epoch", 0)
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 2**63:
        raise DecodeError("epoch: not a whole number")
    return Envelope(_dataclass_decoder(cls)(fields, str(name)), epoch)


def pack(value: object) -> bytes:
    """Any value of `messages` as bytes, without envelope and limits: for columns and digests."""
    packed: bytes = msgpack.packb(_plain(value), use_bin_type=True)
    return packed


def unpack(data: bytes, hint: Any) -> Any:
    """The inverse of `pack` for the type `hint`; DecodeError when the bytes are damaged."""
    try:
        plain = msgpack.unpackb(data, raw=False, object_pairs_hook=_no_duplicates)
    except Exception as error:
        raise DecodeError(f"not msgpack: {type(error).__name__}: {error}") from error
    return _decoder(hint)(plain, "value")


@functools.cache
def _classes() -> dict[str, type[Any]]:
    return {type_name(cls): cls for cls in typing.get_args(Message)}


def _plain(value: Any) -> object:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return {field: _plain(getattr(value, field)) for field in _field_names(type(value))}


def _field_names(cls: Any) -> tuple[str, ...]:
    names = _FIELD_NAMES.get(cls)
    if names is None:
        names = _FIELD_NAMES[cls] = tuple(field.name for field in dataclasses.fields(cls))
    return names


def _no_duplicates(pairs: list[tuple[object, object]]) -> dict[object, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise DecodeError("a map names the same key twice")
    return fields


@functools.cache
def _decoder(hint: Any) -> Decoder:
    """A function that checks and converts one value of the type `hint`, built once a type."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *bounds = typing.get_args(hint)
        return _bounded(_decoder(inner), tuple(bounds))
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(typing.get_args(hint))
    if origin is tuple:
        item = _decoder(typing.get_args(hint)[0])
        return lambda value, where: _decode_tuple(item, value, where)
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        if hint is ErrorClass or hint is Reason:
            # An agent of the next release repeats its failure until it is stored: dropped, it would be for ever;
            # and a client waits for an explanation that it could read but for one word.
            return lambda value, where: _decode_enum(members, value, where, hint("other"))
        return lambda value, where: _decode_enum(members, value, where)
    return lambda value, where: _decode_scalar(hint, value, where)


def _dataclass_decoder(cls: Any) -> Decoder:
    decoder = _DATACLASS_DECODERS.get(cls)
    if decoder is None:
        decoder = _DATACLASS_DECODERS[cls] = _build_dataclass_decoder(cls)
    return decoder


def _build_dataclass_decoder(cls: Any) -> Decoder:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [
        (field.name, _decoder(hints[field.name]), field.default is dataclasses.MISSING)
        for field in dataclasses.fields(cls)
    ]

    def decode_fields(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise _WrongTypeError(f"{where}: not a map")
        taken = {}
        for name, decoder, required in fields:
            if name in value:
                taken[name] = decoder(value[name], f"{where}.{name}")
            elif required:
                raise DecodeError(f"{where}.{name}: missing")
        return cls(**taken)

    return decode_fields


def _union_decoder(options: tuple[Any, ...]) -> Decoder:
    """One of several types; None and scalars are told apart by what msgpack read."""
    decoders = [_decoder(option) for option in options if option is not type(None)]
    may_be_none = type(None) in options

    def decode_one(value: object, where: str) -> Any:
        if value is None and may_be_none:
            return None
        for decoder in decoders:
            try:
                return decoder(value, where)
            except _WrongTypeError:
                continue
        raise _WrongTypeError(f"{where}: {type(value).__name__} does not fit")

    return decode_one


def _decode_tuple(item: Decoder, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _WrongTypeError(f"{where}: not a list")
    return tuple(item(element, where) for element in value)


def _decode_enum(members: dict[Any, Any], value: object, where: str, unknown: Enum | None = None) -> Any:
    if not isinstance(value, str) or (value not in members and unknown is None):
        raise DecodeError(f"{where}: {value!r:.80} is none of {', '.join(members)}")
    return members.get(value, unknown)


def _decode_scalar(kind: type, value: object, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # exactly: True is no int here
        raise _WrongTypeError(f"{where}: {type(value).__name__} where {kind.__name__} is due")
    if isinstance(value, float) and not math.isfinite(value):
        raise DecodeError(f"{where}: not a finite number")
    return value


def _bounded(inner: Decoder, bounds: tuple[object, ...]) -> Decoder:
    def decode_bounded(value: object, where: str) -> Any:
        # Sizes before contents: a list of a million items is refused before its items are read.
        for bound in bounds:
            _check(bound, value, where)
        return inner(value, where)

    return decode_bounded


def _check(bound: object, value: Any, where: str) -> None:
    match bound:
        case Chars(most, least) if isinstance(value, str):
            _within(len(value), least, most, "characters", where)
        case Size(most, least) if isinstance(value, bytes):
            _within(len(value), least, most, "bytes", where)
        case Count(most) if isinstance(value, list):
            _within(len(value), 0, most, "items", where)
        case Between(least_number, most_number) if isinstance(value, int | float):
            if not least_number <= value <= most_number:
                raise DecodeError(f"{where}: {value} is not within {least_number:g} to {most_number:g}")
        case _:
            pass  # another type: the decoder behind says so


def _within(size: int, least: int, most: int, unit: str, where: str) -> None:
    if not least <= size <= most:
        raise DecodeError(f"{where}: {size} {unit}, {least} to {most} are allowed")
