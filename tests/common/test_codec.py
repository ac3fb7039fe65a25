"""The codec: what goes in comes out, and nothing else gets through."""

import contextlib
import dataclasses
import math
import typing

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koubou_common import messages
from koubou_common.codec import DecodeError, EncodeError, decode, encode, pack, type_name, unpack
from koubou_common.errors import Category, ErrorClass, category_of
from koubou_common.messages import BlobChunk, Error, Failure, Heartbeat, HeartbeatAck, Preview, Submit
from koubou_common.messages.limits import MESSAGE_BYTES, Between, Chars, Count, Size
from koubou_common.messages.values import (
    AgentStatus,
    Body,
    Candidate,
    File,
    Label,
    Metrics,
    Option,
    Plan,
    ReasonCount,
    TaskSpec,
    WorkerMode,
)
from koubou_common.reasons import Reason

CLASSES = typing.get_args(messages.Message)
BODY = Body(bytes(32), 5, b"hello")


def values(hint: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Any value that fits a field's type and limits."""
    bounds: tuple[typing.Any, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *rest = typing.get_args(hint)
        bounds = tuple(rest)
    if typing.get_origin(hint) is typing.Annotated:
        return values(hint)
    if typing.get_origin(hint) is tuple:
        most = min(next((bound.most for bound in bounds if isinstance(bound, Count)), 3), 3)
        return st.lists(values(typing.get_args(hint)[0]), max_size=most).map(tuple)
    if hint is type(None):
        return st.none()
    if typing.get_args(hint):
        return st.one_of([values(option) for option in typing.get_args(hint)])
    if dataclasses.is_dataclass(hint):
        return instances(typing.cast(type[typing.Any], hint))
    if hint is bool:
        return st.booleans()
    for bound in bounds:
        match bound:
            case Chars(most, least):
                return st.text(st.characters(codec="utf-8"), min_size=least, max_size=max(least, min(most, 8)))
            case Size(most, least):
                return st.binary(min_size=least, max_size=max(least, min(most, 8)))
            case Between(least_number, most_number) if hint is int:
                return st.integers(int(least_number), int(most_number))
            case Between(least_number, most_number):
                return st.floats(least_number, most_number)
    if hint is int:
        return st.integers(-(2**53), 2**53)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return st.sampled_from(list(hint))


def instances(cls: type[typing.Any]) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), epoch=st.integers(0, 2**62))
def test_every_message_comes_back_as_it_went(cls: type[typing.Any], data: st.DataObject, epoch: int) -> None:
    message = data.draw(instances(cls))
    envelope = decode(encode(message, epoch))
    assert envelope.message == message
    assert envelope.epoch == epoch


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_decode_error(noise: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(noise)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_message_with_one_byte_changed_is_a_message_or_a_decode_error(place: int, byte: int) -> None:
    data = bytearray(encode(a_submit(), 3))
    data[place % len(data)] = byte
    with contextlib.suppress(DecodeError):
        decode(bytes(data))


def a_submit() -> Submit:
    spec = TaskSpec(
        BODY,
        files=(File("a.py", BODY),),
        options=(Option("stop", ("a", "b")),),
        labels=(Label("gpu", "3090"),),
    )
    return Submit("r1", "key", (spec,))


def altered(**changes: object) -> bytes:
    fields = msgpack.unpackb(encode(a_submit()))
    for name, value in changes.items():
        if value is ...:
            del fields[name]
        else:
            fields[name] = value
    packed: bytes = msgpack.packb(fields)
    return packed


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb([1]), "not a map"),
        (altered(v=2), "v: 2"),
        (altered(v=True), "v: True"),
        (altered(type="nonsense"), "unknown message 'nonsense'"),
        (altered(type=5), "unknown message 5"),
        (altered(request_id=...), "request_id: missing"),
        (altered(request_id=5), "int where str is due"),
        (altered(request_id=""), "0 characters, 1 to 64"),
        (altered(request_id="x" * 65), "65 characters"),
        (altered(parts=1.0), "float where int is due"),
        (altered(parts=True), "bool where int is due"),
        (altered(parts=-1), "not within 0"),
        (altered(parts=2**53 + 1), "not within 0"),
        (altered(tasks={}), "not a list"),
        (altered(tasks=[{}] * 501), "501 items"),
        (altered(tasks=[5]), "not a map"),
        (altered(as_batch=1), "int where bool is due"),
        (altered(epoch=-1), "epoch"),
        (altered(epoch="7"), "epoch"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (b"\x82\xa1v\x01\xa1v\x01", "same key twice"),
        (msgpack.packb({"v": msgpack.ExtType(4, b"x")}), "not msgpack"),
        (b"\xdd\x7f\xff\xff\xff", "not msgpack"),
        (b"\x91" * 5_000 + b"\x90", "not msgpack"),
        (encode(a_submit()) + b"\x00", "not msgpack"),
        (b"\x81\xa1v\xa2\xff\xfe", "not msgpack"),
    ],
)
def test_what_is_no_message_is_refused_with_the_place(data: bytes, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        decode(data)


def test_nan_and_infinity_are_refused() -> None:
    for number in (math.nan, math.inf):
        spec = dataclasses.replace(a_submit().tasks[0], options=(Option("temperature", number),))
        with pytest.raises(DecodeError, match="not a finite number"):
            decode(encode(Submit("r", "k", (spec,))))


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    assert decode(altered(novelty=[1, 2, {"deep": True}])).message == a_submit()


def test_an_error_class_of_a_newer_peer_is_one_that_is_known_and_other_words_are_not() -> None:
    """An agent repeats a failure until it is stored: what is dropped would hold its task for ever."""
    failure = Failure("0" * 32, ErrorClass.STALLED, "it hung", Metrics(), "", AgentStatus())
    fields = msgpack.unpackb(encode(failure))
    read = decode(msgpack.packb({**fields, "error_class": "ray_from_space"})).message
    assert read == dataclasses.replace(failure, error_class=ErrorClass.OTHER)
    assert category_of(ErrorClass.OTHER) is Category.TRANSIENT
    with pytest.raises(DecodeError, match="error_class"):
        decode(msgpack.packb({**fields, "error_class": 7}))
    ack = msgpack.unpackb(encode(HeartbeatAck(0, WorkerMode.ACTIVE)))
    with pytest.raises(DecodeError, match="'asleep' is none of active"):
        decode(msgpack.packb({**ack, "mode": "asleep"}))


def test_a_reason_of_a_newer_broker_costs_one_word_and_not_the_answer() -> None:
    workers = (ReasonCount(Reason.BUSY, 2), ReasonCount(Reason.PAUSED, 1))
    plan = Plan("m", 12, "a rule", (Candidate("w1", True, False, 1.0, "in orbit", Reason.BUSY),), "", reasons=workers)
    fields = msgpack.unpackb(encode(Preview("r", (plan,))))
    fields["plans"][0]["candidates"][0]["code"] = fields["plans"][0]["reasons"][0]["reason"] = "in_orbit"
    read = decode(msgpack.packb(fields)).message
    assert isinstance(read, Preview)
    assert (read.plans[0].candidates[0].code, read.plans[0].candidates[0].reason) == (Reason.OTHER, "in orbit")
    assert [one.reason for one in read.plans[0].reasons] == [Reason.OTHER, Reason.PAUSED]


def test_a_message_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(EncodeError, match="at most 1000000"):
        encode(BlobChunk(bytes(32), 0, bytes(MESSAGE_BYTES)))
    with pytest.raises(DecodeError, match="at most 1000000"):
        decode(bytes(MESSAGE_BYTES + 1))


def test_type_names_are_snake_case_and_unique() -> None:
    assert type_name(Error) == "error"
    assert type_name(Heartbeat(0, 0, AgentStatus(), None)) == "heartbeat"
    assert len({type_name(cls) for cls in CLASSES}) == len(CLASSES)


def test_a_column_comes_back_as_it_went_and_damage_is_noticed() -> None:
    options = (Option("temperature", 0.5), Option("stop", ("x",)), Option("seed", 7))
    packed = pack(options)
    assert unpack(packed, tuple[Option, ...]) == options
    with pytest.raises(DecodeError):
        unpack(packed[:-1], tuple[Option, ...])


def test_no_field_is_named_like_the_envelope() -> None:
    for cls in CLASSES:
        assert not {"v", "type", "epoch"} & {field.name for field in dataclasses.fields(cls)}
