"""A question that was answered before: the commands people type, with a broker whose result cache is on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import MODEL, QUICK, ROOMY, Ollama, Site
from koubou_simulator.workshop import Process, Worker

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-cache")]

CACHE = "result_cache: {enabled: true}\n"
ASK = ("submit", "Explain this module", "-f", "a.py", "--option", "seed=7")


@pytest.fixture(scope="module")
def ollama(site: Site) -> Ollama:
    return site.ollama("local")


@pytest.fixture(scope="module", autouse=True)
def agent(site: Site, ollama: Ollama) -> Process:
    site.open([Worker("local_001", MODEL, ollama.url)], broker=QUICK + ROOMY + CACHE)
    return site.start_agent("local_001", ollama)


@pytest.fixture(scope="module", autouse=True)
def end_well(site: Site, agent: Process) -> Iterator[None]:
    yield
    assert site.workshop.broker.is_alive()
    assert agent.is_alive()


@pytest.fixture(autouse=True)
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose name, which the model is told, is the same in every test; the current folder."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    monkeypatch.chdir(folder)
    return folder


def test_the_second_time_it_is_answered_at_once_with_the_same_bytes(site: Site, ollama: Ollama) -> None:
    first = site.ctl(*ASK, "--wait")
    asked = len(ollama.requests())
    second = site.ctl(*ASK, "--wait", "--json").data
    assert first.code == 0, first.err
    assert (second["state"], second["flags"], second["attempts"], second["worker"]) == (
        "succeeded",
        ["cached"],
        0,
        None,
    )
    assert second["output"] == first.out
    assert second["tokens"] == {"prompt": 0, "thinking": 0, "output": 0}
    assert len(ollama.requests()) == asked
    shown = site.ctl("show", str(second["id"]))
    assert "from the result cache" in shown.out
    assert "cached" in site.ctl("ps", "-a").out
    assert site.ctl("result", str(second["id"])).raw == first.raw


@pytest.mark.parametrize(
    "other",
    [
        ("submit", "Explain this module, again", "-f", "a.py", "--option", "seed=7"),
        ("submit", "Explain this module", "--option", "seed=7"),
        ("submit", "Explain this module", "-f", "a.py", "--option", "seed=8"),
        ("submit", "Explain this module", "-f", "a.py", "--option", "seed=7", "--option", "num_predict=900"),
        ("submit", "Explain this module", "-f", "a.py", "--option", "seed=7", "-t", "a.md"),
        ("submit", "Explain this module", "-f", "a.py", "--option", "seed=7", "--repo", "another"),
        (*ASK, "--no-cache"),
    ],
)
def test_anything_else_runs_anew(site: Site, other: tuple[str, ...]) -> None:
    assert site.ctl(*ASK, "--wait").code == 0
    task = site.ctl(*other, "--wait", "--json").data
    assert (task["state"], task["flags"], task["attempts"]) == ("succeeded", [], 1)


def test_a_changed_file_runs_anew(site: Site, repo: Path) -> None:
    assert site.ctl(*ASK, "--wait").code == 0
    (repo / "a.py").write_text("x = 2\n")
    assert site.ctl(*ASK, "--wait", "--json").data["attempts"] == 1


def test_without_a_seed_every_answer_is_a_new_one(site: Site) -> None:
    asked = ("submit", "Explain this module", "-f", "a.py", "--wait", "--json")
    assert [site.ctl(*asked).data["attempts"] for _ in range(2)] == [1, 1]


def test_a_failure_is_not_remembered(site: Site, ollama: Ollama) -> None:
    asked = ("submit", "Say nothing", "--option", "temperature=0", "--max-attempts", "1", "--wait", "--json")
    ollama.fault("empty")
    failed = site.ctl(*asked)
    assert (failed.code, failed.data["state"]) == (1, "failed")
    ollama.no_faults()
    assert site.ctl(*asked).data["attempts"] == 1
    assert site.ctl(*asked).data["flags"] == ["cached"]


def test_a_retry_of_a_cached_answer_asks_the_model(site: Site) -> None:
    site.ctl(*ASK, "--wait")
    cached = site.ctl(*ASK, "--wait", "--json").data
    assert cached["flags"] == ["cached"]
    assert site.ctl("retry", str(cached["id"])).code == 0
    again = site.await_state(cached["id"], "succeeded")
    assert (again["attempts"], again["flags"]) == (1, [])


def test_of_a_batch_only_what_is_new_is_asked(site: Site, ollama: Ollama, repo: Path) -> None:
    (repo / "b.py").write_text("y = 1\n")
    each = ("submit", "Explain it in a batch", "--each", "*.py", "-o", "{stem}.md", "--option", "seed=7", "--wait")
    assert site.ctl(*each).code == 0
    first = {name: (repo / name).read_bytes() for name in ("a.md", "b.md")}
    (repo / "c.py").write_text("z = 1\n")
    asked = len(ollama.requests())
    ran = site.ctl(*each, "--force")
    assert ran.code == 0, ran.err
    assert len(ollama.requests()) == asked + 1
    assert {name: (repo / name).read_bytes() for name in first} == first
    assert (repo / "c.md").exists()


def test_the_answers_outlive_the_broker(site: Site, ollama: Ollama, agent: Process) -> None:
    first = site.ctl(*ASK, "--wait").raw
    site.workshop.broker.stop()
    site.workshop.start_broker()
    site.await_ready("local_001", agent)
    second = site.ctl(*ASK, "--wait", "--json").data
    assert (second["flags"], second["output"].encode()) == (["cached"], first)
