"""workers.yaml: read as the requirement writes it, refused with every fault at its place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from koubou_common.errors import ConfigError
from koubou_common.messages.values import Option, WorkerLimits
from koubou_common.settings import WorkersFile, check, load, loads

# The file of the original requirements, letter for letter.
REQUIREMENT = Path(__file__).with_name("test_settings_requirement.yaml").read_text(encoding="utf-8")


def faults_of(tmp_path: Path, text: str) -> list[str]:
    """The first line of each problem, without the file's name."""
    path = tmp_path / "workers.yaml"
    path.write_text(text, encoding="utf-8")
    return [str(p).splitlines()[0].removeprefix(f"{path}:") for p in check(path, WorkersFile)]


def hints_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "workers.yaml"
    path.write_text(text, encoding="utf-8")
    return [problem.hint for problem in check(path, WorkersFile)]


def a_local(more: str = "", worker_id: str = "w", model: str = "m") -> str:
    return f"workers: {{local_workers: [{{worker_id: {worker_id}, model: '{model}'{more}}}]}}\n"


def a_rule(text: str) -> str:
    return f"routing_policy: {{rules: [{{{text}}}]}}\n"


def test_the_file_of_the_requirements_is_read_as_it_is_there() -> None:
    made = loads(REQUIREMENT, WorkersFile)
    local, first, second = made.all_workers()
    assert (local.worker_id, local.location, local.endpoint_url) == (
        "local_001",
        "local",
        "http://localhost:11434",
    )
    assert (local.performance_factor, local.max_concurrent_tasks, local.capabilities) == (1.0, 2, ("general",))
    assert (first.endpoint_url, second.endpoint_url) == (
        "http://192.168.1.100:11434",
        "http://192.168.1.101:11434",
    )
    assert (first.location, first.performance_factor, first.max_concurrent_tasks) == ("remote", 0.5, 1)
    assert first.limits.idle_s == 300
    policy = made.routing_policy
    assert policy.strategy == "priority_based"
    assert [(rule.priority_range, rule.preferred_workers) for rule in policy.rules] == [
        ((8, 10), ("local",)),
        ((5, 7), ("local", "remote")),
        ((1, 4), ("remote",)),
    ]
    assert policy.rules[1].reason == "中優先度は負荷分散"


def test_what_is_left_out_has_the_defaults_of_the_requirements() -> None:
    text = "workers: {local_workers: [{worker_id: a, model: m}], remote_workers: [{worker_id: b, model: m}]}"
    local, remote = loads(text, WorkersFile).all_workers()
    assert (local.endpoint_url, local.performance_factor) == ("http://localhost:11434", 1.0)
    assert (remote.endpoint_url, remote.performance_factor) == ("http://localhost:11434", 0.5)
    assert remote.agent == "there"
    for worker in (local, remote):
        assert worker.models == ("m",)
        assert worker.max_concurrent_tasks == 2
        assert worker.options == {"num_ctx": 8192, "num_predict": 4096, "temperature": 0.3}
        assert worker.thinking_allowance == 2048
        assert worker.limits == WorkerLimits()
        assert worker.labels == {}


def test_options_that_are_given_join_the_defaults() -> None:
    text = a_local(", options: {num_ctx: 16384, seed: 7, stop: [END]}")
    (worker,) = loads(text, WorkersFile).all_workers()
    assert worker.options == {
        "num_ctx": 16384,
        "num_predict": 4096,
        "temperature": 0.3,
        "seed": 7,
        "stop": ["END"],
    }


