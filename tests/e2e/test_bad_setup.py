"""Wrong settings, keys and tokens: each is told with its name, its exit code and a way out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import MODEL, Site, slug
from koubou_common.client_settings import ClientSettings
from koubou_common.keys import new_key_pair, read_public, write_key_pair
from koubou_simulator.workshop import Worker, free_port
from support.ctl import Ctl

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-bad-setup")]

COMMAND_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def broker(site: Site) -> Iterator[None]:
    site.open([Worker("local_001", MODEL, "http://localhost:1"), Worker("box_001", MODEL, "", location="remote")])
    yield
    assert site.workshop.broker.is_alive()


@pytest.fixture
def laptop(site: Site, tmp_path: Path) -> Path:
    """A person's home that knows the broker, with a key that nobody enrolled."""
    home = tmp_path / "laptop"
    (home / "config").mkdir(parents=True)
    write_key_pair(home / "keys" / "own.key", new_key_pair())
    point(home, site.workshop.address, read_public(site.home / "keys" / "broker.pub"))
    return home


def point(home: Path, address: str, broker_key: str) -> None:
    (home / "config" / "client.yaml").write_text(ClientSettings((address,), broker_key, Path("keys/own.key")).to_yaml())


def program(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("KOUBOU_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def test_a_broker_that_is_down_is_unreachable(laptop: Path) -> None:
    point(laptop, f"tcp://127.0.0.1:{free_port()}", new_key_pair().public)
    ran = Ctl(laptop)("--connect-timeout", "1", "status")
    assert (slug(ran), ran.code) == ("broker-unreachable", 6)
    assert "nothing listens" in ran.err


def test_a_broker_of_this_home_that_was_stopped_says_how_to_start_it(
    tmp_path_factory: pytest.TempPathFactory, cli_python: Path
) -> None:
    with Site(tmp_path_factory.mktemp("stopped"), cli_python) as site:
        site.open([])
        assert site.ctl("status").code == 0
        assert site.workshop.broker.stop() == 0
        ran = site.ctl("--connect-timeout", "1", "status")
        assert (slug(ran), ran.code) == ("broker-unreachable", 6)
        assert "koubou-broker" in ran.err or "koubou-ctl up" in ran.err


def test_a_key_that_nobody_enrolled_is_told_so(laptop: Path) -> None:
    ran = Ctl(laptop)("status")
    assert (slug(ran), ran.code) == ("key-not-enrolled", 4)


def test_a_wrong_key_of_the_broker_is_told_apart(site: Site, laptop: Path) -> None:
    point(laptop, site.workshop.address, new_key_pair().public)
    ran = Ctl(laptop)("status")
    assert (slug(ran), ran.code) == ("wrong-broker-key", 6)


@pytest.mark.parametrize(("damage", "says"), [("open", "chmod 600"), ("cut", "cannot be used"), ("gone", "No such")])
def test_a_key_file_that_cannot_be_trusted_is_not_used(laptop: Path, damage: str, says: str) -> None:
    key = laptop / "keys" / "own.key"
    if damage == "open":
        key.chmod(0o644)
    elif damage == "cut":
        key.write_text(key.read_text()[:-20])
    else:
        key.unlink()
    ran = Ctl(laptop)("status")
    assert (slug(ran), ran.code) == ("bad-configuration", 8)
    assert says in ran.err


def test_a_key_of_the_broker_that_others_can_read_stops_its_start(tmp_path: Path) -> None:
    assert program("koubou_broker", "init", "--home", str(tmp_path)).returncode == 0
    (tmp_path / "keys" / "broker.key").chmod(0o640)
    ran = program("koubou_broker", "run", "--home", str(tmp_path), "--bind", f"tcp://127.0.0.1:{free_port()}")
    assert ran.returncode == 8
    assert "chmod 600" in ran.stderr


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("broker.yaml", "heartbeat_s: 5\nleese_s: 30\n", ("broker.yaml:2:1", "lease_s")),
        ("broker.yaml", "lease_s: 30\nlease_s: 40\n", ("broker.yaml:2:1", "lease_s")),
        ("broker.yaml", 'bind: "tcp://0.0.0.0:5570"\n', ("broker.yaml:1:7", "allow_public")),
        ("broker.yaml", "lease_s: [\n", ("broker.yaml:",)),
        (
            "workers.yaml",
            "workers:\n  local_workers:\n    - {worker_id: a, model: m, options: {num_ctx: 100, temprature: 1}}\n",
            ("workers.yaml:3:", "256", "temperature"),
        ),
    ],
    ids=["unknown option", "twice", "open to all", "no YAML", "options that go wrong"],
)
def test_settings_that_cannot_be_used_are_shown_by_line_and_column(
    tmp_path: Path, file: str, text: str, says: tuple[str, ...]
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / file).write_text(text)
    for module, arguments in (
        ("koubou_broker", ("check-config", "--home", str(tmp_path))),
        ("koubou_broker", ("run", "--home", str(tmp_path))),
        ("koubou_client.ctl", ("--home", str(tmp_path), "config", "check")),
    ):
        ran = program(module, *arguments)
        assert ran.returncode == 8, (module, ran)
        for part in says:
            assert part in ran.stderr + ran.stdout, (module, ran)
    assert not (tmp_path / "state" / "koubou.db").exists()


def test_a_damaged_token_never_leaves_the_box(site: Site, tmp_path: Path) -> None:
    token = site.ctl("workers", "invite", "box_001", "--quiet").out.strip()
    for damaged in (token[:-1], token[:40] + ("A" if token[40] != "A" else "B") + token[41:], "kbj1_", "hello"):
        ran = program("koubou_agent", "join", damaged, "--home", str(tmp_path))
        assert ran.returncode == 7, ran
        assert "token" in ran.stderr
    assert program("koubou_agent", "join", token, "--home", str(tmp_path)).returncode == 0, "the whole one still works"


def test_a_used_up_token_is_refused(site: Site, tmp_path: Path) -> None:
    token = site.ctl("keys", "invite", "aya", "--quiet").out.strip()
    first, second = Ctl(tmp_path / "first"), Ctl(tmp_path / "second")
    assert first("join", token).code == 0
    assert first("status").code == 0
    ran = second("join", token)
    assert ran.code in (4, 7), ran.err
    assert slug(ran) in ("token-used", "key-not-enrolled")
    assert "invit" in ran.err
    assert first("status").code == 0, "and the first one stays in"


def test_a_token_that_was_answered_for_another_key_is_used(site: Site, tmp_path: Path) -> None:
    """Before its holder has connected the broker still knows it: another key is refused by name."""
    token = site.ctl("keys", "invite", "rin", "--quiet").out.strip()
    assert Ctl(tmp_path / "first")("join", token).code == 0
    ran = Ctl(tmp_path / "second")("join", token)
    assert (slug(ran), ran.code) == ("token-used", 7)


def test_a_token_for_a_box_is_no_token_for_a_person(site: Site, tmp_path: Path) -> None:
    token = site.ctl("workers", "invite", "box_001", "--quiet").out.strip()
    ran = Ctl(tmp_path)("join", token)
    assert (slug(ran), ran.code) == ("token-invalid", 7)
    assert "koubou-agent join" in ran.err
