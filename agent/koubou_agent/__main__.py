"""The koubou-agent command: run, join, doctor, setup-cli."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from koubou_agent.agent import STOP_GRACE_S, Agent
from koubou_agent.config import agent_config
from koubou_agent.doctor import Finding, examine
from koubou_agent.join import ensure_key
from koubou_agent.join import join as join_workshop
from koubou_agent.setup_cli import DEFAULT_TIMEOUT_S
from koubou_agent.setup_cli import setup_cli as install_cli
from koubou_agent.single import SingleAgent
from koubou_common import logs
from koubou_common.errors import Code, KoubouError
from koubou_common.home import ENVIRONMENT_NAME, Home

_EXIT_CODES = {  # design, section 11
    Code.NOT_AUTHORISED: 4,
    Code.KEY_NOT_ENROLLED: 4,
    Code.NOT_FOUND: 5,
    Code.BROKER_UNREACHABLE: 6,
    Code.WRONG_BROKER_KEY: 6,
    Code.NOT_A_BROKER: 6,
    Code.BAD_CONFIGURATION: 8,
}
_EXIT_REFUSED = 7
_JSON_VERSION = 1
_MARKS = {Finding.OK: "ok     ", Finding.WARNING: "warning", Finding.FAULT: "FAULT  "}

_home_option = click.option(
    "--home",
    type=click.Path(file_okay=False),
    help=f"Folder of config, keys and state (else ${ENVIRONMENT_NAME}, else ~/.koubou).",
)
_config_option = click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="agent.yaml to use.")
_worker_option = click.option("--worker-id", help="The worker this agent is.")
_ollama_option = click.option("--ollama-url", help="The Ollama beside this agent.")


class _Group(click.Group):
    """`koubou-agent --worker-id ID` means `koubou-agent run --worker-id ID`; errors are told, not traced."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "--version")):
            args = ["run", *args]
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KoubouError as error:
            _complain(error)
            context.exit(_EXIT_CODES.get(error.code, _EXIT_REFUSED))


@click.group(cls=_Group)
@click.version_option(package_name="koubou-system", prog_name="koubou-agent")
def main() -> None:
    """The craftsman beside an Ollama: takes tasks from the broker and runs gemini-repo-cli for each."""


@main.command()
@_worker_option
@_config_option
@_home_option
@_ollama_option
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    default=STOP_GRACE_S,
    show_default=True,
    help="Seconds that running tasks get to finish after SIGTERM or Ctrl-C; a second one ends at once.",
)
def run(
    worker_id: str | None, config: Path | None, home: str | None, ollama_url: str | None, stop_timeout: float
) -> None:
    """Work until stopped."""
    place = Home.from_env(os.environ, home)
    settings = agent_config(place, worker_id=worker_id, given=config, ollama_url=ollama_url)
    logs.set_up(settings.settings.log_level, settings.settings.log_format)
    with SingleAgent(settings.state_dir, settings.worker_id):
        agent = Agent(settings, ensure_key(settings))
        asked = 0

        def stop(_signal: int, _frame: FrameType | None) -> None:
            nonlocal asked
            asked += 1
            agent.stop(stop_timeout if asked == 1 else 0.0)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        click.echo(
            f"agent of {settings.worker_id}: broker {', '.join(settings.addresses)}, Ollama {settings.ollama_url}",
            err=True,
        )
        end = agent.run()
    if end.code:
        click.echo(f"koubou-agent: {end.message}", err=True)
    sys.exit(end.code)


@main.command()
@click.argument("given", metavar="TOKEN|-")
@_home_option
def join(given: str, home: str | None) -> None:
    """Join the workshop with the TOKEN an operator gave you; `-` reads it from stdin."""
    place = Home.from_env(os.environ, home)
    done = join_workshop(sys.stdin.read() if given == "-" else given, place)
    click.echo(f"{done.worker_id} joined the workshop at {done.address}")
    if done.kept_as is not None:
        click.echo(f"your earlier settings are kept in {done.kept_as}")
    where = f" --home {home}" if home else ""
    click.echo(f"settings: {done.config_file}\nnext: koubou-agent run{where} --worker-id {done.worker_id}")


@main.command()
@_worker_option
@_config_option
@_home_option
@_ollama_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(worker_id: str | None, config: Path | None, home: str | None, ollama_url: str | None, as_json: bool) -> None:
    """Look at everything that could keep this agent from working; exit code 1 if something does."""
    place = Home.from_env(os.environ, home)
    checks = examine(place, worker_id=worker_id, given=config, ollama_url=ollama_url)
    if as_json:
        data = [{"check": c.name, "finding": str(c.finding), "detail": c.detail, "fix": c.fix} for c in checks]
        click.echo(json.dumps({"v": _JSON_VERSION, "data": {"checks": data}}, ensure_ascii=False))
    else:
        for check in checks:
            click.echo(f"{_MARKS[check.finding]}  {check.name}: {check.detail}")
            if check.fix and check.finding is not Finding.OK:
                click.echo(f"         -> {check.fix}")
    sys.exit(int(any(check.finding is Finding.FAULT for check in checks)))


@main.command("setup-cli")
@click.option("--from", "source", help="git, an archive, a folder, a git+ URL, or stand-in (simulated).")
@click.option("--timeout", type=click.FloatRange(min=1), default=DEFAULT_TIMEOUT_S, show_default=True)
@_home_option
def setup_cli(source: str | None, timeout: float, home: str | None) -> None:
    """Install gemini-repo-cli, at the commit Koubou is tested with, in an environment of its own."""
    place = Home.from_env(os.environ, home)
    info = install_cli(place.root, None if source in (None, "git") else source, timeout_s=timeout)
    commit = f" (commit {info.commit[:12]})" if info.commit else ""
    click.echo(f"{info.kind} {info.version}{commit} is ready in {info.python}")


def _complain(error: KoubouError) -> None:
    click.echo(f"koubou-agent: {error.message}", err=True)
    if error.hint:
        click.echo(f"  -> {error.hint}", err=True)


if __name__ == "__main__":
    main()