def test_options_of_one_model_reach_the_broker_apart_from_the_general_ones() -> None:
    more = ", models: [m, 'big:70b'], model_options: {'BIG:70b': {num_ctx: 16384}}"
    worker = loads(a_local(more), WorkersFile).all_workers()[0]
    assert worker.model_options == {"BIG:70b": {"num_ctx": 16384}}
    assert worker.options["num_ctx"] == 8192


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("{other: {num_ctx: 4096}}", "other: is not among the worker's models"),
        ("{m: {num_ctx: 4096}, 'm:latest': {seed: 1}}", "m:latest: means the same model as a line above"),
        ("{m: {num_ctx: 16}}", "m.num_ctx: num_ctx must be at least 256, not 16"),
        ("{m: {num_ctxx: 4096}}", "did you mean num_ctx?"),
    ],
)
def test_options_of_a_model_are_checked_like_the_general_ones(tmp_path: Path, written: str, fault: str) -> None:
    found = "\n".join(faults_of(tmp_path, a_local(f", model_options: {written}")))
    assert fault in found, found


def test_options_may_name_any_model_of_a_worker_that_has_all(tmp_path: Path) -> None:
    assert faults_of(tmp_path, a_local(', models: ["*"], model_options: {other: {num_ctx: 4096}}')) == []


def test_a_worker_becomes_what_its_agent_is_told() -> None:
    text = a_local(", models: ['*'], options: {stop: [END]}, network_timeout: 60, limits: {load_s: 900}")
    (worker,) = loads(text, WorkersFile).all_workers()
    config = worker.config(output_bytes=1000)
    assert (config.worker_id, config.default_model, config.models, config.slots) == ("w", "m", ("*",), 2)
    assert Option("num_ctx", 8192) in config.options
    assert Option("stop", ("END",)) in config.options
    assert config.limits == WorkerLimits(load_s=900, idle_s=60, output_bytes=1000)


def test_slots_that_are_not_stated_come_from_max_active_tasks() -> None:
    text = (
        "workers: {local_workers: [{worker_id: a, model: m}, {worker_id: b, model: m, max_concurrent_tasks: 2}]}\n"
        "manager: {max_active_tasks: 4}\n"
    )
    assert [worker.max_concurrent_tasks for worker in loads(text, WorkersFile).all_workers()] == [4, 2]


def test_max_workers_is_five_or_what_is_listed_unless_stated() -> None:
    def listed(count: int, more: str = "") -> WorkersFile:
        entries = ", ".join(f"{{worker_id: w{n}, model: m}}" for n in range(count))
        return loads(f"workers: {{remote_workers: [{entries}]}}\n{more}", WorkersFile)

    assert listed(2).max_workers == 5
    assert listed(7).max_workers == 7
    assert listed(7, "manager: {max_workers: 9}").max_workers == 9
    with pytest.raises(ConfigError, match="below the number of workers listed \\(7\\)"):
        listed(7, "manager: {max_workers: 6}")
    with pytest.raises(ConfigError, match="below min_workers \\(3\\)"):
        listed(1, "manager: {max_workers: 2, min_workers: 3}")


def test_an_empty_file_and_empty_keys_mean_the_defaults() -> None:
    assert loads("", WorkersFile) == WorkersFile()
    assert loads("workers:\n  local_workers:\nmanager:\n", WorkersFile) == WorkersFile()
    assert WorkersFile().all_workers() == ()


def test_settings_cannot_be_changed_once_made() -> None:
    made = loads(REQUIREMENT, WorkersFile)
    with pytest.raises(ValidationError, match="frozen"):
        made.manager.min_workers = 7  # type: ignore[misc]  # that is the point


