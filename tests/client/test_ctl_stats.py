"""koubou-ctl stats and the measured half of workers show, against a whole broker."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_common.errors import ErrorClass
from koubou_common.messages import Dispatch, Failure, Heartbeat, HeartbeatAck, ResultStored
from koubou_common.messages.values import Metrics
from support.broker_play import MODEL, BrokerPlay, Peer, a_broker, a_configuration, a_result, a_spec, a_status
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop
from support.waiting import eventually

WORKERS = f"""
workers:
  local_workers: [{{worker_id: lan_001, model: "{MODEL}"}}]
  remote_workers: [{{worker_id: lan_002, model: "{MODEL}"}}]
performance: {{update_s: 1, min_samples: 2}}
"""
# 500 tokens a second read, 40 said.
RUN = Metrics(prompt_tokens=1_000, prompt_ms=2_000, output_tokens=400, eval_ms=10_000, load_ms=8_000, total_ms=21_000)
SLOW = replace(RUN, prompt_ms=8_000, eval_ms=40_000, load_ms=0, total_ms=50_000)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerPlay]:
    with a_broker(tmp_path / "main", a_configuration(workers=WORKERS)) as broker:
        yield broker


@pytest.fixture
def ctl(broker: BrokerPlay) -> Ctl:
    return Ctl(broker.home.root)


def work(operator: Peer, agent: Peer, worker_id: str, key: str, metrics: Metrics, *, fails: bool = False) -> None:
    """One task for this worker, and how it ended."""
    operator.submit(replace(a_spec(key.encode()), worker=worker_id), key=key)
    dispatch = agent.next(Dispatch)
    uid = dispatch.attempt_uid
    if fails:
        status = a_status(spooled=(uid,), last=dispatch.number)
        agent.ask(Failure(uid, ErrorClass.EMPTY_OUTPUT, "empty", metrics, "", status), ResultStored)
    else:
        agent.ask(replace(a_result(uid, last=dispatch.number), metrics=metrics), ResultStored)
    agent.ask(Heartbeat(1, 3, a_status(last=dispatch.number), None), HeartbeatAck)


def test_what_the_workers_did_is_told_in_numbers_and_their_factors_follow(broker: BrokerPlay, ctl: Ctl) -> None:
    assert ctl("stats").out == "No attempt has ended in the last 24 hours.\n"
    assert ctl("stats", "lan_001", "--hours", "1").out == "lan_001 has ended no attempt in the last hour.\n"
    with broker.agent("lan_001") as fast, broker.agent("lan_002") as slow, broker.operator() as operator:
        for nth in range(2):
            work(operator, fast, "lan_001", f"fast{nth}", RUN)
            work(operator, slow, "lan_002", f"slow{nth}", SLOW)
        work(operator, slow, "lan_002", "bad", Metrics(total_ms=50), fails=True)
        eventually(lambda: ctl("workers", "show", "lan_002", "--json").data["performance_factor"] == 0.25)
        rows = ctl("stats").out.splitlines()
        data = ctl("stats", "--json", "--hours", "48").data
        shown = ctl("workers", "show", "lan_002").out
        known = ctl("workers", "show", "lan_002", "--json").data
        listed = ctl("workers", "list").out.splitlines()
    assert rows[0].split() == ["WORKER", "TRIES", "OK", "AVG", "MIN", "MAX", "READS/S", "SAYS/S", "LOADS", "ERRORS"]
    assert rows[1].split() == ["lan_001", "2", "100%", "21", "s", "21", "s", "21", "s", "500", "40", "2", "-"]
    assert rows[2].split()[-5:] == ["125", "10", "0", "1", "empty_output"]
    assert (data["hours"], [one["id"] for one in data["workers"]]) == (48, ["lan_001", "lan_002"])
    assert (data["workers"][1]["total"], data["workers"][1]["successful"]) == (3, 2)
    assert data["workers"][1]["errors"] == {"empty_output": 1}
    assert [(one["worker"], one["factor"], one["samples"]) for one in data["factors"]] == [("lan_002", 0.25, 2)]
    assert "Factor    0.25 measured over 2 runs; configured 0.50" in shown
    assert f"Windows   {MODEL}: 8,192 tokens" in shown
    assert "  reads 125, says 10.0 tokens a second" in shown
    # 3 x (8,192 / 125 + (4,096 + 2,048) / 10 + a load of 32 s: the other's 8 s at a quarter of its speed)
    assert "  a full window gets 5 m to its first token, 35 m 35 s altogether" in shown
    assert "24 hours  3 attempts ended, 67% succeeded" in shown
    assert "  50 s on average, 50 s to 50 s; 0 loaded a model" in shown
    assert "History   factor 0.25 set " in shown
    assert "2 runs against the local workers" in shown
    assert (known["configured_factor"], known["factor_samples"], known["latency_ms"]) == (0.5, 2, 3)
    assert known["windows"][0]["output_tokens_per_s"] == 10.0
    assert known["last_24_h"]["total"] == 3
    assert listed[0].split()[7] == "PING"
    assert "3 ms" in listed[1]


def test_a_worker_that_was_not_measured_says_so(broker: BrokerPlay, ctl: Ctl) -> None:
    with broker.agent("lan_002"):
        shown = ctl("workers", "show", "lan_002").out
    assert "Factor    0.50 as configured; not measured yet" in shown
    assert "limits as in workers.yaml: too few runs are measured" in shown
    assert "24 hours" not in shown


def test_statistics_of_a_worker_that_never_was_are_not_found(ctl: Ctl) -> None:
    ran = ctl("stats", "lan_003", "--json")
    assert (ran.code, ran.error["code"]) == (5, "not_found")


def test_hours_beyond_the_history_are_refused(ctl: Ctl) -> None:
    assert ctl("stats", "--hours", "0").code == 2
    assert ctl("stats", "--hours", "9000").code == 2


def test_an_older_broker_is_told_apart_instead_of_waited_for(workshop: FakeWorkshop) -> None:
    workshop.proto = 1
    ran = Ctl(workshop.home.root)("stats", "--json")
    assert (ran.code, json.loads(ran.err)["error"]["code"]) == (7, "version")
