"""Who may speak: roles, invitations, enrolment, revocation."""

import re
from dataclasses import replace

import pytest

from koubou_broker.core.keys import ALLOWED
from koubou_broker.effects import Allow, Close, Peer, Revoke
from koubou_broker.records import Audit, Principal
from koubou_common import messages
from koubou_common.codec import type_name
from koubou_common.errors import Code
from koubou_common.messages import (
    Cancel,
    ClientWelcome,
    Dispatch,
    Enrol,
    Enrolled,
    GetKeys,
    GetStatus,
    Invite,
    Invited,
    Keys,
    RevokeKey,
    Status,
    Submit,
)
from koubou_common.messages.values import Role
from support.core_play import (
    Play,
    a_client,
    a_key,
    a_spec,
    a_worker,
    an_agent,
    an_operator,
    principal_of,
    refusal,
    saved,
    script,
    sent,
    some_settings,
    the,
)
from support.house import ROOT

BOSS = an_operator()
TOKEN = Peer(a_key("token"), "mika", Role.ENROL)
MINE = a_key("mine")


def a_play() -> Play:
    play = Play(replace(some_settings(), addresses=("tcp://10.0.0.1:5570",)), BOSS, an_agent("w1"))
    play.join(BOSS)
    return play


def invited(play: Play, name: str = "mika", role: Role = Role.CLIENT, ttl_s: float = 600.0) -> list[object]:
    return [*play.say(BOSS, Invite("i", name, role, TOKEN.public_key, ttl_s))]


def test_every_message_has_its_roles() -> None:
    by_role = {role: {kind.__name__ for kind in kinds} for role, kinds in ALLOWED.items()}
    agent = {"AgentHello", "Heartbeat", "Result", "Failure", "Goodbye"}
    assert by_role[Role.WORKER] == by_role[Role.REMOVED] == agent
    assert by_role[Role.ENROL] == {"Enrol"}
    assert by_role[Role.OPERATOR] - by_role[Role.CLIENT] == {
        "SetWorkerMode",
        "RemoveWorker",
        "Invite",
        "GetKeys",
        "RevokeKey",
        "MakeBackup",
        "GetBackupPart",
        "EndBackup",
        "GetParked",
    }
    everything = {kind.__name__ for kind in messages.ToBroker.__args__} - {"BlobGet", "BlobChunk", "BlobMissing"}
    assert everything == set().union(*by_role.values())


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (an_agent("w1"), Submit("r", "k", (a_spec(),))),
        (an_agent("w1"), GetStatus("r")),
        (a_client(), GetKeys("r")),
        (a_client(), Invite("r", "x", Role.OPERATOR, TOKEN.public_key, 60.0)),
        (a_client(), Enrol("r", MINE)),
    ],
)
def test_the_wrong_role_gets_exactly_one_error(peer: Peer, message: messages.FromClient) -> None:
    play = Play()
    effects = play.say(peer, message)
    error = refusal(effects)
    assert (error.code, error.request_id) == (Code.NOT_AUTHORISED, "r")
    assert len(effects) == 1


def test_a_client_cannot_say_it_is_an_operator() -> None:
    play = Play()
    liar = replace(a_client(), role=Role.OPERATOR)
    assert refusal(play.say(liar, GetKeys("r"))).code is Code.NOT_AUTHORISED


def test_an_unknown_key_gets_one_error() -> None:
    play = Play()
    effects = play.say(a_client("stranger"), GetStatus("r"))
    assert refusal(effects).code is Code.NOT_AUTHORISED
    assert len(effects) == 1


def test_an_invitation_is_durable_then_allowed_then_told() -> None:
    play = a_play()
    effects = play.say(BOSS, Invite("i", "mika", Role.CLIENT, TOKEN.public_key, 600.0))
    assert script(effects) == ["save Principal, Audit", "allow mika as enrol", "1 <- Invited"]
    answer = the(sent(effects, Invited))
    assert answer.expires_ms == play.now.wall_ms + 600_000
    assert answer.addresses == ("tcp://10.0.0.1:5570",)
    assert the(saved(effects, Audit)).actor == "boss"
    assert script(play.say(BOSS, Invite("i", "mika", Role.CLIENT, TOKEN.public_key, 600.0))) == ["1 <- Invited"]


def test_a_token_stands_for_one_name_and_role() -> None:
    play = a_play()
    invited(play)
    for name, role in [("ken", Role.CLIENT), ("mika", Role.OPERATOR)]:
        error = refusal(play.say(BOSS, Invite("i", name, role, TOKEN.public_key, 600.0)))
        assert "known already" in error.message
    assert "known already" in refusal(play.say(BOSS, Invite("i", "x", Role.CLIENT, BOSS.public_key, 60.0))).message


