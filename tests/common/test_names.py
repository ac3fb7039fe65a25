"""Names of files that mean the same, safe place on every side and system."""

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koubou_common.names import NAME_BYTES, name_fault


@pytest.mark.parametrize(
    "name",
    [
        "a.py", "src/koubou/a.py", ".gitignore", "a b.txt", "工房/職人.md", "a..b", "..a", "a-b_c+d@e", "console.py",
        "nulls.txt", "x" * NAME_BYTES, "é", "ab:c", "com10", "lpt",
    ],
)  # fmt: skip
def test_ordinary_names_are_safe(name: str) -> None:
    assert name_fault(name) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        ("/etc/passwd", "absolute"),
        ("~/x", "absolute"),
        ("~root", "absolute"),
        ("C:/x", "absolute"),
        ("c:x", "absolute"),
        ("\\\\server\\share", "absolute"),
        ("a\\b", "backslash"),
        ("..", "leads outside"),
        ("a/../b", "leads outside"),
        ("a/..", "leads outside"),
        (".", "empty part or '.'"),
        ("./a", "empty part or '.'"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a\0b", "control character (U+0000)"),
        ("a\nb", "control character (U+000A)"),
        ("a\x1b[31m", "control character (U+001B)"),
        ("a\x9bb", "control character (U+009B)"),
        ("a\u202eyp.exe", "invisible character (U+202E)"),
        ("a\u200bb", "invisible character"),
        ("a\ud800b", "half a character"),
        ("a\u2028b", "line separator"),
        ("a\u2029b", "paragraph separator"),
        ("CON", "device on Windows"),
        ("src/nul.txt", "device on Windows"),
        ("Com1.log", "device on Windows"),
        ("a ", "space or a dot"),
        ("a./b", "space or a dot"),
        ("x" * (NAME_BYTES + 1), "longer than 255 bytes"),
        ("房" * 86, "longer than 255 bytes"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, said: str) -> None:
    assert said in name_fault(name)


@given(st.text(max_size=40) | st.from_regex(r"[./\\~:a-c]{1,12}", fullmatch=True))
def test_no_safe_name_leaves_its_root_on_any_system(name: str) -> None:
    if name_fault(name):
        return
    assert not PurePosixPath(name).is_absolute()
    assert not PureWindowsPath(name).anchor
    assert ".." not in PurePosixPath(name).parts
    assert ".." not in PureWindowsPath(name).parts
    assert str(PurePosixPath(name)) == name
