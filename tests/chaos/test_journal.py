"""A client's journal: durable lines, read back after a kill at any byte."""

from pathlib import Path

from chaos.journal import Ending, Journal, read
from koubou_common.messages.values import TaskState

RIGHT = Ending(1, TaskState.SUCCEEDED, "ab")


def written(path: Path) -> None:
    with Journal(path) as journal:
        journal.plan("c-0", 0)
        journal.accept("c-0", (1, 2))
        journal.cancel(2, TaskState.CANCELLED)
        journal.end(RIGHT)


def test_what_was_noted_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    memory = read(path)
    assert memory.planned == {"c-0": 0}
    assert memory.accepted == {"c-0": (1, 2)}
    assert memory.cancelled == {2: TaskState.CANCELLED}
    assert memory.endings == [RIGHT]
    assert memory.ended == {1}


def test_a_missing_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "none").planned == {}


def test_a_journal_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            journal.plan("c-1", 1)
        memory = read(path)
        assert memory.planned["c-1"] == 1
        assert memory.accepted.keys() <= {"c-0"}


def test_every_acknowledgement_of_a_key_is_kept_for_the_checker(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.accept("c-0", (1,))
        journal.accept("c-0", (2,))
    memory = read(path)
    assert memory.accepted == {"c-0": (1,)}
    assert memory.accepted_again == [("c-0", (1,)), ("c-0", (2,))]
