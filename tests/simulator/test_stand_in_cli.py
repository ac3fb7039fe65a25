"""The contract of gemini-repo-cli, kept by the stand-in and, where one is named, checked on the real one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from koubou_agent.warm import WarmTemplate
from support.cli import (
    CLI_KINDS,
    REAL_CLI_VARIABLE,
    Received,
    Reply,
    TinyOllama,
    cli_python,
    says,
    stand_in_python,
    tiny_ollama,
)
from support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

DUMP = "gemini-repo-cli_generated_prompt.txt"

HEAD = (
    "--- User Task ---\n{prompt}\n\n"
    "--- Repo-Level Instruction ---\n"
    "You are provided with context from multiple files in the repository. "
    "Analyze the repository as a whole, considering relationships between files, "
    "overall architecture, and cross-file dependencies. "
    "When generating the target file, ensure it integrates correctly with the rest of the repository. "
    "If relevant, reference or utilize patterns, classes, or functions defined in other files. "
    "Do not simply summarize individual files; reason at the repository level.\n\n"
    "--- Repository Context ---\nRepository Name: repo\n\n"
)
TAIL = "--- Generation Target ---\nGenerate the complete content for the file: out.md\n\n--- Output ---"
NO_FILES = "--- No File Context Provided ---\n\n"


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: bytes
    err: str
    folder: Path

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]


class Cli:
    """Runs any command line, in a folder that is kept, through a warm template: 15 ms instead of 500."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python = python
        self._folder = folder
        self._runs = 0
        self._template = WarmTemplate(python, folder)
        self._template.start()

    def fresh(self) -> Path:
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def run(self, *argv: str, folder: Path | None = None, env: dict[str, str] | None = None) -> Ran:
        folder = folder or self.fresh()
        out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
        job = self._template.run(argv, folder, stdout=out, stderr=err, environment=env or {})
        ended = job.wait(20)
        assert ended is not None
        assert ended.status is not None
        return Ran(ended.status, out.read_bytes(), err.read_text(), folder)

    def ask(self, ollama: TinyOllama, *, files: tuple[str, ...] = (), folder: Path | None = None) -> Ran:
        return self.run(*safely(ollama.url, *files), folder=folder)

    def stop(self) -> None:
        self._template.stop()


def safely(url: str, *files: str, prompt: str = "Do it", target: str = "out.md") -> list[str]:
    options = ["--provider", "ollama", "--ollama-model", "m", "--ollama-host", url]
    return [*options, *(["--files", *files] if files else []), "--", "repo", target, prompt]


