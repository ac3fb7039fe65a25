"""A file that many tasks share goes over the wire once a box: real broker, real agent, the bytes between counted."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from koubou_client.client import Client
from koubou_client.where import Where
from koubou_common.keys import read_key_pair, read_public
from koubou_common.messages.values import Role
from koubou_simulator.ollama import SimulatedOllama, model_named
from support.agent_house import AgentHouse
from support.broker_play import a_broker, a_configuration

TASKS = 20
COMMON_BYTES = 50_000
MESSAGES_BYTES = 150_000  # what twenty tasks, heartbeats and CURVE take beside the file
BROKER = """
bind: tcp://127.0.0.1:0
heartbeat_s: 0.5
disk: {reserve_bytes: 1048576, min_free_bytes: 0}
"""


class Meter:
    """A TCP relay on loopback that counts what goes to whoever connects."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.down_bytes = 0
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]  # any of the methods below
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                broker = socket.create_connection(self._target)
                self._sockets += [peer, broker]
                self._start(self._carry, peer, broker, False)
                self._start(self._carry, broker, peer, True)

    def _carry(self, source: socket.socket, sink: socket.socket, is_down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_down:
                    self.down_bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@dataclass(slots=True)
class Site:
    """A broker and a person, an agent behind the meter."""

    client: Client
    meter: Meter
    house: AgentHouse
    sim: SimulatedOllama

    def work(self, root: Path) -> None:
        """All tasks, each with the common file and one of its own; every prompt reaches Ollama whole."""
        common = (root / "common.py").read_text()
        futures = [
            self.client.submit(f"Part {number} [[sim: raw={number}]]", files=["common.py"], root=root)
            for number in range(TASKS)
        ]
        assert [future.result(60).text for future in futures] == [str(number) for number in range(TASKS)]
        asked = [one.prompt for one in self.sim.requests if "Part " in one.prompt]
        assert len(asked) >= TASKS
        assert all(common in prompt for prompt in asked)


@contextmanager
def a_site(folder: Path, stand_in: Path) -> Iterator[Site]:
    model = replace(model_named("qwen2.5-coder:1.5b", "tiny"), train_ctx=1_000_000)
    workers = (
        f"workers: {{local_workers: [{{worker_id: lan_001, model: '{model.name}', max_concurrent_tasks: 1,"
        " options: {num_ctx: 200000, num_predict: 256}}]}"
    )
    with ExitStack() as stack:
        broker = stack.enter_context(a_broker(folder / "broker", a_configuration(BROKER, workers)))
        sim = stack.enter_context(SimulatedOllama(models=[model]))
        meter = Meter(broker.address)
        stack.callback(meter.close)
        key = read_public(broker.home.public_key_file("broker"))
        house = AgentHouse(
            folder / "box", broker_address=meter.address, broker_key=key, ollama_url=sim.url, python=stand_in
        )
        stack.enter_context(house.agent(broker.enrol("lan_001", Role.WORKER)))
        where = Where((broker.address,), key, read_key_pair(broker.home.key_file("operator")))
        client = stack.enter_context(Client(where=where))
        yield Site(client, meter, house, sim)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "repository"
    made.mkdir()
    (made / "common.py").write_text("".join(f"x{number} = {number}\n" for number in range(9_999))[:COMMON_BYTES])
    return made


def test_twenty_tasks_with_one_file_carry_it_once_and_once_more_where_the_cache_lost_it(
    tmp_path: Path, stand_in: Path, root: Path
) -> None:
    with a_site(tmp_path, stand_in) as site:
        site.work(root)
        first = site.meter.down_bytes
        assert COMMON_BYTES < first < COMMON_BYTES + MESSAGES_BYTES, f"{first:,} bytes"
        name = hashlib.sha256((root / "common.py").read_bytes()).hexdigest()
        (site.house.config.cache_dir / name).unlink()
        site.sim.requests.clear()
        site.work(root)
        again = site.meter.down_bytes - first
        assert COMMON_BYTES < again < COMMON_BYTES + MESSAGES_BYTES, f"{again:,} bytes after the cache was emptied"
