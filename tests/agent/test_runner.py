"""gemini-repo-cli as the agent runs it, warm and plain: the stand-in and, where one is named, the real one."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from koubou_agent.cli_env import CliMissing
from koubou_agent.run_folder import LOG_TAIL_BYTES
from koubou_agent.runner import Runner
from koubou_common.errors import RefusedError
from support.cli import (
    Received,
    Reply,
    TinyOllama,
    says,
    stand_in_python,
)
from support.cli_runs import (
    SECRET_PATH,
    a_request,
    child_of,
    folders,
    held,
    linux,
    running,
    says_error,
    sent_prompt,
)


def test_a_run_brings_back_what_was_printed_and_what_it_cost(
    runner: Runner, ollama: TinyOllama, never: threading.Event
) -> None:
    ollama.answer = lambda _request: says("# Codec\n工房")
    report = runner.run(a_request(ollama), never)
    assert (report.exit_code, report.signal) == (0, None)
    assert report.stdout == "# Codec\n工房\n".encode()
    assert (report.timed_out, report.cancelled, report.killed) == (False, False, False)
    assert 0 < report.cpu_s < 10
    assert report.wall_s > 0
    if sys.platform == "linux":
        assert report.peak_rss_bytes > 10 * 1024 * 1024


def test_ollama_is_asked_for_the_model_with_the_files_under_their_own_names(
    runner: Runner, ollama: TinyOllama, never: threading.Event
) -> None:
    files = (("src/a b.py", b"print(1)"), ("文書/日本.md", "工房".encode()), ("empty.txt", b""))
    runner.run(a_request(ollama, files=files), never)
    request = ollama.received[0]
    assert request.path == f"{SECRET_PATH}/api/generate"
    assert request.body["model"] == "gpt-oss:20b"
    for name, content in files:
        assert f"\n### File: {name}\n```\n{content.decode()}\n```\n" in sent_prompt(ollama)
    assert "Repository Name: koubou\n" in sent_prompt(ollama)
    assert "content for the file: codec.md\n" in sent_prompt(ollama)


@pytest.mark.parametrize("text", ["-d", "--help", "--", "--output=/x", "-f a", "a\r\n\tb", "'\"$(x)", "あ"])
def test_nothing_that_a_task_says_becomes_an_option(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event, text: str
) -> None:
    model = "m" if text == "--" else text.strip()
    report = warm_runner.run(a_request(ollama, prompt=text, repo=text, target=text, model=model), never)
    assert report.exit_code == 0, report.log_tail
    assert f"--- User Task ---\n{text}" in sent_prompt(ollama)
    assert f"Repository Name: {text}" in sent_prompt(ollama)
    assert f"content for the file: {text}" in sent_prompt(ollama)


def test_a_file_that_begins_with_a_dash_is_a_file(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event
) -> None:
    report = warm_runner.run(a_request(ollama, files=(("-o", b"one"), ("--fix/x", b"two"), ("--", b"three"))), never)
    assert report.exit_code == 0, report.log_tail
    assert "### File: ./-o\n```\none\n" in sent_prompt(ollama)
    assert "### File: ./--fix/x\n```\ntwo\n" in sent_prompt(ollama)
    assert "### File: ./--\n```\nthree\n" in sent_prompt(ollama)


def test_the_largest_task_passes(runner: Runner, ollama: TinyOllama, never: threading.Event) -> None:
    prompt = "あ" * (1024 * 1024 // 3)
    files = tuple((f"big/{n}.txt", b"%d" % n * (4 * 1024 * 1024)) for n in range(4))
    ollama.answer = lambda _request: says("z" * (4 * 1024 * 1024))
    report = runner.run(a_request(ollama, prompt=prompt, files=files), never)
    assert report.exit_code == 0, report.log_tail
    assert len(report.stdout) == 4 * 1024 * 1024 + 1
    assert len(sent_prompt(ollama).encode()) > 17 * 1024 * 1024


def test_half_a_character_in_the_answer_does_not_lose_the_rest(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event
) -> None:
    ollama.answer = lambda _request: says("before\ud800after")
    report = warm_runner.run(a_request(ollama), never)
    assert (report.exit_code, report.stdout) == (0, b"before?after\n")


def test_a_failure_is_an_exit_code_and_a_log(runner: Runner, ollama: TinyOllama, never: threading.Event) -> None:
    ollama.answer = lambda _request: says_error("boom")
    report = runner.run(a_request(ollama), never)
    assert (report.exit_code, report.signal, report.stdout, report.killed) == (1, None, b"", False)
    assert "ERROR: Failed to generate content" in report.log_tail
    assert "boom" in report.log_tail


def test_the_log_tells_neither_prompt_nor_files_nor_the_secret_address(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event
) -> None:
    ollama.answer = lambda _request: says_error(f"{ollama.url}{SECRET_PATH} fell over")
    prompt = "the first confidential line\nthe second confidential line\n" * 30_000
    files = (("a.txt", b"a confidential file"),)
    report = warm_runner.run(a_request(ollama, prompt=prompt, files=files), never)
    assert "(gateway) fell over" in report.log_tail
    ollama.answer = lambda _request: says_error("boom in the second confidential line")
    report = warm_runner.run(a_request(ollama, prompt=prompt, files=files), never)
    assert "generation_start" in report.log_tail
    assert "confidential" not in report.log_tail
    assert SECRET_PATH not in report.log_tail
    assert len(report.log_tail.encode()) <= LOG_TAIL_BYTES


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "plain"])
def test_nothing_of_our_environment_reaches_the_cli(
    python: Path,
    ollama: TinyOllama,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: bool,
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "OLLAMA_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    with running(python, tmp_path, warm=warm) as runner:
        assert runner.run(a_request(ollama), threading.Event()).exit_code == 0
    assert "Authorization" not in ollama.received[0].headers


def test_the_folder_holds_the_files_alone_and_is_private(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama)):
        (folder,) = folders(runner)
        inside = {str(path.relative_to(folder / "files")) for path in (folder / "files").rglob("*")}
        assert inside == {"src", "src/codec.py", "gemini-repo-cli_generated_prompt.txt"}
        if os.name == "posix":
            assert {path.stat().st_mode & 0o777 for path in (folder, folder / "files")} == {0o700}
    assert folders(runner) == []


@linux
def test_a_run_lives_in_its_own_session_within_limits(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama)):
        pid = child_of(runner)
        assert os.getsid(pid) == pid
        limits = {
            line[:25].strip(): line[26:47].strip() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        (folder,) = folders(runner)
        assert Path(f"/proc/{pid}/cwd").readlink() == folder / "files"
        status = Path(f"/proc/{pid}/status").read_text()
    assert limits["Max address space"] == str(2 * 1024**3)
    assert limits["Max file size"] == str(64 * 1024**2)
    assert limits["Max open files"] == "64"
    assert limits["Max core file size"] == "0"
    assert limits["Max cpu time"] == "60"
    assert "NoNewPrivs:\t1" in status


@linux
def test_a_run_holds_nothing_of_ours_open(runner: Runner, ollama: TinyOllama) -> None:
    with held(runner, ollama, a_request(ollama)):
        pid = child_of(runner)
        opened = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = [str(path) for path in opened if str(path).startswith("socket:")]
    assert len(sockets) == 1, f"its connection to the gateway, nothing else: {opened}"


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", "./a", ".", "a\0b", "a\\b", "C:/x", "x" * 256, "\ud800"],
)
def test_a_file_name_that_leaves_the_folder_is_refused(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event, name: str
) -> None:
    with pytest.raises(RefusedError):
        warm_runner.run(a_request(ollama, files=((name, b"x"),)), never)
    assert ollama.received == []
    assert folders(warm_runner) == []


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_two_files_that_cannot_both_be_there_are_refused(
    warm_runner: Runner, ollama: TinyOllama, never: threading.Event, names: tuple[str, ...]
) -> None:
    with pytest.raises(RefusedError):
        warm_runner.run(a_request(ollama, files=tuple((name, b"x") for name in names)), never)
    assert folders(warm_runner) == []


def test_many_runs_at_once_do_not_mix(runner: Runner, ollama: TinyOllama, never: threading.Event) -> None:
    at_once = 6 if runner._template is not None else 2  # whole interpreters starting take a second each
    together = threading.Barrier(at_once)

    def answer(request: Received) -> Reply:
        together.wait(20)  # all are asked before one is answered
        prompt = str(request.body["prompt"])
        return says(prompt.splitlines()[1] + prompt[prompt.index("File: ") :].splitlines()[2])

    ollama.answer = answer
    with ThreadPoolExecutor(at_once) as pool:
        requests = [a_request(ollama, prompt=f"p{n}", files=(("a", b"f%d" % n),)) for n in range(at_once)]
        reports = list(pool.map(lambda request: runner.run(request, never), requests))
    assert [report.stdout for report in reports] == [b"p%df%d\n" % (n, n) for n in range(at_once)]
    assert folders(runner) == []


def test_what_an_earlier_agent_left_is_deleted_at_the_start(python: Path, tmp_path: Path) -> None:
    left = tmp_path / "attempt-00ff-x" / "files"
    left.mkdir(parents=True)
    (left / "secret.py").write_text("x")
    (tmp_path / "something else").write_text("stays")
    with running(python, tmp_path):
        assert not left.parent.exists()
        assert (tmp_path / "something else").exists()


def test_the_runner_describes_what_it_runs(runner: Runner, python: Path) -> None:
    info = runner.describe()
    assert info.python == str(python)
    assert (info.kind, info.version) in {("stand-in", "stand-in"), ("gemini-repo-cli", "0.2.0")}


def test_an_environment_without_the_cli_is_told_with_the_command_that_installs_it(tmp_path: Path) -> None:
    for warm in (True, False):
        runner = Runner(tmp_path / "bin" / "python", tmp_path / "work", warm=warm)
        with pytest.raises(CliMissing) as caught:
            runner.start()
        runner.stop()
        assert "koubou-agent setup-cli" in caught.value.hint


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "plain"])
def test_a_cli_that_cannot_be_loaded_is_told_with_its_own_words(tmp_path: Path, warm: bool) -> None:
    python = stand_in_python(tmp_path)
    (pth,) = (tmp_path / "cli").rglob("koubou-stand-in.pth")
    broken = tmp_path / "broken"
    (broken / "gemini_repo").mkdir(parents=True)
    (broken / "gemini_repo" / "__init__.py").write_text("")
    (broken / "gemini_repo" / "cli.py").write_text("print('ERROR: a library is gone')\ndef main(): pass\nexit(1)\n")
    (broken / "gemini_repo" / "ollama_api.py").write_text(
        "class OllamaRepoAPI:\n    def generate_content(self, repo_name, file_paths, target_file_name, prompt): pass\n"
    )
    pth.write_text(f"{broken}\n{pth.read_text()}")
    runner = Runner(python, tmp_path / "work", warm=warm)
    with pytest.raises(CliMissing, match="ERROR: a library is gone"):
        runner.start()
    runner.stop()
