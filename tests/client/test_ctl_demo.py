"""koubou-ctl demo: hands everything to the simulator's demo, and its exit code back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.ctl import Ctl
from support.waiting import eventually

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for Python is a shell script")


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes the interpreter's place: notes its arguments, ends with 7."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/arguments"\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ((), ""),
        (("--ollama", "http://127.0.0.1:11434", "--model", "tiny"), " --ollama http://127.0.0.1:11434 --model tiny"),
        (("--help",), " --help"),
        (("--json", "--tasks", "3"), " --tasks 3 --json"),
    ],
)
def test_options_and_the_exit_code_pass_through(
    python: Path, tmp_path: Path, given: tuple[str, ...], passed: str
) -> None:
    assert Ctl(tmp_path)("demo", *given).code == 7
    assert (tmp_path / "arguments").read_text() == f"-m koubou_simulator.demo{passed}\n"


def test_ctrl_c_is_the_demos_own_to_handle(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\ntrap "sleep 0.1; exit 5" INT\ntouch "{tmp_path}/up"\nwhile :; do sleep 0.05; done\n'
    )
    program.chmod(0o755)
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.executable = sys.argv.pop(1); from koubou_client.ctl.__main__ import main; main()",
            str(program),
            "demo",
        ],
        start_new_session=True,
    )
    eventually((tmp_path / "up").exists, 30)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    assert started.wait(30) == 5
