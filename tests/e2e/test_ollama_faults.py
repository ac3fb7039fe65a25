"""Everything an Ollama does wrong gets its right name, in words a person can act on, and the next task is done."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.site import MODEL, Ollama, Site, slug
from koubou_simulator.workshop import Worker
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-ollama")]

THINKER = "gpt-oss:20b"
# What a person would wait minutes for; the names do not depend on how long.
IMPATIENT = {"network_timeout": 1, "limits": {"first_token_s": 1, "load_s": 5, "total_s": 6}}


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, or a wish that the model cannot fulfil, and the name that its task's end must have."""

    error: str
    fault: str = ""
    more: dict[str, object] = field(default_factory=dict)
    prompt: str = "Explain"
    options: tuple[str, ...] = ()


CASES = {
    "500": Case("ollama_error", "error", {"status": 500, "text": "something broke"}),
    "503": Case("ollama_busy", "busy"),
    "cut JSON": Case("bad_answer", "invalid_json"),
    "HTML of a proxy": Case("bad_answer", "html"),
    "done:false": Case("degenerate", "done_false", {"after": 5}),
    "connection cut": Case("connection_lost", "eof", {"after": 400}),
    "connection reset": Case("connection_lost", "reset", {"after": 400}),
    "empty": Case("empty_output", "empty"),
    "null": Case("bad_answer", "null_response"),
    "cut at num_predict": Case("cut_output", prompt="[[sim: length=500]] Go on", options=("num_predict=50",)),
    "too long for the window": Case("context_overflow", "context"),
    "redirect": Case("redirected", "redirect", {"text": "http://192.0.2.1:11434/api/generate"}),
    "not there": Case("model_missing", "not_found"),
    "one token over and over": Case("degenerate", prompt="[[sim: repeat]] Again"),
    "silent in the midst": Case("stalled", "stall", {"after": 5}),
    "no first token": Case("stuck", "headers_hang"),
}


@pytest.fixture(scope="module")
def ollama(site: Site) -> Ollama:
    return site.ollama("local")


@pytest.fixture(scope="module")
def thinking_ollama(site: Site) -> Ollama:
    return site.ollama("thinking", model=THINKER)


@pytest.fixture(scope="module", autouse=True)
def workshop(site: Site, ollama: Ollama, thinking_ollama: Ollama) -> Iterator[None]:
    small = {"num_ctx": 8192, "num_predict": 600}
    site.open(
        [
            Worker("local_001", MODEL, ollama.url, options=small, more=IMPATIENT),
            Worker("thinker_001", THINKER, thinking_ollama.url, options=small),
        ],
        broker="heartbeat_s: 0.5\nlease_s: 5\nretry: {backoff_base_s: 0.1, backoff_cap_s: 0.2}\n"
        "breaker: {failures: 1000}\ndisk: {reserve_bytes: 0, min_free_bytes: 0}\n",
    )
    site.start_agent("local_001", ollama)
    site.start_agent("thinker_001", thinking_ollama)
    yield
    assert site.workshop.broker.is_alive()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_fault_has_its_name_and_the_next_task_is_done(site: Site, ollama: Ollama, case: Case) -> None:
    if case.fault:
        ollama.fault(case.fault, **case.more)
    options = [word for option in case.options for word in ("--option", option)]
    ran = site.ctl(
        "submit", "--worker", "local_001", "--max-attempts", "1", *options, "-o", "o.md", "--wait", case.prompt
    )
    ollama.no_faults()
    assert (slug(ran), ran.code) == ("task-failed", 1), ran.err
    newest = site.ctl("ps", "-a", "--json").data[0]
    first = site.story(newest["id"])["attempts"][0]
    assert first["error"]["class"] == case.error, first
    assert newest["state"] == "failed"
    assert "fix:" in ran.err
    assert not Path("o.md").exists(), "a failure writes no file"
    after = site.ctl("submit", "--worker", "local_001", "Explain again", "--wait", "--wait-timeout", "30")
    assert after.code == 0, after.err


def test_a_hung_ollama_gets_no_second_task_until_it_has_let_go_of_the_first(site: Site, ollama: Ollama) -> None:
    # One good run first: a box whose speed is not known gets longer for its first token.
    assert site.ctl("submit", "--worker", "local_001", "Explain", "--wait").code == 0
    ollama.fault("hang")
    ran = site.ctl("submit", "--worker", "local_001", "--max-attempts", "1", "Explain", "--wait")
    assert (slug(ran), ran.code) == ("task-failed", 1)
    newest = site.ctl("ps", "-a", "--json").data[0]
    assert site.story(newest["id"])["attempts"][0]["error"]["class"] == "stuck"
    task_id = site.submit("--worker", "local_001", "Explain again")
    assert site.ctl("wait", str(task_id), "--wait-timeout", "1").code == 3, "its only slot is not free"
    ollama.restart()
    assert site.await_state(task_id, "succeeded")["attempts"] == 1


