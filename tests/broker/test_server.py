"""The broker as its peers see it: real sockets, real database, the real core."""

from pathlib import Path

import pytest

from koubou_common.errors import Code
from koubou_common.messages import (
    BlobChunk,
    BlobGet,
    BlobMissing,
    Dispatch,
    Error,
    GetResult,
    GetStatus,
    GetStory,
    Heartbeat,
    HeartbeatAck,
    PartStaged,
    ResultStored,
    Status,
    Story,
    Submit,
    Submitted,
    TaskResult,
    Welcome,
)
from koubou_common.messages.limits import CHUNK_BYTES, INLINE_BYTES, MIB
from koubou_common.messages.values import Body, Disposition, File, Role, TaskSpec, TaskState
from support.broker_play import (
    a_body,
    a_broker,
    a_result,
    a_spec,
    a_status,
    an_agent_hello,
    serve_chunk,
    work_one,
)


def test_a_task_goes_in_is_dispatched_and_its_answer_comes_back(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        submitted = client.submit(a_spec(b"explain this", {"codec.py": b"import msgpack"}))
        dispatch = agent.next(Dispatch)
        assert dispatch.prompt.inline == b"explain this"
        assert [file.body.inline for file in dispatch.files] == [b"import msgpack"]
        stored = agent.ask(a_result(dispatch.attempt_uid, b"it packs"), ResultStored)
        assert stored.disposition is Disposition.RECORDED
        result = client.ask(GetResult("g", submitted.tasks[0].task_id), TaskResult)
        assert result.task.state is TaskState.SUCCEEDED
        assert result.body == a_body(b"it packs")
        assert agent.epoch > 1_600_000_000_000


def test_a_repeated_submission_and_a_repeated_result_change_nothing(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        once, again = client.submit(a_spec()), client.submit(a_spec())
        assert [task.task_id for task in again.tasks] == [task.task_id for task in once.tasks]
        dispatch = work_one(agent)
        again_stored = agent.ask(a_result(dispatch.attempt_uid), ResultStored)
        assert again_stored.disposition is Disposition.RECORDED
        after = client.submit(a_spec())
        assert (after.tasks[0].existing, after.tasks[0].state) == (True, TaskState.SUCCEEDED)


def test_after_a_restart_everything_told_is_still_there(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        agent_pair = play.enrol("lan_001", Role.WORKER)
        task_id = client.submit(a_spec()).tasks[0].task_id
        first_epoch = client.epoch
    with a_broker(tmp_path) as play, play.operator() as client, play.peer(agent_pair) as agent:
        agent.ask(an_agent_hello(), Welcome)
        work_one(agent)
        assert client.epoch > first_epoch
        assert client.ask(GetResult("g", task_id), TaskResult).body == a_body(b"the answer")
        story = client.ask(GetStory("s", task_id), Story)
        assert [event.after for event in story.events] == ["queued", "running", "succeeded"]


def test_a_large_file_is_pulled_once_and_fetched_in_pieces_by_the_agent(tmp_path: Path) -> None:
    large = bytes(range(256)) * 4_096 + b"end"  # a little over two pieces
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        client.say(Submit("r1", "k1", (a_spec(b"one", {"big.txt": large}, inline=False),)))
        assert sorted(serve_chunk(client, large).index for _ in range(3)) == [0, 1, 2]
        client.next(Submitted)
        dispatch = agent.next(Dispatch)
        body = dispatch.files[0].body
        assert body.inline is None
        pieces = [agent.ask(BlobGet(body.sha256, index), BlobChunk).data for index in range(3)]
        assert b"".join(pieces) == large
        # The second time the broker knows whose it is, and asks for nothing.
        client.submit(a_spec(b"two", {"big.txt": large}, inline=False), key="k2")


def test_a_large_result_is_pulled_from_the_agent_and_fetched_by_the_client(tmp_path: Path) -> None:
    raw = b"x" * (INLINE_BYTES + 1)
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        task_id = client.submit(a_spec()).tasks[0].task_id
        dispatch = agent.next(Dispatch)
        agent.say(a_result(dispatch.attempt_uid, raw, inline=False))
        serve_chunk(agent, raw)
        agent.next(ResultStored)
        result = client.ask(GetResult("g", task_id), TaskResult)
        assert result.body
        assert result.body.inline is None
        assert client.ask(BlobGet(result.body.sha256, 0), BlobChunk).data == raw


def test_parts_of_a_submission_wait_for_a_body_that_is_pulled_for_an_earlier_part(tmp_path: Path) -> None:
    large = b"y" * (CHUNK_BYTES + 1)
    with a_broker(tmp_path) as play, play.operator() as client:
        first = (a_spec(b"one", {"big.txt": large}, inline=False),)
        client.say(Submit("r0", "k", first, as_batch=True, part=0, parts=2))
        client.say(Submit("r1", "k", (a_spec(b"two"),), as_batch=True, part=1, parts=2))
        serve_chunk(client, large)
        serve_chunk(client, large)
        client.next(PartStaged)
        submitted = client.next(Submitted)
        assert submitted.batch_id == 1
        assert len(submitted.tasks) == 2


def test_nobody_fetches_what_was_not_named_to_it(tmp_path: Path) -> None:
    secret = b"z" * (INLINE_BYTES + 1)
    with a_broker(tmp_path) as play, play.operator() as client, play.agent() as agent:
        rin = play.enrol("rin", Role.CLIENT)
        client.say(Submit("r", "k", (a_spec(b"one", {"big.txt": secret}, inline=False),)))
        serve_chunk(client, secret)
        client.next(Submitted)
        agent.next(Dispatch)
        sha256 = a_body(secret).sha256
        with play.agent("lan_002") as other, play.peer(rin) as stranger:
            stranger.hello()
            assert other.ask(BlobGet(sha256, 0), BlobMissing).sha256 == sha256
            assert stranger.ask(BlobGet(sha256, 0), BlobMissing).sha256 == sha256
        assert agent.ask(BlobGet(sha256, 0), BlobChunk).data == secret


def test_an_agent_goes_on_fetching_after_the_broker_was_restarted(tmp_path: Path) -> None:
    large = b"w" * (CHUNK_BYTES + 1)
    with a_broker(tmp_path) as play, play.operator() as client:
        pair = play.enrol("lan_001", Role.WORKER)
        with play.peer(pair) as agent:
            agent.ask(an_agent_hello(), Welcome)
            client.say(Submit("r", "k", (a_spec(b"one", {"big.txt": large}, inline=False),)))
            serve_chunk(client, large)
            serve_chunk(client, large)
            dispatch = agent.next(Dispatch)
    with a_broker(tmp_path) as play, play.peer(pair) as agent:
        agent.ask(an_agent_hello(a_status((dispatch.attempt_uid,))), Welcome)
        sha256 = dispatch.files[0].body.sha256
        assert agent.ask(BlobGet(sha256, 1), BlobChunk).data == b"w"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (a_body(b"right"), None),
        (Body(a_body(b"right").sha256, 5, b"wrong"), "does not match"),
        (Body(a_body(b"right").sha256, 6, b"right"), "says it has 6"),
    ],
)
def test_an_inline_body_is_checked_against_its_name(tmp_path: Path, body: Body, fault: str | None) -> None:
    spec = TaskSpec(body)
    with a_broker(tmp_path) as play, play.operator() as client:
        client.say(Submit("r", "k", (spec,)))
        if fault is None:
            client.next(Submitted)
        else:
            error = client.next(Error)
            assert (error.code, error.request_id) == (Code.BAD_MESSAGE, "r")
            assert fault in error.message


def test_a_body_that_the_sender_no_longer_has_puts_the_request_off(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        client.say(Submit("r", "k", (a_spec(b"one", {"gone.txt": b"1" * 5_000}, inline=False),)))
        asked = client.next(BlobGet)
        client.say(BlobMissing(asked.sha256))
        error = client.next(Error)
        assert (error.code, error.request_id, error.retry_after_s > 0) == (Code.BUSY, "r", True)
        client.submit(a_spec(), key="k2")


def test_what_is_too_large_is_refused_before_a_byte_of_it_is_asked_for(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        huge = File("huge.bin", Body(b"s" * 32, 5 * MIB))
        client.say(Submit("r", "k", (TaskSpec(a_body(b"look"), (huge,)),)))
        error = client.next(Error)
        assert error.code is Code.TOO_LARGE
        assert "file_bytes" in error.message
        assert [message for message in client.drain() if isinstance(message, BlobGet)] == []


def test_garbage_and_messages_of_several_frames_leave_the_broker_serving(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.operator() as client:
        for data in (b"", b"\x00", b"\xc1" * 1_000, b"\x81\xa1v\x01", b"GET / HTTP/1.1\r\n"):
            client.socket.send(data)
        client.submit(a_spec())
        client.socket.send_multipart([b"one", b"two"])
        # The session is over: whatever comes next has to begin with a hello.
        assert client.ask(GetStatus("s"), Error).code is Code.HELLO_REQUIRED
        client.hello()
        client.ask(GetStatus("s"), Status)


def test_without_a_hello_there_is_one_answer_and_no_pulling(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play:
        with play.peer(play.enrol("mika", Role.CLIENT)) as client:
            client.say(Submit("r", "k", (a_spec(b"one", {"big.txt": b"x" * 9_000}, inline=False),)))
            client.say(BlobGet(b"s" * 32, 0))
            heard = client.drain()
        assert [(type(message), getattr(message, "code", "")) for message in heard] == [
            (Error, Code.HELLO_REQUIRED),
            (Error, Code.HELLO_REQUIRED),
        ]


def test_the_wrong_role_gets_exactly_one_error(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.agent() as agent, play.operator() as client:
        agent.say(Submit("r", "k", (a_spec(),)))
        client.say(a_result("a" * 32))
        for peer in (agent, client):
            heard = peer.drain()
            assert [(type(message), getattr(message, "code", "")) for message in heard] == [
                (Error, Code.NOT_AUTHORISED)
            ]


def test_heartbeats_are_answered_with_their_own_clock(tmp_path: Path) -> None:
    with a_broker(tmp_path) as play, play.agent() as agent:
        assert agent.ask(Heartbeat(123, 0, a_status(), None), HeartbeatAck).sent_ms == 123


def test_a_result_that_was_pulled_for_an_unknown_attempt_is_kept_apart(tmp_path: Path) -> None:
    raw = b"q" * (INLINE_BYTES + 1)
    with a_broker(tmp_path) as play, play.agent() as agent:
        agent.say(a_result("e" * 32, raw, inline=False))
        serve_chunk(agent, raw)
        assert agent.next(ResultStored).disposition is Disposition.PARKED
