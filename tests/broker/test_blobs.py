"""Intake of bodies, step by step: what is asked, claimed, kept and given on, in which order."""

from dataclasses import replace

from koubou_broker.batches import Claim, Claimed, NewBlob
from koubou_broker.blobs import PULLS, PULLS_EACH, STALL_S, Ask, Grants, Intake, Keep, Ready, Refuse
from koubou_broker.bodies import BodyCache, to_be_inline, without_bytes
from koubou_broker.core_settings import Limits
from koubou_broker.effects import Peer
from koubou_common.codec import encode
from koubou_common.errors import Code
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing, Dispatch, Submit
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING, INLINE_BYTES, MIB
from koubou_common.messages.values import Body, File, Role, TaskSpec
from support.broker_play import a_body, a_result, a_spec

MIKA = Peer("k" * 40, "mika", Role.CLIENT)
LAN_001 = Peer("l" * 40, "lan_001", Role.WORKER)
SMALL, LARGE = b"small", bytes(range(250)) * 10_000  # five pieces


def an_intake(**limits: int) -> Intake:
    return Intake(Limits(**limits), BodyCache())


def a_submit(key: str = "k", *, prompt: bytes = SMALL, large: bytes = b"", part: int = 0) -> Submit:
    files = (File("big.txt", a_body(large, inline=False)),) if large else ()
    return Submit(f"r-{key}", key, (TaskSpec(a_body(prompt), files),), part=part)


def as_fed(message: Submit) -> Submit:
    """As the core sees it: verified bytes taken out."""
    spec = message.tasks[0]
    return replace(message, tasks=(replace(spec, prompt=without_bytes(spec.prompt)),))


def a_chunk(data: bytes, index: int) -> BlobChunk:
    return BlobChunk(a_body(data).sha256, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])


def asks(data: bytes, *indexes: int, session: int = 1) -> list[Ask]:
    return [Ask(session, BlobGet(a_body(data).sha256, index)) for index in indexes]


def begin_pull(intake: Intake, message: Submit, session: int = 1, peer: Peer = MIKA) -> list[object]:
    """Receive a message that names a large body nobody owns, as far as the first pieces asked for."""
    (claim,) = intake.receive(peer, session, message, 0.0)
    assert isinstance(claim, Claim)
    return list(intake.claimed(Claimed(claim.token, ()), 0.0))


def test_a_small_message_passes_at_once_with_its_bytes_beside_it() -> None:
    message = a_submit()
    blob = NewBlob(a_body(SMALL).sha256, SMALL, "mika")
    assert an_intake().receive(MIKA, 1, message, 0.0) == [Ready(MIKA, 1, as_fed(message), (blob,))]


def test_what_is_missing_is_claimed_then_pulled_with_four_pieces_outstanding_then_passed_on() -> None:
    intake, message = an_intake(), a_submit(large=LARGE)
    large = a_body(LARGE, inline=False)
    assert intake.receive(MIKA, 1, message, 0.0) == [Claim(1, "mika", (large.sha256,))]
    assert intake.claimed(Claimed(1, ()), 0.0) == asks(LARGE, 0, 1, 2, 3)
    assert CHUNKS_OUTSTANDING == 4
    assert intake.chunk(1, a_chunk(LARGE, 2), 1.0) == asks(LARGE, 4)
    for index in (0, 4, 1):
        assert intake.chunk(1, a_chunk(LARGE, index), 1.0) == []
    small = NewBlob(a_body(SMALL).sha256, SMALL, "mika")
    assert intake.chunk(1, a_chunk(LARGE, 3), 1.0) == [
        Keep(NewBlob(large.sha256, LARGE, "mika")),
        Ready(MIKA, 1, as_fed(message), (small,)),
    ]


def test_what_the_sender_owns_is_not_asked_for_again() -> None:
    intake, message = an_intake(), a_submit(large=LARGE)
    intake.receive(MIKA, 1, message, 0.0)
    owned = ((a_body(LARGE).sha256, len(LARGE)),)
    (ready,) = intake.claimed(Claimed(1, owned), 0.0)
    assert isinstance(ready, Ready)
    assert ready.message == as_fed(message)


def test_an_owned_body_under_a_false_size_is_refused() -> None:
    intake = an_intake()
    intake.receive(MIKA, 1, a_submit(large=LARGE), 0.0)
    (refuse,) = intake.claimed(Claimed(1, ((a_body(LARGE).sha256, 7),)), 0.0)
    assert isinstance(refuse, Refuse)
    assert refuse.error.code is Code.BAD_MESSAGE


def test_later_submissions_of_a_session_wait_their_turn_and_others_do_not() -> None:
    intake = an_intake()
    begin_pull(intake, a_submit("first", large=LARGE))
    assert intake.receive(MIKA, 1, a_submit("second"), 0.0) == []
    (other,) = intake.receive(MIKA, 2, a_submit("elsewhere"), 0.0)
    assert isinstance(other, Ready)
    steps = [step for index in range(5) for step in intake.chunk(1, a_chunk(LARGE, index), 1.0)]
    ready = [step.message for step in steps if isinstance(step, Ready)]
    assert [getattr(message, "request_id", "") for message in ready] == ["r-first", "r-second"]


