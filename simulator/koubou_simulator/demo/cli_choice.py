"""Which gemini-repo-cli the demo runs: the real one where there is one or it can be had quickly, else the stand-in."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from koubou_agent.cli_env import CLI_GIT_URL, PYTHON_VARIABLE, CliInfo, CliMissing, check, locate
from koubou_agent.setup_cli import STAND_IN, setup_cli
from koubou_common.errors import KoubouError
from koubou_common.home import Home

INSTALL_S = 20.0  # a demo should begin soon; `koubou-agent setup-cli` itself takes all the time it needs
_REACH_S = 4.0  # without a network nobody should wait for the install's own, longer limit
_END_S = 5.0  # past its limit, for setup-cli to tidy up


@dataclass(frozen=True, slots=True)
class Choice:
    """The interpreter that runs the attempts, and how to say so."""

    python: str
    is_simulated: bool
    label: str


def choose(home: Path, say: Callable[[str], None]) -> Choice:
    """Find it, or install it below `home`; KoubouError if not even the stand-in can be had."""
    found = _here_already(say)
    if found is not None:
        return _named(found, "")
    why_not = _install_real(home, say)
    if not why_not:
        installed = check(locate(home, {})).info
        assert installed is not None
        return _named(installed, "")
    say(f"The real gemini-repo-cli was not installed ({why_not}): a stand-in is set up.")
    return _named(setup_cli(home, STAND_IN), why_not)


def _here_already(say: Callable[[str], None]) -> CliInfo | None:
    """What this account's agents would run; a stand-in counts only where somebody named it."""
    try:
        python = locate(Home.from_env(os.environ).root)
    except (CliMissing, KoubouError):
        return None
    checked = check(python, imports=True)
    if checked.info is None or checked.problems:
        say(f"Not used: {python} ({'; '.join(checked.problems)}).")
        return None
    if checked.info.kind == STAND_IN and not os.environ.get(PYTHON_VARIABLE):
        return None
    return checked.info


def _install_real(home: Path, say: Callable[[str], None]) -> str:
    """Run `koubou-agent setup-cli` within the limit; returns why it did not work, "" where it did."""
    if shutil.which("git") is None:
        return "git is not installed"
    url = CLI_GIT_URL.removeprefix("git+")
    if _run(["git", "ls-remote", "--exit-code", url, "HEAD"], _REACH_S) != 0:
        return "its repository cannot be reached"
    say(f"Installing the real gemini-repo-cli, for at most {INSTALL_S:.0f} s ...")
    command = [sys.executable, "-m", "koubou_agent", "setup-cli", "--home", str(home), "--timeout", str(INSTALL_S)]
    code = _run(command, INSTALL_S + _END_S)
    if code is None:
        return f"it took more than {INSTALL_S:.0f} s"
    return "" if code == 0 else "`koubou-agent setup-cli` did not succeed"


def _run(command: list[str], limit_s: float) -> int | None:
    """The exit code; None after the limit, when the whole group is ended: git and pip have children of their own."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""},
        start_new_session=True,
    )
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _named(info: CliInfo, why_not: str) -> Choice:
    if info.kind == STAND_IN:
        reason = f"; the real one: {why_not}" if why_not else ""
        return Choice(info.python, True, f"STAND-IN, with the real one's arguments and prompt (SIMULATED{reason})")
    commit = f"commit {info.commit[:12]}" if info.commit else f"version {info.version}"
    return Choice(info.python, False, f"the real one, {commit}")
