"""koubou-ctl workers, against a whole broker."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from koubou_common.messages import Dispatch, Heartbeat, HeartbeatAck, Removed, Submit, Submitted
from koubou_common.messages.values import AgentHealth, ModelSeen, Role
from koubou_common.tokens import decode_token
from support.broker_play import BROKER, BrokerPlay, a_broker, a_configuration, a_spec, a_status, work_one
from support.ctl import Ctl


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main") as broker:
        yield broker


@pytest.fixture
def ctl(broker: BrokerPlay) -> Ctl:
    return Ctl(broker.home.root)


def state_of(ctl: Ctl, worker_id: str) -> str:
    state: str = ctl("workers", "show", worker_id, "--json").data["state"]
    return state


def test_the_list_shows_who_is_awaited_and_who_is_ready(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_001"):
        rows = ctl("workers", "list").out.splitlines()
        data = ctl("workers", "list", "--json").data
    assert rows[0].split()[:4] == ["WORKER", "STATE", "WHERE", "SLOTS"]
    assert rows[1].startswith("lan_001  ready")
    assert rows[2].startswith("lan_002  never seen")
    assert [(one["id"], one["state"], one["default_model"]) for one in data] == [
        ("lan_001", "ready", "gpt-oss:20b"),
        ("lan_002", "never seen", "gpt-oss:20b"),
    ]


def test_one_worker_is_shown_with_all_that_is_known(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_001"):
        text = ctl("workers", "show", "lan_001").out
    assert "Worker    lan_001 (local)" in text
    assert "Ollama    0.24.0" in text
    assert "Slots     0 of 2 in use" in text


def test_versions_and_foreign_load_are_shown(broker: BrokerPlay, ctl: Ctl) -> None:
    seen = (ModelSeen("gpt-oss:20b", digest="ab" * 32), ModelSeen("visitor:1b", loaded=True))
    health = AgentHealth(ollama_ok=True, models=seen)
    with broker.agent("lan_001") as agent:
        agent.ask(Heartbeat(1, 3, a_status(), health), HeartbeatAck)
        shown, listed = ctl("workers", "show", "lan_001").out, ctl("workers", "list").out
        data = ctl("workers", "show", "lan_001", "--json").data
    assert "tokens, version abababababab" in shown
    assert "Others    visitor:1b is loaded there, not for this broker" in shown
    assert "visitor:1b is loaded there" in listed
    assert data["foreign"] == "visitor:1b is loaded there, not for this broker"
    assert data["windows"][0]["digest"] == "ab" * 32


def test_an_unknown_worker_is_not_found(ctl: Ctl) -> None:
    ran = ctl("workers", "show", "lan_003", "--json")
    assert (ran.code, ran.error["code"]) == (5, "not_found")
    assert "lan_003" in ran.error["message"]
    assert ran.error["hint"] == "known are: lan_001, lan_002"


def test_a_worker_that_was_never_seen_answers_in_no_time(ctl: Ctl) -> None:
    assert "Seen      never\n" in ctl("workers", "show", "lan_002").out


def test_a_pause_holds_until_it_is_ended(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_001") as agent:
        assert ctl("workers", "pause", "lan_001").out == "lan_001 is paused\n"
        with broker.operator() as operator:
            operator.submit(a_spec())
        assert [message for message in agent.drain() if isinstance(message, Dispatch)] == []
        assert ctl("workers", "resume", "lan_001").out.startswith("lan_001 is ")
        work_one(agent)


def test_a_misspelt_worker_leaves_the_others_as_they_are(ctl: Ctl) -> None:
    assert ctl("workers", "pause", "lan_001", "lan_02").code == 5
    assert ctl("workers", "show", "lan_001", "--json").data["mode"] == "active"


def test_a_drain_waits_for_what_runs(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_001") as agent, broker.operator() as operator:
        operator.ask(Submit("r", "k", (a_spec(),)), Submitted)
        dispatch = agent.next(Dispatch)
        running = a_status((dispatch.attempt_uid,), free=1, last=dispatch.number)
        agent.ask(Heartbeat(1, 0, running, None), HeartbeatAck)
        assert "1 task still running" in ctl("workers", "drain", "lan_001").out
        late = ctl("workers", "drain", "lan_001", "--wait-timeout", "0.2s", "--json")
        assert (late.code, late.error["code"]) == (3, "wait_timed_out")
        assert "lan_001 still runs 1 task" in late.error["message"]
        agent.heard.append(dispatch)
        work_one(agent)
        assert ctl("workers", "drain", "lan_001", "--wait").code == 0
    assert ctl("workers", "show", "lan_001", "--json").data["mode"] == "draining"


def test_a_removed_worker_is_told_so_and_may_be_invited_again(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_001") as agent:
        assert "koubou-ctl workers invite lan_001" in ctl("workers", "remove", "lan_001").out
        agent.next(Removed)
    assert state_of(ctl, "lan_001") == "away"
    with broker.agent("lan_001"):
        assert state_of(ctl, "lan_001") == "ready"


def test_an_invitation_is_one_command_on_stdout_and_its_use_on_stderr(broker: BrokerPlay, ctl: Ctl) -> None:
    ran = ctl("workers", "invite", "lan_001")
    program, verb, line = ran.out.split()
    assert (program, verb) == ("koubou-agent", "join")
    token = decode_token(line, 0)
    assert (token.name, token.role, token.addresses) == ("lan_001", Role.WORKER, (broker.address,))
    assert "once, until " in ran.err
    assert "listens on this host alone" in ran.err


def test_the_loopback_is_left_out_of_an_invitation_where_the_broker_is_on_a_network(tmp_path: Path) -> None:
    addresses = "advertise: [tcp://127.0.0.1:5570, tcp://192.168.1.10:5570, 'tcp://[::1]:5570']\n"
    with a_broker(tmp_path / "main", a_configuration(BROKER + addresses)) as broker:
        ran = Ctl(broker.home.root)("workers", "invite", "lan_001", "--json")
    assert ran.data["addresses"] == ["tcp://192.168.1.10:5570"]
    assert ran.data["this_host_only"] is False
    assert decode_token(ran.data["token"], 0).addresses == ("tcp://192.168.1.10:5570",)


def test_an_invitation_in_json_says_when_it_ends(ctl: Ctl) -> None:
    data = ctl("workers", "invite", "lan_001", "--ttl", "10m", "--json").data
    assert data["command"] == f"koubou-agent join {data['token']}"
    assert data["expires_at"].endswith("Z")
    assert data["this_host_only"] is True
    assert ctl("workers", "invite", "lan_001", "-q").out.startswith("kbj1_")


@pytest.mark.parametrize("arguments", [("invite", "a b"), ("invite", "lan_001", "--ttl", "31d")])
def test_an_invitation_that_nobody_could_use_is_refused(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    ran = ctl("workers", *arguments, "--json")
    assert ran.code == 2
    assert ran.error["code"] == "bad_input"


def test_a_duration_that_is_none_is_a_usage_error(ctl: Ctl) -> None:
    assert ctl("workers", "invite", "lan_001", "--ttl", "soon").code == 2
    assert ctl("workers", "pause").code == 2


def test_a_client_may_look_but_not_touch(broker: BrokerPlay, ctl: Ctl, tmp_path: Path) -> None:
    token = ctl("keys", "invite", "mika", "-q").out
    mika = Ctl(tmp_path / "mika")
    assert mika("join", "-", stdin=token.encode()).code == 0
    assert mika("workers", "list").code == 0
    for command in ("pause", "remove", "invite"):
        ran = mika("workers", command, "lan_001", "--json")
        assert (ran.code, json.loads(ran.err)["error"]["code"]) == (4, "not_authorised"), command


def test_without_a_broker_the_way_to_one_is_told(tmp_path: Path) -> None:
    ran = Ctl(tmp_path / "nowhere")("workers", "invite", "lan_001", "--json")
    assert (ran.code, ran.error["code"]) == (8, "bad_configuration")
    assert "koubou-ctl up" in ran.error["hint"]
