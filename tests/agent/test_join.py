"""Joining over a real link: by token on another box, and by itself on the broker's own host."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from koubou_agent.config import agent_config, key_file
from koubou_agent.join import ensure_key, join
from koubou_common import durable
from koubou_common import enrol as enrol_module
from koubou_common.enrol import enrol
from koubou_common.errors import Code, ConfigError, KoubouError
from koubou_common.home import Home
from koubou_common.keys import new_key_pair, read_key_pair, write_key_pair, write_public
from koubou_common.messages import Enrol, Enrolled, Error, Invite, Invited
from koubou_common.messages.values import Role, WorkerConfig
from koubou_common.tokens import JoinToken, encode_token
from support.fake_broker import FakeBroker

Value = TypeVar("Value")

HOUR_S = 3600


class Doing(Generic[Value]):
    """Something that runs in a thread while the test plays the broker."""

    def __init__(self, work: Callable[[], Value]) -> None:
        self._work = work
        self._value: list[Value] = []
        self._error: list[KoubouError] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except KoubouError as error:
            self._error.append(error)

    def result(self) -> Value:
        self._thread.join(30)
        if self._error:
            raise self._error[0]
        return self._value[0]


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker(WorkerConfig("lan_001", "tiny", ("*",), slots=1)) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def a_token(
    broker: FakeBroker, *, role: Role = Role.WORKER, name: str = "lan_001", expires_in_s: int = HOUR_S
) -> JoinToken:
    pair = broker.enrolled("lan_001", Role.ENROL)
    return JoinToken((broker.address,), broker.pair.public, pair.secret, role, name, int(time.time()) + expires_in_s)


def enrolled(broker: FakeBroker, request: Enrol, name: str = "lan_001") -> None:
    broker.access.allow(request.public_key, name, Role.WORKER)
    broker.send(Enrolled(request.request_id, name, Role.WORKER, request.public_key))


def test_a_token_becomes_a_key_and_settings(broker: FakeBroker, home: Home) -> None:
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    request = broker.expect(Enrol)
    pending = key_file(home, "lan_001").with_name("lan_001.key.pending")
    assert read_key_pair(pending).public == request.public_key  # durable before it is sent
    enrolled(broker, request)
    done = doing.result()
    assert done.worker_id == "lan_001"
    assert done.config_file.stat().st_mode & 0o777 == 0o600
    config = agent_config(home)
    assert config.worker_id == "lan_001"
    assert config.addresses == (broker.address,)
    assert config.server_key == broker.pair.public
    assert read_key_pair(config.key_file).public == request.public_key
    assert not pending.exists()


def test_a_lost_answer_is_made_good_by_the_same_key(
    broker: FakeBroker, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol_module, "_RESEND_S", 0.2)
    token = a_token(broker)
    write_key_pair(key_file(home, "lan_001").with_name("lan_001.key.pending"), left := new_key_pair())
    doing = Doing(lambda: join(encode_token(token), home))
    request = broker.expect(Enrol)
    assert request.public_key == left.public
    assert broker.expect(Enrol) == request  # unanswered, it is repeated
    enrolled(broker, request)
    doing.result()
    assert read_key_pair(key_file(home, "lan_001")) == left


def test_a_key_left_over_from_an_older_token_is_replaced(broker: FakeBroker, home: Home) -> None:
    write_key_pair(key_file(home, "lan_001").with_name("lan_001.key.pending"), left := new_key_pair())
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    request = broker.expect(Enrol)
    broker.send(Error(Code.REFUSED, "this key is bound to a name already", "", request.request_id))
    second = broker.expect(Enrol)
    assert second.public_key != left.public
    enrolled(broker, second)
    doing.result()
    assert read_key_pair(key_file(home, "lan_001")).public == second.public_key
    assert [path.name for path in (home.keys / "agents").iterdir()] == ["lan_001.key"]


def test_joining_again_replaces_the_key_and_keeps_the_settings_aside(broker: FakeBroker, home: Home) -> None:
    home.create()
    write_key_pair(key_file(home, "lan_001"), old := new_key_pair())
    home.config_file("agent").write_text("worker_id: lan_001\nollama_parallel: 4\n")
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    enrolled(broker, broker.expect(Enrol))
    done = doing.result()
    assert read_key_pair(key_file(home, "lan_001")) != old
    assert done.kept_as is not None
    assert "ollama_parallel: 4" in done.kept_as.read_text()


def test_the_same_line_may_be_repeated_until_its_key_connects(broker: FakeBroker, home: Home) -> None:
    home.create()
    home.config_file("agent").write_text("worker_id: lan_001\nollama_parallel: 4\n")
    line = encode_token(a_token(broker))
    doing = Doing(lambda: join(line, home))
    first = broker.expect(Enrol)
    enrolled(broker, first)
    kept = doing.result().kept_as
    again = Doing(lambda: join(line, home))
    other = broker.expect(Enrol)
    broker.send(Error(Code.TOKEN_USED, "this token was used already", "", other.request_id))
    repeated = broker.expect(Enrol)
    assert repeated.public_key == first.public_key
    enrolled(broker, repeated)
    assert again.result().worker_id == "lan_001"
    assert read_key_pair(key_file(home, "lan_001")).public == first.public_key
    assert kept is not None
    assert "ollama_parallel: 4" in kept.read_text(), "what was set aside first is still there"
    assert [path.name for path in (home.keys / "agents").iterdir()] == ["lan_001.key"]


def test_an_enrolled_key_survives_a_loss_of_power(
    broker: FakeBroker, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename, sync = Path.replace, durable.sync_folder

    def renamed(source: Path, target: Path) -> Path:
        steps.append(f"rename {target.name}")
        return rename(source, target)

    def synced(folder: Path) -> None:
        steps.append(f"sync {folder.name}")
        sync(folder)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(durable, "sync_folder", synced)
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    request = broker.expect(Enrol)
    before = len(steps)
    enrolled(broker, request)
    doing.result()
    assert steps[before : before + 2] == ["rename lan_001.key", "sync agents"]


def test_a_second_worker_of_a_box_gets_settings_of_its_own(broker: FakeBroker, home: Home) -> None:
    home.create()
    home.config_file("agent").write_text("worker_id: other\n")
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    enrolled(broker, broker.expect(Enrol))
    assert doing.result().config_file == home.config_file("agent-lan_001")
    assert agent_config(home, worker_id="lan_001").server_key == broker.pair.public
    assert home.config_file("agent").read_text() == "worker_id: other\n"


@pytest.mark.parametrize("code", [Code.TOKEN_USED, Code.TOKEN_INVALID])
def test_what_the_broker_refuses_is_told_and_no_key_is_taken_for_enrolled(
    broker: FakeBroker, home: Home, code: Code
) -> None:
    doing = Doing(lambda: join(encode_token(a_token(broker)), home))
    request = broker.expect(Enrol)
    broker.send(Error(code, "this token was used already", "ask for another", request.request_id))
    with pytest.raises(KoubouError, match="used already") as error:
        doing.result()
    assert error.value.code is code
    assert not list((home.keys / "agents").iterdir()), "neither an enrolled key nor one that waits"
    assert not home.config_file("agent").exists()


def test_a_token_whose_key_was_revoked_is_called_used(broker: FakeBroker, home: Home) -> None:
    token = a_token(broker)
    broker.access.revoke(token.enrol_pair.public)
    with pytest.raises(KoubouError, match="used, withdrawn, or has expired") as error:
        join(encode_token(token), home)
    assert error.value.code is Code.TOKEN_USED


def test_a_persons_token_is_refused_before_anything_is_sent(broker: FakeBroker, home: Home) -> None:
    with pytest.raises(KoubouError, match="not a box") as error:
        join(encode_token(a_token(broker, role=Role.CLIENT)), home)
    assert "koubou-ctl join" in error.value.hint
    assert not home.root.exists()


def test_an_answer_that_never_comes_ends_with_what_to_do(broker: FakeBroker) -> None:
    with pytest.raises(KoubouError, match=r"did not answer within 0\.5 s"):
        enrol(a_token(broker), new_key_pair(), timeout_s=0.5)


def at_home(home: Home, broker: FakeBroker, workers: str) -> None:
    home.create()
    write_public(home.public_key_file("broker"), broker.pair.public)
    write_key_pair(home.key_file("operator"), operator := new_key_pair())
    broker.access.allow(operator.public, "operator", Role.OPERATOR)
    (home.state / "broker.address").write_text(broker.address + "\n")
    home.config_file("workers").write_text(workers)


LOCAL = """
workers:
  local_workers:
    - {worker_id: here_1, model: tiny}
  remote_workers:
    - {worker_id: far_1, model: tiny}
