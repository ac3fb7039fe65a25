"""Where gemini-repo-cli is looked for, and what is said when it is not as it should be."""

import json
import re
from pathlib import Path

import pytest

from koubou_agent import cli_env
from koubou_agent.cli_env import CLI_COMMIT, CLI_GIT_URL, CliMissing, check, locate, venv_python
from support.cli import CLI_KINDS, cli_python, stand_in_python

REPOSITORY = Path(__file__).resolve().parents[2]


def an_environment(folder: Path, *, commit: str | None = CLI_COMMIT, generate: str = "") -> Path:
    """A stand-in's environment in which something that claims to be the real CLI comes first."""
    python = stand_in_python(folder)
    (pth,) = (folder / "cli").rglob("koubou-stand-in.pth")
    claimed = folder / "claimed"
    package, metadata = claimed / "gemini_repo", claimed / "gemini_repo_cli-0.2.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text("def main(): pass\n")
    arguments = generate or "self, repo_name, file_paths, target_file_name, prompt"
    (package / "ollama_api.py").write_text(f"class OllamaRepoAPI:\n    def generate_content({arguments}): pass\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gemini-repo-cli\nVersion: 0.2.0\n")
    origin: dict[str, object] = {"url": "https://example.org/x"}
    if commit:
        origin["vcs_info"] = {"vcs": "git", "commit_id": commit}
    (metadata / "direct_url.json").write_text(json.dumps(origin))
    pth.write_text(f"{claimed}\n{pth.read_text()}")
    return python


def test_the_variable_beats_the_environment_of_the_home(tmp_path: Path) -> None:
    installed = stand_in_python(tmp_path)
    assert locate(tmp_path, {}) == installed
    other = tmp_path / "other"
    other.touch()
    assert locate(tmp_path, {"KOUBOU_CLI_PYTHON": str(other)}) == other


def test_a_variable_that_names_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliMissing, match="KOUBOU_CLI_PYTHON names"):
        locate(tmp_path, {"KOUBOU_CLI_PYTHON": str(tmp_path / "none")})


def test_where_there_is_none_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(CliMissing) as caught:
        locate(tmp_path, {})
    assert str(tmp_path / "cli") in caught.value.message
    assert "koubou-agent setup-cli" in caught.value.hint


@pytest.mark.parametrize("kind", CLI_KINDS)
def test_a_good_environment_has_no_problems(kind: str, tmp_path: Path) -> None:
    python = cli_python(kind, tmp_path)
    found = check(python, imports=True)
    assert found.problems == ()
    assert found.info is not None
    assert found.info.kind == ("stand-in" if kind == "stand-in" else "gemini-repo-cli")
    assert found.info.version == ("stand-in" if kind == "stand-in" else "0.2.0")


def test_the_pinned_commit_is_recognised(tmp_path: Path) -> None:
    found = check(an_environment(tmp_path))
    assert (found.problems, found.warnings) == ((), ())
    assert found.info is not None
    assert (found.info.kind, found.info.version, found.info.commit) == ("gemini-repo-cli", "0.2.0", CLI_COMMIT)


def test_another_commit_is_a_problem(tmp_path: Path) -> None:
    (problem,) = check(an_environment(tmp_path, commit="0" * 40)).problems
    assert "000000000000" in problem
    assert CLI_COMMIT[:12] in problem


def test_an_unknown_commit_is_a_warning(tmp_path: Path) -> None:
    found = check(an_environment(tmp_path, commit=None))
    assert found.problems == ()
    assert "commit is unknown" in found.warnings[0]


def test_another_signature_is_a_problem(tmp_path: Path) -> None:
    (problem,) = check(an_environment(tmp_path, generate="self, prompt")).problems
    assert "not the gemini-repo-cli Koubou was made for" in problem


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    python = stand_in_python(tmp_path)
    (pth,) = (tmp_path / "cli").rglob("koubou-stand-in.pth")
    pth.write_text(pth.read_text().splitlines()[0] + "\n")  # the stand-in alone, without the libraries
    problems = check(python, imports=True).problems
    assert len(problems) == 3
    assert "needs the library ollama" in problems[0]
    assert "needs the library google.genai" in problems[1]
    assert "google-genai library not found" in problems[2]


def test_an_environment_without_the_cli_is_a_problem(tmp_path: Path) -> None:
    python = stand_in_python(tmp_path)
    (pth,) = (tmp_path / "cli").rglob("koubou-stand-in.pth")
    pth.unlink()
    found = check(python)
    assert found.info is None
    assert "gemini-repo-cli is not installed in the environment" in found.problems[0]


def test_what_is_no_interpreter_is_a_problem(tmp_path: Path) -> None:
    python = tmp_path / "python"
    assert "there is no interpreter" in check(python).problems[0]
    python.write_text("#!/bin/sh\necho no\n")
    assert "does not run" in check(python).problems[0]
    python.chmod(0o700)
    assert "does not run" in check(python).problems[0]


def test_our_environment_does_not_change_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = stand_in_python(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "http://[")  # makes the import of the client library fail
    assert check(python, imports=True).problems == ()


def test_the_code_and_the_requirements_file_pin_the_same_commit() -> None:
    required = (REPOSITORY / "requirements" / "gemini-repo-cli.txt").read_text()
    assert f"gemini-repo-cli @ {CLI_GIT_URL}@{CLI_COMMIT}\n" in required
    assert re.fullmatch(r"[0-9a-f]{40}", CLI_COMMIT)


def test_the_scripts_inside_the_environment_need_the_standard_library_alone(tmp_path: Path) -> None:
    # A bare interpreter runs them: nothing of Koubou's own dependencies is there.
    python = stand_in_python(tmp_path)
    (pth,) = (tmp_path / "cli").rglob("koubou-stand-in.pth")
    pth.unlink()
    assert venv_python(cli_env.cli_folder(tmp_path)) == python
    assert "is not installed" in check(python).problems[0]
