"""The frame of koubou-ctl: imports, help, errors, exit codes, JSON everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from koubou_client.ctl.output import Output, clean, exit_code_of
from koubou_client.ctl.root import COMMANDS
from koubou_common.errors import Code, KoubouError
from koubou_common.messages import Error, GetStatus
from support.ctl import Ctl
from support.fake_workshop import FakeWorkshop, a_view

HEAVY = ("sqlalchemy", "requests", "pydantic", "rich", "alembic", "zmq", "msgpack", "yaml")
DAILY = ("submit", "status", "ps", "show", "wait", "result", "logs", "cancel", "retry", "version")


def _imported_by(*arguments: str) -> set[str]:
    program = (
        "import sys\n"
        "from koubou_client.ctl.root import run\n"
        "try:\n"
        f"    run({list(arguments)!r})\n"
        "except SystemExit:\n"
        "    print('|' + ' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    return {name.partition(".")[0] for name in done.stdout.rpartition("|")[2].split()}


def test_help_imports_nothing_heavy() -> None:
    imported = _imported_by("--help")
    assert "click" in imported
    assert imported.isdisjoint(HEAVY)


def test_help_imports_no_command() -> None:
    program = (
        "import sys\nfrom koubou_client.ctl.root import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit:\n    print('|' + ' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(done.stdout.rpartition("|")[2].split())
    assert not loaded & {f"koubou_client.ctl.{module}" for module, _ in COMMANDS.values()}


def test_help_of_a_command_imports_no_socket_library() -> None:
    assert _imported_by("status", "--help").isdisjoint(HEAVY)


def test_help_names_every_command_with_a_line(ctl: Ctl) -> None:
    shown = ctl("--help").out
    for name, (_, line) in COMMANDS.items():
        assert name in shown
        assert " ".join(line.split()) in " ".join(shown.split())


@pytest.mark.parametrize("name", DAILY)
def test_every_daily_command_explains_itself(ctl: Ctl, name: str) -> None:
    ran = ctl(name, "--help")
    assert ran.code == 0
    assert f"koubou-ctl {name}" in ran.out


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(ctl: Ctl) -> None:
    ran = ctl("sumbit")
    assert ran.code == 2
    assert "submit" in ran.err
    assert ran.out == ""


def test_usage_errors_are_json_where_json_was_asked_for(ctl: Ctl) -> None:
    ran = ctl("ps", "--state", "sleeping", "--json")
    assert ran.code == 2
    assert ran.error["code"] == "bad_input"
    assert "sleeping" in ran.error["message"]


def test_json_may_stand_anywhere_but_behind_two_dashes(ctl: Ctl, workshop: FakeWorkshop) -> None:
    for arguments in (("--json", "ps"), ("ps", "--json")):
        assert ctl(*arguments).data == []
    assert ctl("submit", "--", "--json").out == "142\n"


def test_json_can_be_asked_for_by_the_environment(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOUBOU_OUTPUT", "json")
    assert ctl("ps").data == []


def test_errors_say_what_happened_and_how_to_mend_it(tmp_path: Path) -> None:
    ran = Ctl(tmp_path / "nowhere")("ps")
    assert ran.code == 8
    assert ran.err.startswith("error[bad-configuration]: no broker is known here")
    assert "\n  fix: `koubou-ctl join TOKEN`" in ran.err
    as_json = Ctl(tmp_path / "nowhere")("ps", "--json")
    assert as_json.code == 8
    assert as_json.error["code"] == "bad_configuration"
    assert as_json.out == ""


def test_a_broker_that_is_down_is_exit_6(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.kill()
    ran = ctl("--connect-timeout", "0.3", "ps")
    assert ran.code == 6
    assert "nothing listens" in ran.err
    workshop.revive()


def test_a_key_that_is_not_enrolled_is_exit_4(ctl: Ctl, workshop: FakeWorkshop) -> None:
    workshop.door.access.revoke(workshop.pair.public)
    assert ctl("ps").code == 4


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.NOT_AUTHORISED, 4),
        (Code.NOT_FOUND, 5),
        (Code.REFUSED, 7),
        (Code.UNKNOWN_MODEL, 7),
        (Code.STORE_FULL, 7),
        (Code.CONFLICT, 7),
        (Code.BAD_INPUT, 2),
    ],
)
def test_what_the_broker_refuses_has_its_exit_code(ctl: Ctl, workshop: FakeWorkshop, code: Code, expected: int) -> None:
    workshop.hook = lambda message: (
        [Error(code, "the reason", "the remedy", message.request_id)] if isinstance(message, GetStatus) else None
    )
    ran = ctl("status", "--json")
    assert ran.code == expected
    assert ran.error == {"code": code.value, "message": "the reason", "hint": "the remedy"}


def test_every_code_has_an_exit_code_of_the_contract() -> None:
    assert {exit_code_of(KoubouError(code, "")) for code in Code} <= {1, 2, 3, 4, 5, 6, 7, 8, 130}


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    text = "a\x1b[31mred\x07\x9b2J\u202eevil\u200b\tb\nc\r"
    assert clean(text) == "a[31mred2Jevil\tb\nc"


def test_a_reader_that_has_enough_is_no_failure(workshop: FakeWorkshop) -> None:
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "ps", "-a", "-n", "5000"]
    for number in range(3_000):
        workshop.tasks[number + 1] = a_view(number + 1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said


def test_a_terminal_without_our_letters_gets_an_answer_all_the_same(workshop: FakeWorkshop) -> None:
    workshop.tasks[7] = a_view(7, target="工房.md")
    command = [sys.executable, "-m", "koubou_client.ctl", "--home", str(workshop.home.root), "ps", "-a"]
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, check=True, timeout=30
    )
    assert rb"\u5de5\u623f.md" in done.stdout
    as_json = subprocess.run(
        [*command, "--json"], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True, timeout=30
    )
    assert json.loads(as_json.stdout)["data"][0]["target"] == "工房.md"


def test_notes_are_silent_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).note("hint")
    Output(as_json=False).note("hint")
    assert capsys.readouterr().err == "hint\n"
