"""Finds the environment gemini-repo-cli is installed in, and says in plain words what is wrong with it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

from koubou_common.errors import Code, KoubouError

# requirements/gemini-repo-cli.txt says the same (a test compares): the wheel has no requirements folder.
CLI_GIT_URL = "git+https://github.com/deniskropp/gemini-repo-cli"
CLI_COMMIT = "df6a5a85e80fd450ca7a436ca10f08331f9091be"

INSTALL_COMMAND = "koubou-agent setup-cli"
PYTHON_VARIABLE = "KOUBOU_CLI_PYTHON"

_MINIMUM_PYTHON = [3, 11]  # what Koubou's scripts inside that environment, and google-genai, need
_GENERATE_ARGUMENTS = ["self", "repo_name", "file_paths", "target_file_name", "prompt"]
_PROBE_TIMEOUT_S = 60.0  # an import from a cold disk of a small box took 20 s

# -I alone ignores PYTHONUTF8, and the folder of this package must not stay where the CLI's imports look.
_BOOTSTRAP = """\
import importlib, sys
folder, name = sys.argv[1:3]
sys.path.append(folder)
module = importlib.import_module("koubou_agent." + name)
sys.path.remove(folder)
module.main(sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class CliInfo:
    """What runs the attempts. `commit` is None where it was not installed from git."""

    kind: Literal["gemini-repo-cli", "stand-in"]
    version: str
    commit: str | None
    python: str


@dataclass(frozen=True, slots=True)
class CliCheck:
    """Usable is what has an `info` and no `problems`; `warnings` are worth telling."""

    info: CliInfo | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


class CliMissing(KoubouError):  # noqa: N818 - reads as the state it tells of
    """There is no gemini-repo-cli that can be run; the hint is the command that installs it."""

    def __init__(self, message: str, hint: str = f"install it with: {INSTALL_COMMAND}") -> None:
        super().__init__(Code.BAD_CONFIGURATION, message, hint)


def locate(home: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The interpreter that has gemini-repo-cli: the variable's, else the one of `home`, else our own."""
    named = environment.get(PYTHON_VARIABLE)
    if named:
        python = Path(named).expanduser().absolute()
        if not python.is_file():
            raise CliMissing(f"{PYTHON_VARIABLE} names {python}, and there is no such file")
        return python
    python = venv_python(cli_folder(home))
    if python.is_file():
        return python
    if util.find_spec("gemini_repo") is not None:
        return Path(sys.executable).absolute()
    raise CliMissing(f"gemini-repo-cli is not installed (looked in {cli_folder(home)})")


def check(python: Path, *, imports: bool = False) -> CliCheck:
    """Look at what `python` would run; `imports` also loads it (half a second more, and the surest proof)."""
    if not python.is_file():
        return CliCheck(None, (f"there is no interpreter {python}",), ())
    command = inside_command(python, "cli_probe", *(["--import"] if imports else []))
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
            env=clean_environment(python.parent),
        )
        found = json.loads(ran.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return CliCheck(None, (f"{python} does not run: {type(error).__name__}: {error}",), ())
    return _judge(python, found)


def inside_command(python: Path, module: str, *arguments: str) -> list[str]:
    """The command that runs one of our standard-library scripts inside the environment of `python`."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    return [str(python), "-I", "-X", "utf8", "-c", _BOOTSTRAP, package_parent, module, *arguments]


def clean_environment(home: Path) -> dict[str, str]:
    """Nothing of ours: proxies, OLLAMA_*, GEMINI_*, SSL_* and keys would all change what the CLI does."""
    environment = {"HOME": str(home), "PYTHONUTF8": "1", "LANG": "C.UTF-8"}
    if os.name == "nt":
        environment["USERPROFILE"] = str(home)
        environment["SYSTEMROOT"] = os.environ.get("SYSTEMROOT", "")  # without it Windows opens no socket
    return environment


def cli_folder(home: Path) -> Path:
    """Where `setup-cli` puts the environment."""
    return home / "cli"


def venv_python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _judge(python: Path, found: dict[str, Any]) -> CliCheck:
    problems: list[str] = []
    warnings: list[str] = []
    if found["python"] < _MINIMUM_PYTHON:
        version = ".".join(map(str, found["python"]))
        problems.append(f"{python} is Python {version}; 3.11 or newer is needed")
    if found["folder"] is None:
        problems.append(f"gemini-repo-cli is not installed in the environment of {python}")
        return CliCheck(None, tuple(problems), ())
    problems += [f"gemini-repo-cli needs the library {name}, which is missing there" for name in found["missing"]]
    if not found["main"] or found["generate"] != _GENERATE_ARGUMENTS:
        problems.append(f"{found['folder']} is not the gemini-repo-cli Koubou was made for")
    if found["import_error"]:
        problems.append(f"gemini-repo-cli cannot be loaded: {found['import_error']}")
    simulated = found["simulated"]
    commit = found["commit"]
    if commit is not None and commit != CLI_COMMIT:
        problems.append(f"gemini-repo-cli is at commit {commit[:12]}; Koubou is tested with {CLI_COMMIT[:12]}")
    elif commit is None and not simulated:
        warnings.append("gemini-repo-cli was not installed from git: its commit is unknown")
    info = CliInfo(
        kind="stand-in" if simulated else "gemini-repo-cli",
        version=str(found["version"] or "unknown"),
        commit=commit,
        python=str(python),
    )
    return CliCheck(info, tuple(problems), tuple(warnings))
