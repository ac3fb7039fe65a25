"""A full disk at the broker: what was accepted is kept, what cannot be kept is refused with the reason."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.site import MODEL, QUICK, ROOMY, Site, slug
from koubou_simulator.workshop import Worker
from support.ctl import Ran
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-disk")]

DISK_BYTES = 64 << 20
FILLER_BYTES = 56 << 20  # what is left holds an empty database, its reserve, and some prompts
MOST_SUBMITS = 200
WORKER = Worker("local_001", MODEL, "http://localhost:1", options={"num_ctx": 262_144})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A home whose state is on a disk of a few megabytes."""
    state = tmp_path / "home" / "state"
    state.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(state)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk (root)")
    yield tmp_path / "home"
    subprocess.run(["umount", str(state)], check=True)


@pytest.mark.parametrize("prompt_bytes", [200_000, 300_000], ids=["inline", "pulled"])
def test_a_disk_that_fills_up_loses_nothing_and_the_broker_comes_back(
    small_disk: Path, cli_python: Path, prompt_bytes: int
) -> None:
    filler = small_disk / "state" / "somebody_elses"
    filler.write_bytes(b"\0" * FILLER_BYTES)
    with Site(small_disk, cli_python) as site:
        site.open([WORKER], broker=QUICK + ROOMY)
        accepted: list[int] = []
        refused = fill(site, prompt_bytes, accepted)
        assert (slug(refused), refused.code) == ("store-full", 7), refused.err
        assert len(accepted) > 3
        assert on_record(site) == sorted(accepted), "the record holds what was accepted, and nothing else"

        filler.unlink()
        eventually(lambda: submit(site, prompt_bytes).code == 0, 30.0, "accepted again")
        assert set(accepted) < set(on_record(site))

        site.workshop.broker.kill()
        site.workshop.start_broker()
        eventually(lambda: site.ctl("status").code == 0, 20.0, "the broker answers")
        assert set(accepted) < set(on_record(site)), "it was all on the disk"


def test_a_disk_that_is_nearly_full_refuses_tasks_before_it_is(
    tmp_path_factory: pytest.TempPathFactory, cli_python: Path
) -> None:
    home = tmp_path_factory.mktemp("nearly")
    more_than_any_disk = shutil.disk_usage(home).total + 1
    with Site(home, cli_python) as site:
        site.open([WORKER], broker=f"{QUICK}disk: {{reserve_bytes: 0, min_free_bytes: {more_than_any_disk}}}\n")
        ran = site.ctl("submit", "--patience", "0", "Explain")
        assert (slug(ran), ran.code) == ("store-full", 7)
        assert "min_free_bytes" in ran.err
        assert "try again in 5 s" in ran.err
        assert on_record(site) == []
        assert site.ctl("status").code == 0


def fill(site: Site, prompt_bytes: int, accepted: list[int]) -> Ran:
    """Submit until it is refused; the refusal."""
    for _ in range(MOST_SUBMITS):
        ran = submit(site, prompt_bytes)
        if ran.code != 0:
            return ran
        accepted.append(int(ran.out))
    raise AssertionError(f"{MOST_SUBMITS} prompts of {prompt_bytes} bytes fitted {DISK_BYTES} bytes")


def submit(site: Site, prompt_bytes: int) -> Ran:
    return site.ctl("submit", "--patience", "0", "-", stdin=secrets.token_hex(prompt_bytes // 2).encode())


def on_record(site: Site) -> list[int]:
    return sorted(task["id"] for task in site.ctl("ps", "-a", "--json").data)
