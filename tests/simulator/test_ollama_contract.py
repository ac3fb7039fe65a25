"""What agent and CLI rely on, against the simulated Ollama and, where KOUBOU_TEST_OLLAMA names one, a real server.

The real one needs the models stop, endless, repeat, mute, utf8, badbytes, broken and slow, no cloud
(OLLAMA_NO_CLOUD=1), and nobody else using it. It may be any version; recordings are compared with 0.24 only.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest

from koubou_simulator.ollama import SimSettings, SimulatedOllama, tiny_models
from support.ollama_replay import Real, Replayed, replay

VARIABLE = "KOUBOU_TEST_OLLAMA"
DATA = Path(__file__).parent.parent / "data" / "ollama"
# The other files are about waits: they are played to the simulator only, whose time can be moved.
COMPARED = ("plain", "load", "endings", "context", "errors")
# In real time these two are over soon; that the simulator agrees with all of them test_recordings.py shows.
SHORT = ("plain", "errors")


@pytest.fixture(scope="module", params=["simulated", "real"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "simulated":
        with SimulatedOllama(SimSettings(version="0.0.0", speed=20), tiny_models()) as sim:
            yield sim.url
        return
    given = os.environ.get(VARIABLE, "")
    if not given:
        pytest.skip(f"{VARIABLE} does not name a real Ollama with the recorded models")
    yield given


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[ollama.Client]:
    made = ollama.Client(url)
    yield made
    made._client.close()


def test_the_python_client_reads_a_whole_answer(client: ollama.Client) -> None:
    answer = client.generate(model="stop", prompt="hello")
    assert (answer.response, answer.done, answer.done_reason) == ("Zebra<>&\t'fin~`Q", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (6, 17)
    assert answer.total_duration
    assert answer.load_duration
    assert answer.context


def test_the_python_client_reads_a_stream(client: ollama.Client) -> None:
    parts = list(client.generate(model="endless", prompt="hello", stream=True, options={"num_predict": 9}))
    assert "".join(part.response or "" for part in parts) == "pqrstuvwx"
    assert [part.done for part in parts] == [False] * 9 + [True]
    assert parts[-1].done_reason == "length"


def test_the_python_client_reads_a_chat(client: ollama.Client) -> None:
    answer = client.chat(model="mute", messages=[{"role": "user", "content": "hello"}])
    assert answer.message.content == ""
    assert answer.done


def test_the_python_client_reads_the_lists(client: ollama.Client) -> None:
    client.generate(model="stop", prompt="", options={"num_ctx": 512})
    running = next(model for model in client.ps().models if model.name == "stop:latest")
    assert running.context_length == 512
    assert running.expires_at is not None
    listed = {model.model: model for model in client.list().models}
    assert {"stop:latest", "broken:latest", "slow:latest"} <= set(listed)
    assert running.digest == listed["stop:latest"].digest
    shown = client.show("stop")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 32768


def test_the_python_client_meets_errors_with_their_status(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
        client.generate(model="nope", prompt="x")
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as thinking:
        client.generate(model="stop", prompt="x", think=True)
    assert thinking.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="llama runner process has terminated: error loading model"):
        client.generate(model="broken", prompt="x")


def test_the_python_client_takes_an_answer_that_broke_off_for_one(client: ollama.Client) -> None:
    answer = client.generate(model="repeat", prompt="hello")
    assert answer.done is False
    assert answer.response == "x" * 31


@pytest.fixture(scope="module")
def replays(url: str, client: ollama.Client) -> dict[str, list[Replayed]]:
    """All files that are played to this server, in the order of their recording."""
    version = json.loads(replay_one(url, "GET", "/api/version").body)["version"]
    if not re.match(r"0\.(0|2[0-4])\.", version):
        pytest.skip(f"the recordings are of 0.24, this is {version}")
    played = {}
    for name in COMPARED if url == os.environ.get(VARIABLE) else SHORT:
        if name in ("plain", "load"):
            for model in client.ps().models:
                client.generate(model=str(model.model), prompt="", keep_alive=0)
        played[name] = replay(Real(urlsplit(url).port or 11434), recorded(name), {})
    return played


@pytest.mark.parametrize("name", COMPARED)
def test_exchanges_mean_what_they_meant_when_recorded(name: str, replays: dict[str, list[Replayed]]) -> None:
    if name not in replays:
        pytest.skip("takes its time; test_recordings.py plays it to the simulator")
    for was, now in zip(recorded(name)["exchanges"], replays[name], strict=True):
        assert now.status == was["status"], was["label"]
        assert now.end == was["end"], was["label"]
        assert now.last_chunk_seen == was.get("last_chunk_seen"), was["label"]
        assert now.headers.get("Content-Type") == was["headers"].get("Content-Type"), was["label"]
        if was["label"] in ("num_predict 0", "tags", "show"):
            continue  # how far it came; files of another machine
        if was["label"] == "format json" and now.status == 200:
            continue  # sampled without a seed: it may end by itself or at its length
        mine, theirs = now.body or "".join(now.chunks), was.get("body") or "".join(was.get("chunks", ()))
        assert meaning(mine, was) == meaning(theirs, was), was["label"]


def recorded(name: str) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return record


def replay_one(url: str, method: str, path: str) -> Replayed:
    exchange = {
        "label": path,
        "t_start_ms": 0,
        "t_end_ms": 1,
        "request": {"method": method, "path": path, "body": None},
        "end": "closed by server",
    }
    record = {"shows": path, "acts": [], "exchanges": [exchange]}
    return replay(Real(urlsplit(url).port or 11434), record, {})[0]


def meaning(text: str, was: Mapping[str, Any]) -> str:
    """Without what another run, another machine or another build of the models says differently."""
    text = re.sub(r'"(created_at|modified_at|expires_at|digest)":"[^"]*"', r'"\1":""', text)
    text = re.sub(r'"(\w+_duration|size|size_vram)":\d+', r'"\1":0', text)
    text = re.sub(r'"context":\[[^]]*\]', '"context":[]', text)
    text = re.sub(r"(missing tensor)[^\"]*", r"\1", text)
    text = re.sub(r"<\d+ more chunks>", "", text)
    if "one token over and over" in was["label"] and was["request"]["body"]["stream"]:
        return ",".join(sorted(set(re.findall(r'"response":"[^"]*","done":\w+', text))))
    if isinstance(was["request"]["body"], dict) and was["request"]["body"].get("format"):
        text = re.sub(r'"response":".*?","done"', '"response":"","done"', text)
        text = re.sub(r'"eval_count":\d+', "", text)
    if '"models":[' in text:
        models = [model for model in json.loads(text)["models"] if model["name"].startswith("stop")]
        return json.dumps(models)
    return text
