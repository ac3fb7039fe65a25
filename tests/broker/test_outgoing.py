"""Bodies on their way out: small ones inside the message, and to an agent that keeps them only once a session."""

import hashlib

from koubou_broker.blobs import Grants
from koubou_broker.bodies import KNOWN_BODIES, BodyCache, KnownBodies, to_be_inline
from koubou_broker.outgoing import Outbound
from koubou_broker.reader import Bodies, ReadBodies
from koubou_broker.sessions import Session, Sessions
from koubou_common.codec import decode
from koubou_common.messages import Dispatch, Welcome
from koubou_common.messages.limits import INLINE_BYTES, KEPT_BYTES_LEAST
from koubou_common.messages.values import Body, File, WorkerConfig, WorkerMode

KEY = "k" * 40
PROMPT = b"Describe the parser."
COMMON = b"c" * 50_000
OTHER = b"o" * 50_000
SMALL = b"s" * (KEPT_BYTES_LEAST - 1)


class Stage:
    """An outbound with its sessions, a cache that has all bodies, and a wire that keeps what goes over it."""

    def __init__(self, *bodies: bytes) -> None:
        self.frames: list[bytes] = []
        self.sessions = Sessions(1, lambda route, data: self.frames.append(data))
        self.cache = BodyCache()
        self.grants = Grants()
        for data in bodies or (PROMPT, COMMON, OTHER, SMALL):
            self.cache.put(sha(data), data)
        self.outbound = Outbound(self.sessions, self.cache, self.grants)

    def session(self, proto: int = 2, route: bytes = b"r") -> Session:
        """An agent that was welcomed."""
        session, _ = self.sessions.heard(route, KEY)
        config = WorkerConfig("lan_001", "m", ("m",), slots=2)
        self.outbound.send(session, Welcome(proto, session.number, config, WorkerMode.ACTIVE, 5.0, 30.0))
        return session

    def inside(self, session: Session, *files: bytes, prompt: bytes = PROMPT) -> list[bool]:
        """Which bodies of a dispatch travel inside it, the prompt first."""
        assert self.outbound.send(session, a_dispatch(prompt, *files)) is None
        return self.last()

    def last(self) -> list[bool]:
        self.sessions.flush()
        message = decode(self.frames[-1]).message
        assert isinstance(message, Dispatch)
        bodies = [message.prompt, *(file.body for file in message.files)]
        assert all(body.inline is None or sha(body.inline) == body.sha256 for body in bodies)
        return [body.inline is not None for body in bodies]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def a_dispatch(prompt: bytes, *files: bytes) -> Dispatch:
    named = tuple(File(f"f{number}", Body(sha(data), len(data))) for number, data in enumerate(files))
    body = Body(sha(prompt), len(prompt))
    return Dispatch(1, 1, "a" * 32, 1, 1, body, named, "", "", "", "m", (), None, False, 0.0)


def test_a_file_goes_to_a_session_once() -> None:
    stage = Stage()
    session = stage.session()
    assert stage.inside(session, COMMON, OTHER) == [True, True, True]
    assert stage.inside(session, COMMON) == [True, False]
    assert stage.inside(session, OTHER, COMMON) == [True, False, False]


def test_what_is_left_out_may_be_fetched() -> None:
    stage = Stage()
    session = stage.session()
    stage.inside(session, COMMON)
    stage.grants = Grants()
    stage.outbound = Outbound(stage.sessions, stage.cache, stage.grants)
    stage.inside(session, COMMON)
    assert stage.grants.has(KEY, sha(COMMON))


def test_a_small_body_goes_each_time() -> None:
    stage = Stage()
    session = stage.session()
    assert stage.inside(session, SMALL) == [True, True]
    assert stage.inside(session, SMALL) == [True, True]


def test_a_large_prompt_that_all_tasks_share_goes_once() -> None:
    stage = Stage()
    session = stage.session()
    assert stage.inside(session, prompt=COMMON) == [True]
    assert stage.inside(session, prompt=COMMON) == [False]


def test_an_agent_of_the_first_protocol_gets_all_each_time() -> None:
    stage = Stage()
    session = stage.session(proto=1)
    assert stage.inside(session, COMMON) == [True, True]
    assert stage.inside(session, COMMON) == [True, True]


def test_each_session_is_told_anew() -> None:
    stage = Stage()
    assert stage.inside(stage.session(), COMMON) == [True, True]
    assert stage.inside(stage.session(route=b"another"), COMMON) == [True, True]


def test_a_repeated_welcome_forgets_nothing() -> None:
    stage = Stage()
    stage.inside(stage.session(), COMMON)
    assert stage.inside(stage.session(), COMMON) == [True, False]


def test_the_room_of_what_is_left_out_serves_others() -> None:
    large, larger = b"l" * 150_000, b"m" * 200_000
    stage = Stage(PROMPT, large, larger)
    session = stage.session()
    assert stage.inside(session, large, larger) == [True, True, False]
    assert stage.inside(session, large, larger) == [True, False, True]


def test_what_did_not_fit_into_a_message_counts_as_never_sent() -> None:
    huge = b"h" * (INLINE_BYTES + 1)
    session = Stage(PROMPT).session()
    session.known = KnownBodies()
    session.known.note([Body(sha(huge), len(huge))], to_be_inline(a_dispatch(PROMPT, huge)))
    assert len(session.known) == 0


def test_a_body_that_is_read_first_counts_as_sent_with_the_message_that_waits_for_it() -> None:
    """The second one stands behind it in the queue."""
    stage = Stage(PROMPT)
    session = stage.session()
    request = stage.outbound.send(session, a_dispatch(PROMPT, COMMON))
    assert request == ReadBodies(1, (sha(COMMON),))
    assert stage.outbound.send(session, a_dispatch(PROMPT, COMMON)) is None
    frames = len(stage.frames)
    stage.sessions.flush()
    assert len(stage.frames) == frames + 1, "only the welcome: both dispatches wait"
    stage.outbound.read(Bodies(1, ((sha(COMMON), COMMON),)))
    assert stage.last() == [True, False]
    first = decode(stage.frames[-2]).message
    assert isinstance(first, Dispatch)
    assert first.files[0].body.inline == COMMON


def test_the_memory_of_a_session_has_a_bound_and_keeps_what_is_in_use() -> None:
    known = KnownBodies(most=2)
    first, second, third = (Body(bytes([number]) * 32, KEPT_BYTES_LEAST) for number in range(3))
    everything = {body.sha256 for body in (first, second, third)}
    known.note([first, second], everything)
    known.note([first], ())  # used, not sent
    known.note([third], everything)
    assert (first.sha256 in known, second.sha256 in known, third.sha256 in known) == (True, False, True)
    assert KNOWN_BODIES * 200 < 2**20
