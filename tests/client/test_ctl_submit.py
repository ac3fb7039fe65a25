"""koubou-ctl submit, one task: what is sent, what is printed, how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_common.errors import Code, ErrorClass
from koubou_common.messages import Cancel, ClientHello, Error, Submit, Watch
from koubou_common.messages.values import Candidate, Label, Option, Plan, ReasonCount, ScorePart, TaskState
from koubou_common.reasons import Reason
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop
from support.waiting import eventually

pytestmark = pytest.mark.usefixtures("repo")
Finish = Callable[[FakeWorkshop, list[int]], None]


def succeeding(raw: bytes = b"the answer\n") -> Finish:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        for task_id in ids:
            workshop.succeed(task_id, raw)

    return finish


def failing(error_class: ErrorClass, message: str = "") -> Finish:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        for task_id in ids:
            workshop.fail(task_id, error_class, message)

    return finish


def test_a_pipe_gets_just_the_id(ctl: Ctl) -> None:
    ran = ctl("submit", "say hello")
    assert (ran.code, ran.out, ran.err) == (0, "142\n", "")


def test_a_person_gets_a_sentence_and_the_next_commands(ctl: Ctl) -> None:
    ran = ctl("submit", "say hello", "-p", "high", is_terminal=True)
    assert ran.out == "Task 142 accepted: queued, priority 8.\n"
    assert "koubou-ctl wait 142" in ran.err


def test_json_gets_the_task_with_exactly_the_documented_fields(ctl: Ctl) -> None:
    task = ctl("submit", "say hello", "-m", "gpt-oss:20b", "--json").data
    assert task == {
        "id": 142,
        "batch": None,
        "custom_id": None,
        "state": "queued",
        "priority": 5,
        "type": "general",
        "model": "gpt-oss:20b",
        "target": None,
        "worker": None,
        "attempts": 0,
        "error": None,
        "submitted_at": "2025-06-15T15:06:40.000Z",
        "started_at": None,
        "finished_at": None,
        "wait_s": None,
        "run_s": None,
        "tokens": {"prompt": 0, "thinking": 0, "output": 0},
        "flags": [],
        "output": None,
    }


def test_a_new_answer_may_be_asked_for(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "doc it")
    ctl("submit", "doc it", "--no-cache")
    assert [message.tasks[0].use_cache for message in workshop.heard(Submit)] == [True, False]


def test_every_option_reaches_the_broker(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ran = ctl(
        *("submit", "doc it", "-f", "src/a.py", "-o", "docs/a.md", "-t", "A.md", "-m", "m:1b", "-p", "low"),
        *("--type", "doc", "--repo", "mine", "--worker", "lan_001", "--label", "gpu=3090", "--min-context", "8192"),
        *("--option", "temperature=0.2", "--option", "stop=END", "--option", "seed=7", "--timeout", "10m"),
        *("--deadline", "2h", "--queue-timeout", "90s", "--max-attempts", "3", "--strict-output"),
        *("--capability", "vision", "--capability", "code", "--same-digest", "--idempotency-key", "k-1"),
    )
    assert ran.code == 0, ran.err
    sent = workshop.heard(Submit)[0]
    assert (sent.idempotency_key, sent.as_batch) == ("k-1", False)
    spec = sent.tasks[0]
    assert spec.prompt.inline == b"doc it"
    assert [(file.name, file.body.inline) for file in spec.files] == [("src/a.py", b"x = 1\n")]
    assert (spec.target, spec.out_path, spec.out_digest) == ("A.md", "docs/a.md", "")
    assert (spec.model, spec.priority, spec.task_type, spec.repo) == ("m:1b", 2, "doc", "mine")
    assert (spec.worker, spec.labels, spec.min_context) == ("lan_001", (Label("gpu", "3090"),), 8192)
    assert (spec.capabilities, spec.same_digest) == (("code", "vision"), True)
    assert spec.options == (Option("seed", 7), Option("stop", ("END",)), Option("temperature", 0.2))
    assert (spec.timeout_s, spec.deadline_s, spec.queue_timeout_s, spec.max_attempts) == (600.0, 7200.0, 90.0, 3)
    assert spec.strict_output


def test_the_output_is_the_target_and_the_folder_is_the_repository(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "x", "-o", "./docs/a.md")
    spec = workshop.heard(Submit)[0].tasks[0]
    assert (spec.target, spec.out_path, spec.repo) == ("docs/a.md", "docs/a.md", "repo")


def test_a_prompt_comes_from_stdin_or_a_file(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    (repo / "p.txt").write_text("from the file")
    ctl("submit", "-", stdin="from stdin, 工房".encode())
    ctl("submit", "--prompt-file", "p.txt")
    prompts = [message.tasks[0].prompt.inline for message in workshop.heard(Submit)]
    assert prompts == ["from stdin, 工房".encode(), b"from the file"]


def test_a_prompt_that_begins_with_a_dash_goes_after_two(ctl: Ctl, workshop: FakeWorkshop) -> None:
    assert ctl("submit", "--", "--wait for it").code == 0
    assert workshop.heard(Submit)[0].tasks[0].prompt.inline == b"--wait for it"
    refused = ctl("submit", "--wait for it")
    assert refused.code == 2
    assert "goes after `--`" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give one prompt"),
        (("a", "--prompt-file", "p"), "Give one prompt"),
        (("--prompt-file", "missing.txt"), "missing.txt: No such file"),
        (("",), "the prompt is empty"),
        ((" \n",), "the prompt is empty"),
        (("-",), "the prompt is empty"),
        (("a\0b",), "NUL"),
        (("a", "-p", "0"), "1 to 10"),
        (("a", "-p", "11"), "1 to 10"),
        (("a", "-p", "urgent"), "1 to 10"),
        (("a", "-f", "missing.py"), "missing.py: no such file"),
        (("a", "-f", "/etc/passwd"), "an absolute path"),
        (("a", "-f", "../x"), "'..' leads outside"),
        (("a", "-f", "src"), "src: is a folder"),
        (("a", "-o", "../x.md"), "outside"),
        (("a", "-o", "/etc/x.md"), "outside"),
        (("a", "-o", "src"), "is a folder"),
        (("a", "-o", "src/a.py"), "exists already"),
        (("a", "--option", "num_ctx=4096"), "--min-context"),
        (("a", "--option", "num_predict=0"), "num_predict must be at least 1"),
        (("a", "--option", "temprature=1"), "did you mean temperature"),
        (("a", "--option", "temperature"), "NAME=VALUE"),
        (("a", "--option", "seed=1", "--option", "seed=2"), "given twice"),
        (("a", "--label", "gpu"), "NAME=VALUE"),
        (("a", "--timeout", "soon"), "is no duration"),
        (("a", "--timeout", "0"), "is no duration"),
        (("a", "--max-attempts", "21"), "21"),
        (("a", "--min-context", "-1"), "-1"),
        (("a", "-m", "m" * 300), "model: 300 characters"),
        (("a", "--root", "nowhere"), "no such folder"),
        (("a", "-t", "../x"), "'..' leads outside"),
        (("a", "--jsonl", "-"), "exclude each other"),
    ],
)
def test_bad_input_is_a_usage_error_and_nothing_is_submitted(
    ctl: Ctl, workshop: FakeWorkshop, repo: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = ctl("submit", *arguments)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert ran.out == ""
    assert workshop.heard(Submit) == []


def test_a_prompt_that_is_no_text_is_refused(ctl: Ctl) -> None:
    ran = ctl("submit", "-", stdin=b"\xff\xfe\x00")
    assert ran.code == 2
    assert "not UTF-8" in ran.err


def test_a_prompt_over_the_limit_names_it(ctl: Ctl) -> None:
    ran = ctl("submit", "-", stdin=b"x" * 2_000_000)
    assert ran.code == 7
    assert "2000000 bytes, at most 1048576" in ran.err
    assert "prompt_bytes" in ran.err


def test_a_secret_is_refused_unless_allowed(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    (repo / ".env").write_text("PASSWORD=1")
    refused = ctl("submit", "x", "-f", ".env")
    assert refused.code == 2
    assert "--allow-secrets" in refused.err
    assert ctl("submit", "x", "-f", ".env", "--allow-secrets").code == 0


def test_what_the_broker_refuses_is_told_with_its_reason(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.hook = lambda message: (
        [Error(Code.UNKNOWN_MODEL, "no worker has nope:1b; known: gpt-oss:20b", "-m gpt-oss:20b", message.request_id)]
        if isinstance(message, Submit)
        else None
    )
    ran = ctl("submit", "x", "-m", "nope:1b")
    assert ran.code == 7
    assert "error[unknown-model]: no worker has nope:1b" in ran.err


def test_a_busy_broker_is_asked_again(ctl: Ctl, workshop: FakeWorkshop) -> None:
    def busy_once(message: object) -> list[object] | None:
        if isinstance(message, Submit) and len(workshop.heard(Submit)) == 1:
            return [Error(Code.BUSY, "a moment", "", message.request_id, retry_after_s=0.05)]
        return None

    workshop.hook = busy_once  # type: ignore[assignment] # a list of Errors is a list of messages
    assert ctl("submit", "x").out == "142\n"


def test_a_lost_session_is_opened_again_and_the_task_is_one(ctl: Ctl, workshop: FakeWorkshop) -> None:
    def forget_once(message: object) -> None:
        if isinstance(message, Submit) and len(workshop.heard(Submit)) == 1:
            workshop.forget_sessions()

    workshop.hook = forget_once
    assert ctl("submit", "x").out == "142\n"
    assert len(workshop.heard(ClientHello)) == 2
    assert len(workshop.tasks) == 1


def test_waiting_prints_the_output_byte_for_byte(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = succeeding(b"\x1b[31mred\r\n")
    ran = ctl("submit", "x", "--wait")
    assert (ran.code, ran.raw) == (0, b"\x1b[31mred\r\n")


def test_a_terminal_gets_the_output_without_what_it_would_obey(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = succeeding("\x1b[31mred\u202e\x07\n".encode())
    assert ctl("submit", "x", "--wait", is_terminal=True).out == "[31mred\n"


def test_waiting_writes_the_file_that_was_asked_for(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    workshop.on_submit = succeeding(b"# A\n\n\n")
    ran = ctl("submit", "x", "-o", "docs/a.md", "--wait")
    assert (ran.code, ran.out) == (0, "")
    assert "wrote docs/a.md" in ran.err
    assert (repo / "docs/a.md").read_bytes() == b"# A\n"


def test_a_file_is_replaced_only_by_force_and_only_unchanged(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    workshop.on_submit = succeeding(b"new\n")
    assert ctl("submit", "x", "-o", "src/a.py", "--force", "--wait").code == 0
    assert (repo / "src/a.py").read_text() == "new\n"

    def change_meanwhile(workshop: FakeWorkshop, ids: list[int]) -> None:
        (repo / "src/a.py").write_text("edited by hand\n")
        workshop.succeed(ids[0], b"newer\n")

    workshop.on_submit = change_meanwhile
    ran = ctl("submit", "x", "-o", "src/a.py", "--force", "--wait")
    assert ran.code == 7
    assert "changed since the task was submitted" in ran.err
    assert "koubou-ctl result 143" in ran.err
    assert (repo / "src/a.py").read_text() == "edited by hand\n"


def test_waiting_in_json_brings_the_task_with_its_output(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = succeeding(b"the answer\n")
    task = ctl("submit", "x", "--wait", "--json").data
    assert (task["id"], task["state"], task["output"]) == (142, "succeeded", "the answer\n")
    assert (task["wait_s"], task["run_s"], task["worker"], task["attempts"]) == (3.1, 41.0, "lan_001", 1)
    assert task["tokens"] == {"prompt": 812, "thinking": 0, "output": 640}


def test_a_failed_task_is_exit_1_with_the_reason_in_a_users_words(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = failing(ErrorClass.AGENT_LOST, "silent for 30 s")
    ran = ctl("submit", "x", "--wait")
    assert (ran.code, ran.out) == (1, "")
    assert "task 142 failed (agent_lost): its worker stopped answering (on lan_001, attempt 1)" in ran.err
    assert "silent for 30 s" in ran.err
    assert "fix: look at that box" in ran.err


def test_a_failed_task_in_json_is_data_and_error(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = failing(ErrorClass.CUT_OUTPUT, "4096 tokens")
    ran = ctl("submit", "x", "--wait", "--json")
    assert ran.code == 1
    assert ran.data["error"] == {"class": "cut_output", "cause": None, "message": "4096 tokens"}
    assert ran.error["code"] == "task_failed"


def test_flags_are_told_beside_the_output(ctl: Ctl, workshop: FakeWorkshop) -> None:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        workshop.edit(ids[0], flags=("chatty",))
        workshop.succeed(ids[0])

    workshop.on_submit = finish
    ran = ctl("submit", "x", "--wait")
    assert ran.out == "the answer\n"
    assert "flagged: chatty" in ran.err


def test_an_answer_from_the_cache_is_no_fault_and_says_how_to_ask_anew(ctl: Ctl, workshop: FakeWorkshop) -> None:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        workshop.edit(ids[0], flags=("cached",))
        workshop.succeed(ids[0])

    workshop.on_submit = finish
    ran = ctl("submit", "x", "--wait")
    assert ran.out == "the answer\n"
    assert ran.err == "task 142: answered from the result cache; --no-cache asks anew\n"


def test_waiting_may_end_before_the_task_which_goes_on(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ran = ctl("submit", "x", "--wait-timeout", "0.2")
    assert (ran.code, ran.out) == (3, "")
    assert "task 142 goes on" in ran.err
    assert "koubou-ctl wait 142" in ran.err
    assert workshop.tasks[142].state is TaskState.QUEUED


def test_a_broker_that_dies_while_we_wait_is_waited_for(ctl: Ctl, workshop: FakeWorkshop) -> None:
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "submit", "x", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workshop.await_heard(Watch)
        workshop.kill()
        workshop.succeed(142, b"still here\n")
        workshop.revive()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "still here\n"), err


def test_ctrl_c_detaches_and_never_cancels(ctl: Ctl, workshop: FakeWorkshop) -> None:
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "submit", "x", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workshop.await_heard(Watch)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "detached: task 142 goes on" in err
    assert "koubou-ctl wait 142" in err
    assert "Traceback" not in err
    assert workshop.heard(Cancel) == []
    assert workshop.tasks[142].state is TaskState.QUEUED


def test_ctrl_c_before_the_answer_says_how_to_make_sure(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.hook = lambda message: [] if isinstance(message, Submit) else None
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "submit", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        key = workshop.await_heard(Submit)[0].idempotency_key
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"--idempotency-key {key}" in err


def test_a_repeated_key_says_that_the_task_is_known(ctl: Ctl) -> None:
    ctl("submit", "x", "--idempotency-key", "k")
    ran = ctl("submit", "x", "--idempotency-key", "k", is_terminal=True)
    assert "Task 142 had been submitted under this key before" in ran.out


def test_a_dry_run_shows_rule_scores_and_reasons_and_submits_nothing(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.plan = a_plan()
    ran = ctl("submit", "x", "--dry-run")
    assert ran.code == 0
    assert (
        ran.out
        == """\
  Model    gpt-oss:20b
  Version  17052f91a42e
  Prompt   about 9,800 tokens, ±12 %
  Rule     rule 2 of 3: low priority goes to the LAN
  Begins   at once: a worker is free for it
  Not now  busy (1), does not list the model (1)

