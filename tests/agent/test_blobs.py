"""The cache of inputs on disk, and the pulling of large ones in pieces."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from koubou_agent.blobs import ASK_AGAIN_S, BlobCache, Downloads, InputsMissing
from koubou_agent.inputs import Forget, Inputs, Want
from koubou_common.messages import BlobChunk, BlobGet
from koubou_common.messages.limits import CHUNK_BYTES, CHUNKS_OUTSTANDING
from support.agent_play import a_body
from support.disks import a_small_disk, files_at_most, remount
from support.waiting import eventually


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def piece(data: bytes, index: int) -> BlobChunk:
    return BlobChunk(sha(data), index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])


def age(folder: Path, data: bytes, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(folder / sha(data).hex(), (at, at))


def test_what_was_put_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    BlobCache(tmp_path, 1000, 7).put(b"hello")
    assert BlobCache(tmp_path, 1000, 7).get(sha(b"hello")) == b"hello"
    assert BlobCache(tmp_path, 1000, 7).get(sha(b"other")) is None


@pytest.mark.skipif(os.name != "posix", reason="modes mean nothing elsewhere")
def test_folder_and_files_of_the_cache_are_for_their_owner_only(tmp_path: Path) -> None:
    BlobCache(tmp_path / "cache", 1000, 7).put(b"hello")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / sha(b"hello").hex()).stat().st_mode & 0o777 == 0o600


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 10, 7)
    cache.put(b"aaaa")
    cache.put(b"bbbb")
    age(tmp_path, b"aaaa", 100)
    age(tmp_path, b"bbbb", 200)
    cache.get(sha(b"bbbb"))  # used just now
    cache.put(b"cccc")
    assert cache.get(sha(b"aaaa")) is None
    assert cache.get(sha(b"bbbb")) == b"bbbb"
    assert cache.get(sha(b"cccc")) == b"cccc"


def test_what_was_not_used_for_days_goes(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000, 7)
    cache.put(b"old")
    age(tmp_path, b"old", 8 * 86_400)
    cache.trim()
    assert cache.get(sha(b"old")) is None


def test_a_damaged_entry_is_forgotten(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000, 7)
    cache.put(b"hello")
    (tmp_path / sha(b"hello").hex()).write_bytes(b"hellO")
    assert cache.get(sha(b"hello")) is None
    assert list(tmp_path.iterdir()) == []


def test_wiping_leaves_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000, 7)
    cache.put(b"secret")
    cache.wipe()
    assert list(tmp_path.iterdir()) == []


def test_never_more_than_the_allowed_pieces_are_on_their_way() -> None:
    data = bytes(CHUNK_BYTES * 6 + 1)
    downloads = Downloads()
    downloads.want(a_body(data))
    downloads.want(a_body(b"small"))
    first = downloads.due(0)
    assert [get.index for get in first] == [0, 1, 2, 3]
    assert downloads.due(1) == []
    assert downloads.chunk(piece(data, 2)) is None
    assert downloads.due(1) == [BlobGet(sha(data), 4)]
    assert len(first) == CHUNKS_OUTSTANDING


def test_pieces_in_any_order_make_the_whole() -> None:
    data = os.urandom(CHUNK_BYTES * 2 + 5)
    downloads = Downloads()
    downloads.want(a_body(data))
    downloads.due(0)
    assert downloads.chunk(piece(data, 2)) is None
    assert downloads.chunk(piece(data, 0)) is None
    assert downloads.chunk(piece(data, 1)) == data


def test_pieces_that_nobody_asked_for_are_not_kept() -> None:
    data = bytes(CHUNK_BYTES + 1)
    downloads = Downloads()
    assert downloads.chunk(piece(data, 0)) is None
    downloads.want(a_body(data))
    assert downloads.chunk(piece(data, 0)) is None  # not asked for yet
    assert [get.index for get in downloads.due(0)] == [0, 1]


def test_a_lost_piece_is_asked_for_again_and_a_new_session_asks_for_all() -> None:
    downloads = Downloads()
    downloads.want(a_body(b"x"))
    assert len(downloads.due(0)) == 1
    assert downloads.next_deadline() == ASK_AGAIN_S
    assert downloads.due(ASK_AGAIN_S - 0.1) == []
    assert len(downloads.due(ASK_AGAIN_S)) == 1
    downloads.restart()
    assert len(downloads.due(ASK_AGAIN_S)) == 1


class Desk:
    """Inputs whose loop is the test."""

    def __init__(self, folder: Path) -> None:
        self.inputs = Inputs(BlobCache(folder, 1000, 7), self.post)

    def post(self, event: Want | Forget) -> None:
        if isinstance(event, Want):
            self.inputs.want(event)
        else:
            self.inputs.forget(event)


def test_two_attempts_that_want_the_same_share_one_download(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(desk.inputs.fetch, a_body(b"x"), threading.Event()) for _ in range(2)]
        eventually(lambda: len(desk.inputs._waiters.get(sha(b"x"), [])) == 2)
        assert desk.inputs.due(0) == [BlobGet(sha(b"x"), 0)]
        desk.inputs.chunk(piece(b"x", 0))
        assert [future.result(5) for future in asked] == [b"x", b"x"]
    assert desk.inputs.fetch(a_body(b"x"), threading.Event()) == b"x"  # from the cache now


def test_a_damaged_download_is_missing_not_taken(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(desk.inputs.fetch, a_body(b"x"), threading.Event())
        eventually(lambda: desk.inputs.due(0))
        desk.inputs.chunk(BlobChunk(sha(b"x"), 0, b"y"))
        with pytest.raises(InputsMissing):
            asked.result(5)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_attempt_stops_its_download(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(desk.inputs.fetch, a_body(b"x"), cancel)
        eventually(lambda: len(desk.inputs._downloads) == 1)
        cancel.set()
        assert asked.result(5) is None
    assert len(desk.inputs._downloads) == 0


def test_an_ending_agent_lets_nobody_wait(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(desk.inputs.fetch, a_body(b"x"), threading.Event())
        eventually(lambda: len(desk.inputs._downloads) == 1)
        desk.inputs.close()
        with pytest.raises(InputsMissing):
            asked.result(5)


def test_a_full_disk_gets_room_from_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000, 7)
    for number, data in enumerate((b"aaaa", b"bbbb", b"cccc")):
        cache.put(data)
        age(tmp_path, data, 100.0 - number)
    assert cache.give_way(5)
    assert [cache.get(sha(data)) is not None for data in (b"aaaa", b"bbbb", b"cccc")] == [False, False, True]
    assert cache.give_way(5)
    assert not cache.give_way(5), "nothing is left"


def test_an_input_for_which_others_made_room_is_kept(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 1 << 20):
        cache = BlobCache(tmp_path / "small", 1 << 30, 7)
        old = [bytes([number]) * 200_000 for number in range(5)]
        for number, data in enumerate(old):
            cache.put(data)
            age(tmp_path / "small", data, 100.0 - number)
        new = b"n" * 300_000
        cache.put(new)
        assert cache.get(sha(new)) == new
        assert [cache.get(sha(data)) is not None for data in old] == [False, False, True, True, True]


def test_a_disk_that_takes_nothing_leaves_the_cache_without_it_and_raises_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000, 7)
    with files_at_most(0):
        cache.put(b"hello")
    assert cache.get(sha(b"hello")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_cache_on_a_disk_that_became_read_only_raises_nothing(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "small", 1 << 20):
        cache = BlobCache(tmp_path / "small", 1000, 7)
        cache.put(b"hello")
        remount(tmp_path / "small", "ro")
        cache.put(b"other")
        cache.trim()
        assert not cache.give_way(100)
        assert cache.get(sha(b"hello")) == b"hello"