def test_all_faults_of_all_parts_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "workers:\n"
        "  local_workers:\n"
        "    - worker_id: one\n"
        "      max_concurent_tasks: 2\n"
        "      options: {num_ctx: 10, num_predict: 0, temprature: 1}\n"
        "    - worker_id: one\n"
        "      model: m\n"
        "      model: n\n"
        "  remote_workers:\n"
        "    - worker_id: two\n"
        "      model: m\n"
        "      worker_type: lan\n"
        "      performance_factor: -0.5\n"
        "routing_policy:\n"
        "  rules:\n"
        "    - priority_range: [1, 'ten']\n"
        "      preferred_workers: [tow]\n"
        "manager: {max_workers: 1}\n"
    )
    nobody = "is neither local, remote nor a worker_id of this file"
    unknown = "temprature is not a model option; did you mean temperature?"
    assert faults_of(tmp_path, text) == [
        "3:7: workers.local_workers.0.model: is required",
        "4:7: workers.local_workers.0.max_concurent_tasks: unknown setting",
        "5:26: workers.local_workers.0.options.num_ctx: num_ctx must be at least 256, not 10",
        "5:43: workers.local_workers.0.options.num_predict: num_predict must be at least 1, not 0",
        f"5:58: workers.local_workers.0.options.temprature: {unknown}",
        "6:18: workers.local_workers.1.worker_id: the worker_id 'one' is taken",
        "8:7: workers.local_workers.1: duplicate key 'model' (first at line 7)",
        "12:20: workers.remote_workers.0.worker_type: should be 'remote' (got 'lan')",
        "13:27: workers.remote_workers.0.performance_factor: should be greater than 0 (got -0.5)",
        "16:27: routing_policy.rules.0.priority_range.1: should be a whole number (got 'ten')",
        f"17:27: routing_policy.rules.0.preferred_workers.0: 'tow' {nobody}",
        "18:24: manager.max_workers: is below the number of workers listed (3)",
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (a_local(", max_concurent_tasks: 2"), "did you mean 'max_concurrent_tasks'?"),
        (a_local(", Max-Concurrent-Tasks: 2"), "did you mean 'max_concurrent_tasks'?"),
        (a_local(", num_ctx: 4096"), "it belongs under `options`"),
        (a_local(", load_s: 3"), "it belongs under `limits`"),
        (a_local(", worker_type: remote"), "move it to remote_workers"),
        (a_local(", labels: {gpu: 3090}"), 'put it in quotes: "3090"'),
        (a_local(worker_id="001"), 'put it in quotes: "001"'),
        (a_local(", max_concurrent_tasks: '3'"), "write it without quotes: 3"),
        (a_local(", capabilities: docs"), 'an example: ["docs"]'),
        ("local_workers: []\n", "it belongs under `workers`"),
        ("rules: []\n", "it belongs under `routing_policy`"),
        ("workers: {routing_policy: {}}\n", "it belongs at the left margin, not indented"),
        ("routing_policy: {strategy: priority_base}\n", "did you mean 'priority_based'?"),
        ("routing_policy: {strategy: earliest_finnish}\n", "did you mean 'earliest_finish'?"),
        (a_rule("priority_range: [9, 8], preferred_workers: [local]"), "write [8, 9]"),
        (a_rule("priority_range: [8, 9], preferred_workers: [locall]"), "did you mean 'local'?"),
    ],
)
def test_a_likely_slip_gets_the_hint_that_mends_it(tmp_path: Path, text: str, hint: str) -> None:
    assert hints_of(tmp_path, text) == [hint]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (a_local(worker_id="'a b'"), "should be 1 to 64 letters"),
        (a_local(worker_id="'..'"), "should be 1 to 64 letters"),
        (a_local(worker_id=f"'{'a' * 65}'"), "should be 1 to 64 letters"),
        (a_local(worker_id="remote"), "is the name of a group"),
        (a_local(model="a b"), "is not a model's name"),
        (a_local(model=""), "a model's name is missing"),
        (a_local(model="gpt-oss:120b-cloud"), "somebody else's servers"),
        (a_local(", models: [other]"), "does not hold the worker's own model 'm'"),
        (a_local(", models: ['*', m]"), "stands alone"),
        (a_local(", models: []"), "should not be empty"),
        (a_local(", models: [m, 'x:cloud']"), "somebody else's servers"),
        (a_local(", performance_factor: 0"), "should be greater than 0"),
        (a_local(", performance_factor: .nan"), "should be a finite number"),
        (a_local(", performance_factor: .inf"), "should be a finite number"),
        (a_local(", max_concurrent_tasks: 0"), "should be at least 1"),
        (a_local(", max_concurrent_tasks: true"), "should be a whole number (got true)"),
        (a_local(", max_concurrent_tasks: 1.5"), "should be a whole number (got 1.5)"),
        (a_local(", network_timeout: -1"), "should be greater than 0"),
        (a_local(", server_host: 'http://192.168.1.4:11434'"), "leaves this host"),
        (a_local(", server_host: 'localhost:11434'"), "should begin with http://"),
        (a_local(", server_host: 'http://0.0.0.0:11434'"), "an address to listen on"),
        (a_local(", options: 3"), "should be settings of its own"),
        (a_local(", options: {seed: 2026-01-01}"), "seed must be a whole number"),
        (a_local(", options: {num_predict: true}"), "num_predict must be a whole number"),
        (a_local(", labels: {'a=b': x}"), "a label's name is"),
        (a_local(", capabilities: ['']"), "should be 1 to 64 printable"),
        ("workers: {remote_workers: [{worker_id: r, model: m, remote_host: 'http://x'}]}", "not a URL"),
        ("workers: {remote_workers: [{worker_id: r, model: m, remote_port: 0}]}", "should be at least 1"),
        ("workers: {remote_workers: [{worker_id: r, model: m, agent: everywhere}]}", "should be 'there' or"),
        ("workers: {local_workers: {worker_id: a}}", "should be a list"),
        ("workers: 3", "should be settings of its own"),
        ("- workers", "should hold settings"),
        (a_rule("priority_range: [0, 10], preferred_workers: [local]"), "should be at least 1 (got 0)"),
        (a_rule("priority_range: [1, 11], preferred_workers: [local]"), "should be at most 10 (got 11)"),
        (a_rule("priority_range: [1], preferred_workers: [local]"), "should be two numbers"),
        (a_rule("priority_range: 5, preferred_workers: [local]"), "should be two numbers"),
        (a_rule("priority_range: [1, 2], preferred_workers: []"), "should not be empty"),
        (a_rule("priority_range: [1, 2], preferred_workers: [gone_1]"), "'gone_1' is neither"),
        (a_rule("priority_range: [1, 2], preferred_workers: [local], overflow_after_s: -1"), "at least 0"),
        ("routing_policy: {aging_s: -1}", "should be at least 0"),
        ("routing_policy: {patience_s: .nan}", "should be a finite number"),
        ("routing_policy: {strategy: random}", "should be 'priority_based' or 'earliest_finish' (got 'random')"),
    ],
)
def test_what_cannot_work_is_refused_in_plain_words(tmp_path: Path, text: str, fault: str) -> None:
    found = faults_of(tmp_path, text)
    assert len(found) == 1, found
    assert fault in found[0]


