"""koubou-broker: run the broker, set its home up, check its settings, upgrade its database."""

import logging
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from koubou_broker import migrate
from koubou_broker.config import Configuration, read_configuration
from koubou_broker.database import said
from koubou_broker.parts import StopBroker
from koubou_broker.restoration import restore
from koubou_broker.server import Server
from koubou_broker.soundness import damaged, faults_of, refuse_foreign
from koubou_broker.start import Places, locked, prepare, running
from koubou_common import __version__, logs
from koubou_common.errors import Code, KoubouError
from koubou_common.home import Home
from koubou_common.keys import fingerprint
from koubou_common.notify import sd_notify
from koubou_common.settings import BrokerSettings, WorkersFile, example

EXIT_FAILED, EXIT_USAGE, EXIT_BAD_CONFIGURATION = 1, 2, 8  # the contract of all our commands

_RESTORED = """\
This means
  - tasks accepted after the backup are gone: whoever holds such an id is told so, and submits again
  - tasks that ended after the backup are as they were then: what was still to be done is done again
  - results of attempts that the backup does not know are parked: koubou-ctl parked
  - keys invited or revoked after the backup are as they were then: koubou-ctl keys list
next      koubou-broker, or: systemctl start koubou-broker"""

_OWN_FILES = 256  # database, keys, sockets between threads

_SWITCH_S = 0.0005  # one thread computes no longer when another could: an answer passes through three of them
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OF_THE_GROUP = ("-h", "--help", "--version")

log = logging.getLogger("koubou_broker")

_home_option = click.option(
    "--home", type=click.Path(path_type=Path), help="Folder of config, keys and state (default: $KOUBOU_HOME)."
)
_config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings (default: HOME/config/broker.yaml)."
)


class _RunByDefault(click.Group):
    """`koubou-broker --home X` is `koubou-broker run --home X`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in _OF_THE_GROUP):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="koubou-broker")
def cli() -> None:
    """The broker of a Koubou workshop: keeps tasks safely and decides who works on what.

    Without a command it runs (`run`).
    """


@cli.command()
@_config_option
@_home_option
@click.option("--bind", multiple=True, metavar="ADDRESS", help="Where to listen, instead of what broker.yaml says.")
def run(config_file: Path | None, home: Path | None, bind: tuple[str, ...]) -> None:
    """Run in the foreground until Ctrl-C or SIGTERM."""
    place = Home.from_env(os.environ, home)
    configuration = read_configuration(place, config_file, bind)
    logs.set_up(configuration.broker.log_level, configuration.broker.log_format)
    for worker_id in configuration.driven_from_here:
        log.warning("worker %s is driven from here: its Ollama is open to everybody on its network", worker_id)
    _serve(place, configuration)


@cli.command()
@_home_option
def init(home: Path | None) -> None:
    """Make folders, keys, database and commented settings; what is there is kept."""
    place = Home.from_env(os.environ, home)
    with locked(place):
        keys = prepare(place)
        migrate.prepare(Places(place).database)
    made = [
        path
        for path, text in (
            (place.config_file("broker"), example(BrokerSettings)),
            (place.config_file("workers"), example(WorkersFile)),
        )
        if _write_new(path, text)
    ]
    click.echo(f"home   {place.root}")
    click.echo(f"key    {fingerprint(keys.broker.public)}")
    for path in made:
        click.echo(f"wrote  {path}")
    click.echo("next   edit the settings if you like, then: koubou-broker")


@cli.command("check-config")
@_config_option
@_home_option
def check_config(config_file: Path | None, home: Path | None) -> None:
    """Read the settings, say what is wrong with them, do nothing else."""
    place = Home.from_env(os.environ, home)
    configuration = read_configuration(place, config_file)
    workers = configuration.workers.all_workers()
    click.echo(f"the settings are good: {len(workers)} workers, listening on {', '.join(configuration.broker.bind)}")


@cli.command("migrate")
@_home_option
def migrate_(home: Path | None) -> None:
    """Bring the database to this release's tables (a start does that as well); a copy is made first."""
    place = Home.from_env(os.environ, home)
    with locked(place):
        changed = migrate.prepare(Places(place).database)
    click.echo("the database was brought up to date" if changed else "the database is up to date")


