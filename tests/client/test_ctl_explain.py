"""koubou-ctl explain: why a task ran where it ran; what it waits for, who could take it, about when."""

from dataclasses import replace

import pytest

from koubou_client.ctl.candidates import COLUMNS, candidate_lines, start_text
from koubou_client.ctl.explain import outlook_of
from koubou_client.ctl.times import about
from koubou_common.errors import ErrorClass
from koubou_common.messages import Explain, Explanation
from koubou_common.messages.values import (
    AttemptState,
    AttemptView,
    Candidate,
    Decision,
    Metrics,
    ReasonCount,
    ScorePart,
    TaskState,
)
from koubou_common.reasons import Reason
from support.ctl import Ctl
from support.fake_workshop import NOW_MS, FakeWorkshop, a_view

BUSY = Candidate("lan_001", True, False, 98.0, "busy: 2 of 2 slots in use", Reason.BUSY)
PAUSED = Candidate("lan_002", False, False, 0.0, "paused", Reason.PAUSED)
LACKS = Candidate("local", False, False, 0.0, "has no model llama3:8b", Reason.MODEL_NOT_LISTED)
HELD = Candidate("lan_004", True, False, 50.0, "the rule waits for a preferred worker", Reason.WAITS_FOR_PREFERRED)
FREE = Candidate("lan_003", True, True, 180.0, "", None, (ScorePart("factor", 100.0), ScorePart("idle", 50.0)))


def waiting(*candidates: Candidate, **changes: object) -> Explanation:
    """What the broker tells of task 142, which waits."""
    codes = [one.code for one in candidates if one.code is not None]
    told = Explanation(
        "-",
        a_view(142, waiting_for="", model="llama3:8b", submitted_ms=NOW_MS),
        (),
        "priority 1-5: remote (cheap)",
        candidates,
        tuple(ReasonCount(code, codes.count(code)) for code in dict.fromkeys(codes)),
        effective_priority=5.0,
        strategy="priority_based",
    )
    return replace(told, **changes)  # type: ignore[arg-type] # checked by its users


def an_attempt(number: int = 1, **changes: object) -> AttemptView:
    """An attempt with the decision behind it."""
    parts = (ScorePart("factor", 100.0), ScorePart("idle", 50.0), ScorePart("success", 30.0))
    slower = (ScorePart("factor", 50.0), ScorePart("busy", -30.0), ScorePart("residency", -8.5))
    decision = Decision(
        "priority_based",
        "priority 1-5: remote (cheap)",
        (
            Candidate("lan_001", True, True, 180.0, "", None, parts, 0, 12.0),
            Candidate("lan_002", True, True, 20.0, "", None, slower, 0, 31.0),
        ),
        (ReasonCount(Reason.BUSY, 3), ReasonCount(Reason.PAUSED, 1)),
        "went on with the model it has loaded",
    )
    fields = (number, f"{number:032x}", "lan_001", AttemptState.RUNNING, NOW_MS, 0, None, "", Metrics(), "", "in short")
    return replace(AttemptView(*fields, decision), **changes)  # type: ignore[arg-type] # checked by its users


def shown(ctl: Ctl, workshop: FakeWorkshop, told: Explanation) -> str:
    workshop.tasks[142] = told.task
    workshop.explanations[142] = told
    ran = ctl("explain", "142")
    assert (ran.code, ran.err) == (0, "")
    assert all(len(line) <= COLUMNS for line in ran.out.splitlines()), ran.out
    return ran.out.partition("\n")[2]  # the first line tells of the time that has passed


def test_a_task_that_runs_is_explained_by_its_decision(ctl: Ctl, workshop: FakeWorkshop) -> None:
    task = a_view(142, state=TaskState.RUNNING, worker_id="lan_001", attempts=1, started_ms=NOW_MS)
    out = shown(ctl, workshop, Explanation("-", task, (an_attempt(ended_ms=NOW_MS + 2_000),), "a rule"))
    assert (
        out
        == """
Attempt 1 on lan_001: running, 2 s
  Rule      priority 1-5: remote (cheap)
  Strategy  priority_based
  Chosen    lan_001 180.0 = factor +100, idle +50, success +30; about 10 s
            expected
  Next      lan_002 20.0 = factor +50, busy -30; beside it residency -8.5; about
            30 s expected
  Not       busy (3), paused (1)
  Note      went on with the model it has loaded
"""
    )


