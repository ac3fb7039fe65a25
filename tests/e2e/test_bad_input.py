"""What people get wrong: each mistake has its name, its exit code and a way out, and nothing is submitted by it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from e2e.site import MODEL, Site, slug
from koubou_simulator.ollama import SimulatedOllama, model_named
from koubou_simulator.ollama.texts import TextModel
from koubou_simulator.workshop import Worker
from support.ctl import Ran

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-bad-input")]

WIDE_MODEL = "wide:8b"
WINDOW = 262_144
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """An error as people and scripts are told it."""

    slug: str
    code: int
    says: str

    def check(self, ran: Ran) -> None:
        """That `ran` ended with it, and with a way out."""
        assert (slug(ran), ran.code) == (self.slug, self.code), ran.err
        assert self.says in ran.err
        assert "fix:" in ran.err


@dataclass(frozen=True, slots=True)
class FourByteTokens(TextModel):
    """English prose has some four bytes a token: so a prompt of 1 MB fits a window of 262,144."""

    def prompt_tokens(self, text: str) -> list[int]:
        return [0] * (len(text.encode()) // 4 + 1)


@pytest.fixture(scope="module")
def wide_ollama() -> Iterator[SimulatedOllama]:
    model = replace(model_named(WIDE_MODEL, "tiny"), engine=FourByteTokens(), train_ctx=WINDOW)
    with SimulatedOllama(models=[model]) as ollama:
        yield ollama


@pytest.fixture(scope="module", autouse=True)
def workshop(site: Site, wide_ollama: SimulatedOllama) -> Iterator[None]:
    small = site.ollama("small")
    site.open(
        [
            Worker("small_001", MODEL, small.url),
            Worker("wide_001", WIDE_MODEL, wide_ollama.url, options={"num_ctx": WINDOW}),
        ]
    )
    site.start_agent("small_001", small)
    agent = site.workshop.agent("wide_001", wide_ollama.url, None, "--stop-timeout", "0.5")
    agent.start()
    site.await_ready("wide_001", agent)
    yield
    assert site.workshop.broker.is_alive()
    agent.stop()  # before its Ollama goes


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_submitted(site: Site, repo: Path) -> Iterator[None]:
    """Whatever was refused left no task, and the next good one is done."""
    before = len(site.ctl("ps", "-a", "--json").data)
    yield
    assert len(site.ctl("ps", "-a", "--json").data) == before


def make_link(repo: Path) -> None:
    (repo / "link.py").symlink_to(repo / "good.py")


def make_linked_folder(repo: Path) -> None:
    (repo / "real").mkdir()
    (repo / "real" / "a.py").write_text("a = 1\n")
    (repo / "linked").symlink_to(repo / "real", target_is_directory=True)


def make_folder(repo: Path) -> None:
    (repo / "folder").mkdir()


def make_fifo(repo: Path) -> None:
    os.mkfifo(repo / "fifo")


def make_nul(repo: Path) -> None:
    (repo / "bytes.py").write_bytes(b"a\0b")


def make_large(repo: Path) -> None:
    (repo / "large.txt").write_bytes(b"a line\n" * (5 * MIB // 7))


def make_secret(repo: Path) -> None:
    (repo / ".env").write_text("API_KEY=abcdefghijklmnopqrstuvwxyz0123456789\n")


def make_nothing(repo: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "name", "told"),
    [
        (make_nothing, "absent.py", Told("bad-input", 2, "no such file")),
        (make_nothing, "/etc/hostname", Told("bad-input", 2, "relative")),
        (make_nothing, "../good.py", Told("bad-input", 2, "'..'")),
        (make_link, "link.py", Told("bad-input", 2, "symbolic link")),
        (make_linked_folder, "linked/a.py", Told("bad-input", 2, "symbolic link")),
        (make_folder, "folder", Told("bad-input", 2, "is a folder")),
        (make_fifo, "fifo", Told("bad-input", 2, "no ordinary file")),
        (make_nul, "bytes.py", Told("bad-input", 2, "NUL")),
        (make_secret, ".env", Told("bad-input", 2, "looks like a secret")),
        (make_large, "large.txt", Told("too-large", 7, "file_bytes")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("nothing_submitted")
def test_a_context_file_that_cannot_be_sent_is_named(
    site: Site, repo: Path, make: Callable[[Path], None], name: str, told: Told
) -> None:
    make(repo)
    ran = site.ctl("submit", "Explain", "-f", "good.py", "-f", name, "--wait")
    told.check(ran)
    assert name.rpartition("/")[2] in ran.err


@pytest.mark.parametrize(
    ("stdin", "told"),
    [
        (b"", Told("bad-input", 2, "empty")),
        (b" \n\t\n", Told("bad-input", 2, "empty")),
        (b"caf\xe9", Told("bad-input", 2, "not UTF-8")),
        (b"a\0b", Told("bad-input", 2, "NUL")),
        (b"word " * (2_000_000 // 5), Told("too-large", 7, "prompt_bytes")),
    ],
    ids=["empty", "blank", "not UTF-8", "NUL", "2 MB"],
)
@pytest.mark.usefixtures("nothing_submitted")
def test_a_prompt_that_is_none_is_refused(site: Site, stdin: bytes, told: Told) -> None:
    told.check(site.ctl("submit", "-", "--wait", stdin=stdin))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-p", "0"), Told("bad-input", 2, "1 to 10")),
        (("-p", "11"), Told("bad-input", 2, "1 to 10")),
        (("-p", "urgent"), Told("bad-input", 2, "low, normal, high")),
        (("-m", "nobody-has:1b"), Told("unknown-model", 7, MODEL)),
        (("-m", "gpt-oss:120b-cloud"), Told("unknown-model", 7, "cloud")),
        (("--worker", "small_002"), Told("not-found", 5, "small_001")),
        (("--label", "gpu=3090"), Told("refused", 7, "gpu=3090")),
        (("--min-context", "1000000"), Told("context-too-small", 7, "262,144")),
        (("--option", "num_ctx=16384"), Told("bad-input", 2, "--min-context")),
        (("--option", "num_predict=0"), Told("bad-input", 2, "num_predict")),
        (("--option", "num_predict=many"), Told("bad-input", 2, "num_predict")),
        (("--option", "temprature=0.1"), Told("bad-input", 2, "temprature")),
        (("-o", "../outside.md"), Told("bad-input", 2, "outside")),
        (("-o", "/outside.md"), Told("bad-input", 2, "outside")),
        (("-o", "good.py"), Told("bad-input", 2, "--force")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("nothing_submitted")
def test_a_wish_that_cannot_be_met_is_refused(site: Site, repo: Path, arguments: tuple[str, ...], told: Told) -> None:
    told.check(site.ctl("submit", "Explain", *arguments, "--wait"))
    assert (repo / "good.py").read_text() == "x = 1\n"


@pytest.mark.usefixtures("nothing_submitted")
def test_files_over_the_tasks_limit_are_refused_together(site: Site, repo: Path) -> None:
    names = [f"{number}.txt" for number in range(5)]
    for name in names:
        (repo / name).write_bytes(b"a line\n" * (4 * MIB // 7))
    ran = site.ctl("submit", "Explain", *[word for name in names for word in ("-f", name)])
    Told("too-large", 7, "task_bytes").check(ran)


def test_an_unknown_id_is_not_found(site: Site, repo: Path) -> None:
    for command in ("show", "wait", "result", "logs", "cancel", "retry"):
        ran = site.ctl(command, "987654")
        Told("not-found", 5, "987654").check(ran)
    assert site.ctl("show", "b987654").code == 5


def test_a_prompt_that_looks_like_an_option_goes_after_two_dashes(site: Site, repo: Path) -> None:
    ran = site.ctl("submit", "--explain this", "--wait")
    assert ran.code == 2
    assert "`--`" in ran.err
    for prompt in ("--explain this", "-f"):
        ran = site.ctl("submit", "--worker", "small_001", "--wait", "--", prompt)
        assert ran.code == 0, ran.err
        assert ran.out.startswith("[SIMULATED]")


def test_a_prompt_of_one_megabyte_runs_where_the_window_is_large_enough(
    site: Site, repo: Path, wide_ollama: SimulatedOllama
) -> None:
    prompt = b"word " * 200_000
    ran = site.ctl("submit", "-", "--worker", "wide_001", "--wait", "--json", stdin=prompt)
    assert ran.code == 0, ran.err
    assert ran.data["tokens"]["prompt"] > 250_000
    assert prompt.decode() in wide_ollama.log.listed()[-1].prompt


@pytest.mark.usefixtures("nothing_submitted")
def test_elsewhere_the_refusal_of_such_a_prompt_names_the_window(site: Site) -> None:
    ran = site.ctl("submit", "-", "--worker", "small_001", "--wait", stdin=b"word " * 200_000)
    Told("context-too-small", 7, "num_ctx 8,192 on small_001").check(ran)


def test_after_all_that_an_ordinary_task_is_done(site: Site, repo: Path) -> None:
    ran = site.ctl("submit", "Explain", "-f", "good.py", "-o", "good.md", "--worker", "small_001", "--wait")
    assert ran.code == 0, ran.err
    assert (repo / "good.md").read_text().startswith("[SIMULATED]")
