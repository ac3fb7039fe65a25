"""The commands about tasks that exist: wait, result, ps, show, logs, cancel, retry, status, version."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_client.inputs import body_of
from koubou_common import __version__
from koubou_common.errors import ErrorClass
from koubou_common.messages import Cancel, Retry, Status, Watch
from koubou_common.messages.values import (
    AlertView,
    AttemptState,
    AttemptView,
    EventView,
    Metrics,
    Role,
    StateCount,
    TaskSpec,
    TaskState,
    WorkerMode,
    WorkerView,
)
from support.ctl import Ctl
from support.fake_workshop import NOW_MS, FakeWorkshop, a_view


@pytest.fixture
def batch(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> list[int]:
    """Batch b12 with the tasks 142 to 144; the first two are to be written to a.md and b.md."""
    data = b'{"prompt": "a", "out": "a.md"}\n{"prompt": "b", "out": "b.md"}\n{"prompt": "c"}\n'
    assert ctl("submit", "--jsonl", "-", stdin=data).out == "b12\n"
    return [142, 143, 144]


def test_waiting_ends_when_all_have_ended(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    for task_id in batch:
        workshop.succeed(task_id)
    ran = ctl("wait", "b12")
    assert (ran.code, ran.out) == (0, "")
    assert "3 tasks: 3 succeeded" in ran.err


def test_waiting_for_a_failed_task_is_exit_1(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    workshop.fail(143, ErrorClass.STALLED)
    ran = ctl("wait", "142-143")
    assert ran.code == 1
    assert "task 143 failed (stalled): the answer stopped coming" in ran.err
    assert ctl("wait", "142").code == 0


def test_waiting_for_a_cancelled_task_is_exit_1(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.edit(142, state=TaskState.CANCELLED)
    ran = ctl("wait", "142", "--json")
    assert ran.code == 1
    assert ran.data[0]["state"] == "cancelled"


def test_waiting_for_any_prints_the_first_that_ended(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(143)
    assert ctl("wait", "b12", "--any").out == "143\n"


def test_waiting_in_json_lists_the_tasks_in_the_order_named(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    for task_id in batch:
        workshop.succeed(task_id)
    assert [task["id"] for task in ctl("wait", "144", "142", "--json").data] == [144, 142]


def test_waiting_gives_up_after_its_time(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    ran = ctl("wait", "b12", "--wait-timeout", "0.2", "--json")
    assert ran.code == 3
    assert ran.error["code"] == "wait_timed_out"
    assert "2 of 3 tasks go on" in ran.error["message"]


def test_ctrl_c_while_waiting_detaches_from_the_batch(workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "wait", "b12"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workshop.await_heard(Watch)
        assert process.stderr is not None
        assert process.stderr.readline() == "task 142: succeeded on lan_001\n"
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "detached: 2 of 3 tasks go on" in err
    assert "koubou-ctl cancel b12" in err
    assert workshop.heard(Cancel) == []


@pytest.mark.parametrize("word", ["999", "b99", "b12.9", "142,999"])
def test_an_id_that_is_not_there_is_exit_5(ctl: Ctl, batch: list[int], word: str) -> None:
    for command in ("wait", "result", "cancel", "retry"):
        assert ctl(command, word).code == 5, command
    assert ctl("show", word).code == 5


@pytest.mark.parametrize("word", ["x", "0", "b0", "b12.0", "b", "-3", "3-1", "1-99999", "1,,2", "b12-14", "９"])
def test_what_is_no_id_is_a_usage_error(ctl: Ctl, word: str) -> None:
    ran = ctl("show", "--", word)
    assert ran.code == 2
    assert ran.err.startswith("error[bad-input]: ")


def test_a_result_is_printed_byte_for_byte(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142, b"no newline \x1b[2J")
    assert ctl("result", "142").raw == b"no newline \x1b[2J"
    assert ctl("result", "b12.1").raw == b"no newline \x1b[2J"
    assert ctl("result", "142", is_terminal=True).out == "no newline [2J\n"


def test_raw_is_all_the_model_said(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142, b"Sure!\n```\nx\n```", offset=10, length=2)
    assert ctl("result", "142").raw == b"x\n"
    assert ctl("result", "142", "--raw").raw == b"Sure!\n```\nx\n```"


def test_a_result_in_json_is_the_task_with_its_output(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142, b"text\xff")
    assert ctl("result", "142", "--json").data["output"] == "text\ufffd"


def test_the_result_of_a_failed_task_is_exit_1_with_the_reason(
    ctl: Ctl, workshop: FakeWorkshop, batch: list[int]
) -> None:
    workshop.fail(142, ErrorClass.CONTEXT_OVERFLOW, "9800 tokens, the window is 8192")
    ran = ctl("result", "142")
    assert (ran.code, ran.out) == (1, "")
    assert "do not fit the model's window" in ran.err
    assert "9800 tokens, the window is 8192" in ran.err


def test_the_result_of_a_task_that_still_waits_is_refused(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.edit(142, waiting_for="a free slot on lan_001")
    ran = ctl("result", "142")
    assert ran.code == 7
    assert "waiting for a free slot on lan_001" in ran.err
    assert "koubou-ctl wait 142" in ran.err


def test_a_result_goes_into_a_file_that_is_not_there(
    ctl: Ctl, workshop: FakeWorkshop, batch: list[int], repo: Path
) -> None:
    workshop.succeed(142, b"new")
    assert ctl("result", "142", "-o", "x/y.md").code == 0
    assert (repo / "x/y.md").read_bytes() == b"new\n"
    refused = ctl("result", "142", "-o", "src/a.py")
    assert refused.code == 7
    assert "exists already" in refused.err
    assert ctl("result", "142", "-o", "src/a.py", "--force").code == 0
    assert (repo / "src/a.py").read_bytes() == b"new\n"
    assert ctl("result", "142", "-o", "../out.md").code == 2


def test_results_are_written_where_they_were_submitted_for(
    ctl: Ctl, workshop: FakeWorkshop, batch: list[int], repo: Path
) -> None:
    workshop.succeed(142, b"A")
    workshop.succeed(143, b"B")
    ran = ctl("result", "142,143", "--write")
    assert ran.code == 0, ran.err
    assert (repo / "a.md").read_text() == "A\n"
    assert (repo / "b.md").read_text() == "B\n"
    assert ctl("result", "142,143", "--write").code == 0, "what is there already is no conflict"


def test_writing_keeps_what_changed_since_the_submission(
    ctl: Ctl, workshop: FakeWorkshop, batch: list[int], repo: Path
) -> None:
    workshop.succeed(142, b"A")
    workshop.succeed(143, b"B")
    (repo / "a.md").write_text("by hand\n")
    ran = ctl("result", "142-143", "--write")
    assert ran.code == 7
    assert (repo / "a.md").read_text() == "by hand\n"
    assert (repo / "b.md").read_text() == "B\n"
    assert ctl("result", "142", "--write", "--force").code == 0
    assert (repo / "a.md").read_text() == "A\n"


def test_writing_a_task_without_a_path_says_what_to_do(
    ctl: Ctl, workshop: FakeWorkshop, batch: list[int], repo: Path
) -> None:
    for task_id in batch:
        workshop.succeed(task_id)
    ran = ctl("result", "b12", "--write")
    assert ran.code == 2
    assert "task 144 was submitted without -o" in ran.err
    assert (repo / "a.md").exists()


def test_a_batch_goes_into_a_folder(ctl: Ctl, workshop: FakeWorkshop, batch: list[int], tmp_path: Path) -> None:
    workshop.succeed(142, b"A")
    workshop.fail(143)
    workshop.succeed(144, b"C")
    ran = ctl("result", "b12", "-d", str(tmp_path / "out"), "--json")
    assert ran.code == 1
    assert [entry["id"] for entry in ran.data["written"]] == [142, 144]
    assert [task["id"] for task in ran.data["failed"]] == [143]
    assert (tmp_path / "out/a.md").read_text() == "A\n"
    assert (tmp_path / "out/144.txt").read_text() == "C\n"


def test_two_outputs_of_the_same_name_get_folders_of_their_own(
    ctl: Ctl, workshop: FakeWorkshop, tmp_path: Path
) -> None:
    for task_id in (1, 2):
        workshop.tasks[task_id] = a_view(task_id, target="a.md" if task_id == 1 else "A.md")
        workshop.specs[task_id] = TaskSpec(body_of(b"x"))
        workshop.succeed(task_id, str(task_id).encode())
    assert ctl("result", "1,2", "-d", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out/1/a.md").read_text() == "1\n"
    assert (tmp_path / "out/2/A.md").read_text() == "2\n"


def test_a_batch_on_stdout_is_refused(ctl: Ctl, batch: list[int]) -> None:
    ran = ctl("result", "b12")
    assert ran.code == 2
    assert "-d DIR" in ran.err
    assert ctl("result", "142", "-o", "x", "--write").code == 2


def test_ps_lists_what_waits_and_runs(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    workshop.start(143, "lan_002")
    workshop.edit(144, waiting_for="a free slot on lan_001")
    rows = ctl("ps").out.splitlines()
    assert rows[0].split() == ["ID", "BATCH", "STATE", "PRI", "MODEL", "WORKER", "AGE", "RUN", "ATT", "TARGET", "WHY"]
    assert [row.split()[:3] for row in rows[1:]] == [["144", "b12.3", "queued"], ["143", "b12.2", "running"]]
    assert rows[1].endswith("waits for a free slot on lan_001")


def test_ps_filters_by_state_batch_and_count(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    ctl("submit", "alone")
    workshop.succeed(142)
    assert ctl("ps", "-q").out.split() == ["145", "144", "143"]
    assert ctl("ps", "-a", "-q").out.split() == ["145", "144", "143", "142"]
    assert ctl("ps", "--state", "succeeded", "-q").out.split() == ["142"]
    assert ctl("ps", "--batch", "b12", "-q").out.split() == ["144", "143", "142"]
    assert ctl("ps", "--batch", "12", "--state", "queued", "-q").out.split() == ["144", "143"]
    assert ctl("ps", "-n", "1", "-q").out.split() == ["145"]
    assert [task["id"] for task in ctl("ps", "--json").data] == [145, 144, 143]
    assert ctl("ps", "--batch", "b12.3").code == 2


def test_tables_line_up_with_wide_letters_and_cannot_be_broken(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.tasks[1] = a_view(1, target="工房.md", waiting_for="x\x1b[31m\ny")
    workshop.tasks[2] = a_view(2, target="plain.md", waiting_for="z")
    head, second, first = ctl("ps").out.splitlines()
    assert head.index("TARGET") == second.index("plain.md") == first.index("工房.md")
    assert head.index("WHY") == second.index("waits for z")
    assert first.endswith("工房.md   waits for x[31m y")


def _story(workshop: FakeWorkshop) -> None:
    workshop.fail(142, ErrorClass.TIMEOUT, "600 s were allowed")
    log = "reading\nanswering \x1b[2J\n"
    metrics = Metrics(prompt_tokens=812, output_tokens=9, num_ctx=8192, num_predict=4096, total_ms=41_000)
    workshop.attempts[142] = (
        AttemptView(
            *(1, "a" * 32, "lan_001", AttemptState.LOST, NOW_MS, NOW_MS + 30_000),
            *(ErrorClass.AGENT_LOST, "", Metrics(), "", "rule 1 of 1; lan_001 130 > lan_002 98"),
        ),
        AttemptView(
            *(2, "b" * 32, "lan_002", AttemptState.FAILED, NOW_MS + 31_000, NOW_MS + 72_000),
            *(ErrorClass.TIMEOUT, "600 s were allowed", metrics, log, "lan_002 98"),
        ),
    )
    workshop.events[142] = (
        EventView(1, NOW_MS, "mika", "", "queued", 0, "submitted"),
        EventView(2, NOW_MS + 5, "broker", "queued", "running", 1, "sent to lan_001"),
    )


def test_show_tells_the_whole_story(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    _story(workshop)
    out = ctl("show", "142").out
    assert out.startswith("Task 142 (b12.1)\n")
    assert "timeout: it took longer than one attempt may" in out
    assert "Attempt 1 on lan_001: lost, 30 s" in out
    assert "agent_lost: its worker stopped answering" in out
    assert "placed: rule 1 of 1; lan_001 130 > lan_002 98" in out
    assert "tokens: 812 prompt + 9 output; window 8192, answer at most 4096" in out
    assert "queued -> running" in out
    data = ctl("show", "142", "--json").data
    assert data["task"]["error"]["class"] == "timeout"
    assert [attempt["worker"] for attempt in data["attempts"]] == ["lan_001", "lan_002"]
    assert [event["after"] for event in data["events"]] == ["queued", "running"]


def test_show_says_by_when_a_task_has_to_begin_until_it_has(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    ctl("submit", "alone")
    soon_ms = int(time.time() * 1_000)
    workshop.edit(145, queue_timeout_s=600.0, submitted_ms=soon_ms)
    assert "Begins     within 9 m 5" in ctl("show", "145").out
    workshop.edit(145, attempts=1)
    assert "Begins" not in ctl("show", "145").out


def test_a_task_in_json_names_the_cause_of_its_end(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.fail(142, ErrorClass.ATTEMPTS_EXHAUSTED)
    workshop.edit(142, error_cause=ErrorClass.STALLED)
    error = ctl("show", "b12", "--json").data[0]["error"]
    assert (error["class"], error["cause"]) == ("attempts_exhausted", "stalled")
    assert "every attempt failed; the last: the answer stopped coming" in ctl("show", "b12").out


def test_show_of_a_batch_lists_its_tasks(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    ran = ctl("show", "b12")
    assert "3 tasks: 2 queued, 1 succeeded" in ran.out
    assert [task["id"] for task in ctl("show", "b12", "--json").data] == [142, 143, 144]


def test_last_is_the_newest_submission_of_mine(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    assert [task["id"] for task in ctl("show", "last", "--json").data] == batch
    ctl("submit", "alone")
    workshop.tasks[146] = a_view(146, principal="somebody else")
    assert ctl("show", "last", "--json").data["task"]["id"] == 145


def test_last_before_any_submission_is_exit_5(ctl: Ctl) -> None:
    assert ctl("show", "last").code == 5


def test_logs_separate_the_attempts(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    _story(workshop)
    out = ctl("logs", "142").out
    assert "--- attempt 1 on lan_001: lost (agent_lost)" in out
    assert "(no log)" in out
    assert out.endswith("reading\nanswering [2J\n")
    assert ctl("logs", "142", "--attempt", "2").out.count("---") == 2
    assert [entry["log"] for entry in ctl("logs", "142", "--json").data] == ["", "reading\nanswering \x1b[2J\n"]
    assert "no attempt has begun" in ctl("logs", "143").err


def test_cancel_tells_what_became_of_each(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.succeed(142)
    ran = ctl("cancel", "b12", "--reason", "wrong prompt")
    assert ran.code == 0
    assert ran.out == "task 142: had succeeded before\ntask 143: cancelled\ntask 144: cancelled\n"
    sent = workshop.heard(Cancel)[0]
    assert (sent.task_ids, sent.batch_id, sent.reason) == ((), 12, "wrong prompt")
    as_json = ctl("cancel", "142", "--json").data
    assert as_json == [{"id": 142, "state": "succeeded", "changed": False, "message": "had succeeded before"}]


def test_retry_opens_again_what_has_ended(ctl: Ctl, workshop: FakeWorkshop, batch: list[int]) -> None:
    workshop.fail(142)
    assert ctl("retry", "142").out == "task 142: queued again\n"
    assert workshop.heard(Retry)[0].task_ids == (142,)
    assert ctl("retry", "142").code == 7, "it waits already"
    assert ctl("retry", "b12").code == 0


def _status(workshop: FakeWorkshop) -> None:
    worker = WorkerView(
        *("lan_001", "remote", True, WorkerMode.ACTIVE, 2, 2, "gpt-oss:20b", ("*",), (), 0.5, 0.9, 9, 1, NOW_MS - 900),
        *(3, False, "0.24.0", "48 % of the model is on the CPU", "192.168.1.100", "koubou-agent 0.1.0"),
    )
    counts = (StateCount(TaskState.QUEUED, 3), StateCount(TaskState.SUCCEEDED, 140))
    alerts = (AlertView("worker_away", "lan_002 is away", NOW_MS - 131_000),)
    workshop.status = Status(
        *("-", "0.1.0", "mika", Role.CLIENT, NOW_MS - 7_860_000, NOW_MS, counts, NOW_MS - 131_000, (worker,), alerts)
    )


def test_status_is_the_workshop_at_a_glance(ctl: Ctl, workshop: FakeWorkshop) -> None:
    _status(workshop)
    out = ctl("status").out
    assert "Broker  0.1.0, up 2 h 11 m; you are mika (client)" in out
    assert "3 queued, 0 running, 140 succeeded, 0 failed, 0 cancelled; the oldest waits 2 m 11 s" in out
    assert "lan_001  busy   2/2    gpt-oss:20b  0.50    90%  900 ms  48 % of the model is on the CPU" in out
    assert "Needs you:\n  worker_away: lan_002 is away (for 2 m 11 s)" in out


def test_a_worker_that_cannot_work_is_not_called_ready(ctl: Ctl, workshop: FakeWorkshop) -> None:
    _status(workshop)
    status = workshop.status
    assert status is not None
    worker = replace(status.workers[0], running=0, can_work=False, issue="gemini-repo-cli is not installed")
    workshop.status = replace(status, workers=(worker,))
    assert "lan_001  blocked" in ctl("status").out


def test_status_in_json(ctl: Ctl, workshop: FakeWorkshop) -> None:
    _status(workshop)
    data = ctl("status", "--json").data
    assert data["tasks"] == {"queued": 3, "running": 0, "succeeded": 140, "failed": 0, "cancelled": 0}
    assert (data["workers"][0]["id"], data["workers"][0]["state"]) == ("lan_001", "busy")
    assert data["alerts"][0]["code"] == "worker_away"


def test_status_of_an_empty_workshop_says_how_to_go_on(ctl: Ctl) -> None:
    assert "koubou-ctl workers invite" in ctl("status").out


def test_version_needs_no_broker(tmp_path: Path) -> None:
    ctl = Ctl(tmp_path)
    assert ctl("version").out == f"koubou {__version__}\n"
    assert {"koubou", "libzmq", "pyzmq", "python", "protocol"} <= set(ctl("version", "--json").data)