def test_a_passing_trouble_is_tried_again(site: Site, ollama: Ollama) -> None:
    ollama.fault("error", status=500, text="once", count=1)
    ran = site.ctl("submit", "--worker", "local_001", "Explain", "--wait", "--json")
    assert ran.code == 0, ran.err
    attempts = site.story(ran.data["id"])["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["failed", "succeeded"]
    assert attempts[0]["error"]["class"] == "ollama_error"


def test_a_killed_model_runner_costs_no_attempt(site: Site, ollama: Ollama) -> None:
    ollama.fault("kill", after=5, count=1)
    ran = site.ctl("submit", "--worker", "local_001", "--max-attempts", "1", "Explain", "--wait", "--json")
    assert ran.code == 0, ran.err
    attempts = site.story(ran.data["id"])["attempts"]
    assert [attempt["error"] and attempt["error"]["class"] for attempt in attempts] == ["runner_killed", None]


def test_while_ollama_is_down_tasks_wait_and_it_is_said_why(site: Site, ollama: Ollama) -> None:
    ollama.fault("refuse", delay_s=8)
    eventually(lambda: site.issue("local_001"), 20.0, "the agent noticed")
    task_id = site.submit("--worker", "local_001", "Explain")
    assert site.ctl("wait", str(task_id), "--wait-timeout", "0.5").code == 3
    assert "is Ollama running there?" in site.ctl("show", str(task_id)).out
    assert "is Ollama running there?" in site.ctl("workers", "show", "local_001").out
    assert site.await_state(task_id, "succeeded")["attempts"] == 1


def test_an_answer_thought_away_is_empty_and_says_so(site: Site, thinking_ollama: Ollama) -> None:
    ran = site.ctl("submit", "--worker", "thinker_001", "[[sim: think=100000]] Think", "--wait")
    assert (slug(ran), ran.code) == ("task-failed", 1)
    newest = site.ctl("ps", "-a", "--json").data[0]
    assert newest["error"]["class"] == "empty_output"
    assert "think" in newest["error"]["message"]
    asked = [request["options"]["num_predict"] for request in thinking_ollama.requests()[-2:]]
    assert asked[0] < asked[1], "it was given more room to think, once"


def test_a_thinking_model_answers_and_its_thoughts_are_no_output(site: Site, thinking_ollama: Ollama) -> None:
    ran = site.ctl("submit", "--worker", "thinker_001", "Explain", "--wait", "--json")
    assert ran.code == 0, ran.err
    assert ran.data["tokens"]["thinking"] > 0
    assert "thinking:" not in ran.data["output"]
    assert thinking_ollama.requests()[-1]["think"] == "low"


def test_a_model_that_turns_out_to_be_somebody_elses_cloud_gets_no_prompt(site: Site, ollama: Ollama) -> None:
    ollama.fault("cloud_model", model=MODEL)
    try:
        before = len(ollama.requests())
        task_id = site.submit("--worker", "local_001", "--max-attempts", "1", "A private matter")
        waited = site.ctl("wait", str(task_id), "--wait-timeout", "5")
        assert waited.code in (1, 3)
        asked = [request for request in ollama.requests()[before:] if request["ended"] in ("answered", "")]
        assert asked == [], "no prompt was answered"
    finally:
        ollama.no_faults()
        site.ctl("cancel", str(task_id))


@pytest.mark.parametrize(
    ("prompt", "target", "flags", "state"),
    [
        ("[[sim: fenced]] Write it", "a.py", (), "succeeded"),
        ("[[sim: chatty]] Write it", "a.py", (), "succeeded"),
        ("[[sim: blocks]] Write it", "a.py", (), "succeeded"),
        ("[[sim: blocks]] Write it", "a.py", ("--strict-output",), "failed"),
    ],
    ids=["fenced", "chatty", "two blocks", "two blocks, strictly"],
)
def test_the_file_is_found_in_what_the_model_said(
    site: Site, prompt: str, target: str, flags: tuple[str, ...], state: str
) -> None:
    ran = site.ctl("submit", "--worker", "local_001", "-o", target, *flags, "--wait", "--json", prompt)
    task = ran.data
    assert task["state"] == state, ran.err
    if state == "failed":
        assert task["error"]["class"] == "chatty_output"
        assert not Path(target).exists()
    elif "blocks" in prompt:
        assert task["flags"] == ["chatty"]
        assert Path(target).read_text().count("```") == 4, "left as it is"
    else:
        assert "```" not in Path(target).read_text()
        assert "```" in site.ctl("result", str(task["id"]), "--raw").out, "all that was said is kept"
