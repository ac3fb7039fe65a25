"""Prompts and context files: what is accepted, what is refused, always by name."""

import os
from pathlib import Path

import pytest

from koubou_client.inputs import InputLimits, check_prompt, read_context
from koubou_common.errors import Code, KoubouError

LIMITS = InputLimits(prompt_bytes=100, file_bytes=50, task_bytes=80, task_files=3)


def refused(paths: list[str], root: Path, *, allow_secrets: bool = False) -> KoubouError:
    with pytest.raises(KoubouError) as caught:
        read_context(paths, root, LIMITS, allow_secrets=allow_secrets)
    return caught.value


def test_a_prompt_is_its_bytes() -> None:
    assert check_prompt("工房\n", LIMITS) == "工房\n".encode()
    assert check_prompt(b"x" * 100, LIMITS) == b"x" * 100


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "is empty"),
        (" \n\t\u3000", "is empty"),
        ("a\0b", "NUL"),
        (b"abc\xff", "byte 3"),
        ("abc\udcff", "byte 3"),  # an argument that was not UTF-8
        ("\ud800", "half a character"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(prompt: str | bytes, said: str) -> None:
    with pytest.raises(KoubouError, match=said) as caught:
        check_prompt(prompt, LIMITS)
    assert caught.value.code is Code.BAD_INPUT


def test_a_prompt_over_the_limit_is_refused_with_the_limit() -> None:
    with pytest.raises(KoubouError, match="101 bytes, at most 100") as caught:
        check_prompt("x" * 101, LIMITS)
    assert caught.value.code is Code.TOO_LARGE


def test_files_are_read_in_the_order_named_under_their_relative_names(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "b.py").write_bytes(b"b")
    (tmp_path / "a.py").write_bytes(b"")
    files = read_context(["./src/b.py", "a.py"], tmp_path, LIMITS)
    assert [(file.name, file.data) for file in files] == [("src/b.py", b"b"), ("a.py", b"")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "~/x", "C:\\x", "", "nul", "a//b", "x\n"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    error = refused([path], tmp_path)
    assert error.code is Code.BAD_INPUT
    assert "--root" in error.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"nope.py: no such file (looked in {tmp_path})" in refused(["nope.py"], tmp_path).message


def test_links_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.py").write_text("a")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link.py").symlink_to("real/a.py")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    for name in ("link.py", "folder/a.py", "dangling.py"):
        assert "is a symbolic link" in refused([name], tmp_path).message


def test_folders_and_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "is a folder" in refused(["folder"], tmp_path).message
    assert "is no ordinary file" in refused(["pipe"], tmp_path).message


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a")
    assert refused(["a.py/b.py"], tmp_path).code is Code.BAD_INPUT


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a\0b")
    assert "NUL bytes" in refused(["a.bin"], tmp_path).message


def test_a_file_over_the_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"x" * 51)
    error = refused(["big.txt"], tmp_path)
    assert error.code is Code.TOO_LARGE
    assert "big.txt: 51 bytes, at most 50 are allowed (limit file_bytes)" in error.message


def test_files_together_over_the_limit_are_refused_with_the_limit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 41)
    assert "82 bytes, at most 80 are allowed (limit task_bytes)" in refused(["a", "b"], tmp_path).message


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    assert "4 files, at most 3" in refused(["a", "b", "c", "d"], tmp_path).message


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert "named twice" in refused(["a", "./a"], tmp_path).message


def test_secrets_are_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PASSWORD=1")
    assert "--allow-secrets" in refused([".env"], tmp_path).hint
    assert read_context([".env"], tmp_path, LIMITS, allow_secrets=True)[0].data == b"PASSWORD=1"
