"""What the documents say is so: commands, message types, links, versions, and both READMEs alike."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import click
import pytest

from koubou_agent.__main__ import main as koubou_agent
from koubou_broker.__main__ import cli as koubou_broker
from koubou_client.ctl.root import root as koubou_ctl
from koubou_common import __version__
from koubou_common.codec import type_name
from koubou_common.messages import BlobMessage, FromAgent, FromClient, Message, ToAgent, ToClient
from support.house import ROOT, pyproject

PROGRAMS: dict[str, click.Command] = {
    "koubou-ctl": koubou_ctl,
    "koubou-agent": koubou_agent,
    "koubou-broker": koubou_broker,
}
READMES = (ROOT / "README.md", ROOT / "README.ja.md")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CALL = re.compile(  # as whoever, from whatever folder
    r"^(?:sudo (?:-\w \S+ )*)?(?:[A-Z_]+=\S+ )*(?:[\w.~$/-]*/)?(koubou-(?:ctl|agent|broker)(?:\s.*)?)$"
)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
PASSED_ON = {("koubou-ctl", "demo")}  # commands that hand their options to a program of their own


@pytest.mark.parametrize("kind", ["sh", "python"])
def test_both_readmes_hold_the_same_commands(kind: str) -> None:
    english, japanese = (
        [_without_comments(body) for language, body in FENCE.findall(_text(page)) if language == kind]
        for page in READMES
    )
    assert english == japanese
    assert english


def test_both_readmes_have_the_same_sections_tables_and_links() -> None:
    english, japanese = (_shape(_text(page)) for page in READMES)
    assert english == japanese


def test_the_start_is_five_commands() -> None:
    first = next(body for language, body in FENCE.findall(_text(READMES[0])) if language == "sh")
    assert len(_without_comments(first)) == 5


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_command_a_page_names_exists_with_its_options(page: Path) -> None:
    faults = [fault for call in _calls(_text(page)) if (fault := _fault(call))]
    assert not faults, "\n".join(faults)


def test_the_readmes_name_commands_of_all_three_programs() -> None:
    named = {call.split()[0] for page in READMES for call in _calls(_text(page))}
    assert named == set(PROGRAMS)


@pytest.mark.parametrize(
    "call",
    [
        "koubou-ctl sumbit x",
        "koubou-ctl submit x --strict",
        "koubou-ctl workers invite lan_001 --role client",
        "koubou-agent setup-cli --now",
        "koubou-ctl demo --now",
    ],
)
def test_the_check_sees_a_command_that_does_not_exist(call: str) -> None:
    assert _fault(call)


def test_the_check_sees_commands_wherever_they_stand() -> None:
    block = "```sh\nsudo -u me /opt/bin/koubou-agent doctor  # now\ncat x | koubou-ctl submit -\n```\n"
    assert list(_calls(f"Say `koubou-ctl ps -a`.\n{block}")) == [
        "koubou-agent doctor",
        "koubou-ctl submit -",
        "koubou-ctl ps -a",
    ]


def test_every_target_of_make_that_a_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in READMES:
        assert set(re.findall(r"(?:^|`)make ([a-z_]+)", _text(page), re.MULTILINE)) <= targets


def test_the_readmes_list_the_exit_codes_of_the_help() -> None:
    told = re.findall(r"\b(\d+) [a-z]", (koubou_ctl.epilog or "").partition("Exit codes:")[2])
    assert len(told) == 10
    for page in READMES:
        assert re.findall(r"^\| (\d+) \|", _text(page), re.MULTILINE) == told


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_internal_link_leads_somewhere(page: Path) -> None:
    inside = [link.partition("#")[0] for link in LINK.findall(_text(page)) if not link.startswith("http")]
    assert not [link for link in inside if link and not (page.parent / link).exists()]


def test_the_protocol_names_every_message_type_and_no_other() -> None:
    answers = re.findall(r"^\| `[^|]*\|([^|]*)\|", _section("From a client"), re.MULTILINE)
    assert _first_cells(_protocol()) | _code(answers) == _names(Message)


@pytest.mark.parametrize(
    ("section", "union"),
    [("From an agent", FromAgent), ("To an agent", ToAgent), ("From a client", FromClient)],
)
def test_the_protocol_names_a_message_under_its_direction(section: str, union: object) -> None:
    assert _first_cells(_section(section)) == _names(union)


def test_the_protocol_names_every_answer_to_a_client() -> None:
    assert _names(ToClient) <= _code([_section("From a client")])


def test_the_protocol_says_who_may_send_what() -> None:
    senders = _names(FromAgent) | _names(FromClient) | _names(BlobMessage)
    assert _first_cells(_section("Who may say what")) == senders


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=[page.name for page in DECISIONS])
def test_a_decision_begins_with_its_number(page: Path) -> None:
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", page.name)
    assert _text(page).startswith(f"# {int(page.name[:4])}. ")


def test_versions_agree() -> None:
    assert pyproject()["project"]["version"] == __version__
    changes = re.findall(r"^## \[?(\d+\.\d+\.\d+)", _text(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert not changes or changes[0] == __version__


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _protocol() -> str:
    return _text(ROOT / "docs" / "protocol.md")


def _section(title: str) -> str:
    return _protocol().partition(f"## {title}\n")[2].partition("\n## ")[0]


def _first_cells(tables: str) -> set[str]:
    """Everything in code in the first column."""
    return _code(re.findall(r"^\| (`[^|]*)\|", tables, re.MULTILINE))


def _code(texts: list[str]) -> set[str]:
    return {name for text in texts for name in CODE.findall(text)}


def _names(union: object) -> set[str]:
    return {type_name(message) for message in get_args(union)}


def _without_comments(block: str) -> list[str]:
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).rstrip() for line in block.splitlines())
    return [line for line in lines if line]


def _shape(text: str) -> tuple[list[str], list[int], set[str]]:
    """Levels of headings, cells of every table row, links but for those between the two languages."""
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    links = {link for link in LINK.findall(text) if not link.startswith("README")}
    return HEADING.findall(FENCE.sub("", text)), rows, links


def _calls(text: str) -> Iterator[str]:
    """Every call of a program of ours, in blocks of commands and in code within a sentence."""
    lines = [line for language, body in FENCE.findall(text) if language == "sh" for line in _without_comments(body)]
    parts = [part for line in lines for part in re.split(r"\s*(?:&&|\||;)\s+", line)]
    for part in [*parts, *CODE.findall(FENCE.sub("", text))]:
        if found := CALL.match(part.strip()):
            yield found[1]


def _fault(call: str) -> str:
    """What is wrong with a call; "" if it would be understood. Arguments in capitals stand for anything."""
    program, *words = shlex.split(call.replace("...", "").replace("…", ""), comments=True)
    command, options = PROGRAMS[program], {"--help"}
    path = [program]
    for word in words:
        name = word.partition("=")[0].strip("[]")
        if isinstance(command, click.Group) and not name.startswith("-"):
            found = command.get_command(click.Context(command), name)
            if found is None:
                is_placeholder = not name or name.isupper()
                return "" if is_placeholder else f"`{call}`: {' '.join(path)} has no command {name}"
            options |= _options(command)
            command, path = found, [*path, name]
            continue
        known = options | _options(command) | _passed_on(tuple(path)) | _of_run(command) | {"-", "--"}
        if name.startswith("-") and name not in known:
            return f"`{call}`: {' '.join(path)} has no option {name}"
    return ""


def _options(command: click.Command) -> set[str]:
    params = command.get_params(click.Context(command))
    return {name for param in params for name in (*param.opts, *param.secondary_opts)}


def _of_run(command: click.Command) -> set[str]:
    """The daemons take the options of `run` without the word."""
    run = command.commands.get("run") if isinstance(command, click.Group) else None
    return _options(run) if run is not None else set()


@cache
def _passed_on(path: tuple[str, ...]) -> frozenset[str]:
    if path not in PASSED_ON:
        return frozenset()
    ran = subprocess.run(
        [sys.executable, "-m", "koubou_simulator.demo", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", ran.stdout))