def test_a_task_that_waits_is_told_who_could_take_it_and_about_when(ctl: Ctl, workshop: FakeWorkshop) -> None:
    told = waiting(
        BUSY,
        PAUSED,
        LACKS,
        effective_priority=6.0,
        ahead=3,
        starts_in_s=131.0,
        starts_basis="3 tasks before it, each about 40 s; 2 slots of 1 worker",
    )
    told = replace(told, task=replace(told.task, waiting_for="a free slot on lan_001"))
    assert (
        shown(ctl, workshop, told)
        == """
It waits for a slot on a worker that can take it.
  Waits for  a free slot on lan_001
  Priority   6: it began with 5, waiting has raised it
  Before it  3 tasks
  Rule       priority 1-5: remote (cheap)
  Strategy   priority_based
  Begins     in about 2 m: 3 tasks before it, each about 40 s; 2 slots of 1
             worker

WORKER   TAKES IT   SCORE  WHY
lan_001  when free   98.0  busy: 2 of 2 slots in use
lan_002  not now        -  paused
local    never          -  has no model llama3:8b
"""
    )


def test_a_worker_that_has_room_and_another_plan_is_not_said_to_be_busy(ctl: Ctl, workshop: FakeWorkshop) -> None:
    out = shown(ctl, workshop, waiting(HELD, PAUSED))
    assert out.startswith("\nA worker has room, but does not take it yet: WHY says what for.\n")
    assert "lan_004  later      50.0  the rule waits for a preferred worker" in out
    assert "slot" not in out


def test_an_impossible_task_is_called_so_and_told_a_way_out(ctl: Ctl, workshop: FakeWorkshop) -> None:
    other = Candidate("lan_001", False, False, 0.0, "worker gpu-7 was asked for", Reason.OTHER_WORKER)
    out = shown(ctl, workshop, waiting(LACKS, other, starts_basis="no worker could take it as things stand"))
    assert out.startswith("\nImpossible as things are set up: no worker can ever take it.\n")
    assert "nobody can tell: no worker could take it as things stand" in out
    assert out.endswith(
        """
What helps, one of:
  -  list the model under a worker's models in workers.yaml, or submit with
     another -m
  -  submit it again without --worker, or with the name of a worker that can
     take it
"""
    )


def test_a_task_whose_workers_are_away_is_told_how_to_bring_one_back(ctl: Ctl, workshop: FakeWorkshop) -> None:
    away = Candidate("lan_001", False, False, 0.0, "not connected", Reason.NOT_CONNECTED)
    out = shown(ctl, workshop, waiting(away, PAUSED, LACKS))
    assert "No worker that could take it is able to now." in out
    assert "koubou-agent run --worker-id lan_001" in out
    assert "koubou-ctl workers resume lan_002" in out
    assert "workers.yaml" not in out  # what never takes it is no way out while others come back


def test_a_workshop_without_workers_is_told_to_invite_one(ctl: Ctl, workshop: FakeWorkshop) -> None:
    assert "koubou-ctl workers invite NAME" in shown(ctl, workshop, waiting())


@pytest.mark.parametrize(
    ("candidates", "outlook"),
    [
        ((), "no_worker"),
        ((LACKS, FREE), "goes_next"),
        ((LACKS, BUSY), "waits_for_slot"),
        ((HELD, BUSY), "waits_for_slot"),
        ((HELD, PAUSED), "held_back"),
        ((LACKS, PAUSED), "nobody_now"),
        ((LACKS,), "impossible"),
        ((replace(LACKS, code=None),), "nobody_now"),  # a reason that nobody named says nothing of ever
    ],
)
def test_the_outlook_is_that_of_the_best_worker(candidates: tuple[Candidate, ...], outlook: str) -> None:
    assert outlook_of(waiting(*candidates)) == outlook


def test_an_ended_task_is_explained_attempt_by_attempt(ctl: Ctl, workshop: FakeWorkshop) -> None:
    task = a_view(142, state=TaskState.FAILED, error_class=ErrorClass.STALLED, attempts=2)
    over = {"state": AttemptState.FAILED, "ended_ms": NOW_MS + 1_000, "error_class": ErrorClass.STALLED}
    first = an_attempt(1, message="no token for 300 s", **over)
    second = an_attempt(2, decision=None, **over)
    out = shown(ctl, workshop, Explanation("-", task, (first, second), "a rule"))
    assert "  Ended by  stalled: no token for 300 s\n" in out
    assert out.endswith(
        "Attempt 2 on lan_001: failed, 1 s\n  Ended by  stalled: the answer stopped coming\n  Placed    in short\n"
    )
    assert "Before it" not in out


def test_a_task_that_ended_without_an_attempt_says_so(ctl: Ctl, workshop: FakeWorkshop) -> None:
    told = Explanation("-", a_view(142, state=TaskState.CANCELLED), (), "a rule")
    assert shown(ctl, workshop, told) == "  No worker ever began it.\n"
    told = replace(told, task=a_view(142, state=TaskState.SUCCEEDED, flags=("cached",)))
    assert shown(ctl, workshop, told) == "  Answered from the result cache: no worker ran.\n"


