"""The doctor's view of this host: folder, keys, settings, disk, database, service, and the agents here."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from koubou_client.ctl.findings import Check, Finding, fail, failed, ok, warn
from koubou_common.addresses import is_loopback
from koubou_common.client_settings import load_client_settings
from koubou_common.errors import ConfigError, KoubouError
from koubou_common.home import Home
from koubou_common.keys import read_key_pair

if TYPE_CHECKING:
    from koubou_common.settings import BrokerSettings, WorkersFile

CHILD_S = 90.0  # an agent's doctor waits for its broker and loads gemini-repo-cli once
QUICK_CHECK_S = 5.0  # of reading: a longer look would hold up the broker's housekeeping
FREE_BYTES_LEAST = 1 << 30  # where broker.yaml does not say
WAL_BYTES_MOST = 512 * 2**20  # eight times what it shrinks back to: somebody holds an old transaction open

_MIB = 2**20
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs")
_UNIT = Path("/etc/systemd/system/koubou-broker.service")
_OTHERS = 0o077
_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_FINDINGS = {"ok": Finding.OK, "warning": Finding.WARN, "fault": Finding.FAIL}  # as koubou-agent doctor words them


def look_at_host(home: Home) -> Iterator[Check]:
    """Everything that can be seen without the broker."""
    if not home.root.is_dir():
        text = f"there is no folder {home.root} yet"
        yield fail("home", text, "koubou-ctl join TOKEN, or on a machine of its own: koubou-ctl up")
        return
    yield from _home(home)
    yield from _keys(home)
    if home.config_file("client").exists():
        yield from _client_settings(home)
    if home.key_file("broker").exists():
        yield from _broker_host(home)
    yield from _agents(home)


def _home(home: Home) -> Iterator[Check]:
    mode = home.root.stat().st_mode
    if os.name == "posix" and mode & _OTHERS:
        text = f"{home.root} is open to other accounts (mode {mode & 0o777:04o})"
        yield warn("home", text, f"chmod 700 {home.root}")
    else:
        yield ok("home", str(home.root))


def _keys(home: Home) -> Iterator[Check]:
    files = sorted(home.keys.rglob("*.key"))
    owner = home.root.stat().st_uid if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    bad = 0
    for path in files:
        try:
            read_key_pair(path, trusted_owner=owner)
        except KoubouError as error:
            bad += 1
            yield from failed("key files", error)
    if files and not bad:
        yield ok("key files", f"{len(files)} whole, readable for their owner alone")


def _client_settings(home: Home) -> Iterator[Check]:
    path = home.config_file("client")
    try:
        load_client_settings(path)
    except ConfigError as error:
        yield from failed("settings", error)
    else:
        yield ok("settings", f"{path} is good")


def _broker_host(home: Home) -> Iterator[Check]:
    yield _broker_settings(home)
    least = FREE_BYTES_LEAST
    with contextlib.suppress(ImportError, KoubouError):  # not installed; at fault, which was said above
        broker, workers = _read_settings(home)
        least = broker.disk.min_free_bytes
        yield from _network(broker, workers)
    yield _disk(home, least)
    yield from _database(home.state / "koubou.db")
    yield from _service()


def _broker_settings(home: Home) -> Check:
    ran = _run([sys.executable, "-m", "koubou_broker", "check-config", "--home", str(home.root)], CHILD_S)
    if ran is None:
        return fail("settings", f"koubou-broker check-config did not end within {CHILD_S:.0f} s")
    if ran.returncode == 0:
        return ok("settings", ran.stdout.strip())
    told, _, hint = ran.stderr.strip().removeprefix("error: ").partition("\nhint: ")
    if find_spec("sqlalchemy") is None:
        return fail("settings", "the broker is not installed here", "pip install 'koubou-system[broker]'")
    return fail("settings", told, hint)


def _read_settings(home: Home) -> "tuple[BrokerSettings, WorkersFile]":
    from koubou_common.settings import BrokerSettings, WorkersFile, load  # noqa: PLC0415 - pydantic may not be here

    broker = load(home.config_file("broker"), BrokerSettings, missing_ok=True)
    return broker, load(home.resolve(broker.workers_file), WorkersFile, missing_ok=True)


def _network(broker: "BrokerSettings", workers: "WorkersFile") -> Iterator[Check]:
    away = [one.worker_id for one in workers.workers.remote_workers if one.agent == "there"]
    driven = [one.worker_id for one in workers.workers.remote_workers if one.agent == "here"]
    ports = [urlsplit(address).port for address in broker.bind if not is_loopback(urlsplit(address).hostname or "")]
    if ports:
        shown = ", ".join(str(port) for port in dict.fromkeys(ports))
        yield ok("network", f"boxes must be able to reach TCP port {shown} here: let the firewall allow your network")
    elif away:
        yield warn(
            "network",
            f"workers.yaml lists {', '.join(away)}, but the broker listens on this host alone",
            "add an address of your private network to `bind` in broker.yaml",
        )
    if driven:
        yield warn(
            "exposure",
            f"{', '.join(driven)}: driven from here, so that Ollama is open to everybody on its network",
            "run koubou-agent on that box, and bind its Ollama to 127.0.0.1",
        )


def _disk(home: Home, least_bytes: int) -> Check:
    free_bytes = shutil.disk_usage(home.state if home.state.exists() else home.root).free
    detail = f"{free_bytes // _MIB:,} MiB free for {home.state}"
    if free_bytes < least_bytes:
        return fail("disk", f"{detail}: below {least_bytes // _MIB:,} MiB new tasks are refused", "make room")
    return ok("disk", detail)


def _database(path: Path) -> Iterator[Check]:
    if not path.exists():
        yield ok("database", "none yet: the first start of the broker makes it")
        return
    kind = _file_system(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        text = f"{path} is on a network file system ({kind}), where SQLite's locks cannot be relied on"
        yield fail("database", text, "put KOUBOU_HOME on a local disk")
    wal_bytes = 0
    with contextlib.suppress(OSError):
        wal_bytes = path.with_name(f"{path.name}-wal").stat().st_size
    if wal_bytes > WAL_BYTES_MOST:
        text = f"its log has grown to {wal_bytes // _MIB:,} MiB: some program reads the database without end"
        yield warn("database", text, f"end what holds it open: fuser -v {path}")
    yield _quick_check(path)


def _quick_check(path: Path) -> Check:
    """Let SQLite look at the pages; read-only, and given up after a while."""
    deadline_s = time.monotonic() + QUICK_CHECK_S
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline_s), _PROGRESS_STEPS)
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if time.monotonic() > deadline_s:
            return ok("database", f"no damage in the first {QUICK_CHECK_S:.0f} s of looking")
        return warn("database", f"it cannot be looked at now: {error}")
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found == "ok":
        return ok("database", f"whole, {path.stat().st_size // _MIB:,} MiB")
    return fail("database", f"it is damaged: {found}", "stop the broker and restore a backup: docs/operating.md")


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`; "" where it cannot be told."""
    best = ("", "")
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, kind, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if path.is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _service() -> Iterator[Check]:
    if not _UNIT.exists() or shutil.which("systemctl") is None:
        return
    ran = _run(["systemctl", "is-active", _UNIT.name], timeout_s=5.0)
    state = ran.stdout.strip() if ran is not None else "unknown"
    if state == "active":
        yield ok("service", f"{_UNIT.name} is active")
    else:
        fix = f"sudo systemctl enable --now {_UNIT.name}; its log: journalctl -u {_UNIT.name}"
        yield warn("service", f"{_UNIT.name} is {state}", fix)