def test_while_the_disk_is_full_nothing_is_pulled_for_a_submission_and_its_sender_is_told() -> None:
    intake = an_intake()
    intake.refusal = "the disk is full"
    (refuse,) = begin_pull(intake, a_submit(large=LARGE))
    assert isinstance(refuse, Refuse)
    assert (refuse.error.code, refuse.error.message) == (Code.STORE_FULL, "the disk is full")
    assert refuse.error.request_id == "r-k"
    assert refuse.error.retry_after_s > 0
    intake.refusal = ""
    assert begin_pull(intake, a_submit(large=LARGE)) == asks(LARGE, 0, 1, 2, 3)


def test_a_repeated_request_is_not_pulled_for_twice() -> None:
    intake = an_intake()
    begin_pull(intake, a_submit(large=LARGE))
    assert intake.receive(MIKA, 1, a_submit(large=LARGE), 1.0) == []


def test_a_result_is_pulled_from_its_agent() -> None:
    intake, message = an_intake(), a_result("a" * 32, LARGE, inline=False)
    (claim,) = intake.receive(LAN_001, 1, message, 0.0)
    assert claim == Claim(1, "lan_001", (message.raw.sha256,))
    assert intake.claimed(Claimed(1, ()), 0.0) == asks(LARGE, 0, 1, 2, 3)
    steps = [step for index in range(5) for step in intake.chunk(1, a_chunk(LARGE, index), 1.0)]
    assert steps[-1] == Ready(LAN_001, 1, message, ())


def test_pieces_of_the_wrong_length_or_content_refuse_the_message() -> None:
    for bad in (
        BlobChunk(a_body(LARGE).sha256, 0, b"short"),
        BlobChunk(a_body(LARGE).sha256, 0, b"\xff" * CHUNK_BYTES),
    ):
        intake = an_intake()
        begin_pull(intake, a_submit(large=LARGE))
        steps = list(intake.chunk(1, bad, 1.0))
        for index in range(1, 5):
            steps += intake.chunk(1, a_chunk(LARGE, index), 1.0)
        refusals = [step.error.code for step in steps if isinstance(step, Refuse)]
        assert refusals == [Code.BAD_MESSAGE]
        assert not [step for step in steps if isinstance(step, Ready | Keep)]


def test_pieces_that_nobody_asked_for_change_nothing() -> None:
    intake = an_intake()
    assert intake.chunk(1, a_chunk(LARGE, 0), 0.0) == []
    begin_pull(intake, a_submit(large=LARGE))
    assert intake.chunk(2, a_chunk(LARGE, 0), 0.0) == []
    assert intake.chunk(1, a_chunk(LARGE, 4), 0.0) == []
    assert intake.chunk(1, a_chunk(LARGE, 0), 0.0) == asks(LARGE, 4)
    assert intake.chunk(1, a_chunk(LARGE, 0), 0.0) == []


def test_a_sender_that_lost_the_body_or_fell_silent_is_told_and_the_next_message_goes_on() -> None:
    intake = an_intake()
    begin_pull(intake, a_submit("first", large=LARGE))
    intake.receive(MIKA, 1, a_submit("second", large=LARGE), 0.0)
    refuse, claim = intake.missing(1, BlobMissing(a_body(LARGE).sha256), 1.0)
    assert isinstance(refuse, Refuse)
    # A late answer to what was asked for an earlier message must not refuse this one for good.
    assert (refuse.error.code, refuse.error.request_id) == (Code.BUSY, "r-first")
    assert refuse.error.retry_after_s > 0
    assert isinstance(claim, Claim)
    intake.claimed(Claimed(claim.token, ()), 1.0)
    assert intake.tick(1.0 + STALL_S) == []
    (stalled,) = intake.tick(1.1 + STALL_S)
    assert isinstance(stalled, Refuse)
    assert (stalled.error.code, stalled.error.request_id) == (Code.BUSY, "r-second")


def test_a_closed_session_is_forgotten_and_its_place_goes_to_who_waits() -> None:
    intake = an_intake()
    for session in range(1, PULLS + 1):
        peer = Peer("k" * 40, f"client_{session}", Role.CLIENT)
        assert begin_pull(intake, a_submit(large=LARGE), session, peer) == asks(LARGE, 0, 1, 2, 3, session=session)
    assert begin_pull(intake, a_submit(large=LARGE), 99) == []
    assert intake.closed(5, 1.0) == asks(LARGE, 0, 1, 2, 3, session=99)
    assert intake.chunk(5, a_chunk(LARGE, 0), 1.0) == []