@cli.command("check-database")
@_home_option
def check_database(home: Path | None) -> None:
    """Look at all of the database and every stored text, with the broker stopped; exit code 1 if it is damaged."""
    place = Home.from_env(os.environ, home)
    path = Places(place).database
    if not path.exists():
        raise KoubouError(Code.NOT_FOUND, f"there is no database {path}", "is this the broker's home (--home)?")
    with locked(place):
        refuse_foreign(path)
        faults = faults_of(path)
    if faults:
        raise damaged(path, faults)
    click.echo(f"the database is whole: {path}, {path.stat().st_size / 2**20:,.1f} MiB")


@cli.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@_home_option
def restore_(file: Path, home: Path | None) -> None:
    """Put a backup in the database's place, with the broker stopped; the present one is kept beside it."""
    place = Home.from_env(os.environ, home)
    logs.set_up("warning", "auto")
    _refuse_other_account(place)
    with locked(place):
        restored = restore(file.absolute(), Places(place).database)
    click.echo(f"restored  {file}: {restored.tasks} tasks, {restored.live} of them still to be done")
    click.echo(f"kept      {restored.kept or 'nothing: there was no database'}")
    if not place.key_file("broker").exists():
        click.echo(f"keys      none in {place.keys}: put the old ones there, or every box and person must join again")
    click.echo(_RESTORED)


def main() -> None:
    """The console script: every error a person can mend is told in a person's words."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KoubouError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(EXIT_BAD_CONFIGURATION if error.code is Code.BAD_CONFIGURATION else EXIT_FAILED)


def _refuse_other_account(home: Home) -> None:
    """Root would leave files that the service's account cannot open."""
    if not home.root.exists() or os.geteuid() != 0:
        return
    owner = home.root.stat().st_uid
    if owner != 0:
        raise KoubouError(
            Code.REFUSED,
            f"{home.root} belongs to another account, which could not open the restored database",
            f"sudo -u '#{owner}' koubou-broker restore FILE --home {home.root}",
        )


def _serve(home: Home, configuration: Configuration) -> None:
    _allow_files(configuration.broker.limits.max_sessions)
    try:
        with running(home, configuration) as broker:
            _stop_on_signal(broker.server)
            click.echo(f"koubou-broker {__version__}")
            click.echo(f"address  {' '.join(broker.addresses)}")
            click.echo(f"key      {broker.fingerprint}")
            click.echo(f"home     {home.root}")
            click.echo("look     koubou-ctl status")
            if broker.is_first_start:
                click.echo("next     koubou-agent run --worker-id local_001    (a box: koubou-ctl workers invite ID)")
            sys.stdout.flush()
            sd_notify(f"STATUS=listening on {' '.join(broker.addresses)}")
            sys.setswitchinterval(_SWITCH_S)
            if broker.server.run():
                log.info("stopped: everything taken in is stored")
            else:
                log.warning("stopped while the disk was blocked: what was not stored was told to nobody")
    except StopBroker as stop:
        # systemd starts a new broker, which begins with what is stored.
        log.critical("the broker stops: %s", stop)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        raise KoubouError(Code.INTERNAL, f"the broker cannot run: {said(error)}") from error


def _stop_on_signal(server: Server) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in _STOP_SIGNALS:
            # A second one ends the process where it stands: a kill at any instant loses nothing that was told.
            signal.signal(number, signal.SIG_DFL)
        server.stop()

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)


def _allow_files(sessions_max: int) -> None:
    """Raise the soft limit of open files, often 1,024, to what a full house needs."""
    wanted = 2 * sessions_max + _OWN_FILES  # as many strangers again may be in their handshake
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("only %d files may be open here, max_sessions of %d asks for %d", most, sessions_max, wanted)


def _write_new(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    main()
