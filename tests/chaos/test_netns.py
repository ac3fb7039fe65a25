"""The box in a network namespace: made, cut off, joined again, removed."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chaos.netns import Box, Namespace, NotPermittedError

SAY_HELLO = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).sendall(b'hello')"


@pytest.fixture
def box() -> Iterator[Box]:
    namespace = Namespace()
    try:
        made = namespace.__enter__()
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield made
    finally:
        namespace.__exit__(None, None, None)


def hello(box: Box, port: int) -> int:
    command = box.command(sys.executable, "-c", SAY_HELLO, box.outside, str(port))
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode


def test_a_pulled_link_cuts_the_box_off_until_it_is_put_back(box: Box) -> None:
    with socket.create_server((box.outside, 0)) as server:
        port = server.getsockname()[1]
        assert hello(box, port) == 0
        box.link(up=False)
        assert hello(box, port) != 0
        box.link(up=True)
        assert hello(box, port) == 0


def test_nothing_is_left_of_it(box: Box) -> None:
    with Namespace() as other:
        assert other.name != box.name
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert other.name not in listed
    assert box.name in listed


def test_it_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1_000)
    expected = "only root" if shutil.which("ip") else "no `ip`"
    with pytest.raises(NotPermittedError, match=expected), Namespace():
        pass
