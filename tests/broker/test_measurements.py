"""What SQL makes of the rows of ended attempts."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from koubou_broker import measurements, schema
from koubou_broker.batches import Entry
from koubou_broker.database import open_reader, open_writer
from koubou_broker.effects import FindSpeeds, FindStats, Found, Query
from koubou_broker.lookups import find
from koubou_broker.records import FactorChange, Record, WorkerMetric
from koubou_broker.routing.speeds import Speed, speeds_of
from koubou_common.messages.values import ErrorCount, WorkerStats
from support.store_play import START_MS, a_metric, a_store, a_submitted_task, a_worker

READ = a_metric(
    prompt_tokens=1_000,
    prompt_ms=2_000,
    output_tokens=50,
    thinking_tokens=30,
    eval_ms=4_000,
    execution_time_ms=7_000,
    first_token_ms=2_100,
    slot_wait_ms=40,
)
KNOWN = replace(READ, prompt_ms=40, load_ms=700, execution_time_ms=5_000, first_token_ms=900)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "koubou.db"


def kept(path: Path, *rows: Record) -> None:
    """Written by the real store."""
    with a_store(path) as play:
        play.write(Entry((a_worker(), replace(a_worker(), worker_id="w2")), ()))
        play.write(a_submitted_task(1))
        play.write(Entry(tuple(rows), ()))


def ask(path: Path, query: Query) -> Found:
    """The reader's answer."""
    reader = open_reader(path)
    try:
        with reader.connect() as connection:
            return find(connection, query)
    finally:
        reader.dispose()


def test_a_workers_numbers_are_those_of_its_attempts(path: Path) -> None:
    failed = replace(
        READ, success=False, error_type="stalled", execution_time_ms=90, output_tokens=0, thinking_tokens=0
    )
    lost = replace(failed, error_type="agent_lost", prompt_tokens=0)
    kept(path, READ, KNOWN, failed, failed, lost)
    assert ask(path, FindStats(START_MS)).stats == (
        WorkerStats(
            worker_id="lan_001",
            total=5,
            successful=2,
            avg_ms=6_000.0,
            min_ms=5_000,
            max_ms=7_000,
            success_rate=0.4,
            prompt_tokens=4_000,
            output_tokens=160,
            prompt_tokens_per_s=2_000 / 2.04,
            output_tokens_per_s=20.0,
            first_token_ms=1_500,
            load_ms=700,
            loads=1,
            slot_wait_ms=40,
            errors=(ErrorCount("stalled", 2), ErrorCount("agent_lost", 1)),
        ),
    )


def test_a_worker_that_only_failed_has_no_times(path: Path) -> None:
    kept(path, a_metric(success=False))
    [stats] = ask(path, FindStats(START_MS)).stats
    assert (stats.total, stats.successful, stats.success_rate) == (1, 0, 0.0)
    assert (stats.avg_ms, stats.min_ms, stats.max_ms, stats.output_tokens_per_s) == (0.0, 0, 0, 0.0)
    assert stats.errors == (ErrorCount("timeout", 1),)


def test_older_attempts_and_other_workers_are_left_out(path: Path) -> None:
    kept(path, READ, replace(READ, measured_ms=START_MS - 1), replace(READ, worker_id="w2"))
    assert [(one.worker_id, one.total) for one in ask(path, FindStats(START_MS)).stats] == [("lan_001", 1), ("w2", 1)]
    assert [one.worker_id for one in ask(path, FindStats(START_MS, "w2")).stats] == ["w2"]
    assert ask(path, FindStats(START_MS + 1)).stats == ()


def test_the_history_of_factors_comes_newest_first(path: Path) -> None:
    changes = [FactorChange(name, START_MS + nth, 0.5 + nth, 7, "x") for nth, name in enumerate(("lan_001", "w2"))]
    kept(path, *changes)
    assert ask(path, FindStats(START_MS)).factors == tuple(reversed(changes))
    assert ask(path, FindStats(START_MS, "lan_001")).factors == (changes[0],)
    assert ask(path, FindStats(START_MS + 1)).factors == (changes[1],)


def test_speeds_are_sums_over_successes_by_worker_and_model(path: Path) -> None:
    failed = replace(READ, success=False, error_type="stalled")
    kept(path, READ, KNOWN, failed, replace(READ, model="qwen3"), replace(READ, model="Qwen3:latest", worker_id="w2"))
    qwen = Speed("lan_001", "qwen3:latest", 1, 1_000, 1_000, 2_000, 80, 4_000, 0, 0)
    assert sorted(ask(path, FindSpeeds(START_MS)).speeds, key=lambda one: (one.worker_id, one.model)) == [
        Speed("lan_001", "gpt-oss:20b", 2, 2_000, 1_000, 2_000, 160, 8_000, 1, 700),
        qwen,
        replace(qwen, worker_id="w2"),
    ]


def test_of_very_many_attempts_the_newest_make_the_speeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "ATTEMPTS_MOST", 2)
    kept(path, KNOWN, READ, READ)
    [speed] = ask(path, FindSpeeds(START_MS)).speeds
    assert (speed.runs, speed.loads) == (2, 0)


def test_rows_of_an_older_release_have_no_reading_times_and_count_all_the_same(path: Path) -> None:
    kept(path, a_metric(), a_metric())
    new = ("thinking_tokens", "prompt_ms", "load_ms", "first_token_ms", "slot_wait_ms")
    writer = open_writer(path)
    try:
        with writer.begin() as connection:
            connection.execute(update(schema.worker_metrics).values(dict.fromkeys(new)))
    finally:
        writer.dispose()
    assert ask(path, FindSpeeds(START_MS)).speeds == (Speed("lan_001", "gpt-oss:20b", 2, 200, 0, 0, 40, 1_800, 0, 0),)
    [stats] = ask(path, FindStats(START_MS)).stats
    assert (stats.output_tokens, stats.load_ms, stats.slot_wait_ms, stats.prompt_tokens_per_s) == (40, 0, 0, 0.0)


def test_the_database_and_the_simulation_sum_up_alike(path: Path) -> None:
    dice = random.Random(5)

    def a_row() -> WorkerMetric:
        return replace(
            READ,
            worker_id=dice.choice(("lan_001", "w2")),
            model=dice.choice(("a:1b", "b")),
            success=dice.random() < 0.8,
            measured_ms=START_MS + dice.choice((-5, 5)),
            prompt_tokens=dice.choice((0, 300, 4_000)),
            prompt_ms=dice.choice((0, 10, 900, 8_000)),
            load_ms=dice.choice((0, 0, 9_000)),
        )

    rows = [a_row() for _ in range(300)]
    kept(path, *(replace(row, error_type="" if row.success else "timeout") for row in rows))
    found = ask(path, FindSpeeds(START_MS)).speeds
    assert sorted(found, key=str) == sorted(speeds_of(rows, START_MS), key=str)
    assert len(found) == 4
