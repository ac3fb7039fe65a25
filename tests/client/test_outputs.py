"""Outputs: below the root, whole or not at all, never over what somebody changed."""

import hashlib
import stat
from pathlib import Path

import pytest

from koubou_client.outputs import check_out_path, digest_of, write_output
from koubou_common.errors import Code, KoubouError


def write(root: Path, name: str, data: bytes, *, expected: str | None = "", force: bool = False) -> Path:
    return write_output(root, name, data, expected_digest=expected, force=force)


def test_a_path_below_the_root_is_its_relative_name(tmp_path: Path) -> None:
    assert check_out_path("docs/a.md", tmp_path) == "docs/a.md"
    assert check_out_path("./a.md", tmp_path) == "a.md"
    assert check_out_path(str(tmp_path / "a.md"), tmp_path) == "a.md"


@pytest.mark.parametrize("path", ["../a.md", "/etc/a.md", "docs/../../a.md"])
def test_a_path_outside_the_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(KoubouError, match="outside") as caught:
        check_out_path(path, tmp_path)
    assert caught.value.code is Code.BAD_INPUT


@pytest.mark.parametrize("path", ["", ".", "a\x1b.md", "nul", "a\u202e.md", "x" * 256])
def test_a_name_that_is_unsafe_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(KoubouError):
        check_out_path(path, tmp_path)


def test_links_and_folders_are_no_place_for_an_output(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file.md").symlink_to("elsewhere")
    for name in ("link/a.md", "file.md", "real"):
        with pytest.raises(KoubouError):
            write(tmp_path, name, b"x", force=True)
    assert list((tmp_path / "real").iterdir()) == []


def test_an_output_is_written_with_its_folders_and_one_newline(tmp_path: Path) -> None:
    path = write(tmp_path, "a/b/c.md", b"text\n\n\n")
    assert path.read_bytes() == b"text\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    assert [entry.name for entry in path.parent.iterdir()] == ["c.md"], "no temporary file is left"


def test_an_output_over_an_unchanged_file_keeps_its_mode(tmp_path: Path) -> None:
    old = tmp_path / "run.sh"
    old.write_text("old\n")
    old.chmod(0o750)
    write(tmp_path, "run.sh", b"new", expected=digest_of(tmp_path, "run.sh"))
    assert old.read_text() == "new\n"
    assert stat.S_IMODE(old.stat().st_mode) == 0o750


def test_a_changed_file_is_kept_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("old\n")
    expected = digest_of(tmp_path, "a.md")
    file.write_text("edited\n")
    with pytest.raises(KoubouError, match="changed since") as caught:
        write(tmp_path, "a.md", b"new", expected=expected)
    assert caught.value.code is Code.CONFLICT
    assert file.read_text() == "edited\n"
    write(tmp_path, "a.md", b"new", expected=expected, force=True)
    assert file.read_text() == "new\n"


def test_a_file_that_appeared_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("mine\n")
    with pytest.raises(KoubouError, match="appeared since"):
        write(tmp_path, "a.md", b"new")
    assert (tmp_path / "a.md").read_text() == "mine\n"


def test_a_file_that_was_removed_since_counts_as_changed(tmp_path: Path) -> None:
    with pytest.raises(KoubouError, match="changed since"):
        write(tmp_path, "a.md", b"new", expected="0" * 64)


def test_writing_the_same_again_is_no_conflict(tmp_path: Path) -> None:
    write(tmp_path, "a.md", b"new")
    assert write(tmp_path, "a.md", b"new\n") == tmp_path / "a.md"


def test_a_digest_is_that_of_the_file_or_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(tmp_path, "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest_of(tmp_path, "b") == ""
    assert digest_of(tmp_path, "no/such/folder") == ""
    (tmp_path / "d").mkdir()
    with pytest.raises(KoubouError, match="no ordinary file"):
        digest_of(tmp_path, "d")


def test_a_path_below_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(KoubouError) as caught:
        write(tmp_path, "a/b.md", b"x")
    assert caught.value.code is Code.BAD_INPUT
