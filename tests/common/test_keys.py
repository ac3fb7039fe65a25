"""CURVE keys: files that only their owner can use, and that survive."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_common.errors import Code, KoubouError
from koubou_common.keys import (
    KeyPair,
    fingerprint,
    is_key,
    new_key_pair,
    pair_of,
    read_key_pair,
    read_public,
    write_key_pair,
    write_public,
)

posix = pytest.mark.skipif(os.name != "posix", reason="modes, owners and links are POSIX")


def refusal(path: Path) -> KoubouError:
    with pytest.raises(KoubouError) as caught:
        read_key_pair(path)
    assert caught.value.code is Code.BAD_CONFIGURATION
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.key"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_new_pairs_are_z85_keys_that_belong_together_and_differ() -> None:
    one, other = new_key_pair(), new_key_pair()
    assert is_key(one.public)
    assert is_key(one.secret)
    assert pair_of(one.secret) == one
    assert one.public != other.public


def test_a_pair_never_shows_its_secret() -> None:
    pair = new_key_pair()
    assert pair.secret not in repr(pair)
    assert pair.secret not in f"{pair}"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pair = new_key_pair()
    write_key_pair(tmp_path / "own.key", pair)
    assert read_key_pair(tmp_path / "own.key") == pair
    assert read_public(tmp_path / "own.key") == pair.public


@posix
def test_the_file_is_private_whatever_the_umask_and_nothing_else_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "home" / "keys" / "own.key"
    before = os.umask(0)
    try:
        write_key_pair(path, new_key_pair())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["own.key"]


def test_the_file_explains_itself_and_is_yaml(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    for _ in range(50):
        pair = new_key_pair()
        write_key_pair(tmp_path / "own.key", pair, replace=True)
        text = (tmp_path / "own.key").read_text()
        assert text.startswith("# Koubou key pair")
        assert yaml.safe_load(text) == {"public": pair.public, "secret": pair.secret}


def test_an_existing_key_is_kept_unless_it_shall_be_replaced(tmp_path: Path) -> None:
    path, first, second = tmp_path / "own.key", new_key_pair(), new_key_pair()
    write_key_pair(path, first)
    with pytest.raises(KoubouError, match="exists already") as caught:
        write_key_pair(path, second)
    assert caught.value.hint
    assert read_key_pair(path) == first
    write_key_pair(path, second, replace=True)
    assert read_key_pair(path) == second


def test_a_file_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.key").mkdir()
    with pytest.raises(KoubouError, match="cannot write") as caught:
        write_key_pair(tmp_path / "own.key", new_key_pair(), replace=True)
    assert caught.value.code is Code.BAD_CONFIGURATION
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.key"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(KoubouError, match="cannot write"):
        write_key_pair(tmp_path / "keys" / "own.key", new_key_pair())


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_file_that_others_can_use_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "own.key"
    write_key_pair(path, new_key_pair())
    path.chmod(mode)
    error = refusal(path)
    assert f"{mode:04o}" in error.message
    assert f"chmod 600 {path}" in error.hint
    with pytest.raises(KoubouError, match="other accounts"):
        read_public(path)


@posix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_account_is_refused_unless_that_one_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    write_key_pair(path, pair := new_key_pair())
    os.chown(path, 12_345, -1)
    assert "12345" in refusal(path).message
    assert read_key_pair(path, trusted_owner=12_345) == pair
    with pytest.raises(KoubouError, match="12345"):
        read_key_pair(path, trusted_owner=12_346)


@posix
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "real.key", new_key_pair())
    (tmp_path / "own.key").symlink_to(tmp_path / "real.key")
    assert "symbolic link" in refusal(tmp_path / "own.key").message


@posix
def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.key", 0o600)
    assert "ordinary file" in refusal(tmp_path / "own.key").message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.key")
    (tmp_path / "own.key").mkdir()
    refusal(tmp_path / "own.key")


def test_damaged_files_are_refused_without_quoting_them(tmp_path: Path) -> None:
    pair, other = new_key_pair(), new_key_pair()
    good = f'public: "{pair.public}"\nsecret: "{pair.secret}"\n'
    damaged = [
        "",
        "# only a comment\n",
        f'public: "{pair.public}"\n',
        f'secret: "{pair.secret}"\n',
        good[:-10],
        good.replace(pair.public, other.public),
        good.replace(pair.secret, pair.secret[:-1]),
        good.replace(pair.secret, "~" * 40),
        good.replace(pair.secret, "#" * 40),  # z85 characters, but five of them exceed 32 bits
        good + good,
        good + "role: operator\n",
        good + "#" * 5_000,
        good + "# \u5de5\u623f\n",
        "\0" * 200,
    ]
    for text in damaged:
        error = refusal(a_file(tmp_path, text))
        assert pair.secret[:20] not in error.message + error.hint


def test_comments_and_empty_lines_are_fine(tmp_path: Path) -> None:
    pair = new_key_pair()
    text = f'# mine\n\nsecret: "{pair.secret}"\r\npublic: "{pair.public}"  \n'
    assert read_key_pair(a_file(tmp_path, text)) == pair


@posix
def test_a_public_key_alone_may_be_read_by_everybody(tmp_path: Path) -> None:
    pair = new_key_pair()
    write_public(tmp_path / "broker.pub", pair.public)
    assert stat.S_IMODE((tmp_path / "broker.pub").stat().st_mode) == 0o644
    assert read_public(tmp_path / "broker.pub") == pair.public
    refusal(tmp_path / "broker.pub")


def test_fingerprints_are_short_stable_and_tell_keys_apart() -> None:
    assert fingerprint("0" * 40) == "mzuh-vlpy-mk6x-o3ep"  # people compare it across versions
    prints = {fingerprint(new_key_pair().public) for _ in range(50)}
    assert len(prints) == 50
    assert all(len(text) == 19 and text.count("-") == 3 for text in prints)


@given(st.text(max_size=60))
def test_no_text_breaks_the_check_for_keys(text: str) -> None:
    if is_key(text):
        assert isinstance(pair_of(text), KeyPair)
    else:
        with pytest.raises(ValueError, match="not a CURVE key"):
            pair_of(text)