WORKER   TAKES IT   SCORE  WHY
lan_001  now        128.0  factor +78, idle +50; beside it residency -12.5;
                           about 40 s expected
lan_002  when free   98.0  busy: 1 of 1 slots in use
local    never          -  has no model gpt-oss:20b

It would start at once on lan_001. Nothing was submitted.
"""
    )
    assert workshop.tasks == {}


def test_a_dry_run_in_json_has_all_of_the_plan(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.plan = a_plan()
    plan = ctl("submit", "x", "--dry-run", "--json").data
    assert plan["candidates"][0] == {
        "worker": "lan_001",
        "eligible": True,
        "available": True,
        "score": 128.0,
        "parts": {"factor": 78.0, "idle": 50.0, "residency": -12.5},
        "group": 0,
        "finish_s": 41.0,
        "code": None,
        "reason": None,
    }
    assert plan["candidates"][1]["code"] == "busy"
    assert plan["reasons"] == {"busy": 1, "model_not_listed": 1}
    assert (plan["starts_in_s"], plan["starts_basis"]) == (0.0, "a worker is free for it")
    assert (plan["token_error"], plan["digest"]) == (0.12, "17052f91a42e")


def test_a_dry_run_says_that_an_estimate_rests_on_nothing(ctl: Ctl, workshop: FakeWorkshop) -> None:
    out = ctl("submit", "x", "--dry-run").out  # the fake's plan is that of an older broker
    assert "about 12 tokens, but nothing was measured yet" in out
    assert "Begins" not in out


def test_a_dry_run_does_not_speak_of_slots_where_the_policy_has_another_plan(ctl: Ctl, workshop: FakeWorkshop) -> None:
    held = Candidate("slow", True, False, 50.0, "", Reason.WAITS_FOR_PREFERRED)
    workshop.plan = replace(a_plan(), candidates=(held,))
    ran = ctl("submit", "x", "--dry-run")
    assert "It would wait: the rule waits for a preferred worker. Nothing was submitted." in ran.out


def test_a_dry_run_names_the_one_worker_that_gets_it_where_several_could(ctl: Ctl, workshop: FakeWorkshop) -> None:
    second = Candidate("lan_009", True, True, 12.0, "", None, (ScorePart("factor", 12.0),), 0, 90.0)
    plan = a_plan()
    workshop.plan = replace(plan, candidates=(plan.candidates[0], second))
    assert "It would start at once on lan_001. Nothing was submitted." in ctl("submit", "x", "--dry-run").out


def test_a_version_is_as_short_as_workers_show_has_it(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.plan = replace(a_plan(), digest="17052f91a42e" + "0" * 52)
    assert "  Version  17052f91a42e\n" in ctl("submit", "x", "--dry-run").out
    assert ctl("submit", "x", "--dry-run", "--json").data["digest"] == "17052f91a42e" + "0" * 52


def a_plan() -> Plan:
    """A plan with everything in it."""
    parts = (ScorePart("factor", 78.0), ScorePart("idle", 50.0), ScorePart("residency", -12.5))
    return Plan(
        "gpt-oss:20b",
        9_800,
        "rule 2 of 3: low priority goes to the LAN",
        (
            Candidate("lan_001", True, True, 128.0, "", None, parts, 0, 41.0),
            Candidate("lan_002", True, False, 98.0, "busy: 1 of 1 slots in use", Reason.BUSY),
            Candidate("local", False, False, 0.0, "has no model gpt-oss:20b", Reason.MODEL_NOT_LISTED),
        ),
        "",
        token_error=0.12,
        reasons=(ReasonCount(Reason.BUSY, 1), ReasonCount(Reason.MODEL_NOT_LISTED, 1)),
        starts_in_s=0.0,
        starts_basis="a worker is free for it",
        digest="17052f91a42e",
    )


def test_a_dry_run_of_what_would_be_refused_is_refused(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.plan = Plan("m", 300_000, "", (), "the prompt has about 300000 tokens; the largest window is 8192")
    ran = ctl("submit", "x", "--dry-run")
    assert ran.code == 7
    assert "the largest window is 8192" in ran.err


def test_progress_is_shown_to_a_person_and_wiped(ctl: Ctl, workshop: FakeWorkshop) -> None:
    def later(workshop: FakeWorkshop, ids: list[int]) -> None:
        workshop.start(ids[0])

    workshop.on_submit = later
    ran = ctl("submit", "x", "--wait", "--wait-timeout", "0.3", is_terminal=True)
    assert "task 142: running on lan_001" in ran.err
    assert "\r\x1b[K" in ran.err


def test_a_submission_waits_for_a_broker_that_is_being_restarted(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.kill()
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "submit", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workshop.revive()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "142\n"), err
    eventually(lambda: len(workshop.tasks) == 1)
