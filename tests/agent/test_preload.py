"""Loading a model before the task: once, one at a time, never aborted."""

import threading
from collections.abc import Callable, Iterator

import pytest

from koubou_agent.call_plan import Limits
from koubou_agent.preload import Preloader, PreloadReport
from koubou_common.errors import ErrorClass
from support.gateway_calls import a_plan
from support.scripted_ollama import Peer, ScriptedOllama
from support.waiting import eventually

PLAN = a_plan(limits=Limits(load_s=5.0))


class Loading:
    """Loads when it is let, and remembers who hung up."""

    def __init__(self) -> None:
        self.finish = threading.Event()
        self.hung_up = False
        self.server: ScriptedOllama | None = None

    def __call__(self, peer: Peer) -> None:
        while not self.finish.is_set():
            if peer.hung_up(0.02):
                self.hung_up = True
                return
        if self.server is not None:
            self.server.loaded = (("stop:latest", 8192),)
        peer.fields(200, model="stop", response="", done=True, done_reason="load")


@pytest.fixture
def loading() -> Loading:
    return Loading()


@pytest.fixture
def server(loading: Loading) -> Iterator[ScriptedOllama]:
    with ScriptedOllama(loading) as server:
        loading.server = server
        yield server


@pytest.fixture
def preloader(server: ScriptedOllama) -> Iterator[Preloader]:
    preloader = Preloader(server.url)
    yield preloader
    preloader.stop()


class Asking:
    """A wait for a load in a thread of its own."""

    def __init__(self, ensure: Callable[[], PreloadReport]) -> None:
        self._reports: list[PreloadReport] = []
        self._thread = threading.Thread(target=lambda: self._reports.append(ensure()), daemon=True)
        self._thread.start()

    def report(self) -> PreloadReport:
        self._thread.join(20)
        return self._reports[0]


def test_a_model_is_loaded_with_an_empty_prompt_and_the_plans_window(
    preloader: Preloader, server: ScriptedOllama, loading: Loading
) -> None:
    loading.finish.set()
    report = preloader.ensure(PLAN)
    assert (report.error_class, report.message) == (None, "")
    assert server.generated == [
        {
            "model": "stop",
            "prompt": "",
            "stream": False,
            "options": {"temperature": 0.2, "seed": 7, "num_ctx": 8192, "num_predict": 4096},
        }
    ]
    assert not preloader.loading


def test_a_model_that_is_loaded_with_that_window_is_left_alone(preloader: Preloader, server: ScriptedOllama) -> None:
    server.loaded = (("stop:latest", 8192),)
    assert preloader.ensure(PLAN) == PreloadReport(None, "", 0)
    assert server.generated == []


def test_another_window_is_another_load(preloader: Preloader, server: ScriptedOllama, loading: Loading) -> None:
    server.loaded = (("stop:latest", 4096),)
    loading.finish.set()
    assert preloader.ensure(PLAN).error_class is None
    assert len(server.generated) == 1


def test_two_who_want_the_same_model_load_it_once(
    preloader: Preloader, server: ScriptedOllama, loading: Loading
) -> None:
    first = Asking(lambda: preloader.ensure(PLAN))
    eventually(lambda: server.generated)
    assert preloader.loading
    second = Asking(lambda: preloader.ensure(PLAN))
    eventually(lambda: sum(asked.path == "/api/ps" for asked in server.asked) >= 2)
    loading.finish.set()
    assert first.report().error_class is None
    assert second.report() == PreloadReport(None, "", 0)
    assert len(server.generated) == 1


def test_a_load_that_is_too_slow_is_a_load_timeout_and_goes_on(
    preloader: Preloader, server: ScriptedOllama, loading: Loading
) -> None:
    impatient = a_plan(limits=Limits(load_s=0.3))
    report = preloader.ensure(impatient)
    assert report.error_class is ErrorClass.LOAD_TIMEOUT
    assert "0.3 s" in report.message
    other = preloader.ensure(a_plan(model="other", limits=Limits(load_s=0.3)))
    assert other.error_class is ErrorClass.LOAD_TIMEOUT  # never two at a time
    assert "another model" in other.message
    assert len(server.generated) == 1
    assert not loading.hung_up
    loading.finish.set()
    eventually(lambda: not preloader.loading)
    assert preloader.ensure(PLAN) == PreloadReport(None, "", 0)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (lambda peer: peer.fields(404, error="model 'stop' not found"), ErrorClass.MODEL_MISSING),
        (
            lambda peer: peer.fields(500, error="llama runner process has terminated: error loading model: missing"),
            ErrorClass.MODEL_UNLOADABLE,
        ),
        (lambda peer: peer.fields(503, error="server busy, please try again."), ErrorClass.OLLAMA_BUSY),
        (lambda _: None, ErrorClass.CONNECTION_LOST),
        (lambda peer: peer.reply(200, b"<html>"), ErrorClass.BAD_ANSWER),
        (lambda peer: peer.reply(302, b"", Location="http://127.0.0.1:9/"), ErrorClass.REDIRECTED),
    ],
)
def test_a_load_that_fails_has_the_name_of_its_failure(
    preloader: Preloader, server: ScriptedOllama, script: Callable[[Peer], None], expected: ErrorClass
) -> None:
    server.script = script
    assert preloader.ensure(PLAN).error_class is expected
    assert not preloader.loading


def test_a_cloud_model_is_not_asked_for(preloader: Preloader, server: ScriptedOllama) -> None:
    assert preloader.ensure(a_plan(model="kimi-k2:cloud")).error_class is ErrorClass.CLOUD_MODEL
    assert server.asked == []


def test_stopping_hangs_up_and_ends_the_wait(preloader: Preloader, server: ScriptedOllama, loading: Loading) -> None:
    waiting = Asking(lambda: preloader.ensure(PLAN))
    eventually(lambda: server.generated)
    preloader.stop()
    assert waiting.report().error_class is not None
    eventually(lambda: loading.hung_up)
    assert preloader.ensure(PLAN).error_class is ErrorClass.DRAIN
    assert len(server.generated) == 1
