"""The koubou-agent command as people type it: usage, doctor, one agent per worker, a clean end on SIGTERM."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from koubou_agent.__main__ import main
from koubou_agent.doctor import exposure
from koubou_agent.single import SingleAgent
from koubou_common.errors import ConfigError
from koubou_common.home import Home
from koubou_common.keys import new_key_pair, write_key_pair, write_public
from koubou_common.messages import AgentHello, Goodbye, Removed
from koubou_common.messages.values import WorkerConfig
from koubou_simulator.ollama import SimSettings, SimulatedOllama
from support.fake_broker import FakeBroker


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker(WorkerConfig("lan_001", "qwen2.5-coder:1.5b", ("*",), slots=1)) as made:
        yield made


@pytest.fixture
def sim() -> Iterator[SimulatedOllama]:
    with SimulatedOllama() as simulated:
        yield simulated


@pytest.fixture
def home(tmp_path: Path, broker: FakeBroker, sim: SimulatedOllama, stand_in: Path) -> Home:
    made = Home(tmp_path)
    made.create()
    pair = broker.enrolled()
    write_key_pair(made.keys / "agents" / "lan_001.key", pair)
    write_public(made.public_key_file("broker"), broker.pair.public)
    made.config_file("agent").write_text(
        f"worker_id: lan_001\nbroker_addresses: {broker.address}\nollama_url: {sim.url}\n"
        f"cli_python: {stand_in}\nollama_parallel: 1\nlog_format: json\n"
    )
    return made


def say(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_doctor_finds_nothing_where_nothing_is_wrong(home: Home, broker: FakeBroker) -> None:
    with ThreadPoolExecutor(1) as pool:
        saying = pool.submit(say, "doctor", "--home", str(home.root), "--json")
        assert broker.expect(AgentHello).looks_only
        code, output = saying.result()
    checks = {check["check"]: check for check in json.loads(output)["data"]["checks"]}
    assert code == 0, output
    assert checks["broker"]["finding"] == "ok"
    assert checks["ollama"]["finding"] == "ok"
    assert checks["gemini-repo-cli"]["finding"] == "warning"  # the stand-in works, and says what it is
    assert "stand-in" in checks["gemini-repo-cli"]["detail"]


def test_doctor_names_every_fault_and_how_to_mend_it(home: Home, sim: SimulatedOllama) -> None:
    sim.stop()
    write_key_pair(home.keys / "agents" / "lan_001.key", new_key_pair(), replace=True)
    code, output = say("doctor", "--home", str(home.root))
    assert code == 1
    assert "FAULT    broker:" in output
    assert "koubou-ctl workers invite" in output
    assert "FAULT    ollama: nothing answers" in output


def test_doctor_says_when_the_worker_was_removed(home: Home, broker: FakeBroker) -> None:
    with ThreadPoolExecutor(1) as pool:
        saying = pool.submit(say, "doctor", "--home", str(home.root))
        broker.expect(AgentHello, answered=False)
        broker.send(Removed())
        code, output = saying.result()
    assert code == 1
    assert "FAULT    broker: this worker was removed" in output


def test_doctor_warns_of_an_ollama_that_is_open_to_the_network() -> None:
    own = ("127.0.0.2",)  # stands for an address of this box that others can reach
    with SimulatedOllama(SimSettings(host="127.0.0.1")) as closed:
        assert list(exposure(closed.url, own)) == []
    with SimulatedOllama(SimSettings(host="0.0.0.0")) as opened:
        (check,) = exposure(f"http://127.0.0.1:{opened.port}", own)
    assert "listens on 127.0.0.2 too" in check.detail
    (check,) = exposure("http://192.0.2.7:11434", ())
    assert "used over the network" in check.detail


def test_doctor_tells_faults_of_the_settings(home: Home) -> None:
    home.config_file("agent").write_text("worker_id: lan_001\nolama_url: http://127.0.0.1:1\n")
    code, output = say("doctor", "--home", str(home.root))
    assert code == 1
    assert "olama_url" in output
    assert "ollama_url" in output


def test_an_unusable_configuration_ends_with_code_8_and_a_hint(tmp_path: Path) -> None:
    code, output = say("run", "--home", str(tmp_path), "--worker-id", "lan_001")
    assert code == 8
    assert "no broker is known here" in output
    assert "koubou-agent join" in output


def test_options_without_a_command_mean_run(tmp_path: Path) -> None:
    assert say("--home", str(tmp_path), "--worker-id", "lan_001") == say(
        "run", "--home", str(tmp_path), "--worker-id", "lan_001"
    )


def test_a_damaged_token_is_refused_with_a_hint(tmp_path: Path) -> None:
    code, output = say("join", "kbj1_abc", "--home", str(tmp_path))
    assert code == 7
    assert "damaged or cut short" in output


def test_a_second_agent_of_the_same_worker_is_refused(tmp_path: Path) -> None:
    with (
        SingleAgent(tmp_path, "lan_001"),
        pytest.raises(ConfigError, match="runs already"),
        SingleAgent(tmp_path, "lan_001"),
    ):
        pass
    with SingleAgent(tmp_path, "lan_001"):
        pass


@pytest.mark.e2e
def test_sigterm_ends_the_process_cleanly_with_a_goodbye(home: Home, broker: FakeBroker) -> None:
    command = [sys.executable, "-m", "koubou_agent", "run", "--home", str(home.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            hello = broker.expect(AgentHello, 30)
            assert hello.software.startswith("koubou-agent ")
            broker.expect_heartbeat(0)
            process.send_signal(signal.SIGTERM)
            broker.expect(Goodbye)
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    said = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert "connected to the broker" in [line["message"] for line in said]
    assert len(said) == len(log.splitlines()) - 1, "all but the greeting is in the form of log_format"
