"""Every exchange recorded from a real Ollama 0.24, against the simulated one: byte for byte, and who waits for whom."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from koubou_simulator.ollama import ManualClock, SimSettings, SimulatedOllama, tiny_models
from support.ollama_replay import Replayed, Simulated, replay

DATA = Path(__file__).parent.parent / "data" / "ollama"
# In the order of the recording, on one server: what one file leaves loaded the next one finds.
ON_ONE_SERVER = ("plain", "load", "endings", "context", "errors", "cache", "queue", "cancel", "swap")
SETTINGS = SimSettings(version="0.0.0")
ON_THEIR_OWN = {
    "evict": replace(SETTINGS, max_loaded=1, max_queue=2),
    "death": replace(SETTINGS, max_loaded=1),
}
# Models unloaded before a file began, or before the exchange named.
UNLOADED = ("stop", "endless", "repeat", "mute", "slow")
UNLOAD_BEFORE = {"plain", "load", "cache", "swap"}
UNLOAD_SLOW_BEFORE = "hung up while the model loads"

RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
EXCHANGES = [(name, number) for name, record in RECORDED.items() for number in range(len(record["exchanges"]))]
Exchange = Mapping[str, Any]


@cache
def replayed() -> Mapping[str, list[Replayed]]:
    """All files, played once."""
    played: dict[str, list[Replayed]] = {}
    with SimulatedOllama(SETTINGS, tiny_models(), clock=ManualClock()) as sim:
        for name in ON_ONE_SERVER:
            if name in UNLOAD_BEFORE:
                unload(sim, *UNLOADED)
            before = {UNLOAD_SLOW_BEFORE: unloading_slow(sim)} if name == "cancel" else {}
            played[name] = replay(Simulated(sim), RECORDED[name], before)
    for name, limits in ON_THEIR_OWN.items():
        with SimulatedOllama(limits, tiny_models(), clock=ManualClock()) as sim:
            played[name] = replay(Simulated(sim), RECORDED[name], {})
    return played


def unload(sim: SimulatedOllama, *names: str) -> None:
    for model in sim.models:
        if model.name.removesuffix(":latest") in names:
            sim.scheduler.expire(model)


def unloading_slow(sim: SimulatedOllama) -> Callable[[], None]:
    return lambda: unload(sim, "slow")


def test_every_recorded_file_is_played() -> None:
    assert set(RECORDED) == {*ON_ONE_SERVER, *ON_THEIR_OWN}
    assert len(EXCHANGES) == 127


@pytest.mark.parametrize(
    ("name", "number"),
    EXCHANGES,
    ids=[f"{name}-{RECORDED[name]['exchanges'][number]['label']}" for name, number in EXCHANGES],
)
def test_an_exchange_goes_as_recorded(name: str, number: int) -> None:
    was: Exchange = RECORDED[name]["exchanges"][number]
    now = replayed()[name][number]
    assert now.label == was["label"]
    assert now.status == was["status"]
    assert now.end == was["end"]
    if was["status"] is None:
        return
    assert list(now.headers) == list(was["headers"])
    for header in set(was["headers"]) - {"Date", "Content-Length"}:
        assert now.headers[header] == was["headers"][header], header
    if "Content-Length" in now.headers and was["request"]["method"] != "HEAD":
        assert int(now.headers["Content-Length"]) == len(now.body.encode())
    assert now.last_chunk_seen == was.get("last_chunk_seen")
    if "chunks" not in was:
        assert comparable(now.body, was) == comparable(was["body"], was)
    elif was["end"] == "client hung up" or not was["last_chunk_seen"] or is_error_line(was["chunks"][-1]):
        compare_broken_off(now.chunks, was)
    else:
        assert [comparable(chunk, was) for chunk in shortened(now.chunks, was["chunks"])] == [
            comparable(chunk, was) for chunk in was["chunks"]
        ]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_who_waits_for_whom_is_as_recorded(name: str) -> None:
    was, now = RECORDED[name]["exchanges"], replayed()[name]
    pairs = 0
    for one, other in combinations(range(len(was)), 2):
        end_one = was[one]["t_start_ms"] + was[one]["t_end_ms"]
        end_other = was[other]["t_start_ms"] + was[other]["t_end_ms"]
        overlap = was[other]["t_start_ms"] < end_one
        if (
            not overlap
            or abs(end_one - end_other) < 100
            or "GET" in {was[n]["request"]["method"] for n in (one, other)}
        ):
            continue
        pairs += 1
        first, second = now[one].ended_s, now[other].ended_s
        assert first is not None
        assert second is not None
        assert (first < second) == (end_one < end_other), (was[one]["label"], was[other]["label"])
    assert pairs or name not in ("queue", "swap", "evict", "cancel")


def test_reading_endpoints_do_not_wait_for_generations() -> None:
    probes = [x for played in replayed().values() for x in played if x.label.endswith("meanwhile")]
    assert len(probes) == 5
    for probe in probes:
        assert probe.ended_s is not None
        assert probe.ended_s - probe.started_s < 1, probe.label


@pytest.mark.parametrize("name", ["cache", "queue", "cancel", "swap", "evict", "death"])
def test_durations_of_the_slow_model_have_the_recorded_proportions(name: str) -> None:
    compared = 0
    for was, now in zip(RECORDED[name]["exchanges"], replayed()[name], strict=True):
        body = was["request"]["body"]
        if not was.get("body") or not body or body["model"] != "slow" or '"total_duration"' not in was["body"]:
            continue
        before, after = (numbers(text) for text in (was["body"], now.body))
        for field in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
            # What took 200 ms there was the model's work or a wait, not the machine's mood.
            if before[field] > 200e6:
                compared += 1
                assert 0.25 < after[field] / before[field] < 4, (was["label"], field, before[field], after[field])
        waited = [n["total_duration"] - sum(n[f] for f in n if f != "total_duration") for n in (before, after)]
        assert (waited[0] > 1e9) == (waited[1] > 1e9), (was["label"], "waiting for the slot", waited)
    assert compared


def test_a_prompt_being_read_holds_the_slot_long_after_its_client_hung_up() -> None:
    cancel = replayed()["cancel"]
    index = next(n for n, x in enumerate(cancel) if x.label.startswith("hung up after 0.5 s of reading"))
    behind = cancel[index + 1]
    assert behind.ended_s is not None
    assert behind.ended_s - behind.started_s > 60


def compare_broken_off(now: list[str], was: Exchange) -> None:
    # How many tokens came before the end depends on the machine; what they were does not.
    recorded = [chunk for chunk in was["chunks"] if not re.fullmatch(r"<\d+ more chunks>", chunk)]
    assert len(now) >= 2
    for mine, theirs in zip(now[:6], recorded[:6], strict=False):
        assert comparable(mine, was) == comparable(theirs, was)
    assert list(json.loads(now[-1])) == list(json.loads(recorded[-1]))
    if '"error"' in recorded[-1]:
        assert now[-1] == recorded[-1]


def is_error_line(chunk: str) -> bool:
    return chunk.startswith('{"error"') and chunk.endswith("\n")


def shortened(now: list[str], was: list[str]) -> Iterator[str]:
    """As the recorder did it: the middle of a long answer is only counted."""
    if not any(re.fullmatch(r"<\d+ more chunks>", chunk) for chunk in was):
        yield from now
        return
    yield from [*now[:6], f"<{len(now) - 12} more chunks>", *now[-6:]]


def comparable(text: str, was: Exchange) -> str:
    """The bytes without what must differ: times, paths, shortened token lists, what a grammar sampled."""
    text = re.sub(r'"(created_at|modified_at|expires_at)":"[0-9T:.-]+Z"', r'"\1":"TIME"', text)
    text = re.sub(r'"(\w+_duration)":[1-9]\d*', r'"\1":1', text)
    if was["request"]["path"] == "/api/tags" and was["status"] == 200:
        # Files of the same second come in any order, in two recordings of one server too.
        text = json.dumps(sorted(json.loads(text)["models"], key=lambda model: str(model["name"])))
    text = re.sub(r"(<models>|/var/simulated)/blobs/", "MODELS/", text)
    body = was["request"]["body"]
    if isinstance(body, dict) and body.get("format"):
        text = re.sub(r'"response":".*?","done"', '"response":"SAMPLED","done"', text)
        text = re.sub(r'"(eval_count)":\d+', r'"\1":1', text)
        return re.sub(r'"context":\[[^]]*\]', '"context":[]', text)
    if "token ids>]" in str(was.get("body", "")) + "".join(was.get("chunks", ())):
        return re.sub(r'"context":\[([\d,]+)\]', lambda ids: f'"context":[<{ids[1].count(",") + 1} token ids>]', text)
    return text


def numbers(text: str) -> dict[str, int]:
    found = {name: int(value) for name, value in re.findall(r'"(\w+_duration)":(\d+)', text)}
    return {"eval_duration": 0} | found
