"""`koubou-ctl demo`: the whole workshop, simulated, in a process of its own."""

import subprocess
import sys

import click

from koubou_client.ctl.output import Output

_SIGNALLED = 128  # how shells count a process that a signal ended


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(output: Output, arguments: tuple[str, ...]) -> int:
    """See it work: broker, agents and simulated Ollamas on this machine."""
    asked = [*arguments, *(["--json"] if output.as_json else [])]
    child = subprocess.Popen([sys.executable, "-m", "koubou_simulator.demo", *asked])
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            # The terminal has interrupted the demo as well: it takes down what it started, and says so.
            continue
        return code if code >= 0 else _SIGNALLED - code