"""


def test_on_the_brokers_own_host_the_agent_enrols_itself(broker: FakeBroker, home: Home) -> None:
    at_home(home, broker, LOCAL)
    config = agent_config(home)
    assert config.worker_id == "here_1"  # the only local one
    doing = Doing(lambda: ensure_key(config))
    invite = broker.expect(Invite)
    assert (invite.name, invite.role) == ("here_1", Role.WORKER)
    broker.access.allow(invite.enrol_key, "here_1", Role.ENROL)
    expires_ms = int((time.time() + HOUR_S) * 1000)
    # Addresses for other machines: this one must go on using the one that works from here.
    broker.send(Invited(invite.request_id, "here_1", Role.WORKER, expires_ms, ("tcp://192.0.2.1:5570",)))
    request = broker.expect(Enrol)
    enrolled(broker, request, "here_1")
    pair = doing.result()
    assert pair.public == request.public_key
    assert ensure_key(config) == pair  # from now on without the broker


def test_a_remote_worker_is_not_made_on_the_brokers_host(broker: FakeBroker, home: Home) -> None:
    at_home(home, broker, LOCAL)
    with pytest.raises(ConfigError, match="far_1 is one of remote_workers") as error:
        ensure_key(agent_config(home, worker_id="far_1"))
    assert "koubou-ctl workers invite far_1" in error.value.hint


def test_a_misspelt_worker_is_asked_about(broker: FakeBroker, home: Home) -> None:
    at_home(home, broker, LOCAL)
    with pytest.raises(ConfigError, match="no worker 'her_1'") as error:
        ensure_key(agent_config(home, worker_id="her_1"))
    assert "here_1" in error.value.hint


def test_a_box_without_key_and_broker_is_told_how_to_join(home: Home) -> None:
    home.create()
    with pytest.raises(ConfigError, match="no broker is known here") as error:
        agent_config(home, worker_id="lan_001")
    assert "koubou-agent join" in error.value.hint
    write_public(home.public_key_file("broker"), new_key_pair().public)
    with pytest.raises(ConfigError, match="no key yet") as error:
        ensure_key(agent_config(home, worker_id="lan_001"))
    assert "koubou-ctl workers invite lan_001" in error.value.hint


def test_an_ollama_of_another_machine_is_refused_unless_allowed(broker: FakeBroker, home: Home) -> None:
    at_home(home, broker, LOCAL)
    with pytest.raises(ConfigError, match="leaves this host"):
        agent_config(home, worker_id="here_1", ollama_url="http://192.168.1.9:11434")
    home.config_file("agent").write_text("allow_remote_ollama: true\n")
    config = agent_config(home, worker_id="here_1", ollama_url="http://192.168.1.9:11434")
    assert config.ollama_url == "http://192.168.1.9:11434"


def test_a_box_driven_from_here_needs_the_workshops_word_for_it(broker: FakeBroker, home: Home) -> None:
    entry = "{worker_id: far_1, model: tiny, remote_host: 192.168.1.9, agent: here}"
    at_home(home, broker, f"workers: {{remote_workers: [{entry}]}}\n")
    with pytest.raises(ConfigError, match="leaves this host") as error:
        agent_config(home)
    assert "allow_remote_ollama: true" in error.value.hint
    home.config_file("broker").write_text("allow_remote_ollama: true\n")
    config = agent_config(home)
    assert (config.worker_id, config.ollama_url) == ("far_1", "http://192.168.1.9:11434")
