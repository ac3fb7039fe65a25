"""What `koubou-ctl doctor` finds: one thing looked at, how it stands, how to mend it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from koubou_common.errors import KoubouError


class Finding(StrEnum):
    """How one check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    finding: Finding
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """Nothing to do."""
    return Check(name, Finding.OK, detail)


def warn(name: str, detail: str, fix: str = "") -> Check:
    """It works, but not as well or as safely as it could."""
    return Check(name, Finding.WARN, detail, fix)


def fail(name: str, detail: str, fix: str = "") -> Check:
    """Something does not work."""
    return Check(name, Finding.FAIL, detail, fix)


def failed(name: str, error: KoubouError) -> Iterator[Check]:
    """An error as a finding."""
    yield fail(name, error.message, error.hint)
