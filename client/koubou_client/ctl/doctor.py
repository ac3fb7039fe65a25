"""`koubou-ctl doctor`: what is wrong here, and how to mend it."""

import os

import click

from koubou_client.ctl.findings import Check, Finding
from koubou_client.ctl.output import OK, Output

_EXIT_FAULT = 1


@click.command()
@click.pass_obj
def command(output: Output) -> int:
    """Look at keys, broker, workers, and what else of Koubou is on this host; exit 1 if something does not work."""
    # They pull in ZeroMQ, which --help must not pay for.
    from koubou_client.ctl.doctor_broker import look_at_broker  # noqa: PLC0415
    from koubou_client.ctl.doctor_host import look_at_host  # noqa: PLC0415
    from koubou_client.where import home_of  # noqa: PLC0415

    home = home_of(os.environ, output.home)
    checks: list[Check] = []
    for part in (look_at_host(home), look_at_broker(home, output.connect_timeout_s)):
        for check in part:
            checks.append(check)
            if not output.as_json:
                _say(output, check)
    faults = sum(check.finding is Finding.FAIL for check in checks)
    warnings = sum(check.finding is Finding.WARN for check in checks)
    if output.as_json:
        output.data(
            {
                "home": str(home.root),
                "ok": not faults,
                "checks": [
                    {"check": one.name, "finding": one.finding.value, "detail": one.detail, "fix": one.fix or None}
                    for one in checks
                ],
            }
        )
    else:
        output.say(f"\n{_count(faults, 'fault')}, {_count(warnings, 'warning')} in {home.root}")
    return _EXIT_FAULT if faults else OK


def _say(output: Output, check: Check) -> None:
    detail = check.detail.replace("\n", "\n        ")
    output.say(f"{check.finding.value:<6}{check.name}: {detail}")
    if check.fix and check.finding is not Finding.OK:
        output.say("      fix: " + check.fix.replace("\n", "\n           "))


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
