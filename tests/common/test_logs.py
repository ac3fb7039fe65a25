"""What broker and agent log is one line an event, in the form that the settings name."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from koubou_common import logs

Logged = Callable[[logs.LogFormat], list[str]]


@pytest.fixture(params=["koubou_agent", "koubou_broker"])
def logged(request: pytest.FixtureRequest) -> Iterator[Logged]:
    """What comes out when the packages speak, by the form asked for."""
    root, ours = logging.getLogger(), logging.getLogger(request.param)
    before, level, our_level = root.handlers[:], root.level, ours.level

    def speak(form: logs.LogFormat) -> list[str]:
        stream = io.StringIO()
        logs.set_up("info", form, stream)
        ours.warning("task=%d is late", 7)
        ours.debug("not shown")
        logging.getLogger("alembic").info("not shown either")
        return stream.getvalue().splitlines()

    yield speak
    root.handlers[:] = before
    root.setLevel(level)
    ours.setLevel(our_level)


def test_text_says_when_and_how_bad(logged: Logged) -> None:
    (line,) = logged("text")
    assert line.endswith("WARNING task=7 is late")
    assert line[:2] == "20"


def test_json_is_one_object_a_line(logged: Logged, request: pytest.FixtureRequest) -> None:
    (line,) = logged("json")
    said = json.loads(line)
    assert said.pop("at_ms") > 0
    assert said.pop("logger") in request.node.callspec.params.values()
    assert said == {"level": "warning", "message": "task=7 is late"}


def test_auto_fits_the_journal(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    assert logged("auto") == ["<4>task=7 is late"]
    monkeypatch.delenv("JOURNAL_STREAM")
    (line,) = logged("auto")
    assert line.endswith("WARNING task=7 is late")
