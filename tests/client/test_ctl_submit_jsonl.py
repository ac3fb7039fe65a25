"""koubou-ctl submit --jsonl: all lines or none, every fault with its line."""

import json
from pathlib import Path

import pytest

from koubou_client.ctl.submit_jsonl import read_drafts
from koubou_client.inputs import InputLimits
from koubou_common.errors import Code, ErrorClass, KoubouError
from koubou_common.messages import Cancel, Submit
from koubou_common.messages.values import Label, Option, Plan
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop

pytestmark = pytest.mark.usefixtures("repo")


def lines(*tasks: object) -> bytes:
    return "".join(json.dumps(task) + "\n" for task in tasks).encode()


def finish_by_prompt(workshop: FakeWorkshop, ids: list[int]) -> None:
    """Prompts say how they end; the last one ends first."""
    for task_id in reversed(ids):
        prompt = workshop.specs[task_id].prompt.inline or b""
        if prompt.startswith(b"fail"):
            workshop.fail(task_id, ErrorClass.EMPTY_OUTPUT)
        else:
            workshop.succeed(task_id, b"answer to " + prompt)


def test_every_line_is_a_task_of_one_batch(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ran = ctl("submit", "--jsonl", "-", stdin=lines({"prompt": "a"}, {"prompt": "b"}))
    assert (ran.code, ran.out) == (0, "b12\n")
    assert [task.batch_index for task in workshop.tasks.values()] == [1, 2]


def test_a_batch_of_one_is_a_batch(ctl: Ctl) -> None:
    assert ctl("submit", "--jsonl", "-", stdin=lines({"prompt": "a"})).out == "b12\n"


def test_json_names_the_batch_and_its_tasks(ctl: Ctl) -> None:
    data = ctl("submit", "--jsonl", "-", "--json", stdin=lines({"prompt": "a"})).data
    assert data == {"batch": "b12", "tasks": [{"id": 142, "state": "queued", "existing": False}]}


def test_every_field_reaches_the_broker(ctl: Ctl, workshop: FakeWorkshop) -> None:
    task = {
        "custom_id": "one",
        "prompt": "doc it",
        "files": ["src/a.py"],
        "target": "A.md",
        "out": "docs/a.md",
        "model": "m:1b",
        "priority": "high",
        "type": "doc",
        "repo": "mine",
        "worker": "lan_001",
        "labels": {"gpu": "3090"},
        "options": {"temperature": 0.2, "stop": ["END"]},
        "capabilities": ["vision", "code"],
        "same_digest": True,
        "min_context": 8192,
        "timeout": 600,
        "deadline": 7200.5,
        "queue_timeout": 90,
        "max_attempts": 3,
        "strict_output": True,
    }
    ran = ctl("submit", "--jsonl", "-", stdin=lines(task))
    assert ran.code == 0, ran.err
    spec = workshop.heard(Submit)[0].tasks[0]
    assert (spec.custom_id, spec.prompt.inline, spec.target, spec.out_path) == ("one", b"doc it", "A.md", "docs/a.md")
    assert [file.name for file in spec.files] == ["src/a.py"]
    assert (spec.model, spec.priority, spec.task_type, spec.repo, spec.worker) == ("m:1b", 8, "doc", "mine", "lan_001")
    assert (spec.labels, spec.min_context) == ((Label("gpu", "3090"),), 8192)
    assert (spec.capabilities, spec.same_digest) == (("code", "vision"), True)
    assert spec.options == (Option("stop", ("END",)), Option("temperature", 0.2))
    assert (spec.timeout_s, spec.deadline_s, spec.queue_timeout_s) == (600.0, 7200.5, 90.0)
    assert (spec.max_attempts, spec.strict_output) == (3, True)


def test_options_of_the_command_hold_where_a_line_says_nothing_else(ctl: Ctl, workshop: FakeWorkshop) -> None:
    tasks = lines({"prompt": "a", "options": {"seed": 1}}, {"prompt": "b", "model": "other:1b", "priority": 9})
    ctl("submit", "--jsonl", "-", "-m", "m:1b", "-p", "3", "--option", "temperature=0.5", stdin=tasks)
    first, second = workshop.heard(Submit)[0].tasks
    assert (first.model, first.priority, second.model, second.priority) == ("m:1b", 3, "other:1b", 9)
    assert first.options == (Option("seed", 1), Option("temperature", 0.5))
    assert second.options == (Option("temperature", 0.5),)


def test_tasks_of_one_prompt_have_what_they_share_first(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    for name in ("b.py", "c.py", "api.md"):
        (repo / "src" / name).write_text(f"# {name}\n")
    tasks = [{"prompt": "doc it", "files": [f"src/{name}", "src/api.md"]} for name in ("a.py", "b.py", "c.py")]
    assert ctl("submit", "--jsonl", "-", stdin=lines(*tasks[:2], {**tasks[2], "keep_order": True})).code == 0
    specs = workshop.heard(Submit)[0].tasks
    assert [([file.name for file in spec.files], spec.prefix_files) for spec in specs] == [
        (["src/api.md", "src/a.py"], 1),
        (["src/api.md", "src/b.py"], 1),
        (["src/c.py", "src/api.md"], 0),
    ]


def test_a_line_may_ask_for_a_new_answer(ctl: Ctl, workshop: FakeWorkshop) -> None:
    ctl("submit", "--jsonl", "-", stdin=lines({"prompt": "a", "use_cache": False}, {"prompt": "b"}))
    assert [spec.use_cache for spec in workshop.heard(Submit)[0].tasks] == [False, True]


def test_blank_lines_a_byte_order_mark_and_nulls_are_no_trouble(ctl: Ctl, workshop: FakeWorkshop) -> None:
    data = b'\xef\xbb\xbf\r\n{"prompt": "a", "model": null}\r\n\n  \n{"prompt": "b"}'
    assert ctl("submit", "--jsonl", "-", stdin=data).code == 0
    assert len(workshop.tasks) == 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": "a", "pririty": 3}', 'field "pririty" unknown; did you mean "priority"?'),
        (b'{"prompt": "a", "depends_on": ["b"]}', 'field "depends_on" unknown; known are: custom_id, prompt'),
        (b'{"prompt": "a", "prompt": "b"}', 'field "prompt" given twice'),
        (b'{"prompt": "a", "options": {"seed": 1, "seed": 2}}', 'field "seed" given twice'),
        (b'{"prompt": "a"', "not JSON: Expecting ',' delimiter (column 15)"),
        (b"[1]", "one object a line is expected"),
        (b'"a"', "one object a line is expected"),
        (b"{}", 'field "prompt" is missing'),
        (b'{"prompt": ""}', "the prompt is empty"),
        (b'{"prompt": "a\\u0000b"}', "NUL"),
        (b'{"prompt": "a\\ud800b"}', "not UTF-8"),
        (b'{"prompt": 7}', 'field "prompt": text is expected, not 7'),
        (b'{"prompt": "a", "files": "x"}', 'field "files": a list of paths is expected'),
        (b'{"prompt": "a", "files": ["nope.py"]}', "nope.py: no such file"),
        (b'{"prompt": "a", "out": "../x"}', "outside"),
        (b'{"prompt": "a", "out": "src/a.py"}', "src/a.py: exists already"),
        (b'{"prompt": "a", "priority": 11}', "1 to 10"),
        (b'{"prompt": "a", "priority": true}', 'field "priority": 1 to 10 is expected, not true'),
        (b'{"prompt": "a", "max_attempts": 0}', 'field "max_attempts": 1 to 20'),
        (b'{"prompt": "a", "timeout": -1}', 'field "timeout": a number of seconds'),
        (b'{"prompt": "a", "timeout": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "a", "labels": {"gpu": 1}}', 'field "labels": an object of texts'),
        (b'{"prompt": "a", "options": {"num_ctx": 4096}}', "--min-context"),
        (b'{"prompt": "a", "options": {"temperature": {}}}', "temperature must be a number"),
        (b'{"prompt": "a", "custom_id": "\\ud800"}', "half a character"),
        (b'{"prompt": "a", "custom_id": "' + b"x" * 300 + b'"}', "custom_id: 300 characters"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13 of the line)"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "not JSON that can be read"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_nothing_is_submitted(
    ctl: Ctl, workshop: FakeWorkshop, repo: Path, line: bytes, fault: str
) -> None:
    (repo / "in.jsonl").write_bytes(b'{"prompt": "good"}\n\n' + line + b"\n")
    ran = ctl("submit", "--jsonl", "in.jsonl")
    assert ran.code == 2
    assert f"in.jsonl:3: {fault}" in ran.err or (fault in ran.err and "in.jsonl:3: " in ran.err)
    assert workshop.heard(Submit) == []


def test_all_faults_are_told_at_once_up_to_twenty(ctl: Ctl) -> None:
    ran = ctl("submit", "--jsonl", "-", stdin=lines({"prompt": "ok"}, *[{"promt": "x"}] * 25))
    assert "25 of 26 lines have faults" in ran.err
    assert ran.err.count('did you mean "prompt"?') == 20
    assert "stdin:2: " in ran.err
    assert "stdin:21: " in ran.err
    assert "… and 5 more" in ran.err


def test_two_lines_cannot_have_the_same_id_or_output(ctl: Ctl) -> None:
    tasks = lines(
        {"prompt": "a", "custom_id": "1", "out": "x.md"},
        {"prompt": "b", "custom_id": "1"},
        {"prompt": "c", "out": "./x.md"},
    )
    ran = ctl("submit", "--jsonl", "-", stdin=tasks)
    assert 'stdin:2: custom_id "1": line 1 has the same' in ran.err
    assert 'stdin:3: out "x.md": line 1 has the same' in ran.err


def test_a_file_without_tasks_is_refused(ctl: Ctl) -> None:
    assert "holds no task" in ctl("submit", "--jsonl", "-", stdin=b"\n").err


def test_too_many_tasks_are_refused(repo: Path) -> None:
    with pytest.raises(KoubouError, match="at most 10000") as caught:
        read_drafts(b'{"prompt": "a"}\n' * 10_001, name="in.jsonl", root=repo, limits=InputLimits(), defaults={})
    assert caught.value.code is Code.TOO_LARGE


def test_a_file_that_many_lines_name_is_held_once(repo: Path) -> None:
    (repo / "big.txt").write_bytes(b"y" * 100_000)
    task = b'{"prompt": "a", "files": ["big.txt"]}\n'
    read = read_drafts(task * 50, name="in.jsonl", root=repo, limits=InputLimits(), defaults={})
    held = {id(data) for line in read for data in line.draft.bodies.values() if len(data) == 100_000}
    assert len(held) == 1


def test_waiting_writes_the_files_and_sums_up(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    workshop.on_submit = finish_by_prompt
    ran = ctl("submit", "--jsonl", "-", "--wait", stdin=lines({"prompt": "a", "out": "o/a.md"}, {"prompt": "b"}))
    assert (ran.code, ran.out) == (0, "")
    assert (repo / "o/a.md").read_text() == "answer to a\n"
    assert "batch b12: 2 tasks: 2 succeeded" in ran.err


def test_waiting_in_json_prints_a_line_per_task_as_they_end(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = finish_by_prompt
    tasks = lines({"prompt": "a", "custom_id": "A"}, {"prompt": "fail", "custom_id": "F"})
    ran = ctl("submit", "--jsonl", "-", "--wait", "--json", stdin=tasks)
    assert ran.code == 1
    results = {task["custom_id"]: task for task in (json.loads(line)["data"] for line in ran.out.splitlines())}
    assert results["A"]["output"] == "answer to a"
    assert (results["A"]["batch"], results["A"]["state"]) == ("b12", "succeeded")
    assert results["F"]["error"] == {"class": "empty_output", "cause": None, "message": ""}
    assert results["F"]["output"] is None


def test_a_failed_line_is_exit_1_and_named(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = finish_by_prompt
    ran = ctl("submit", "--jsonl", "-", "--wait", stdin=lines({"prompt": "a"}, {"prompt": "fail"}))
    assert ran.code == 1
    assert "task 143 failed (empty_output): the model answered nothing" in ran.err
    assert "1 succeeded, 1 failed" in ran.err


def test_a_file_that_changed_keeps_none_of_the_others_back(ctl: Ctl, workshop: FakeWorkshop, repo: Path) -> None:
    def finish(workshop: FakeWorkshop, ids: list[int]) -> None:
        (repo / "a.md").write_text("mine\n")
        finish_by_prompt(workshop, ids)

    workshop.on_submit = finish
    tasks = lines({"prompt": "a", "out": "a.md"}, {"prompt": "b", "out": "b.md"})
    ran = ctl("submit", "--jsonl", "-", "--wait", stdin=tasks)
    assert ran.code == 7
    assert (repo / "a.md").read_text() == "mine\n"
    assert (repo / "b.md").read_text() == "answer to b\n"
    assert "a.md: appeared since the task was submitted" in ran.err
    assert "1 of 2 outputs were not written" in ran.err


def test_a_batch_that_is_not_waited_out_names_itself(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.on_submit = lambda workshop, ids: workshop.succeed(ids[0])
    tasks = lines({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    ran = ctl("submit", "--jsonl", "-", "--wait-timeout", "0.3", stdin=tasks)
    assert ran.code == 3
    assert "2 of 3 tasks go on" in ran.err
    assert "koubou-ctl wait b12" in ran.err
    assert workshop.heard(Cancel) == []


def test_a_dry_run_tells_of_every_line(ctl: Ctl, workshop: FakeWorkshop) -> None:
    tasks = lines({"prompt": "a", "custom_id": "A"}, {"prompt": "b"})
    ran = ctl("submit", "--jsonl", "-", "--dry-run", stdin=tasks)
    assert ran.code == 0
    assert ran.out.splitlines()[1].split() == ["1", "A", "gpt-oss:20b", "12", "lan_001", "rule", "1", "of", "1"]
    assert "2 tasks. Nothing was submitted." in ran.out
    assert [plan["line"] for plan in ctl("submit", "--jsonl", "-", "--dry-run", "--json", stdin=tasks).data] == [1, 2]
    workshop.plan = Plan("m", 1, "", (), "no worker has m")
    refused = ctl("submit", "--jsonl", "-", "--dry-run", stdin=tasks)
    assert refused.code == 7
    assert "stdin:2: no worker has m" in refused.err
    assert workshop.tasks == {}