def test_a_token_puts_its_holders_key_in_its_place() -> None:
    play = a_play()
    invited(play)
    effects = play.say(TOKEN, Enrol("e", MINE))
    assert script(effects) == ["save Principal, Audit", "allow mika as client", "2 <- Enrolled"]
    assert the(sent(effects, Enrolled)).public_key == MINE
    repeated = play.say(TOKEN, Enrol("e", MINE))
    assert script(repeated) == ["2 <- Enrolled"]
    holder = Peer(MINE, "mika", Role.CLIENT)
    hello = play.join(holder)
    assert script(hello) == ["save Principal", "revoke token", "3 <- ClientWelcome"]
    assert the(sent(hello, ClientWelcome)).principal == "mika"
    assert refusal(play.say(TOKEN, Enrol("e", MINE), session=2)).code is Code.TOKEN_USED


def test_a_used_token_takes_no_other_key() -> None:
    play = a_play()
    invited(play)
    play.say(TOKEN, Enrol("e", MINE))
    assert refusal(play.say(TOKEN, Enrol("e", a_key("thief")))).code is Code.TOKEN_USED


def test_an_expired_token_is_taken_off_the_list() -> None:
    play = a_play()
    invited(play)
    assert Revoke(TOKEN.public_key) in play.wait(600)
    assert refusal(play.say(TOKEN, Enrol("e", MINE))).code is Code.TOKEN_INVALID
    assert MINE not in play.shelf.principals


def test_a_token_that_was_used_in_time_may_be_repeated_after_its_end() -> None:
    play = a_play()
    invited(play)
    play.say(TOKEN, Enrol("e", MINE))
    assert play.wait(10_000) == []
    assert len(sent(play.say(TOKEN, Enrol("e", MINE)), Enrolled)) == 1
    again = play.restart()
    assert len(sent(again.say(TOKEN, Enrol("e", MINE)), Enrolled)) == 1


def test_a_key_that_is_bound_already_is_refused() -> None:
    play = a_play()
    invited(play)
    assert refusal(play.say(TOKEN, Enrol("e", BOSS.public_key))).code is Code.REFUSED


@pytest.mark.parametrize(
    ("name", "role", "ttl_s", "words"),
    [
        ("a b", Role.CLIENT, 60.0, "is not a name"),
        ("", Role.CLIENT, 60.0, "is not a name"),
        ("x", Role.ENROL, 60.0, "nobody is invited as enrol"),
        ("x", Role.CLIENT, 0.0, "at most 30 days"),
        ("x", Role.CLIENT, 1e9, "at most 30 days"),
        ("boss", Role.CLIENT, 60.0, "has a key as operator already"),
        ("w1", Role.CLIENT, 60.0, "has a key as worker already"),
    ],
)
def test_a_bad_invitation_is_refused(name: str, role: Role, ttl_s: float, words: str) -> None:
    play = a_play()
    effects = play.say(BOSS, Invite("i", name, role, TOKEN.public_key, ttl_s))
    assert words in refusal(effects).message
    assert len(effects) == 1


def test_no_more_workers_than_the_limit_are_invited() -> None:
    play = Play(replace(some_settings(), max_workers=1), BOSS, an_agent("w1"))
    play.join(BOSS)
    error = refusal(play.say(BOSS, Invite("i", "w2", Role.WORKER, TOKEN.public_key, 60.0)))
    assert "max_workers is 1" in error.message
    assert len(sent(play.say(BOSS, Invite("i", "w1", Role.WORKER, TOKEN.public_key, 60.0)), Invited)) == 1


def test_a_worker_joins_by_token_and_works() -> None:
    play = a_play()
    invited(play, "box", Role.WORKER)
    play.say(replace(TOKEN, name="box"), Enrol("e", MINE))
    box = Peer(MINE, "box", Role.WORKER)
    assert "revoke token" in script(play.join(box))
    play.submit(a_spec(model="gpt-oss:20b"), who=BOSS)
    assert [row.worker_id for row in play.shelf.attempts.values()] == ["box"]


def test_a_workers_new_key_ends_the_old_one_with_its_first_hello() -> None:
    play = a_play()
    play.join(an_agent("w1"))
    invited(play, "w1", Role.WORKER)
    play.say(replace(TOKEN, name="w1"), Enrol("e", MINE))
    assert play.shelf.principals[an_agent("w1").public_key].revoked_ms == 0
    effects = play.join(Peer(MINE, "w1", Role.WORKER))
    assert Revoke(an_agent("w1").public_key) in effects
    assert refusal(play.say(an_agent("w1"), messages.Goodbye(messages_status()))).code is Code.NOT_AUTHORISED


def test_a_workers_new_key_is_the_newer_one_although_the_clock_was_put_back() -> None:
    play = a_play()
    play.join(an_agent("w1"))
    invited(play, "w1", Role.WORKER)
    play.now = replace(play.now, wall_ms=play.now.wall_ms - 3_600_000)
    play.say(replace(TOKEN, name="w1"), Enrol("e", MINE))
    effects = play.join(Peer(MINE, "w1", Role.WORKER))
    assert Revoke(an_agent("w1").public_key) in effects


