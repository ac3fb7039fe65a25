"""Installing gemini-repo-cli into an environment of its own; what is downloaded elsewhere is a folder here."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from koubou_agent.cli_env import CLI_COMMIT, check, locate
from koubou_agent.setup_cli import STAND_IN, setup_cli
from koubou_common.errors import KoubouError

GENUINE = {
    "gemini_repo/__init__.py": "",
    "gemini_repo/cli.py": "import ollama, google.genai\ndef main(): pass\n",
    "gemini_repo/ollama_api.py": (
        "class OllamaRepoAPI:\n    def generate_content(self, repo_name, file_paths, target_file_name, prompt): pass\n"
    ),
}
POINTS = "[console_scripts]\ngemini-repo-cli = gemini_repo.cli:main\n"


def a_wheel(folder: Path, name: str, files: dict[str, str], requires: str = "") -> Path:
    """A pure Python wheel, written by hand: building one needs a network."""
    dist = f"{name.replace('-', '_')}-9.0"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n"
    content = {
        **files,
        f"{dist}.dist-info/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{dist}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{dist}.dist-info/entry_points.txt": POINTS if "gemini_repo/cli.py" in files else "",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in content.items())
    path = folder / f"{dist}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in content.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{dist}.dist-info/RECORD", record + f"{dist}.dist-info/RECORD,,\n")
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks for libraries."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


@pytest.fixture
def libraries(shelf: Path) -> Path:
    a_wheel(shelf, "ollama", {"ollama/__init__.py": ""})
    a_wheel(shelf, "google-genai", {"google/genai/__init__.py": ""})
    return shelf


def test_an_archive_is_installed_with_the_library_it_does_not_declare(libraries: Path, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path, "gemini-repo-cli", GENUINE, requires="google-genai>=1.9.0")
    home = tmp_path / "home"
    info = setup_cli(home, str(wheel))
    assert (info.kind, info.version, info.commit) == ("gemini-repo-cli", "9.0", None)
    assert info.python == str(locate(home, {}))
    assert check(Path(info.python), imports=True).problems == ()
    assert [path.name for path in home.iterdir()] == ["cli"]


@pytest.mark.skipif(os.name == "nt", reason="scripts are programs there")
def test_the_command_of_the_environment_can_be_called(libraries: Path, tmp_path: Path) -> None:
    setup_cli(tmp_path / "home", str(a_wheel(tmp_path, "gemini-repo-cli", GENUINE, requires="google-genai")))
    ran = subprocess.run([tmp_path / "home" / "cli" / "bin" / "gemini-repo-cli"], check=False, timeout=60)
    assert ran.returncode == 0


def test_what_was_there_stays_when_the_new_one_fails(libraries: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = setup_cli(home, STAND_IN)
    broken = a_wheel(tmp_path, "gemini-repo-cli", {**GENUINE, "gemini_repo/cli.py": "x = 1\n"})
    with pytest.raises(KoubouError, match="not the gemini-repo-cli Koubou was made for"):
        setup_cli(home, str(broken))
    assert check(Path(before.python)).info == before
    assert [path.name for path in home.iterdir()] == ["cli"]


def test_a_new_one_takes_the_place_of_the_old_one(libraries: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    setup_cli(home, STAND_IN)
    setup_cli(home, str(a_wheel(tmp_path, "gemini-repo-cli", GENUINE, requires="google-genai")))
    found = check(locate(home, {}))
    assert found.info is not None
    assert found.info.kind == "gemini-repo-cli"
    assert [path.name for path in home.iterdir()] == ["cli"]


def test_a_library_that_cannot_be_had_is_named(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(KoubouError, match=r"a library it needs was not found.*ollama"):
        setup_cli(tmp_path / "home", str(a_wheel(tmp_path, "gemini-repo-cli", GENUINE, requires="google-genai")))


def test_the_stand_in_is_installed_only_when_it_is_asked_for_by_name(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KoubouError):
        setup_cli(tmp_path / "home")
    assert not (tmp_path / "home" / "cli").exists()
    info = setup_cli(tmp_path / "home", STAND_IN)
    assert (info.kind, info.version) == ("stand-in", "stand-in")


def test_without_git_the_way_round_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KoubouError, match="git is not installed") as caught:
        setup_cli(tmp_path)
    assert "archive or a folder" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "words"),
    [("none.tar.gz", "there is no"), ("notes.txt", "no archive that can be installed"), (".", "does not hold")],
)
def test_a_wrong_source_is_told_before_anything_is_made(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(KoubouError, match=words):
        setup_cli(tmp_path / "home", str(tmp_path / source))
    assert not (tmp_path / "home").exists()


def test_an_archive_that_is_none_is_told(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(KoubouError, match="installing gemini-repo-cli failed"):
        setup_cli(tmp_path / "home", str(tmp_path / "x.zip"))


def test_a_checkout_of_another_commit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    (folder / "src" / "gemini_repo").mkdir(parents=True)
    (folder / "src" / "gemini_repo" / "cli.py").touch()
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    with pytest.raises(KoubouError, match=f"tested with {CLI_COMMIT[:12]}"):
        setup_cli(tmp_path / "home", str(folder))


@pytest.mark.skipif(sys.platform == "win32", reason="a URL of a folder")
def test_a_repository_that_is_not_there_is_told(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(KoubouError, match=r"git is not installed|failed: fatal: .*none"):
        setup_cli(tmp_path / "home", f"git+file://{tmp_path}/none")


def test_the_time_limit_is_kept(libraries: Path, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path, "gemini-repo-cli", GENUINE)
    with pytest.raises(KoubouError, match="not done in time"):
        setup_cli(tmp_path / "home", str(wheel), timeout_s=0.1)
    assert not (tmp_path / "home" / "cli").exists()
