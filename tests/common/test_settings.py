"""Settings of broker, agent and client: defaults as designed, refusals, files that list everything."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from koubou_common.client_settings import ClientSettings, check_client_settings, load_client_settings
from koubou_common.did_you_mean import did_you_mean
from koubou_common.errors import ConfigError
from koubou_common.home import Home
from koubou_common.messages.values import WorkerLimits
from koubou_common.settings import (
    AgentSettings,
    BrokerSettings,
    WorkersFile,
    check,
    example,
    load,
    loads,
    schema,
    show,
)
from koubou_common.settings.base import SettingsModel, default_of
from koubou_common.yaml_marks import parse_document

CONFIG = Path(__file__).parents[2] / "config"
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
SPOILT = ["", "null", "[]", "{}", "3", "-1", ".nan", "yes", "[1, [2]]", "{a: {b: 1}}", "'x", "*a", "&a b", "\t", "日本"]
SPOILT += ["2026-01-01", "!!binary aGk=", "!!set {a}", "? x", "- y", "1e400", "0x1F", "12:30", '"\\e[2J"', "{local: 1}"]
FILES: list[tuple[str, type[SettingsModel]]] = [
    ("workers", WorkersFile),
    ("broker", BrokerSettings),
    ("agent", AgentSettings),
]


def fault_of(text: str, model: type[SettingsModel]) -> str:
    with pytest.raises(ConfigError) as caught:
        loads(text, model, "f.yaml")
    return caught.value.message


# --- the files in config/


@pytest.mark.parametrize(("name", "model"), FILES)
def test_the_shipped_file_is_what_the_models_say(name: str, model: type[SettingsModel]) -> None:
    path = CONFIG / f"{name}.yaml"
    assert check(path, model) == []
    assert path.read_text(encoding="utf-8") == example(model), f"write example({model.__name__}) to {path}"


@pytest.mark.parametrize(("name", "model"), FILES)
def test_the_shipped_file_lists_every_setting_with_its_sentence_and_default(
    name: str, model: type[SettingsModel]
) -> None:
    text = (CONFIG / f"{name}.yaml").read_text(encoding="utf-8")
    comments = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.strip().startswith("#"))
    data = parse_document(text.encode(), name).data
    seen = 0
    for found_in, field_name, written in every_field(model, data):
        field = found_in.model_fields[field_name]
        assert field.description, f"{found_in.__name__}.{field_name} has no sentence"
        assert field.description in comments, f"{found_in.__name__}.{field_name} is not explained"
        assert field.description.endswith((".", "*", ")")), field.description
        default = default_of(field)
        if not field.is_required() and not isinstance(written, dict | list) and written != default:
            shown = default.as_posix() if isinstance(default, Path) else default
            assert written == shown or f"Default: {json.dumps(shown)}." in comments
        seen += 1
    assert seen > 15


def every_field(model: type[BaseModel], data: object) -> Iterator[tuple[type[BaseModel], str, object]]:
    """Each field of the tree of models with its value in the file; a missing one fails here."""
    assert isinstance(data, dict)
    for name, field in model.model_fields.items():
        assert name in data, f"{model.__name__}.{name} is not in the file"
        yield model, name, data[name]
        for inner in models_in(field.annotation):
            written = data[name]
            yield from every_field(inner, written[0] if isinstance(written, list) else written)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def test_numbers_in_files_carry_their_unit() -> None:
    for model in (BrokerSettings, AgentSettings):
        for name, field in model.model_fields.items():
            if name.endswith("_s"):
                assert "in seconds" in (field.description or ""), name
            if name.endswith("_bytes"):
                assert "in bytes" in (field.description or ""), name


def test_an_example_with_values_reads_back_as_these_values() -> None:
    values = {"worker_id": "lan_001", "broker_addresses": ["tcp://192.168.1.2:5570"], "broker_public_key": KEY}
    made = loads(example(AgentSettings, values), AgentSettings)
    assert (made.worker_id, made.broker_addresses) == ("lan_001", ("tcp://192.168.1.2:5570",))
    assert made.broker_public_key == KEY
    assert made.cache_days == 7


# --- broker.yaml


def test_the_broker_starts_with_the_numbers_of_the_design() -> None:
    made = loads("", BrokerSettings)
    assert made == BrokerSettings()
    assert made.bind == ("tcp://127.0.0.1:5570",)
    assert (made.lease_s, made.heartbeat_s) == (30, 5)
    assert (made.allow_public, made.allow_remote_ollama) == (False, False)
    limits = made.limits
    assert (limits.prompt_bytes, limits.file_bytes, limits.task_bytes) == (1 << 20, 4 << 20, 16 << 20)
    assert (limits.files, limits.result_bytes, limits.name_bytes) == (200, 4 << 20, 255)
    assert limits.queue_per_client == 100_000
    retry = made.retry
    assert (retry.transient_attempts, retry.total_attempts, retry.poison_deaths) == (5, 20, 3)
    assert (retry.backoff_base_s, retry.backoff_cap_s) == (2, 300)
    assert (made.retention.bodies_days, made.retention.history_days) == (30, 365)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:5570",
        "tcp://localhost:5570",
        "tcp://192.168.1.10:5570",
        "tcp://10.0.0.1:5570",
        "tcp://172.31.0.1:5570",
        "tcp://169.254.3.4:5570",
        "tcp://100.64.0.1:5570",
        "tcp://[::1]:5570",
        "tcp://[fd00::1]:5570",
        "tcp://[fe80::1%eth0]:5570",
        "tcp://[::ffff:192.168.1.10]:5570",
        "tcp://127.0.0.1:*",
    ],
)
def test_the_broker_listens_on_private_addresses(address: str) -> None:
    assert loads(f'bind: "{address}"', BrokerSettings).bind == (address,)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://8.8.8.8:5570",
        "tcp://192.0.2.1:5570",
        "tcp://172.32.0.1:5570",
        "tcp://[2001:4860::1]:5570",
        "tcp://[::ffff:8.8.8.8]:5570",
        "tcp://0.0.0.0:5570",
        "tcp://[::]:5570",
        "tcp://*:5570",
    ],
)
def test_a_public_address_needs_allow_public(address: str) -> None:
    assert "set allow_public: true" in fault_of(f'bind: ["{address}"]', BrokerSettings)
    assert loads(f'bind: ["{address}"]\nallow_public: true', BrokerSettings).bind == (address,)


@pytest.mark.parametrize(
    ("text", "first_line"),
    [
        ("bind: [tcp://127.0.0.1:1, eth0]", "1:27: bind.1: should look like tcp://HOST:PORT (got 'eth0')"),
        ("bind: tcp://eth0:1", "1:7: bind: needs the address of an interface, not a name (got 'tcp://eth0:1')"),
        ("bind: tcp://127.0.0.1:70000", "1:7: bind: has a port above 65535 (got 'tcp://127.0.0.1:70000')"),
        ("bind: []", "1:7: bind: should not be empty"),
        ("bind: 3", "1:7: bind: should be a list (got 3)"),
        ("advertise: ['tcp://*:5']", "1:13: advertise.0: names every interface, not a machine"),
        ("advertise: tcp://h:0", "1:12: advertise: needs a port"),
        ("prompt_bytes: 3", "1:1: prompt_bytes: unknown setting"),
        ("lease_s: 9", "1:10: lease_s: heartbeat_s is above lease_s / 2 (4.5)"),
        ("heartbeat_s: 20", "1:14: heartbeat_s: is above lease_s / 2 (15)"),
        ("limits: {file_bytes: 99999999}", "1:22: limits.file_bytes: is above limits.task_bytes (16777216)"),
        ("limits: {task_bytes: 5000000, prompt_bytes: 5000001}", "1:45: limits.prompt_bytes: is above"),
        ("retention: {history_days: 7}", "1:27: retention.history_days: retention.bodies_days is above"),
        ("retry: {transient_attempts: 9, total_attempts: 8}", "1:29: retry.transient_attempts: is above"),
        ("limits: {files: 201}", "1:17: limits.files: should be at most 200 (got 201)"),
        ("log_level: INFO", "1:12: log_level: should be 'debug', 'info', 'warning' or 'error' (got 'INFO')"),
        ("workers_file: ''", "1:15: workers_file: should be a path (got '')"),
        ("allow_public: 'yes'", "1:15: allow_public: should be true or false (got 'yes')"),
    ],
)
def test_a_wrong_broker_setting_is_shown_where_it_is_written(text: str, first_line: str) -> None:
    assert fault_of(text, BrokerSettings).startswith(f"f.yaml:{first_line}")


def test_a_public_address_is_told_beside_every_other_fault() -> None:
    message = fault_of("bind: tcp://8.8.8.8:1\nlease_s: no\nheartbeat_s: 5\nretry: {x: 1}\n", BrokerSettings)
    for part in ("bind: is a public address", "lease_s: should be a number", "retry.x: unknown setting"):
        assert part in message


# --- agent.yaml


def test_the_agent_starts_with_the_numbers_of_the_design() -> None:
    made = loads("", AgentSettings)
    assert made.broker_addresses == ("tcp://127.0.0.1:5570",)
    assert (made.ollama_url, made.ollama_parallel) == ("http://127.0.0.1:11434", 1)
    assert (made.worker_id, made.slots_ceiling, made.cache_days, made.preload) == (None, None, 7, True)


def test_the_box_lowers_limits_and_never_raises_them() -> None:
    made = loads("limits: {load_s: 60, total_s: 9999}", AgentSettings)
    asked = WorkerLimits(load_s=600, total_s=3600, output_bytes=7)
    assert made.limits.capped(asked) == WorkerLimits(load_s=60, total_s=3600, output_bytes=7)
    assert AgentSettings().limits.capped(asked) == asked


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ollama_url: http://192.168.1.9:11434", "leaves this host"),
        ("ollama_url: https://127.0.0.1:11434", "should begin with http://"),
        ("ollama_url: http://user@127.0.0.1:11434", "should be host and port alone"),
        ("ollama_url: http://127.0.0.1:11434/api", "should be host and port alone"),
        ("ollama_url: http://127.0.0.1:bad", "is not a URL"),
        ("ollama_url: http://0.0.0.0:11434\nallow_remote_ollama: true", "an address to listen on"),
        ("worker_id: ../x", "should be 1 to 64 letters"),
        ("broker_addresses: [tcp://h:1, 'http://h:2']", "should look like tcp://HOST:PORT"),
        ("broker_addresses: []", "should not be empty"),
        ("broker_public_key: short", "is not a public key"),
        ("key_file: 3", "should be a path"),
        ("ollama_parallel: 0", "should be at least 1"),
        ("slots_ceiling: 0", "should be at least 1"),
        ("limits: {idle_s: 0}", "should be greater than 0"),
        ("cache_days: 1.5", "should be a whole number"),
        ("model: m", "unknown setting"),
    ],
)
def test_a_wrong_agent_setting_is_refused(text: str, fault: str) -> None:
    assert fault in fault_of(text, AgentSettings)


def test_an_ollama_elsewhere_needs_the_word_of_the_owner() -> None:
    made = loads("ollama_url: http://box.lan\nallow_remote_ollama: true", AgentSettings)
    assert made.ollama_url == "http://box.lan"


# --- load, show, schema


def test_a_missing_file_stands_for_the_defaults_only_where_that_is_allowed(tmp_path: Path) -> None:
    missing = tmp_path / "broker.yaml"
    assert load(missing, BrokerSettings, missing_ok=True) == BrokerSettings()
    with pytest.raises(ConfigError, match="there is no such file"):
        load(missing, BrokerSettings)


def test_show_tells_every_setting_and_where_its_value_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(
        "workers:\n  local_workers:\n    - worker_id: a\n      model: m\n      options:\n        num_ctx: 4096\n"
    )
    shown = {setting.path: (setting.value, setting.origin) for setting in show(path, WorkersFile)}
    one = "workers.local_workers.0"
    assert shown[f"{one}.model"] == ("m", f"{path}:4")
    assert shown[f"{one}.models"] == (["m"], "default")
    assert shown[f"{one}.options.num_ctx"] == (4096, f"{path}:6")
    assert shown[f"{one}.options.num_predict"] == (4096, "default")
    assert shown["workers.remote_workers"] == ([], "default")
    assert shown["manager.max_active_tasks"] == (2, "default")
    json.dumps([value for value, _ in shown.values()])  # plain data alone


def test_show_knows_a_key_with_nothing_after_it_and_one_value_in_place_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "broker.yaml"
    path.write_text("bind: tcp://127.0.0.1:6000\nlease_s:\nworkers_file: w.yaml\n")
    shown = {setting.path: (setting.value, setting.origin) for setting in show(path, BrokerSettings)}
    assert shown["bind"] == (["tcp://127.0.0.1:6000"], f"{path}:1")
    assert shown["lease_s"] == (30.0, "default")
    assert shown["workers_file"] == ("w.yaml", f"{path}:3")
    missing = show(tmp_path / "none.yaml", BrokerSettings, missing_ok=True)
    assert {setting.origin for setting in missing} == {"default"}


@pytest.mark.parametrize(("name", "model"), FILES)
def test_the_schema_is_json_and_describes_every_setting(name: str, model: type[SettingsModel]) -> None:
    made = json.loads(json.dumps(schema(model)))
    assert made["$schema"].startswith("https://json-schema.org/")
    assert set(made["properties"]) == set(model.model_fields)
    assert all(prop.get("description") for prop in made["properties"].values()), name
    assert made["additionalProperties"] is False


def test_the_schema_lets_one_address_stand_without_a_list() -> None:
    properties = schema(BrokerSettings)["properties"]
    assert isinstance(properties, dict)
    kinds = [{key for key in kind if key != "items"} for kind in properties["bind"]["anyOf"]]
    assert kinds == [{"type"}, {"type"}]
    assert "maxLength" not in properties["bind"]  # would bound the address, not the list


# --- client.yaml


def test_no_client_file_means_the_broker_of_this_host_and_account(tmp_path: Path) -> None:
    assert load_client_settings(tmp_path / "client.yaml") == ClientSettings()
    with pytest.raises(ConfigError):
        load_client_settings(tmp_path / "client.yaml", missing_ok=False)


@pytest.mark.parametrize(
    "settings",
    [
        ClientSettings(),
        ClientSettings(("tcp://192.168.1.2:5570", "tcp://host:5570"), KEY, Path("keys/日本.key")),
    ],
)
def test_client_settings_written_read_back_the_same(tmp_path: Path, settings: ClientSettings) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(settings.to_yaml(), encoding="utf-8")
    assert load_client_settings(path) == settings
    written = parse_document(path.read_bytes(), "client.yaml").data
    assert isinstance(written, dict)
    assert list(written) == [field.name for field in fields(ClientSettings)]


def test_one_address_may_stand_without_a_list(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text("broker_addresses: tcp://main:5570\n")
    assert load_client_settings(path).broker_addresses == ("tcp://main:5570",)


def test_every_fault_of_a_client_file_is_told_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(
        "broker_adresses: x\nbroker_addresses: [tcp://h:1, 5, 'http://x']\n"
        "broker_public_key: short\nkey_file: 3\nkey_file: 4\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_client_settings(path)
    lines = [line.removeprefix(f"{path}:") for line in caught.value.message.splitlines() if str(path) in line]
    assert lines == [
        "1:1: broker_adresses: unknown setting",
        "2:31: broker_addresses.1: should be text (got 5)",
        "2:34: broker_addresses.2: should look like tcp://HOST:PORT (got 'http://x')",
        "3:20: broker_public_key: is not a public key: it has 40 characters",
        "4:11: key_file: should be a path",
        "5:1: duplicate key 'key_file' (first at line 4)",
    ]
    assert "did you mean 'broker_addresses'?" in caught.value.message
    assert len(check_client_settings(path)) == len(lines)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="should hold settings"):
        load_client_settings(path)


def test_the_client_reads_its_settings_without_pydantic() -> None:
    code = (
        "import sys, koubou_common.client_settings, koubou_common.home\n"
        "assert 'yaml' in sys.modules\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": str(CONFIG.parent / "common")}
    done = subprocess.run([sys.executable, "-c", code], env=environ, timeout=30, check=False)
    assert done.returncode == 0


# --- whatever people write


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_gets_problems_and_never_a_crash(data: st.DataObject) -> None:
    name, model = data.draw(st.sampled_from(FILES))
    text = (CONFIG / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key, colon, value = lines[at].partition(": ")
        spoilt = data.draw(st.sampled_from(SPOILT))
        lines[at] = data.draw(st.sampled_from([f"{key}{colon}{spoilt}", f"{spoilt}: {value}", spoilt, lines[0]]))
    told = ""
    try:
        loads("\n".join(lines), model, "f.yaml")
    except ConfigError as error:
        told = error.message
    assert all(line.startswith(("f.yaml:", " ")) for line in told.splitlines()), told


# --- the home and the words


def test_home_comes_from_the_option_then_the_environment_then_the_account(tmp_path: Path) -> None:
    environ = {"KOUBOU_HOME": str(tmp_path / "env")}
    assert Home.from_env(environ, tmp_path / "option").root == tmp_path / "option"
    assert Home.from_env(environ).root == tmp_path / "env"
    assert Home.from_env({}).root == Path("~/.koubou").expanduser()
    assert Home.from_env({"KOUBOU_HOME": ""}).root == Path("~/.koubou").expanduser()


def test_a_relative_home_does_not_follow_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.from_env({"KOUBOU_HOME": "a/../b"}).root == tmp_path / "b"


def test_home_knows_its_places_and_makes_them_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.config_file("broker") == tmp_path / "home" / "config" / "broker.yaml"
    assert home.key_file("operator") == tmp_path / "home" / "keys" / "operator.key"
    assert home.public_key_file("broker") == tmp_path / "home" / "keys" / "broker.pub"
    assert home.agent_state("lan_001") == tmp_path / "home" / "state" / "agents" / "lan_001"
    assert home.resolve("config/workers.yaml") == home.config_file("workers")
    assert home.resolve(tmp_path / "x") == tmp_path / "x"
    assert home.resolve("~/x") == Path("~/x").expanduser()
    home.create()
    home.create()
    for folder in (home.root, home.config, home.keys, home.state, home.log):
        assert folder.is_dir()
        if os.name == "posix":
            assert folder.stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_made_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        Home(tmp_path / "file" / "home").create()


def test_a_word_like_none_is_not_guessed() -> None:
    assert did_you_mean("xyzzy", ["lease_s", "limits"]) == ""
    assert did_you_mean("Lease-S", ["lease_s", "limits"]) == "did you mean 'lease_s'?"
