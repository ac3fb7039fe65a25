"""koubou-ctl join: a key first on disk, then enrolled, then settings that use it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_client.where import find_broker, home_of
from koubou_common.client_settings import load_client_settings
from koubou_common.errors import Code, KoubouError
from koubou_common.home import Home
from koubou_common.keys import new_key_pair, read_key_pair, write_key_pair, write_public
from koubou_common.messages import Enrol, Enrolled
from koubou_common.messages.values import Role, WorkerConfig
from koubou_common.tokens import JoinToken, encode_token
from support.broker_play import BrokerPlay, a_broker
from support.ctl import Ctl, Ran
from support.fake_broker import FakeBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main") as broker:
        yield broker


@pytest.fixture
def mika(tmp_path: Path) -> Ctl:
    """A laptop without anything."""
    return Ctl(tmp_path / "mika")


def token_for(broker: BrokerPlay, name: str = "mika-laptop", role: str = "client") -> str:
    return Ctl(broker.home.root)("keys", "invite", name, "--role", role, "-q").out.strip()


def test_a_token_makes_a_key_and_settings_that_work(broker: BrokerPlay, mika: Ctl) -> None:
    ran = mika("join", token_for(broker))
    assert ran.code == 0
    assert "joined as mika-laptop (client)" in ran.out
    assert ran.out.splitlines()[-1] == f"next: koubou-ctl --home {mika.home} status"
    config = mika.home / "config" / "client.yaml"
    key = mika.home / "keys" / "clients" / "mika-laptop.key"
    assert config.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_mode & 0o777 == 0o600
    assert load_client_settings(config).broker_addresses == (broker.address,)
    assert mika("status", "--json").data["principal"] == "mika-laptop"


def test_a_token_from_stdin_may_be_broken_into_lines(broker: BrokerPlay, mika: Ctl) -> None:
    token = token_for(broker, role="operator")
    folded = "\n".join(token[i : i + 60] for i in range(0, len(token), 60))
    data = mika("join", "-", "--json", stdin=folded.encode()).data
    assert (data["name"], data["role"], data["addresses"]) == ("mika-laptop", "operator", [broker.address])
    assert mika("keys", "list").code == 0


def test_a_used_token_changes_nothing(broker: BrokerPlay, mika: Ctl, tmp_path: Path) -> None:
    token = token_for(broker)
    assert mika("join", token).code == 0
    assert mika("status").code == 0
    thief = Ctl(tmp_path / "thief")
    ran = thief("join", token, "--json")
    assert (ran.code, ran.error["code"]) == (7, "token_used")
    assert not (thief.home / "config" / "client.yaml").exists()
    assert mika("status").code == 0


@pytest.mark.parametrize("spoil", [lambda t: t[:-1], lambda t: t[:30] + "x" + t[31:], lambda t: "hello"])
def test_a_damaged_token_is_found_out_before_anything_is_sent(broker: BrokerPlay, mika: Ctl, spoil: object) -> None:
    assert callable(spoil)
    ran = mika("join", spoil(token_for(broker)), "--json")
    assert (ran.code, ran.error["code"]) == (7, "token_invalid")
    assert not mika.home.exists()


def test_a_box_s_token_is_sent_to_the_right_command(broker: BrokerPlay, mika: Ctl) -> None:
    token = Ctl(broker.home.root)("workers", "invite", "lan_001", "-q").out.strip()
    ran = mika("join", token, "--json")
    assert ran.code == 7
    assert "koubou-agent join" in ran.error["hint"]


def test_earlier_settings_are_kept_aside(broker: BrokerPlay, mika: Ctl) -> None:
    config = mika.home / "config" / "client.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("broker_addresses: tcp://other:5570\n")
    ran = mika("join", token_for(broker))
    kept = config.with_name("client.yaml.before-join")
    assert str(kept) in ran.out
    assert kept.read_text() == "broker_addresses: tcp://other:5570\n"


@pytest.fixture
def play() -> Iterator[FakeBroker]:
    with FakeBroker(WorkerConfig("lan_001", "tiny", ("*",), slots=1)) as made:
        yield made


def a_token(play: FakeBroker, name: str) -> str:
    pair = play.enrolled(name, Role.ENROL)
    expires_s = int(time.time()) + 600
    return encode_token(JoinToken((play.address,), play.pair.public, pair.secret, Role.CLIENT, name, expires_s))


def test_the_key_is_on_disk_before_it_is_sent_and_no_settings_are_before_the_answer(
    play: FakeBroker, mika: Ctl
) -> None:
    ended: list[Ran] = []
    joining = threading.Thread(target=lambda: ended.append(mika("join", a_token(play, "mika"))))
    joining.start()
    request = play.expect(Enrol)
    pending = mika.home / "keys" / "clients" / "mika.key.pending"
    assert read_key_pair(pending).public == request.public_key
    assert not (mika.home / "config" / "client.yaml").exists()
    play.send(Enrolled(request.request_id, "mika", Role.CLIENT, request.public_key))
    joining.join(30)
    assert [ran.code for ran in ended] == [0]
    assert not pending.exists()


@pytest.mark.parametrize("name", ["../../authorized", "a/b", "..", ".", "con"])
def test_a_name_that_would_choose_a_file_is_refused(play: FakeBroker, mika: Ctl, name: str) -> None:
    ran = mika("join", a_token(play, name), "--json")
    assert (ran.code, ran.error["code"]) == (7, "token_invalid")
    assert not mika.home.exists()


def test_an_account_without_a_home_operates_the_service_if_it_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    service, own = Home(tmp_path / "service"), Home(tmp_path / "own")
    assert home_of({}, service_home=service.root) == Home(tmp_path / ".koubou")  # no service is there yet
    service.create()
    write_public(service.public_key_file("broker"), new_key_pair().public)
    assert home_of({}, service_home=service.root) == service
    assert home_of({"KOUBOU_HOME": str(own.root)}, service_home=service.root) == own
    assert home_of({}, own.root, service_home=service.root) == own


def test_a_broker_that_does_not_run_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(KoubouError, match="no broker is known") as error:
        find_broker({}, home.root)
    assert error.value.code is Code.BAD_CONFIGURATION
    home.create()
    write_public(home.public_key_file("broker"), new_key_pair().public)
    write_key_pair(home.key_file("operator"), new_key_pair())
    with pytest.raises(KoubouError, match="does not run") as error:
        find_broker({}, home.root)
    assert error.value.code is Code.BROKER_UNREACHABLE
