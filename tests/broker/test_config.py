"""What the two files say reaches the core."""

from pathlib import Path

import pytest

from koubou_broker.config import core_settings, read_configuration
from koubou_broker.core_settings import PerformanceSettings, Rule
from koubou_common.errors import ConfigError
from koubou_common.home import Home
from koubou_common.messages.values import Label

BROKER = """
bind: [tcp://127.0.0.1:5570, tcp://192.168.1.10:5570]
advertise: tcp://192.168.1.10:5570
lease_s: 12
retry: {poison_deaths: 4}
limits: {prompt_bytes: 1000, files: 7}
"""
WORKERS = """
workers:
  local_workers:
    - {worker_id: local_001, model: "gpt-oss:20b", labels: {gpu: "3090"}}
  remote_workers:
    - {worker_id: far, model: tiny, remote_host: 192.168.1.100, max_concurrent_tasks: 1, network_timeout: 60}
routing_policy:
  aging_s: 60
  patience_s: 30.5
  rules:
    - {priority_range: [8, 10], preferred_workers: [local], reason: fast}
"""


def a_home(root: Path, broker: str = "", workers: str = "") -> Home:
    home = Home(root)
    home.create()
    if broker:
        home.config_file("broker").write_text(broker)
    if workers:
        home.config_file("workers").write_text(workers)
    return home


def test_how_speed_is_measured_reaches_the_core(tmp_path: Path) -> None:
    file = """
workers: {local_workers: [{worker_id: w, model: m, limits: {total_s: 900, total_least_s: 90}}]}
performance: {update_s: 60, window_h: 2, min_samples: 3}
"""
    told = core_settings(read_configuration(a_home(tmp_path, BROKER, file), None), ())
    assert told.performance == PerformanceSettings(update_s=60.0, window_s=7_200.0, min_samples=3)
    assert (told.workers[0].limits.total_s, told.workers[0].total_least_s) == (900.0, 90.0)
    usual = core_settings(read_configuration(a_home(tmp_path / "other", BROKER, WORKERS), None), ())
    assert usual.performance == PerformanceSettings()
    assert usual.workers[0].total_least_s == 600.0


def test_settings_of_both_files_reach_the_core(tmp_path: Path) -> None:
    told = core_settings(read_configuration(a_home(tmp_path, BROKER, WORKERS), None), ("tcp://127.0.0.1:5570",))
    local, far = told.workers
    assert (local.worker_id, local.location, local.slots, local.labels) == (
        "local_001",
        "local",
        2,
        (Label("gpu", "3090"),),
    )
    assert (far.location, far.slots, far.performance_factor, far.limits.idle_s) == ("remote", 1, 0.5, 60.0)
    assert far.endpoint_url == "http://192.168.1.100:11434"
    assert told.rules == (Rule(8, 10, ("local",), "fast", None),)
    assert (told.aging_s, told.patience_s) == (60.0, 30.5)
    assert (told.lease_s, told.poison_deaths) == (12.0, 4)
    assert (told.limits.prompt_bytes, told.limits.task_files) == (1_000, 7)
    assert told.addresses == ("tcp://192.168.1.10:5570",)


def test_an_ollama_open_to_the_network_is_refused_where_it_is_written_unless_allowed(tmp_path: Path) -> None:
    here = """
workers:
  remote_workers:
    - {worker_id: far, model: tiny}
    - worker_id: open
      model: tiny
      remote_host: 192.168.1.100
      agent: here
"""
    home = a_home(tmp_path, "log_level: info\n", here)
    with pytest.raises(ConfigError) as caught:
        read_configuration(home, None)
    assert f"{home.config_file('workers')}:8:14" in caught.value.message
    assert "allow_remote_ollama" in caught.value.message
    home.config_file("broker").write_text("allow_remote_ollama: true\n")
    configuration = read_configuration(home, None)
    assert configuration.driven_from_here == ("open",)
    assert [one.agent_here for one in core_settings(configuration, ()).workers] == [False, True]


def test_without_files_there_are_defaults_and_the_address_that_was_bound(tmp_path: Path) -> None:
    told = core_settings(read_configuration(a_home(tmp_path), None), ("tcp://127.0.0.1:4711",))
    assert told.workers == ()
    assert told.addresses == ("tcp://127.0.0.1:4711",)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_configuration(a_home(tmp_path), tmp_path / "missing.yaml")
    with pytest.raises(ConfigError):
        read_configuration(a_home(tmp_path, "workers_file: elsewhere.yaml\n"), None)


def test_the_command_line_obeys_the_rules_for_addresses(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    assert read_configuration(home, None, ("tcp://127.0.0.1:0",)).broker.bind == ("tcp://127.0.0.1:0",)
    with pytest.raises(ConfigError):
        read_configuration(home, None, ("tcp://1.1.1.1:5570",))


@pytest.mark.parametrize(
    ("broker", "cache_days"),
    [
        ("", 0.0),
        ("result_cache: {keep_days: 9}\n", 0.0),
        ("result_cache: {enabled: true}\n", 30.0),
        ("result_cache: {enabled: true, keep_days: 9}\n", 9.0),
        ("result_cache: {enabled: true}\nretention: {bodies_days: 7}\n", 7.0),
    ],
)
def test_answers_are_given_again_only_where_asked_for_and_no_longer_than_their_texts_are_kept(
    tmp_path: Path, broker: str, cache_days: float
) -> None:
    told = core_settings(read_configuration(a_home(tmp_path, broker or "lease_s: 30\n", WORKERS), None), ())
    assert told.cache_days == cache_days