@pytest.fixture(scope="module", params=CLI_KINDS)
def cli(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    folder = tmp_path_factory.mktemp("cli")
    cli = Cli(cli_python(request.param, folder / "home"), folder)
    yield cli
    cli.stop()


@pytest.fixture
def ollama() -> Iterator[TinyOllama]:
    with tiny_ollama() as running:
        yield running


def test_the_prompt_without_files_is_composed_to_the_byte(cli: Cli, ollama: TinyOllama) -> None:
    ran = cli.ask(ollama)
    assert ollama.received[0].body["prompt"] == HEAD.format(prompt="Do it") + NO_FILES + TAIL
    assert ran.code == 0


def test_the_prompt_shows_files_under_the_names_that_were_given(cli: Cli, ollama: TinyOllama) -> None:
    folder = cli.fresh()
    (folder / "src").mkdir()
    (folder / "src" / "a.py").write_text("print(1)\n")
    (folder / "日本.md").write_text("```\n工房\n```")
    cli.ask(ollama, files=("src/a.py", "日本.md"), folder=folder)
    context = (
        "--- File Context ---\n"
        "\n### File: src/a.py\n```\nprint(1)\n\n```\n"
        "\n### File: 日本.md\n```\n```\n工房\n```\n```\n"
        "\n--- End File Context ---\n\n"
    )
    assert ollama.received[0].body["prompt"] == HEAD.format(prompt="Do it") + context + TAIL


def test_the_request_has_fixed_options_and_keeps_the_path_of_the_host(cli: Cli, ollama: TinyOllama) -> None:
    cli.run(*safely(f"{ollama.url}/t/secret"))
    request = ollama.received[0]
    assert request.path == "/t/secret/api/generate"
    assert request.body["model"] == "m"
    assert request.body["stream"] is False
    assert request.body["options"] == {"temperature": 0.3, "num_ctx": 4096}
    assert not {"keep_alive", "think", "truncate", "system"} & set(request.body)


def test_the_answer_is_printed_stripped_with_one_newline(cli: Cli, ollama: TinyOllama) -> None:
    ollama.answer = lambda _request: says("\n\n    indented\nline 工房 \n\n")
    assert cli.ask(ollama).out == "indented\nline 工房\n".encode()


def test_the_whole_prompt_is_left_in_the_current_folder(cli: Cli, ollama: TinyOllama) -> None:
    ran = cli.ask(ollama)
    assert (ran.folder / DUMP).read_text() == ollama.received[0].body["prompt"]


def test_a_dump_that_cannot_be_written_does_not_stop_the_run(cli: Cli, ollama: TinyOllama) -> None:
    folder = cli.fresh()
    (folder / DUMP).mkdir()
    assert cli.ask(ollama, folder=folder).code == 0


def test_the_log_is_json_lines_that_begin_with_the_arguments(cli: Cli, ollama: TinyOllama) -> None:
    events = cli.ask(ollama).events
    arguments = events[0]["args"]
    assert isinstance(arguments, dict)
    assert (events[0]["event"], arguments["prompt"], arguments["files"]) == ("cli_start", "Do it", [])
    assert (events[-1]["event"], events[-1]["status"]) == ("cli_end", "success")
    ended = next(event for event in events if event.get("event") == "generation_end")
    assert (ended["status"], ended["output_length"]) == ("success", 2)


@pytest.mark.parametrize(
    "reply",
    [
        says("half", done=False),
        says("cut", done_reason="length"),
        says(""),
        says("", thinking="a lot"),
    ],
    ids=["not done", "cut", "empty", "thought away"],
)
def test_bad_answers_count_as_success(cli: Cli, ollama: TinyOllama, reply: Reply) -> None:
    ollama.answer = lambda _request: reply
    assert cli.ask(ollama).code == 0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b'{"error":"model \'m\' not found"}', 404), "model 'm' not found"),
        (Reply(b'{"error":"boom"}', 500), "boom"),
        (Reply(b'{"error":"server busy"}', 503), "server busy"),
        (Reply(b'{"error":"too late"}', 504), "too late"),
        (says(None), "'NoneType' object has no attribute 'strip'"),
        (Reply(b'{"error":"odd"}'), "Failed to generate content"),
        (Reply(b"{}"), "Failed to generate content"),
        (Reply(b'{"response":"cut'), "Failed to generate content"),
        (Reply(b"<html>", headers={"Content-Type": "text/html"}), "Failed to generate content"),
        (Reply(b'{"resp', length=100), "Failed to generate content"),
    ],
    ids=["404", "500", "503", "504", "null", "error in a 200", "nothing", "bad JSON", "HTML", "cut"],
)
def test_every_failure_is_exit_code_one_and_a_line_of_text(
    cli: Cli, ollama: TinyOllama, reply: Reply, words: str
) -> None:
    ollama.answer = lambda _request: reply
    ran = cli.ask(ollama)
    assert (ran.code, ran.out) == (1, b"")
    last = [line for line in ran.err.splitlines() if line.startswith("ERROR: ")]
    assert words in last[-1]
    assert len(ollama.received) == 1, "it does not try again"


def test_nothing_listening_is_exit_code_one(cli: Cli) -> None:
    ran = cli.run(*safely("http://127.0.0.1:1"))
    assert ran.code == 1
    assert "Failed to connect" in ran.err


def test_a_redirect_is_followed(cli: Cli, ollama: TinyOllama) -> None:
    def answer(request: Received) -> Reply:
        moved = Reply(b"", 307, {"Location": "/elsewhere"})
        return says("from elsewhere") if request.path == "/elsewhere" else moved

    ollama.answer = answer
    assert cli.ask(ollama).out == b"from elsewhere\n"