def test_one_client_leaves_places_for_transfers_to_others() -> None:
    intake = an_intake()
    for session in range(1, PULLS_EACH + 1):
        assert begin_pull(intake, a_submit(large=LARGE), session) == asks(LARGE, 0, 1, 2, 3, session=session)
    assert begin_pull(intake, a_submit(large=LARGE), 98) == []
    rin = Peer("r" * 40, "rin", Role.CLIENT)
    assert begin_pull(intake, a_submit(large=LARGE), 99, rin) == asks(LARGE, 0, 1, 2, 3, session=99)
    assert intake.closed(99, 1.0) == []
    assert intake.closed(1, 1.0) == asks(LARGE, 0, 1, 2, 3, session=98)


def test_limits_are_named_before_anything_is_pulled() -> None:
    cases = [
        (a_submit(prompt=b"p" * 11), "prompt_bytes"),
        (a_submit(large=b"f" * 21), "file_bytes"),
        (Submit("r", "k", (a_spec(b"p" * 9, {"a": b"a" * 20, "b": b"b" * 20}, inline=False),)), "task_bytes"),
    ]
    for message, limit in cases:
        (refuse,) = an_intake(prompt_bytes=10, file_bytes=20, task_bytes=40).receive(MIKA, 1, message, 0.0)
        assert isinstance(refuse, Refuse)
        assert refuse.error.code is Code.TOO_LARGE
        assert limit in refuse.error.message
    (refuse,) = an_intake(result_bytes=10).receive(LAN_001, 1, a_result("a" * 32, LARGE, inline=False), 0.0)
    assert isinstance(refuse, Refuse)
    assert "result_bytes" in refuse.error.message


def test_a_dry_run_pulls_nothing() -> None:
    message = replace(a_submit(large=LARGE), dry_run=True)
    (ready,) = an_intake().receive(MIKA, 1, message, 0.0)
    assert isinstance(ready, Ready)


def test_an_empty_body_needs_no_bytes() -> None:
    message = Submit("r", "k", (TaskSpec(a_body(SMALL), (File("empty.txt", a_body(b"", inline=False)),)),))
    (ready,) = an_intake().receive(MIKA, 1, message, 0.0)
    assert isinstance(ready, Ready)
    assert {new.data for new in ready.blobs} == {SMALL, b""}


def test_a_dispatch_stays_small_with_the_prompt_inside_first() -> None:
    def a_dispatch(*sizes: int) -> Dispatch:
        prompt, *files = (Body(bytes([number]) * 32, size) for number, size in enumerate(sizes))
        named = tuple(File(f"f{number}", body) for number, body in enumerate(files))
        return Dispatch(1, 1, "a" * 32, 1, 1, prompt, named, "", "", "", "m", (), None, False, 0.0)

    assert to_be_inline(a_dispatch(5, 6)) == (bytes([0]) * 32, bytes([1]) * 32)
    assert to_be_inline(a_dispatch(200_000, 200_000, 10_000)) == (bytes([0]) * 32, bytes([2]) * 32)
    assert to_be_inline(a_dispatch(MIB, 10)) == (bytes([1]) * 32,)
    many = a_dispatch(*[5_000] * 60)
    data = dict.fromkeys(to_be_inline(many), b"x" * 5000)
    filled = replace(
        many,
        prompt=replace(many.prompt, inline=data.get(many.prompt.sha256)),
        files=tuple(replace(file, body=replace(file.body, inline=data.get(file.body.sha256))) for file in many.files),
    )
    assert INLINE_BYTES * 0.9 < len(encode(filled, 2**62)) <= INLINE_BYTES


def test_grants_are_bounded_and_end_with_the_key() -> None:
    grants = Grants(most=2)
    grants.grant("a", (b"1", b"2", b"3"))
    assert [grants.has("a", sha256) for sha256 in (b"1", b"2", b"3")] == [False, True, True]
    assert not grants.has("b", b"3")
    grants.revoke("a")
    assert not grants.has("a", b"3")


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = BodyCache(most_bytes=10)
    cache.put(b"1", b"aaaa")
    cache.put(b"2", b"bbbb")
    assert cache.get(b"1") == b"aaaa"
    cache.put(b"3", b"cccc")
    assert (cache.get(b"1"), cache.get(b"2"), cache.get(b"3")) == (b"aaaa", None, b"cccc")


def test_while_nothing_can_be_written_a_submission_is_judged_without_its_bodies() -> None:
    intake = an_intake()
    intake.refusal, intake.is_paused = "the disk is full", True
    (ready,) = intake.receive(MIKA, 1, a_submit(large=LARGE), 0.0)
    assert isinstance(ready, Ready)
    assert ready.blobs == ()


def test_the_cache_of_bodies_holds_a_bounded_number_however_small_they_are() -> None:
    """By bytes alone it would take a million tiny bodies, each with its overhead, and grow for days."""
    cache = BodyCache(most_bytes=1_000, most_bodies=2)
    for name in (b"a", b"b", b"c"):
        cache.put(name, name)
    assert [cache.get(name) for name in (b"a", b"b", b"c")] == [None, b"b", b"c"]
