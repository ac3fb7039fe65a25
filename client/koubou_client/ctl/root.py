"""The command table: names and one line each, so that `--help` imports no command."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from koubou_client.ctl.output import DETACHED, OK, USAGE, Output, exit_code_of
from koubou_common.did_you_mean import did_you_mean
from koubou_common.errors import Code, KoubouError

# name -> (module below this package, one line for --help); in the order a newcomer meets them
COMMANDS = {
    "submit": ("submit", "Submit a task, or many with --jsonl; --wait prints the output."),
    "status": ("status", "The workshop at a glance: broker, workers, queue, what needs you."),
    "ps": ("ps", "Tasks that wait or run; -a for all."),
    "show": ("show", "A task's whole story: attempts, events, placement."),
    "explain": ("explain", "Why a task ran where it ran, or what it waits for."),
    "wait": ("wait", "Wait for tasks or batches; exit 1 if any failed."),
    "result": ("result", "Print an output, or write it to its file."),
    "logs": ("logs", "What gemini-repo-cli logged, attempt by attempt."),
    "cancel": ("cancel", "Cancel tasks or batches."),
    "retry": ("retry", "Open failed or cancelled tasks again."),
    "workers": ("workers", "List, show, invite, pause, resume, drain, remove workers."),
    "stats": ("stats", "What the workers did: attempts, times, tokens, errors."),
    "keys": ("keys", "List, invite, revoke the keys of people and workers."),
    "backup": ("backup", "Copy the broker's database into a file, while it works."),
    "purge": ("purge", "Remove the texts of ended tasks for good."),
    "parked": ("parked", "Results that a restored database does not know."),
    "join": ("join", "Use a broker elsewhere, with an invitation's token."),
    "config": ("config", "Check and show settings; print their JSON schema."),
    "doctor": ("doctor", "Look for what is wrong, and say how to mend it."),
    "up": ("up", "Broker and local agents on this machine, in one command."),
    "demo": ("demo", "See it work, with simulated Ollamas."),
    "completion": ("completion", "Print the completion script of bash, zsh or fish."),
    "version": ("version", "Print the versions of Koubou and of what it stands on."),
}

_EPILOG = """\b
Examples:
  koubou-ctl submit "Write docstrings" -f src/a.py -o docs/a.md --wait
  koubou-ctl submit --jsonl tasks.jsonl
  koubou-ctl wait b12 && koubou-ctl result b12 --write

\b
Exit codes: 0 ok, 1 a task failed, 2 usage, 3 wait timed out, 4 not authorised, 5 not found,
6 broker unreachable, 7 refused, 8 bad configuration, 130 detached by Ctrl-C."""


class ReaderGone(Exception):  # noqa: N818 - no error: the reader of our output has enough
    """Nobody reads stdout any more."""


class LazyGroup(click.Group):
    """Finds commands in COMMANDS and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the table's order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command behind a name: only now is its module imported."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = importlib.import_module(f"koubou_client.ctl.{module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named first, or a usage error with the name that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"{error.message} {hint}".rstrip(), ctx) from error

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; click would call a reader that has enough (`| head`) a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, straight from the table."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", metavar="DIR", help="Koubou's folder (default: $KOUBOU_HOME, else ~/.koubou).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; errors as JSON on stderr.")
@click.option("--connect-timeout", type=float, default=5.0, metavar="S", help="Seconds to find the broker (5).")
@click.pass_context
def root(ctx: click.Context, home: str | None, as_json: bool, connect_timeout: float) -> None:
    """Koubou: a durable work queue for the language models of your own machines."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = Output(as_json=as_json, home=home, connect_timeout_s=connect_timeout)


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run koubou-ctl and exit with the documented code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a poor terminal must not turn an answer into a crash
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `--json` may stand anywhere before `--`: people append it.
    arguments, as_json = _hoist(given)
    output = Output(as_json=as_json, home=None)
    try:
        code = root.main(arguments, prog_name="koubou-ctl", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else OK)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        if as_json:
            output.error(KoubouError(Code.BAD_INPUT, error.format_message(), "koubou-ctl --help"))
        else:
            error.show()
        sys.exit(USAGE)
    except KoubouError as error:
        output.error(error)
        sys.exit(exit_code_of(error))
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")
        sys.exit(DETACHED)
    except (BrokenPipeError, ReaderGone):
        # The reader (head, say) has enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)


def _hoist(arguments: list[str]) -> tuple[list[str], bool]:
    """Move `--json` in front of the command, wherever it stands before `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:end], arguments[end:]
    as_json = "--json" in head or os.environ.get("KOUBOU_OUTPUT") == "json"
    rest = [argument for argument in head if argument != "--json"]
    return ["--json"] * as_json + rest + tail, as_json