@pytest.mark.parametrize("prompt", ["-d", "--fix", "--help", "--output=/x", "-pX y", "a -- b", "", "\ttab\r\n"])
def test_behind_two_dashes_a_prompt_may_be_anything(cli: Cli, ollama: TinyOllama, prompt: str) -> None:
    assert cli.run(*safely(ollama.url, prompt=prompt)).code == 0
    assert ollama.received[0].body["prompt"] == HEAD.format(prompt=prompt) + NO_FILES + TAIL


def test_without_two_dashes_a_prompt_is_taken_for_an_option(cli: Cli) -> None:
    assert cli.run("--provider", "ollama", "repo", "out.md", "--fix").code == 2
    assert cli.run("--provider", "ollama", "repo", "out.md", "--help").code == 0


def test_files_swallow_the_arguments_behind_them(cli: Cli) -> None:
    assert cli.run("--provider", "ollama", "--files", "a", "repo", "out.md", "Do it").code == 2


def test_a_file_that_begins_with_a_dash_needs_its_folder(cli: Cli, ollama: TinyOllama) -> None:
    folder = cli.fresh()
    (folder / "-o.txt").write_text("x")
    assert cli.run(*safely(ollama.url, "./-o.txt"), folder=folder).code == 0
    assert "### File: ./-o.txt\n" in str(ollama.received[0].body["prompt"])
    assert cli.run(*safely(ollama.url, "-o.txt", "b")).code in {1, 2}


def test_a_prompt_of_more_than_a_megabyte_passes(cli: Cli, ollama: TinyOllama) -> None:
    prompt = "word " * 260_000
    assert cli.run(*safely(ollama.url, prompt=prompt)).code == 0
    assert ollama.received[0].body["prompt"] == HEAD.format(prompt=prompt) + NO_FILES + TAIL


def test_half_a_character_in_the_prompt_is_exit_code_one(cli: Cli, ollama: TinyOllama) -> None:
    assert cli.run(*safely(ollama.url, prompt="a\udce9")).code == 1
    assert ollama.received == []


@pytest.mark.parametrize("missing", ["missing.py", "a folder"])
def test_a_file_that_cannot_be_read_ends_it_before_any_request(cli: Cli, ollama: TinyOllama, missing: str) -> None:
    folder = cli.fresh()
    (folder / "a folder").mkdir()
    ran = cli.ask(ollama, files=(missing,), folder=folder)
    assert ran.code == 1
    assert missing in ran.err
    assert ollama.received == []


def test_bytes_that_are_not_utf8_are_read_as_latin1(cli: Cli, ollama: TinyOllama) -> None:
    folder = cli.fresh()
    (folder / "a.bin").write_bytes(b"caf\xe9")
    cli.ask(ollama, files=("a.bin",), folder=folder)
    assert "```\ncafé\n```" in str(ollama.received[0].body["prompt"])


@pytest.mark.parametrize("option", ["-o", "--output", "--out"])
def test_an_output_file_is_written_without_asking(cli: Cli, ollama: TinyOllama, option: str) -> None:
    folder = cli.fresh()
    (folder / "out.md").write_text("old and longer")
    for name in ("out.md", "new/folder/out.md"):
        ran = cli.run("--provider=ollama", f"--ollama-host={ollama.url}", option, name, "repo", "t", "p", folder=folder)
        folder.with_suffix(".out").unlink()
        folder.with_suffix(".err").unlink()
        assert (ran.code, ran.out) == (0, b"")
        assert (folder / name).read_text() == "ok"
        assert f"Content successfully written to {name}" in ran.err


def test_the_host_argument_beats_the_variable_which_beats_the_default(cli: Cli, ollama: TinyOllama) -> None:
    nowhere = {"OLLAMA_HOST": "http://127.0.0.1:1"}
    assert cli.run(*safely(ollama.url), env=nowhere).code == 0
    assert cli.run("--provider=ollama", "--", "r", "t", "p", env={"OLLAMA_HOST": ollama.url}).code == 0
    assert cli.run("--provider=ollama", "--", "r", "t", "p", env=nowhere).code == 1