def _agents(home: Home) -> Iterator[Check]:
    """What `koubou-agent doctor` says of each agent that is set up on this host."""
    worker_ids = _worker_ids(home)
    if not worker_ids:
        return
    if find_spec("requests") is None or find_spec("pydantic") is None:
        names = ", ".join(worker_id or "agent.yaml" for worker_id in worker_ids)
        yield warn(f"agent {names}", "the agent is not installed here", "pip install 'koubou-system[agent]'")
        return
    # All at once: each of them mostly waits.
    started = [(worker_id, _agent_doctor(home, worker_id)) for worker_id in worker_ids]
    for worker_id, child in started:
        yield from _agent_checks(f"agent {worker_id}" if worker_id else "agent", child)


def _worker_ids(home: Home) -> list[str]:
    """Workers whose agents belong on this host; "" is what agent.yaml alone knows."""
    found: list[str] = []
    if home.config_file("agent").exists():
        found.append("")
    found += [path.stem.removeprefix("agent-") for path in sorted(home.config.glob("agent-*.yaml"))]
    if home.key_file("broker").exists():
        with contextlib.suppress(ImportError, KoubouError):
            workers = _read_settings(home)[1].all_workers()
            own = [one.worker_id for one in workers if one.location == "local" or one.agent == "here"]
            # An agent.yaml beside workers.yaml holds for all of them.
            found = [*(worker_id for worker_id in found if worker_id), *own] if own else found
    return list(dict.fromkeys(found))


def _agent_doctor(home: Home, worker_id: str) -> "subprocess.Popen[str]":
    which = ["--worker-id", worker_id] if worker_id else []
    return subprocess.Popen(
        [sys.executable, "-m", "koubou_agent", "doctor", "--json", "--home", str(home.root), *which],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _agent_checks(name: str, child: "subprocess.Popen[str]") -> Iterator[Check]:
    try:
        said, complaint = child.communicate(timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        yield fail(name, f"koubou-agent doctor did not end within {CHILD_S:.0f} s")
        return
    checks = _parsed(said)
    if checks is None:
        told = complaint.strip().splitlines()
        yield fail(name, f"koubou-agent doctor failed: {told[-1] if told else f'exit code {child.returncode}'}")
        return
    for check in checks:
        yield Check(f"{name}, {check.name}", check.finding, check.detail, check.fix)


def _parsed(said: str) -> list[Check] | None:
    try:
        found: list[dict[str, Any]] = json.loads(said)["data"]["checks"]
        return [
            Check(str(one["check"]), _FINDINGS[one["finding"]], str(one["detail"]), str(one["fix"])) for one in found
        ]
    except (ValueError, KeyError, TypeError):
        return None


def _run(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str] | None":
    """Run to the end; None if that takes too long."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
