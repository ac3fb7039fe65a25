"""The Python client against a broker by hand: futures, results, restarts."""

import gc
import json
import weakref
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest

from koubou_client.client import Client
from koubou_client.futures import TaskFailedError
from koubou_client.tasks import draft_task
from koubou_common.errors import Code, ErrorClass, KoubouError
from koubou_common.messages import Cancel, Error, GetTasks, Submit, Watch
from koubou_common.messages.limits import CHUNK_BYTES, PAGE_TASKS, PART_TASKS
from koubou_common.messages.values import TaskState
from support.fake_workshop import FakeWorkshop
from support.waiting import eventually

LONG_S = 15.0


def test_a_future_ends_with_the_output_of_its_task(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("say hello", task_type="greeting")
    assert not future.done()
    workshop.succeed(future.id, b"hello\n")
    output = future.result(LONG_S)
    assert (output.text, output.task.state, output.task.task_type) == ("hello\n", TaskState.SUCCEEDED, "greeting")


def test_an_output_is_the_part_of_the_answer_that_the_broker_names(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("write code")
    workshop.succeed(future.id, b"Sure!\n```\nx = 1\n```\n", offset=10, length=6)
    assert future.result(LONG_S).text == "x = 1\n"
    assert client.result(future.id)[1] == b"x = 1\n"
    assert client.result(future.id, raw=True)[1] == b"Sure!\n```\nx = 1\n```\n"


def test_a_failed_task_raises_its_class(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("think hard")
    workshop.fail(future.id, ErrorClass.EMPTY_OUTPUT, "4096 tokens thought away")
    with pytest.raises(TaskFailedError, match="4096 tokens") as caught:
        future.result(LONG_S)
    assert caught.value.error_class is ErrorClass.EMPTY_OUTPUT
    assert caught.value.code is Code.TASK_FAILED


def test_a_large_output_is_fetched_in_pieces(workshop: FakeWorkshop, client: Client) -> None:
    raw = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
    future = client.submit("write a lot")
    workshop.succeed(future.id, raw)
    future.result(LONG_S)
    assert client.result(future.id)[1] == raw
    assert workshop.chunks_given >= 4


def test_a_large_prompt_is_uploaded_when_the_broker_asks(workshop: FakeWorkshop, client: Client) -> None:
    prompt = "long " * 200_000
    future = client.submit(prompt)
    assert workshop.specs[future.id].prompt.size_bytes == len(prompt)
    assert len(workshop.heard(Submit)) == 1


def test_cancelling_a_future_asks_the_broker_and_its_record_ends_it(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("never mind")
    assert future.cancel()
    with pytest.raises(TaskFailedError, match="cancelled"):
        future.result(LONG_S)
    assert [message.task_ids for message in workshop.heard(Cancel)] == [(future.id,)]


def test_cancelling_what_has_ended_says_so(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("quick")
    workshop.succeed(future.id)
    future.result(LONG_S)
    assert not future.cancel()


def test_outputs_of_a_map_come_in_the_order_of_the_prompts(workshop: FakeWorkshop, client: Client) -> None:
    def finish_backwards(workshop: FakeWorkshop, ids: list[int]) -> None:
        for task_id in reversed(ids):
            workshop.succeed(task_id, f"answer to {task_id}".encode())

    workshop.on_submit = finish_backwards
    texts = [output.text for output in client.map(["a", "b", "c"])]
    assert texts == ["answer to 142", "answer to 143", "answer to 144"]
    assert workshop.heard(Submit)[0].as_batch


def test_a_map_over_nothing_submits_nothing(workshop: FakeWorkshop, client: Client) -> None:
    assert list(client.map([])) == []
    assert workshop.heard(Submit) == []


@pytest.mark.usefixtures("repo")
def test_many_tasks_are_one_batch_with_what_they_share_first(workshop: FakeWorkshop, client: Client) -> None:
    for name in ("api.md", "b.py"):
        Path("src", name).write_text(f"# {name}\n")
    items: list[str | dict[str, object]] = [
        {"files": ["src/a.py"], "priority": 7},
        {"files": ["src/b.py", "src/api.md"], "custom_id": "b"},
        "another",
    ]
    futures = client.submit_many(items, prompt="doc it", files=["src/api.md"], task_type="doc")
    message = workshop.heard(Submit)[0]
    assert message.as_batch
    assert [([file.name for file in spec.files], spec.prefix_files) for spec in message.tasks] == [
        (["src/api.md", "src/a.py"], 1),
        (["src/api.md", "src/b.py"], 1),
        (["src/api.md"], 0),
    ]
    assert [(spec.priority, spec.custom_id, spec.task_type) for spec in message.tasks] == [
        (7, "", "doc"),
        (5, "b", "doc"),
        (5, "", "doc"),
    ]
    for future in reversed(futures):
        workshop.succeed(future.id, f"answer to {future.id}".encode())
    assert [future.result(LONG_S).text for future in futures] == ["answer to 142", "answer to 143", "answer to 144"]


@pytest.mark.usefixtures("repo")
def test_many_tasks_may_keep_the_order_of_their_files(workshop: FakeWorkshop, client: Client) -> None:
    Path("src", "api.md").write_text("# api\n")
    Path("src", "b.py").write_text("# b\n")
    items = [{"files": ["src/a.py", "src/api.md"]}, {"files": ["src/b.py", "src/api.md"]}]
    client.submit_many(items, prompt="doc it", keep_order=True, use_cache=False)
    specs = workshop.heard(Submit)[0].tasks
    assert [[file.name for file in spec.files] for spec in specs] == [item["files"] for item in items]
    assert [(spec.prefix_files, spec.use_cache) for spec in specs] == [(0, False), (0, False)]


def test_many_tasks_of_which_one_is_wrong_are_none(workshop: FakeWorkshop, client: Client) -> None:
    with pytest.raises(KoubouError, match="the prompt is empty"):
        client.submit_many(["a", " "])
    assert client.submit_many([]) == []
    assert workshop.heard(Submit) == []


def test_many_tasks_under_a_repeated_key_are_the_same(client: Client) -> None:
    first = client.submit_many(["a", "b"], idempotency_key="k2")
    assert [one.id for one in client.submit_many(["a", "b"], idempotency_key="k2")] == [one.id for one in first]


def test_the_standard_library_waits_for_our_futures(workshop: FakeWorkshop, client: Client) -> None:
    futures = [client.submit(f"task {number}") for number in range(3)]
    for future in reversed(futures):
        workshop.succeed(future.id)
    assert set(as_completed(futures, LONG_S)) == set(futures)


def test_waiting_for_any_ends_with_the_first(workshop: FakeWorkshop, client: Client) -> None:
    first, second = client.submit("a"), client.submit("b")
    workshop.succeed(second.id)
    assert client.wait([first.id, second.id], timeout_s=LONG_S, for_all=False) == [second]


def test_a_repeated_key_is_the_same_task(client: Client) -> None:
    assert client.submit("once", idempotency_key="k1").id == client.submit("once", idempotency_key="k1").id


def test_many_tasks_travel_in_parts_and_are_one_batch(workshop: FakeWorkshop, client: Client) -> None:
    drafts = [draft_task(f"task {number}") for number in range(PART_TASKS + 7)]
    accepted = client.submit_drafts(drafts, as_batch=True)
    assert len(accepted.tasks) == PART_TASKS + 7
    assert len({message.idempotency_key for message in workshop.heard(Submit)}) == 1
    assert len(client.tasks(batch_id=accepted.batch_id, most=10_000)) == PART_TASKS + 7


def test_a_submission_in_parts_begins_again_when_the_broker_forgot_the_first(
    workshop: FakeWorkshop, client: Client
) -> None:
    forgotten: list[int] = []

    def forget_once(message: object) -> None:
        if isinstance(message, Submit) and message.part == 1 and not forgotten:
            forgotten.append(1)
            workshop.forget_sessions()

    workshop.hook = forget_once
    accepted = client.submit_drafts([draft_task(f"task {number}") for number in range(PART_TASKS + 1)])
    assert len(accepted.tasks) == PART_TASKS + 1
    assert [message.part for message in workshop.heard(Submit)] == [0, 1, 0, 1]


def test_a_future_survives_the_death_of_the_broker(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("patient")
    workshop.await_heard(Watch)
    workshop.kill()
    workshop.revive()
    workshop.await_heard(Watch, 2)
    workshop.succeed(future.id, b"late but there")
    assert future.result(LONG_S).text == "late but there"


def test_a_task_that_ended_while_the_broker_was_away_ends_its_future(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("patient")
    workshop.await_heard(Watch)
    workshop.kill()
    workshop.succeed(future.id, b"done meanwhile")
    workshop.revive()
    assert future.result(LONG_S).text == "done meanwhile"


def test_futures_of_a_broker_that_stays_away_fail_and_say_so(workshop: FakeWorkshop) -> None:
    with Client(home=workshop.home.root) as client:
        client.connection._outage_timeout_s = 0.3
        future = client.submit("hopeless")
        workshop.await_heard(Watch)
        workshop.kill()
        with pytest.raises(KoubouError) as caught:
            future.result(LONG_S)
        assert caught.value.code is Code.BROKER_UNREACHABLE
        workshop.revive()


def test_a_watch_that_is_refused_ends_its_futures(workshop: FakeWorkshop, client: Client) -> None:
    workshop.hook = lambda message: (
        [Error(Code.NOT_AUTHORISED, "not for you", "", message.request_id)] if isinstance(message, Watch) else None
    )
    with pytest.raises(KoubouError, match="not for you"):
        client.submit("x").result(LONG_S)


def test_closing_the_client_detaches_and_cancels_nothing(workshop: FakeWorkshop) -> None:
    with Client(home=workshop.home.root) as client:
        future = client.submit("goes on")
    with pytest.raises(KoubouError) as caught:
        future.result(LONG_S)
    assert caught.value.code is Code.DETACHED
    assert workshop.heard(Cancel) == []


def test_a_future_of_an_unknown_task_fails_with_not_found(client: Client) -> None:
    with pytest.raises(KoubouError) as caught:
        client.futures([999])[0].result(LONG_S)
    assert caught.value.code is Code.NOT_FOUND


def test_an_unknown_id_in_a_list_is_not_found(client: Client) -> None:
    with pytest.raises(KoubouError) as caught:
        client.tasks(task_ids=[7, 8])
    assert caught.value.code is Code.NOT_FOUND
    assert "7, 8" in caught.value.message


def test_a_long_list_is_read_page_by_page(workshop: FakeWorkshop, client: Client) -> None:
    client.submit_drafts([draft_task(f"task {number}") for number in range(PAGE_TASKS + 5)])
    assert len(client.tasks(most=1_000)) == PAGE_TASKS + 5
    assert len(client.tasks(most=3)) == 3
    assert workshop.heard(GetTasks)[-1].most == 3


def test_a_retried_task_has_a_new_future(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("again")
    workshop.fail(future.id)
    assert isinstance(future.exception(LONG_S), TaskFailedError)
    assert client.retry([future.id])[0].changed
    again = client.futures([future.id])[0]
    with pytest.raises(FutureTimeoutError):
        again.result(0.05)
    workshop.succeed(future.id, b"better")
    assert again.result(LONG_S).text == "better"


def test_the_broker_s_limits_are_kept_before_anything_is_sent(workshop: FakeWorkshop) -> None:
    workshop.prompt_bytes = 10
    with Client(home=workshop.home.root) as client, pytest.raises(KoubouError, match="prompt_bytes") as caught:
        client.submit("longer than ten bytes")
    assert caught.value.code is Code.TOO_LARGE
    assert workshop.heard(Submit) == []


def test_a_key_that_is_not_enrolled_is_named_as_the_reason(workshop: FakeWorkshop) -> None:
    workshop.door.access.revoke(workshop.pair.public)
    with Client(home=workshop.home.root) as client, pytest.raises(KoubouError) as caught:
        client.welcome()
    assert caught.value.code is Code.KEY_NOT_ENROLLED


def test_a_broker_that_is_down_is_named_as_the_reason(workshop: FakeWorkshop) -> None:
    workshop.kill()
    with Client(home=workshop.home.root, connect_timeout_s=0.3) as client, pytest.raises(KoubouError) as caught:
        client.status()
    assert caught.value.code is Code.BROKER_UNREACHABLE
    workshop.revive()


def test_a_home_without_a_broker_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(KoubouError, match="no broker is known") as caught:
        Client(home=tmp_path)
    assert caught.value.code is Code.BAD_CONFIGURATION
    assert "koubou-ctl join" in caught.value.hint


def test_a_plan_is_asked_for_and_nothing_is_submitted(workshop: FakeWorkshop, client: Client) -> None:
    plans = client.preview([draft_task(f"task {number}") for number in range(25)])
    assert [plan.model for plan in plans] == ["gpt-oss:20b"] * 25
    assert workshop.tasks == {}
    assert all(message.dry_run for message in workshop.heard(Submit))


def test_a_status_is_told(workshop: FakeWorkshop, client: Client) -> None:
    client.submit("one")
    status = client.status()
    assert {entry.state.value: entry.count for entry in status.counts}["queued"] == 1
    assert json.dumps(status.version)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"queue_timeout_s": 60.0}, "knows no queue time limit"),
        ({"capabilities": ["review"]}, "knows no required capabilities"),
        ({"same_digest": True}, "knows no choice of a model's version"),
    ],
)
def test_a_wish_that_an_older_broker_would_pass_over_in_silence_is_refused(
    workshop: FakeWorkshop, wish: dict[str, Any], said: str
) -> None:
    workshop.proto = 1  # before anybody is welcomed
    with Client(home=workshop.home.root) as client:
        with pytest.raises(KoubouError, match=said) as caught:
            client.submit("hurry", **wish)
        assert caught.value.code is Code.VERSION
        with pytest.raises(KoubouError, match=said):
            client.preview([draft_task("hurry", **wish)])
        assert workshop.heard(Submit) == []
        client.submit("take your time")
    assert len(workshop.heard(Submit)) == 1


def test_watches_end_with_their_tasks(workshop: FakeWorkshop, client: Client) -> None:
    future = client.submit("one")
    workshop.succeed(future.id)
    future.result(LONG_S)
    eventually(lambda: not client.connection._watches, what="the watch is over")


def test_what_has_ended_and_nobody_holds_is_forgotten(workshop: FakeWorkshop, client: Client) -> None:
    """A program that runs for months must not keep every output it ever got."""
    futures = [client.submit(f"task {number}") for number in range(3)]
    ids = [future.id for future in futures]
    for task_id in ids:
        workshop.succeed(task_id)
    assert len(client.wait(ids, timeout_s=LONG_S)) == 3
    held = weakref.ref(futures[0])
    assert client.futures(ids) == futures, "while somebody holds them they are the same"
    futures.clear()
    gc.collect()
    assert held() is None
    assert [future.result(LONG_S).task.task_id for future in client.futures(ids)] == ids


def test_a_task_whose_future_only_the_connection_ended_can_be_waited_for_again(
    workshop: FakeWorkshop, client: Client
) -> None:
    client.connection._outage_timeout_s = 0.3
    task_id = client.submit("patient").id
    workshop.await_heard(Watch)
    workshop.kill()
    with pytest.raises(KoubouError):
        client.futures([task_id])[0].result(LONG_S)
    workshop.revive()
    eventually(lambda: client.connection._was_connected, LONG_S, "it is connected again")
    workshop.succeed(task_id, b"there after all")
    assert client.futures([task_id])[0].result(LONG_S).text == "there after all"