def test_proxy_variables_are_obeyed_even_for_loopback(cli: Cli, ollama: TinyOllama) -> None:
    ran = cli.run(*safely("http://127.0.0.1:1"), env={"HTTP_PROXY": ollama.url})
    assert ran.code == 0
    assert ollama.received[0].path == "http://127.0.0.1:1/api/generate"


def test_gemini_without_a_key_is_exit_code_one(cli: Cli) -> None:
    ran = cli.run("--", "repo", "t", "p")
    assert ran.code == 1
    assert "GEMINI_API_KEY not provided" in ran.err


def test_an_interrupt_from_outside_ends_it_at_once(cli: Cli, ollama: TinyOllama, tmp_path: Path) -> None:
    over = threading.Event()
    ollama.answer = lambda _request: Reply(b"{}", hold=over)  # without a timeout it would wait for ever
    process = subprocess.Popen(
        [cli.python, "-I", "-m", "gemini_repo.cli", *safely(ollama.url)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
    )
    try:
        eventually(lambda: ollama.received)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        over.set()
        process.kill()
        process.wait()


def test_a_missing_library_ends_the_import_with_words_on_standard_output(cli: Cli) -> None:
    for library, distribution in (("ollama", "ollama"), ("google.genai", "google-genai")):
        script = f"import sys; sys.modules[{library!r}] = None; import gemini_repo.cli"
        ran = subprocess.run([cli.python, "-I", "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode == 1
        assert f"{distribution} library not found" in ran.stdout


def test_its_start_loads_the_libraries_that_make_it_slow(cli: Cli) -> None:
    script = "import sys, gemini_repo.cli; print('ollama' in sys.modules, 'google.genai.types' in sys.modules)"
    ran = subprocess.run([cli.python, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["True", "True"]


def test_the_library_has_the_same_classes_and_signatures(cli: Cli) -> None:
    script = (
        "import inspect, gemini_repo as g\n"
        "print(list(inspect.signature(g.OllamaRepoAPI.__init__).parameters))\n"
        "print(list(inspect.signature(g.OllamaRepoAPI.generate_content).parameters))\n"
        "print(list(inspect.signature(g.GeminiRepoAPI.__init__).parameters))\n"
        "print(issubclass(g.OllamaRepoAPI, g.BaseRepoAPI)); print(*sorted(g.__all__))\n"
        "print(g.DEFAULT_OLLAMA_MODEL, g.DEFAULT_OLLAMA_HOST, g.DEFAULT_GEMINI_MODEL)\n"
        "api = g.OllamaRepoAPI('m'); print(api.options, api.model_name, api.host)\n"
    )
    ran = subprocess.run(
        [cli.python, "-I", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"HOME": os.sep},
    )
    assert ran.stdout.splitlines() == [
        "['self', 'model_name', 'host']",
        "['self', 'repo_name', 'file_paths', 'target_file_name', 'prompt']",
        "['self', 'api_key', 'model_name']",
        "True",
        "BaseRepoAPI DEFAULT_GEMINI_MODEL DEFAULT_OLLAMA_HOST DEFAULT_OLLAMA_MODEL GeminiRepoAPI OllamaRepoAPI",
        "qwen2.5-coder:1.5b http://localhost:11434 gemini-2.0-flash",
        "{'temperature': 0.3, 'num_ctx': 4096} m http://localhost:11434",
    ]


def test_the_real_one_keeps_the_contract_too() -> None:
    if "real" not in CLI_KINDS:
        pytest.skip(f"only the stand-in was checked: {REAL_CLI_VARIABLE} names no real gemini-repo-cli")


def test_the_stand_in_says_that_it_is_one(tmp_path: Path) -> None:
    script = "import gemini_repo; print(gemini_repo.__simulated__, gemini_repo.__version__)"
    ran = subprocess.run(
        [stand_in_python(tmp_path), "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == ["True", "stand-in"]
