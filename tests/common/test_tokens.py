"""Join tokens: everything wrong with one is said before anything is sent."""

import base64
import dataclasses
import hashlib
import itertools

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_common.errors import Code, KoubouError
from koubou_common.keys import new_key_pair
from koubou_common.messages.values import Role
from koubou_common.tokens import TOKEN_CHARS, TOKEN_PREFIX, JoinToken, decode_token, encode_token

NOW_S = 1_800_000_000.0
ENROL = new_key_pair()
SERVER = new_key_pair().public


def a_token(
    addresses: tuple[str, ...] = ("tcp://192.168.1.10:5570",),
    role: Role = Role.WORKER,
    name: str = "lan_001",
    expires_s: int = int(NOW_S) + 3_600,
) -> JoinToken:
    return JoinToken(addresses, SERVER, ENROL.secret, role, name, expires_s)


def line_of(fields: object) -> str:
    """A token with a right checksum over whatever it holds."""
    body = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    checksum = hashlib.sha256(b"kbj1_" + body).digest()[:6]
    return TOKEN_PREFIX + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def refusal(line: str, now_s: float = NOW_S) -> KoubouError:
    with pytest.raises(KoubouError) as caught:
        decode_token(line, now_s)
    assert caught.value.code is Code.TOKEN_INVALID
    assert caught.value.hint
    assert ENROL.secret not in caught.value.message + caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "token",
    [
        a_token(),
        a_token(role=Role.CLIENT, name="mika-laptop"),
        a_token(role=Role.OPERATOR, name="\u89aa\u65b9"),
        a_token(name="\U0001f528" * 64),
        a_token(addresses=tuple(f"tcp://{'a' * 230}.example:{5_570 + n}" for n in range(8))),
        a_token(addresses=("tcp://[fd00::10]:5570", "tcp://workshop.local:5570")),
    ],
)
def test_a_token_survives_its_line(token: JoinToken) -> None:
    line = encode_token(token)
    assert line.startswith("kbj1_")
    assert len(line) <= TOKEN_CHARS
    assert decode_token(line, NOW_S) == token


def test_an_ordinary_token_fits_three_lines_of_a_terminal() -> None:
    assert len(encode_token(a_token())) < 240


def test_the_enrolment_key_is_whole_again_and_never_shown() -> None:
    token = decode_token(encode_token(a_token()), NOW_S)
    assert token.enrol_pair == ENROL
    assert ENROL.secret not in repr(token)


def test_line_breaks_of_terminals_and_chats_do_not_matter() -> None:
    line = encode_token(a_token())
    assert decode_token(f"  {line[:40]}\n{line[40:80]}\r\n  {line[80:]}\n", NOW_S) == a_token()


def test_every_cut_is_noticed() -> None:
    line = encode_token(a_token())
    for length in range(len(line)):
        refusal(line[:length])


def test_every_changed_character_is_noticed() -> None:
    line = encode_token(a_token())
    for position in range(len(line)):
        for other in "A_9\u5de5":
            if line[position] != other:
                refusal(line[:position] + other + line[position + 1 :])


@given(st.text(max_size=300))
def test_no_text_does_anything_but_a_clear_refusal(text: str) -> None:
    refusal(text)
    refusal(TOKEN_PREFIX + text)


@given(st.binary(max_size=300))
def test_no_content_under_a_right_checksum_does_anything_but_a_clear_refusal(body: bytes) -> None:
    refusal(line_of(body))


def test_the_reasons_are_told_apart() -> None:
    line = encode_token(a_token())
    assert "damaged or cut" in refusal(line[:-3]).message
    assert "not a join token" in refusal("ssh-ed25519 AAAA").message
    assert "not a join token" in refusal("").message
    assert "another version" in refusal("kbj2_" + line[5:]).message
    assert "too long" in refusal(line + "A" * TOKEN_CHARS).message
    assert "not made by a Koubou" in refusal(line_of({"a": 1})).message


def test_an_expired_token_says_when_and_thinks_of_the_clock() -> None:
    line = encode_token(a_token(expires_s=int(NOW_S)))
    decode_token(line, NOW_S - 1)
    error = refusal(line, NOW_S + 600)
    assert "11 min ago" in error.message
    assert "lan_001" in error.message
    assert "clock" in error.hint


FIELDS = [["tcp://10.0.0.1:5570"], SERVER, ENROL.secret, "worker", "lan_001", int(NOW_S) + 60]


def test_the_fields_themselves_are_a_good_token() -> None:
    assert decode_token(line_of(FIELDS), NOW_S).name == "lan_001"


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, []),
        (0, ["tcp://10.0.0.1:5570"] * 9),
        (0, ["udp://10.0.0.1:5570"]),
        (0, ["tcp://10.0.0.1"]),
        (0, ["tcp://0.0.0.0:5570"]),
        (0, ["tcp://" + "a." * 130 + "b:5570"]),
        (0, [1]),
        (0, "tcp://10.0.0.1:5570"),
        (1, SERVER[:-1]),
        (1, b"x" * 32),
        (2, "~" * 40),
        (3, "enrol"),
        (3, "removed"),
        (3, "king"),
        (4, ""),
        (4, "a" * 65),
        (4, "a\x1b[31m"),
        (4, 7),
        (5, True),
        (5, 0),
        (5, 2**60),
        (5, "tomorrow"),
        (5, 1.5),
    ],
    ids=itertools.count(),  # one of the values is a fresh key: as an id it would differ in every process
)
def test_made_up_fields_are_refused(position: int, value: object) -> None:
    fields: list[object] = list(FIELDS)
    fields[position] = value
    refusal(line_of(fields))


def test_more_or_fewer_fields_are_refused() -> None:
    refusal(line_of(FIELDS[:-1]))
    refusal(line_of([*FIELDS, 1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": Role.ENROL},
        {"name": ""},
        {"addresses": ()},
        {"server_key": "short"},
        {"expires_s": -1},
    ],
)
def test_a_token_that_nobody_could_use_is_not_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_token(dataclasses.replace(a_token(), **wrong))  # type: ignore[arg-type]  # wrong on purpose