def messages_status() -> messages.values.AgentStatus:
    return messages.values.AgentStatus()


def test_a_revoked_key_is_refused_at_once_and_its_sessions_end() -> None:
    play = Play(some_settings(), BOSS, a_client(), an_agent("w1"))
    play.join(BOSS)
    play.join(a_client())
    effects = play.say(BOSS, RevokeKey("r", "mika"))
    assert script(effects) == ["save Audit, Principal", "revoke mika", "1 <- Keys", "close 2"]
    assert [key.revoked for key in the(sent(effects, Keys)).keys if key.name == "mika"] == [True]
    assert refusal(play.say(a_client(), GetStatus("s"))).code is Code.NOT_AUTHORISED


def test_revoking_a_workers_key_takes_its_work_back() -> None:
    play = Play(some_settings(a_worker("w1"), a_worker("w2")))
    play.join(BOSS)
    play.join(an_agent("w1"))
    play.dispatched()
    play.join(an_agent("w2"))
    effects = play.say(BOSS, RevokeKey("r", "w1"))
    assert len(sent(effects, Dispatch)) == 1
    assert Close(2) in effects


def test_the_last_operator_key_stays() -> None:
    play = a_play()
    error = refusal(play.say(BOSS, RevokeKey("r", "boss")))
    assert "last operator key" in error.message
    assert refusal(play.say(BOSS, RevokeKey("r", "nobody"))).code is Code.NOT_FOUND


def test_an_operator_may_revoke_itself_while_another_is_there_and_is_told() -> None:
    play = Play(some_settings(), BOSS, an_operator("vice"))
    play.join(BOSS)
    assert script(play.say(BOSS, RevokeKey("r", "boss"))) == [
        "save Audit, Principal",
        "revoke boss",
        "1 <- Keys",
        "close 1",
    ]


def test_at_the_start_live_keys_are_allowed_and_expired_tokens_are_not() -> None:
    play = a_play()
    invited(play, ttl_s=60.0)
    play.say(BOSS, Invite("i", "ken", Role.CLIENT, a_key("token2"), 600.0))
    play.now = replace(play.now, mono_s=play.now.mono_s + 100, wall_ms=play.now.wall_ms + 100_000)
    again = play.restart()
    assert script(again.started) == [
        "save Principal",
        "allow boss as operator",
        "allow w1 as worker",
        "revoke token",
        "allow ken as enrol",
        "look up FindSpeeds",
    ]
    assert not any(isinstance(one, Allow) and one.public_key == TOKEN.public_key for one in again.started)


def test_tasks_of_others_look_like_tasks_that_are_not_there() -> None:
    play = Play(some_settings(), BOSS, a_client(), a_client("ken"))
    play.submit(a_spec(), who=a_client("ken"))
    play.join(a_client())
    changes = the(sent(play.say(a_client(), Cancel("c", (1, 2))), messages.Changes))
    assert (changes.changes, changes.missing) == ((), (1, 2))
    for message in (messages.GetStory("s", 1), messages.GetResult("s", 1), messages.Explain("s", 1)):
        assert refusal(play.say(a_client(), message)).code is Code.NOT_FOUND
    assert the(sent(play.say(a_client(), messages.GetTasks("t", (1,))), messages.Tasks)).missing == (1,)
    assert the(sent(play.say(a_client(), messages.Watch("w", (1,))), messages.Watching)).missing == (1,)
    counts = the(sent(play.say(a_client(), GetStatus("s")), Status)).counts
    assert sum(one.count for one in counts) == 0


def test_principals_survive_as_rows() -> None:
    play = a_play()
    invited(play)
    play.say(TOKEN, Enrol("e", MINE))
    assert play.shelf.principals[MINE] == Principal(MINE, "mika", Role.CLIENT, None, play.now.wall_ms, 0, 0, "")
    assert play.shelf.principals[TOKEN.public_key].replaced_by == MINE
    assert principal_of(BOSS) == play.shelf.principals[BOSS.public_key]


def test_the_table_of_roles_in_the_protocol_is_the_one_in_force() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    lines = page.partition("## Who may say what\n")[2].partition("\n## ")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    told: dict[Role, set[str]] = {Role(role): set() for role in header[1:]}
    for names, *cells in rows:
        for role, cell in zip(told, cells, strict=True):
            told[role] |= set(re.findall(r"`(\w+)`", names)) if cell else set()
    blobs = {"blob_get", "blob_chunk", "blob_missing"}  # the server's own: they never reach the core
    for role, kinds in ALLOWED.items():
        assert told[role] - blobs == {type_name(kind) for kind in kinds}, role
        assert (blobs <= told[role]) == (role not in (Role.ENROL, Role.REMOVED)), role