def test_a_winner_with_fewer_points_is_explained_by_the_rule(ctl: Ctl, workshop: FakeWorkshop) -> None:
    preferred = Candidate("lan_001", True, True, 150.0, "", None, (ScorePart("factor", 50.0),), 0)
    stronger = Candidate("local", True, True, 180.0, "", None, (ScorePart("factor", 100.0),), 1)
    decision = Decision("priority_based", "priority 1-5: remote, local", (preferred, stronger))
    task = a_view(142, state=TaskState.SUCCEEDED, worker_id="lan_001")
    out = shown(ctl, workshop, Explanation("-", task, (an_attempt(decision=decision),), "a rule"))
    assert "Chosen    lan_001 150.0 = factor +50; choice 1 of the rule\n" in out
    assert "Next      local 180.0 = factor +100; choice 2 of the rule\n" in out


def test_json_has_all_of_it(ctl: Ctl, workshop: FakeWorkshop) -> None:
    told = waiting(BUSY, PAUSED, attempts=(an_attempt(),), ahead=3, starts_in_s=131.0, starts_basis="by what runs")
    workshop.tasks[142], workshop.explanations[142] = told.task, told
    data = ctl("explain", "142", "--json").data
    assert set(data) == {"task", "rule", "strategy", "attempts", "waiting"}
    decision = data["attempts"][0]["decision"]
    assert [one["worker"] for one in decision["candidates"]] == ["lan_001", "lan_002"]
    assert decision["candidates"][1]["parts"] == {"factor": 50.0, "busy": -30.0, "residency": -8.5}
    assert (decision["reasons"], decision["strategy"]) == ({"busy": 3, "paused": 1}, "priority_based")
    assert data["waiting"] == {
        "outlook": "waits_for_slot",
        "waits_for": None,
        "effective_priority": 5.0,
        "ahead": 3,
        "starts_in_s": 131.0,
        "starts_basis": "by what runs",
        "candidates": [
            {
                "worker": "lan_001",
                "eligible": True,
                "available": False,
                "score": 98.0,
                "parts": {},
                "group": 0,
                "finish_s": None,
                "code": "busy",
                "reason": "busy: 2 of 2 slots in use",
            },
            {
                "worker": "lan_002",
                "eligible": False,
                "available": False,
                "score": 0.0,
                "parts": {},
                "group": 0,
                "finish_s": None,
                "code": "paused",
                "reason": "paused",
            },
        ],
        "reasons": {"busy": 1, "paused": 1},
        "what_helps": [],
    }
    running = Explanation("-", replace(told.task, state=TaskState.RUNNING), (an_attempt(),), "a rule")
    workshop.tasks[142], workshop.explanations[142] = running.task, running
    assert ctl("explain", "142", "--json").data["waiting"] is None


def test_exit_codes_are_those_of_the_neighbours(ctl: Ctl, workshop: FakeWorkshop) -> None:
    assert ctl("explain", "999").code == 5
    assert ctl("explain", "x").code == 2
    assert ctl("explain").code == 2


def test_an_older_broker_is_not_asked_what_it_would_drop(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.tasks[142] = a_view(142)
    workshop.proto = 1
    ran = ctl("explain", "142")
    assert (ran.code, workshop.heard(Explain)) == (7, [])
    assert "older than this client" in ran.err


def test_what_a_worker_says_cannot_write_to_the_terminal(ctl: Ctl, workshop: FakeWorkshop) -> None:
    rude = Candidate("lan_001", False, False, 0.0, "\x1b[2Jbroken\nbox", Reason.CANNOT_WORK)
    out = shown(ctl, workshop, waiting(rude))
    assert "\x1b" not in out
    assert "[2Jbroken box" in out


def test_a_long_name_and_a_long_reason_stay_within_the_terminal() -> None:
    long = Candidate("工房" * 16, False, False, 0.0, "its Ollama says no " * 9, Reason.CANNOT_WORK)
    lines = list(candidate_lines([long, FREE]))
    assert all(len(line) <= COLUMNS for line in lines)
    assert "…" in lines[1]
    assert " ".join(line.strip() for line in lines).count("its Ollama says no") == 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "1 s"),
        (7.4, "7 s"),
        (41.0, "40 s"),
        (119.0, "120 s"),
        (131.0, "2 m"),
        (7_300.0, "2 h"),
        (180_000.0, "2 d"),
    ],
)
def test_what_nobody_knows_exactly_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_when_a_task_begins_is_never_told_more_exactly_than_it_is_known() -> None:
    assert start_text(0.0, "") == "at once"
    assert start_text(41.0, "by what runs") == "in about 40 s: by what runs"
    assert start_text(None, "nobody is there") == "nobody can tell: nobody is there"
    assert not start_text(None, "")
