"""`koubou-agent setup-cli`: puts gemini-repo-cli into a virtual environment of its own below KOUBOU_HOME."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from koubou_agent.cli_env import (
    CLI_COMMIT,
    CLI_GIT_URL,
    INSTALL_COMMAND,
    CliInfo,
    check,
    cli_folder,
    venv_python,
)
from koubou_common.errors import Code, KoubouError

STAND_IN = "stand-in"  # the only source that installs the simulated CLI
DEFAULT_TIMEOUT_S = 600.0  # google-genai and what it needs are ~70 MB: minutes on a slow line

# gemini-repo-cli imports it without declaring it (its own requirement, google-genai, pip finds by itself).
_UNDECLARED = ("ollama>=0.5",)
_LIBRARIES = ("ollama", "google.genai")
_STAND_IN_LIBRARIES = (*_UNDECLARED, "google-genai>=1.9.0")
_ARCHIVES = (".tar.gz", ".tgz", ".zip", ".whl")
_SAID_CHARACTERS = 600  # of pip's last words, enough for its reason


@dataclass(frozen=True, slots=True)
class _Limit:
    """The moment everything must be done by; git and pip never ask questions meanwhile."""

    deadline_s: float
    environment: dict[str, str]

    def run(self, command: list[str], what: str) -> str:
        try:
            ran = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=self.environment,
                timeout=max(0.1, self.deadline_s - time.monotonic()),
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise _failed(
                f"{what} was not done in time", "try again with a longer limit, or from an archive"
            ) from error
        except OSError as error:
            raise _failed(f"{what} did not start: {error}") from error
        if ran.returncode != 0:
            raise _explained(what, ran.stdout + ran.stderr)
        return ran.stdout


def setup_cli(home: Path, source: str | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> CliInfo:
    """Install from git (None: the pinned commit), an archive, a folder, or the labelled stand-in.

    The environment is built beside the old one and takes its place only when it is complete and checked. An
    agent that runs goes on with what it has loaded until it is restarted.
    """
    limit = _Limit(time.monotonic() + timeout_s, {**os.environ, "GIT_TERMINAL_PROMPT": "0"})
    wanted = None if source == STAND_IN else _requirement(source, limit)
    folder = cli_folder(home)
    building = folder.with_name("cli.new")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(building, ignore_errors=True)
    try:
        venv.EnvBuilder(symlinks=os.name != "nt").create(building)
        python = venv_python(building)
        if wanted is None:
            _link_stand_in(python, limit)
        else:
            _pip_install(python, [wanted, *_UNDECLARED], limit)
        found = check(python, imports=wanted is not None)  # the stand-in is no stranger
        if found.info is None or found.problems:
            raise _failed("; ".join(found.problems) or "nothing usable was installed")
        _name_finally(building, folder)
        _replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return CliInfo(found.info.kind, found.info.version, found.info.commit, str(venv_python(folder)))


def _requirement(source: str | None, limit: _Limit) -> str:
    """What pip is asked for; faults that a look can find are told before anything is downloaded."""
    if source is None or source.startswith("git+"):
        if shutil.which("git", path=limit.environment.get("PATH")) is None:
            raise _failed(
                "git is not installed, and gemini-repo-cli is fetched with it",
                f"install git, or give an archive or a folder: {INSTALL_COMMAND} --from FILE",
            )
        return source or f"{CLI_GIT_URL}@{CLI_COMMIT}"
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        _refuse_wrong_folder(path, limit)
        return str(path)
    if not path.is_file():
        raise _failed(f"there is no {path}", "give a folder, an archive (.tar.gz, .zip, .whl) or a git+ URL")
    if not path.name.endswith(_ARCHIVES):
        raise _failed(f"{path} is no archive that can be installed", f"known are {', '.join(_ARCHIVES)}")
    return str(path)


def _refuse_wrong_folder(folder: Path, limit: _Limit) -> None:
    package = ("src/gemini_repo/cli.py", "gemini_repo/cli.py")
    if not any((folder / file).is_file() for file in package):
        raise _failed(f"{folder} does not hold gemini-repo-cli (no gemini_repo folder in it)")
    if not (folder / ".git").exists() or shutil.which("git", path=limit.environment.get("PATH")) is None:
        return
    try:
        head = limit.run(["git", "-C", str(folder), "rev-parse", "HEAD"], "git").strip()
    except KoubouError:
        return  # not ours to repair, and pip does not need it
    if head != CLI_COMMIT:
        raise _failed(
            f"{folder} is at commit {head[:12]}; Koubou is tested with {CLI_COMMIT[:12]}",
            f"git -C {folder} checkout {CLI_COMMIT}",
        )


def _pip_install(python: Path, requirements: list[str], limit: _Limit) -> None:
    if util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
    else:
        limit.run([str(python), "-m", "ensurepip"], "setting up pip")
        pip = [str(python), "-m", "pip"]
    options = ["--no-input", "--disable-pip-version-check", "--retries", "2", "--quiet"]
    limit.run([*pip, "install", *options, *requirements], "installing gemini-repo-cli")


def _link_stand_in(python: Path, limit: _Limit) -> None:
    """The simulator's package under the CLI's name; libraries that are here already stay where they are."""
    simulator = util.find_spec("koubou_simulator")  # found by name: the agent must not depend on it
    if simulator is None or simulator.origin is None:
        raise _failed("the stand-in is part of Koubou's simulator, which is not installed here")
    shown = [Path(simulator.origin).parent / "cli"]
    if all(_is_here(name) for name in _LIBRARIES):
        shown += [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    else:
        _pip_install(python, list(_STAND_IN_LIBRARIES), limit)
    where = limit.run(
        [str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "the new Python"
    )
    lines = "".join(f"{path}\n" for path in dict.fromkeys(shown))
    Path(where.strip(), "koubou-stand-in.pth").write_text(lines, encoding="utf-8")


def _is_here(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ImportError:
        return False


def _name_finally(building: Path, folder: Path) -> None:
    """Scripts of a virtual environment hold its path: they must say the one it will have."""
    for script in venv_python(building).parent.iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        named = content.replace(os.fsencode(building), os.fsencode(folder))
        if b"\0" not in content and named != content:
            script.write_bytes(named)


def _replace(building: Path, folder: Path) -> None:
    old = folder.with_name("cli.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        building.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _explained(what: str, said: str) -> KoubouError:
    """pip's and git's words made into what a person can do."""
    lowered = said.lower()
    offline = ("could not resolve host", "name resolution", "network is unreachable", "newconnectionerror")
    if any(sign in lowered for sign in (*offline, "timed out", "failed to connect")):
        return _failed(
            f"{what}: the network cannot be reached",
            f"on a machine with network make a wheel, then: {INSTALL_COMMAND} --from FILE.whl",
        )
    if "no matching distribution" in lowered:
        return _failed(
            f"{what}: a library it needs was not found: {_reason(said)}",
            "check the package index pip is set to",
        )
    if any(sign in lowered for sign in ("did not match any file", "not our ref", "unadvertised object")):
        return _failed(f"{what}: that commit is not in the repository: {_reason(said)}")
    return _failed(f"{what} failed: {_reason(said)}")


def _reason(said: str) -> str:
    """The line that tells most: git's own, else pip's last error, else the last line."""
    lines = [line for line in (raw.strip(" |×╰─>") for raw in said.splitlines()) if line]
    by_git = [line for line in lines if line.startswith("fatal:")]
    by_pip = [line for line in lines if line.lower().startswith("error:") and "subprocess-exited" not in line]
    return (by_git[:1] or by_pip[-1:] or lines[-1:] or ["it said nothing"])[0][-_SAID_CHARACTERS:]


def _failed(message: str, hint: str = "") -> KoubouError:
    return KoubouError(Code.BAD_CONFIGURATION, message, hint)
