"""Before anything is promised: what a first start makes must be on the disk, under its names."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from powercut.disk import Tree, build
from powercut.journal import Kind
from powercut.process import Forge, await_broker, broker_arguments
from powercut.recording import Stage
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("powercut")]

JOURNAL = "broker/state/koubou.db-journal"
MARK = "broker/state/in_use"
SPOOL = "box/state/agents/box_001/spool"


@dataclass(frozen=True, slots=True)
class First:
    """A broker has said where it listens, a box has joined and is at work; then the power goes."""

    left: Tree
    unmarked: list[str]  # the database's files that were written while a cut would have taken the mark away
    begun: list[Tree]  # what cuts leave while the database is being made
    config: Path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, shim: Path) -> First:
    with Stage(tmp_path_factory.mktemp("first"), shim) as stage:
        stage.start_broker()
        stage.join_box()
        stage.start_agent()
        eventually((stage.watch.root / SPOOL).exists, 30.0, "the agent has its spool")
        eventually(lambda: "connected to the broker" in (stage.folder / "agent.log").read_text(), 30.0, "connected")
        for process in stage.processes:
            process.kill()
        unmarked, begun = [], []
        for call in stage.watch.calls():
            stage.disk.do(call)
            is_marked = MARK in stage.disk.now()
            if is_marked and call.kind is Kind.WRITTEN and "koubou.db" in call.path and "-shm" not in call.path:
                unmarked += [call.path] if MARK not in stage.disk.synced() else []
            if call.kind is Kind.SYNCED and (tree := stage.disk.synced()).get(JOURNAL) and tree not in begun:
                begun.append(tree)
        return First(stage.disk.synced(), unmarked, begun, stage.config)


@pytest.mark.parametrize("path", ["broker/keys/broker.key", "broker/keys/operator.key", "broker/state/koubou.db"])
def test_what_the_broker_told_people_to_rely_on_survives(first: First, path: str) -> None:
    assert first.left.get(path), sorted(first.left)


def test_after_a_power_cut_the_next_start_knows_that_the_last_end_was_none(first: First) -> None:
    """The mark that has the database looked through is an empty file, but it must have its name."""
    assert first.left.get(MARK) == b"", sorted(first.left)
    assert first.unmarked == [], "the mark must be there before the first byte that could be torn"


def test_a_box_that_has_joined_still_has_its_key_its_settings_and_its_spool(first: First) -> None:
    assert first.left.get("box/keys/agents/box_001.key"), sorted(first.left)
    assert first.left.get("box/config/agent.yaml"), sorted(first.left)
    assert SPOOL in first.left, sorted(first.left)


def test_the_witness_of_the_term_survives(first: First) -> None:
    """A witness that is lost would let a restored database go unnoticed."""
    assert first.left.get("broker/state/epoch"), sorted(first.left)


def test_a_first_start_that_a_power_cut_ended_is_made_good_by_the_next_one(
    first: First, forge: Forge, tmp_path: Path
) -> None:
    """SQLite's journal is there, and has to be rolled back: a look at the database must not stumble over it."""
    assert first.begun, "no cut has hit the making of the database"
    for number, tree in enumerate(first.begun):
        home = tmp_path / str(number)
        build(tree, home)
        broker = forge.start(broker_arguments(home / "broker", first.config), tmp_path / f"{number}.log")
        await_broker(broker)
        assert broker.stop() == 0, broker.log()