def test_a_rule_may_name_a_worker_and_wait_for_it() -> None:
    rule = "priority_range: [1, 10], preferred_workers: [w, remote], overflow_after_s: 60"
    made = loads(a_local() + a_rule(rule), WorkersFile)
    assert made.routing_policy.rules[0].preferred_workers == ("w", "remote")
    assert made.routing_policy.rules[0].overflow_after_s == 60


def test_models_may_write_the_same_name_in_two_ways() -> None:
    (worker,) = loads(a_local(", models: ['m:latest', n]"), WorkersFile).all_workers()
    assert worker.models == ("m:latest", "n")


def test_an_address_of_ipv6_becomes_a_url() -> None:
    text = "workers: {remote_workers: [{worker_id: r, model: m, remote_host: 'fd00::1', agent: here}]}"
    (worker,) = loads(text, WorkersFile).all_workers()
    assert (worker.endpoint_url, worker.agent) == ("http://[fd00::1]:11434", "here")


def test_load_raises_every_fault_with_its_line_a_caret_and_the_hint(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text("workers:\n  local_workers:\n    - worker_id: a\n      modle: m\n")
    with pytest.raises(ConfigError) as caught:
        load(path, WorkersFile)
    assert caught.value.message == (
        f"{path}:3:7: workers.local_workers.0.model: is required\n"
        "     3 |     - worker_id: a\n"
        "       |       ^\n"
        f"{path}:4:7: workers.local_workers.0.modle: unknown setting\n"
        "     4 |       modle: m\n"
        "       |       ^\n"
        "  hint: did you mean 'model'?"
    )
