"""The main job, end to end: a task goes in, gemini-repo-cli runs beside its Ollama, the text comes back."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import MODEL, Ollama, Site
from koubou_simulator.workshop import Process, Worker
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-main")]

NUM_CTX, NUM_PREDICT = 12_288, 777  # told from every default
WIDE_MODEL = "llama3.2:3b"
ENDLESS = "[[sim: endless]] Go on."
CODEC = "def encode(message: str) -> bytes:\n    return message.encode()\n"


@pytest.fixture(scope="module")
def ollama(site: Site) -> Ollama:
    return site.ollama("local")


@pytest.fixture(scope="module", autouse=True)
def agent(site: Site, ollama: Ollama) -> Process:
    site.open(
        [
            Worker("local_001", MODEL, ollama.url, options={"num_ctx": NUM_CTX, "num_predict": NUM_PREDICT}),
            Worker("box_001", WIDE_MODEL, "", location="remote", performance_factor=0.5, options={"num_ctx": 131_072}),
        ]
    )
    return site.start_agent("local_001", ollama)


@pytest.fixture(scope="module", autouse=True)
def end_well(site: Site, agent: Process) -> Iterator[None]:
    yield
    assert site.workshop.broker.is_alive()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository, and the current folder."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "codec.py").write_text(CODEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_of_the_readme_writes_what_the_model_said(site: Site, ollama: Ollama, repo: Path) -> None:
    ran = site.run_ctl("submit", "Explain this module", "-f", "src/codec.py", "-o", "codec.md", "--wait", cwd=repo)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert "wrote codec.md" in ran.stderr
    text = (repo / "codec.md").read_text()
    assert text.startswith(f"[SIMULATED] {MODEL} made this up for codec.md")
    assert sorted(path.name for path in repo.iterdir()) == ["codec.md", "src"], "nothing else was left behind"

    request = ollama.requests()[-1]
    assert f"### File: src/codec.py\n```\n{CODEC}\n```" in request["prompt"]
    assert "Explain this module" in request["prompt"]
    assert "Generate the complete content for the file: codec.md" in request["prompt"]
    assert request["options"]["num_ctx"] == NUM_CTX
    assert request["options"]["num_predict"] == NUM_PREDICT
    assert request["truncate"] is False
    assert str(repo) not in request["prompt"]
    assert "data" in request["system"], "the model is told that files are data"


def test_without_an_output_file_the_text_is_printed(site: Site, repo: Path) -> None:
    ran = site.run_ctl("submit", "Say something", "--wait", cwd=repo)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("[SIMULATED]")
    assert list(repo.glob("*.txt")) == [], "gemini-repo-cli's copy of the prompt stays in its own folder"


def test_the_json_document_has_the_contracts_fields(site: Site, repo: Path) -> None:
    task = site.ctl("submit", "Say something", "-t", "said.md", "-p", "high", "--wait", "--json").data
    assert (task["state"], task["priority"], task["target"], task["worker"]) == ("succeeded", 8, "said.md", "local_001")
    assert task["tokens"]["prompt"] > 0
    assert task["tokens"]["output"] > 0
    assert task["output"].startswith("[SIMULATED]")
    assert task["error"] is None


def test_options_of_a_task_reach_the_model_and_the_workers_window_stays(site: Site, ollama: Ollama, repo: Path) -> None:
    ran = site.ctl("submit", "Say it", "--option", "temperature=0.9", "--option", "seed=7", "--wait")
    assert ran.code == 0, ran.err
    options = ollama.requests()[-1]["options"]
    assert (options["temperature"], options["seed"], options["num_ctx"]) == (0.9, 7, NUM_CTX)


def test_a_batch_of_lines_is_done_and_every_file_is_written(site: Site, repo: Path) -> None:
    lines = [{"custom_id": f"c{n}", "prompt": f"Part {n}", "files": ["src/codec.py"], "out": f"{n}.md"} for n in "abc"]
    (repo / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = site.ctl("submit", "--jsonl", "tasks.jsonl", "--wait", "--json")
    assert ran.code == 0, ran.err
    ended = [json.loads(line)["data"] for line in ran.out.splitlines()]
    assert sorted(task["custom_id"] for task in ended) == ["ca", "cb", "cc"]
    for name in "abc":
        assert (repo / f"{name}.md").read_text().startswith(f"[SIMULATED] {MODEL} made this up for {name}.md")


def test_one_bad_line_refuses_the_whole_file(site: Site, repo: Path) -> None:
    before = len(site.ctl("ps", "-a", "--json").data)
    (repo / "tasks.jsonl").write_text('{"prompt": "good"}\n{"prompt": "bad", "files": ["absent.py"]}\n')
    ran = site.ctl("submit", "--jsonl", "tasks.jsonl", "--wait")
    assert ran.code == 2
    assert "tasks.jsonl:2: absent.py: no such file" in ran.err
    assert len(site.ctl("ps", "-a", "--json").data) == before


def test_the_same_key_and_body_is_the_same_task(site: Site, repo: Path) -> None:
    first = site.submit("Say it once", "--idempotency-key", "once")
    assert site.submit("Say it once", "--idempotency-key", "once") == first
    conflict = site.ctl("submit", "Say another", "--idempotency-key", "once", "--json")
    assert (conflict.code, conflict.error["code"]) == (7, "conflict")


def test_a_running_task_is_cancelled_and_its_slot_is_free_again(site: Site, ollama: Ollama, repo: Path) -> None:
    ollama.speed(0.1)  # its 777 tokens take 8 s
    try:
        task_id = site.submit(ENDLESS)
        eventually(lambda: ENDLESS in ollama.requests()[-1]["prompt"], 20.0, "Ollama was asked")
        assert site.ctl("cancel", str(task_id), "--reason", "enough").code == 0
        assert site.task(task_id)["state"] == "cancelled"
        eventually(lambda: ollama.requests()[-1]["ended"] == "hung up", 20.0, "Ollama's call was ended")
    finally:
        ollama.speed(1.0)
    assert site.ctl("submit", "And now?", "--wait", "--wait-timeout", "20").code == 0
    waited = site.ctl("wait", str(task_id))
    assert waited.code == 1, "a cancelled task has no output"


def test_a_failed_task_is_opened_again_and_keeps_its_history(site: Site, ollama: Ollama, repo: Path) -> None:
    ollama.fault("empty")
    ran = site.ctl("submit", "Say nothing, then something", "-o", "something.md", "--wait")
    assert ran.code == 1
    task_id = site.ctl("ps", "-a", "--json").data[0]["id"]
    assert site.task(task_id)["error"]["class"] == "empty_output"
    assert site.ctl("retry", str(task_id)).code == 0
    assert site.ctl("wait", str(task_id)).code == 0
    states = [attempt["state"] for attempt in site.story(task_id)["attempts"]]
    assert states == ["failed", "succeeded"]
    assert site.ctl("result", str(task_id), "--write").code == 0
    assert (repo / "something.md").read_text().startswith("[SIMULATED]")


def test_a_paused_worker_takes_nothing_new_until_it_is_resumed(site: Site, repo: Path) -> None:
    assert site.ctl("workers", "pause", "local_001").code == 0
    try:
        task_id = site.submit("Wait for me")
        waited = site.ctl("wait", str(task_id), "--wait-timeout", "1")
        assert waited.code == 3, waited.err
        assert site.task(task_id)["state"] == "queued"
        assert "paused" in site.ctl("show", str(task_id)).out
    finally:
        assert site.ctl("workers", "resume", "local_001").code == 0
    assert site.ctl("wait", str(task_id), "--wait-timeout", "20").code == 0


def test_a_draining_worker_finishes_what_runs(site: Site, ollama: Ollama, repo: Path) -> None:
    task_id = site.submit("[[sim: length=700]] Take your time")
    site.await_state(task_id, "running")
    drained = site.ctl("workers", "drain", "local_001", "--wait", "--wait-timeout", "30")
    try:
        assert drained.code == 0, drained.err
        assert site.task(task_id)["state"] == "succeeded"
        assert site.task(task_id)["attempts"] == 1
        assert site.worker("local_001")["state"] == "draining"
    finally:
        assert site.ctl("workers", "resume", "local_001").code == 0


def test_an_agent_that_is_stopped_hands_its_task_back(site: Site, ollama: Ollama, agent: Process, repo: Path) -> None:
    ollama.speed(0.02)
    try:
        task_id = site.submit("[[sim: length=600]] A long one")
        site.await_state(task_id, "running")
        agent.popen.send_signal(signal.SIGTERM) if agent.popen else None
        eventually(lambda: not agent.is_alive(), 20.0, "the agent ended")
        assert agent.stop() == 0
        assert site.task(task_id)["state"] == "queued"
        attempt = site.story(task_id)["attempts"][0]
        assert attempt["error"]["class"] == "drain"
    finally:
        ollama.speed(1.0)
        agent.start()
        site.await_ready("local_001", agent)
    assert site.await_state(task_id, "succeeded")["attempts"] == 2


def test_a_box_joins_by_token_and_is_removed_for_good(site: Site, repo: Path) -> None:
    (repo / "large.txt").write_text("A line of some 32 characters....\n" * 9_000)  # too large to travel inline
    box = site.workshop.join_box("box_001")
    ollama = site.ollama("box", model=WIDE_MODEL, preset="tiny")
    agent = site.start_agent("box_001", ollama, box)
    try:
        ran = site.ctl("submit", "Do it over there", "--worker", "box_001", "-f", "large.txt", "--wait", "--json")
        assert (ran.data["state"], ran.data["worker"]) == ("succeeded", "box_001")
        assert (repo / "large.txt").read_text() in ollama.requests()[-1]["prompt"]
        cache = box / "state" / "agents" / "box_001" / "cache"
        assert any(path.is_file() for path in cache.rglob("*")), "inputs are cached while it is a member"

        assert site.ctl("workers", "remove", "box_001").code == 0
        eventually(lambda: not agent.is_alive(), 20.0, "the removed worker's agent ended")
        assert "removed" in agent.log()
        assert [path for path in cache.rglob("*") if path.is_file()] == [], "a removed worker keeps no inputs"
        assert site.worker("box_001")["connected"] is False
    finally:
        agent.stop()


def test_an_agent_on_the_box_of_another_needs_an_invitation(site: Site, ollama: Ollama, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "log").mkdir()
    agent = site.workshop.agent("local_002", ollama.url, tmp_path)
    agent.start()
    eventually(lambda: not agent.is_alive(), 20.0, "it gave up")
    assert agent.stop() == 8
    assert "koubou-ctl workers invite" in agent.log()


def test_a_laptop_joins_sees_its_own_tasks_alone_and_is_shut_out_again(
    site: Site, ollama: Ollama, repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    laptop = tmp_path_factory.mktemp("laptop") / "koubou"
    of_operator = site.submit("Not for mika's eyes")
    token = site.ctl("keys", "invite", "mika", "--role", "client", "--quiet").out.strip()
    joined = site.run_ctl("join", token, "--home", str(laptop), cwd=repo)
    assert joined.returncode == 2, "--home stands before the command"
    joined = site.run_ctl("--home", str(laptop), "join", token, cwd=repo)
    assert joined.returncode == 0, joined.stderr
    assert "joined as mika (client)" in joined.stdout

    mika = site.run_ctl("--home", str(laptop), "submit", "Hello", "-f", "src/codec.py", "--wait", cwd=repo)
    assert mika.returncode == 0, mika.stderr
    assert mika.stdout.startswith("[SIMULATED]")
    hidden = site.run_ctl("--home", str(laptop), "show", str(of_operator), cwd=repo)
    assert (hidden.returncode, hidden.stdout) == (5, "")
    refused = site.run_ctl("--home", str(laptop), "workers", "pause", "local_001", cwd=repo)
    assert refused.returncode == 4
    assert refused.stderr.startswith("error[not-authorised]")

    assert site.ctl("keys", "revoke", "mika").code == 0
    shut_out = site.run_ctl("--home", str(laptop), "status", cwd=repo)
    assert shut_out.returncode == 4
    assert shut_out.stderr.startswith("error[key-not-enrolled]")


def test_status_and_logs_tell_how_it_went(site: Site, repo: Path) -> None:
    task_id = site.submit("Say it", "--type", "docs")
    site.await_state(task_id, "succeeded")
    assert site.ctl("status").code == 0
    shown = site.ctl("show", str(task_id)).out
    assert "local_001" in shown
    assert "succeeded" in shown
    logs = site.ctl("logs", str(task_id)).out
    assert "cli_start" in logs or "generation" in logs
    assert "Say it" not in logs, "prompts stay out of logs"
