"""Bodies in pieces: promised as long as needed, fetched a few pieces at a time, checked at the end."""

from koubou_client.inputs import body_of
from koubou_client.transfer import Fetches, Offer
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import BlobChunk, BlobGet, BlobMissing
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING
from koubou_common.messages.values import Body

BIG = bytes(range(251)) * (6 * CHUNK_BYTES // 251)
BIG_BODY = body_of(BIG)
PIECES = -(-len(BIG) // CHUNK_BYTES)


class Got(list[bytes | KoubouError]):
    """What was fetched, in order."""


def piece(index: int) -> BlobChunk:
    return BlobChunk(BIG_BODY.sha256, index, BIG[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])


def test_what_is_offered_is_given_piece_by_piece() -> None:
    offer = Offer()
    offer.add({BIG_BODY.sha256: BIG})
    answers = [offer.answer(BlobGet(BIG_BODY.sha256, index)) for index in range(PIECES)]
    assert answers == [piece(index) for index in range(PIECES)]
    assert offer.answer(BlobGet(BIG_BODY.sha256, PIECES)) == BlobMissing(BIG_BODY.sha256)


def test_an_empty_body_has_one_empty_piece() -> None:
    offer = Offer()
    empty = body_of(b"")
    offer.add({empty.sha256: b""})
    assert offer.answer(BlobGet(empty.sha256, 0)) == BlobChunk(empty.sha256, 0, b"")


def test_only_what_is_offered_is_given_and_only_while_a_request_needs_it() -> None:
    offer = Offer()
    asked = BlobGet(BIG_BODY.sha256, 0)
    assert offer.answer(asked) == BlobMissing(BIG_BODY.sha256)
    offer.add({BIG_BODY.sha256: BIG})
    offer.add({BIG_BODY.sha256: BIG})
    offer.drop({BIG_BODY.sha256: BIG})
    assert offer.answer(asked) == piece(0)
    offer.drop({BIG_BODY.sha256: BIG})
    assert offer.answer(asked) == BlobMissing(BIG_BODY.sha256)


def test_a_fetch_keeps_a_few_pieces_on_their_way() -> None:
    fetches, got = Fetches(), Got()
    fetches.want(BIG_BODY, got.append)
    assert [ask.index for ask in fetches.asks()] == list(range(CHUNKS_OUTSTANDING))
    assert fetches.asks() == []
    fetches.received(piece(2))
    assert [ask.index for ask in fetches.asks()] == [CHUNKS_OUTSTANDING]
    for index in (1, 0, *range(3, PIECES)):
        fetches.received(piece(index))
        fetches.asks()
    assert got == [BIG]
    assert fetches.asks() == []


def test_a_body_that_came_inside_the_message_is_not_asked_for() -> None:
    fetches, got = Fetches(), Got()
    fetches.want(Body(BIG_BODY.sha256, 3, b"abc"), got.append)
    assert got == [b"abc"]
    assert fetches.asks() == []


def test_two_who_want_the_same_share_one_fetch() -> None:
    fetches, got = Fetches(), Got()
    body = body_of(b"abc")
    fetches.want(body, got.append)
    fetches.want(body, got.append)
    assert fetches.asks() == [BlobGet(body.sha256, 0)]
    fetches.received(BlobChunk(body.sha256, 0, b"abc"))
    assert got == [b"abc", b"abc"]


def test_after_a_new_session_what_is_missing_is_asked_for_again() -> None:
    fetches = Fetches()
    fetches.want(BIG_BODY, lambda _: None)
    fetches.asks()
    fetches.received(piece(0))
    fetches.forget_asked()
    assert [ask.index for ask in fetches.asks()] == [1, 2, 3, 4]


def test_wrong_bytes_are_never_handed_on() -> None:
    fetches, got = Fetches(), Got()
    body = body_of(b"abc")
    fetches.want(body, got.append)
    fetches.asks()
    fetches.received(BlobChunk(body.sha256, 0, b"abd"))
    assert isinstance(got[0], KoubouError)
    assert got[0].code is Code.INTERNAL


def test_bytes_that_are_gone_are_an_error() -> None:
    fetches, got = Fetches(), Got()
    fetches.want(BIG_BODY, got.append)
    fetches.asks()
    fetches.received(BlobMissing(BIG_BODY.sha256))
    assert isinstance(got[0], KoubouError)
    assert got[0].code is Code.NOT_FOUND


def test_pieces_that_nobody_asked_for_are_dropped() -> None:
    fetches, got = Fetches(), Got()
    fetches.received(piece(0))
    fetches.want(BIG_BODY, got.append)
    fetches.asks()
    fetches.received(BlobChunk(BIG_BODY.sha256, 99, b"stray"))
    fetches.received(piece(0))
    fetches.received(piece(0))
    assert got == []
    assert [ask.index for ask in fetches.asks()] == [4]
    for index in range(1, PIECES):
        fetches.received(piece(index))
        fetches.asks()
    assert got == [BIG]


def test_an_end_of_the_connection_ends_all_fetches() -> None:
    fetches, got = Fetches(), Got()
    error = KoubouError(Code.BROKER_UNREACHABLE, "gone")
    fetches.want(BIG_BODY, got.append)
    fetches.want(body_of(b"x"), got.append)
    fetches.fail(error)
    assert got == [error, error]
