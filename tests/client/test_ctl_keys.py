"""koubou-ctl keys, against a whole broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_common.tokens import decode_token
from support.broker_play import BrokerPlay, a_broker
from support.ctl import Ctl


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main") as broker:
        yield broker


@pytest.fixture
def ctl(broker: BrokerPlay) -> Ctl:
    return Ctl(broker.home.root)


@pytest.fixture
def mika(ctl: Ctl, tmp_path: Path) -> Ctl:
    """A person who has joined as a client."""
    mika = Ctl(tmp_path / "mika")
    assert mika("join", "-", stdin=ctl("keys", "invite", "mika", "-q").raw).code == 0
    assert mika("status").code == 0
    return mika


def listed(ctl: Ctl, *arguments: str) -> list[tuple[str, str, str]]:
    keys = ctl("keys", "list", *arguments, "--json").data
    return [(key["name"], key["role"], key["state"]) for key in keys]


def test_a_new_broker_has_one_operator(ctl: Ctl) -> None:
    assert listed(ctl) == [("operator", "operator", "good")]
    header, row = ctl("keys", "list").out.splitlines()
    assert header.split() == ["NAME", "ROLE", "STATE", "FINGERPRINT", "AGE", "SEEN"]
    assert row.split()[:3] == ["operator", "operator", "good"]


def test_an_open_invitation_is_listed_with_the_time_it_has_left(ctl: Ctl) -> None:
    assert ctl("keys", "invite", "mika", "--ttl", "2h").code == 0
    assert ("mika", "enrol", "invited") in listed(ctl)
    assert "invited, 1 h 59 m left" in ctl("keys", "list").out


def test_who_joined_has_one_good_key_and_the_used_invitation_is_history(mika: Ctl, ctl: Ctl) -> None:
    assert listed(ctl) == [("operator", "operator", "good"), ("mika", "client", "good")]
    assert ("mika", "enrol", "revoked") in listed(ctl, "--all")


@pytest.mark.parametrize("role", ["client", "operator"])
def test_the_command_for_a_person_carries_the_role(ctl: Ctl, role: str) -> None:
    data = ctl("keys", "invite", "mika", "--role", role, "--json").data
    assert data["command"] == f"koubou-ctl join {data['token']}"
    assert (data["name"], data["role"]) == ("mika", role)
    assert decode_token(data["token"], 0).role == role


def test_a_box_is_not_invited_here(ctl: Ctl) -> None:
    ran = ctl("keys", "invite", "lan_001", "--role", "worker", "--json")
    assert ran.code == 2
    assert "worker" in ran.error["message"]


def test_a_revoked_person_is_refused(mika: Ctl, ctl: Ctl) -> None:
    assert "mika" in ctl("keys", "revoke", "mika").out
    ran = mika("status", "--json")
    assert (ran.code, ran.error["code"]) == (4, "key_not_enrolled")
    assert listed(ctl) == [("operator", "operator", "good")]


def test_the_last_operator_is_not_locked_out(ctl: Ctl) -> None:
    ran = ctl("keys", "revoke", "operator", "--json")
    assert ran.code == 7
    assert "last operator" in ran.error["message"]
    assert ctl("status").code == 0


def test_an_unknown_name_is_not_found(ctl: Ctl) -> None:
    assert ctl("keys", "revoke", "nobody").code == 5


def test_a_client_may_not_see_keys(mika: Ctl) -> None:
    for arguments in (("list",), ("invite", "eve"), ("revoke", "operator")):
        assert mika("keys", *arguments).code == 4, arguments
