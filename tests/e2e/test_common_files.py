"""A batch whose tasks share a large file: it crosses the network once for each box."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import Site
from koubou_simulator.workshop import Worker
from support.relay import CountingRelay

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-common")]

TASKS = 20
COMMON_BYTES = 300_000  # more than a message carries inline
MODEL, WINDOW = "llama3.2:3b", 131_072
HEARTBEATS_BYTES = 150_000  # and all else that is said meanwhile: far from a second copy of the file


@pytest.fixture
def relay(site: Site) -> Iterator[CountingRelay]:
    with CountingRelay(site.workshop.port) as relay:
        yield relay


def test_a_file_of_all_tasks_is_sent_to_a_box_once(
    site: Site, relay: CountingRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common.txt").write_text("All of them need this line.\n" * (COMMON_BYTES // 28))
    for number in range(TASKS):
        (tmp_path / f"{number:02}.py").write_text(f"x = {number}\n")
    ollama = site.ollama("local", "--speed", "10000", model=MODEL)
    site.open([Worker("local_001", MODEL, ollama.url, options={"num_ctx": WINDOW, "num_predict": 256})])
    agent_settings = site.home / "config" / "agent.yaml"
    agent_settings.write_text(f"broker_addresses: ['tcp://127.0.0.1:{relay.port}']\n")
    site.start_agent("local_001", ollama)
    ran = site.ctl("submit", "Explain it", "-f", "common.txt", "--each", "*.py", "-o", "{stem}.md", "--wait")
    assert ran.code == 0, ran.err
    asked = ollama.requests()
    assert len(asked) == TASKS
    heads = {request["prompt"].partition("### File: ")[2][:COMMON_BYTES] for request in asked}
    assert len(heads) == 1, "what all share comes first"
    sent = relay.received_bytes
    assert COMMON_BYTES * 0.9 < sent < COMMON_BYTES + HEARTBEATS_BYTES, f"{sent:,} bytes"
