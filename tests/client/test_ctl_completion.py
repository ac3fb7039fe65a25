"""koubou-ctl completion: a script for each shell, and the answers that it asks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.ctl import Ctl


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, tmp_path: Path) -> None:
    ran = Ctl(tmp_path)("completion", shell)
    assert ran.code == 0
    assert "_KOUBOU_CTL_COMPLETE" in ran.out
    assert "koubou-ctl" in ran.out
    assert Ctl(tmp_path)("completion", shell, "--json").data["script"] + "\n" == ran.out


def test_another_shell_is_a_usage_error(tmp_path: Path) -> None:
    assert Ctl(tmp_path)("completion", "tcsh").code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("koubou-ctl wor", {"workers"}),
        ("koubou-ctl workers re", {"resume", "remove"}),
        ("koubou-ctl keys inv", {"invite"}),
    ],
)
def test_what_the_script_asks_for_is_answered(typed: str, offered: set[str]) -> None:
    words = typed.split()
    ran = subprocess.run(
        [sys.executable, "-m", "koubou_client.ctl"],
        env={
            **os.environ,
            "_KOUBOU_CTL_COMPLETE": "bash_complete",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert {line.partition(",")[2] for line in ran.stdout.splitlines()} == offered, ran.stderr
