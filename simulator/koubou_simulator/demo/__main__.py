"""`python -m koubou_simulator.demo`: the whole workshop on this machine, played once and checked."""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from koubou_client.client import Client
from koubou_common.addresses import AddressError, check_ollama_url
from koubou_common.errors import KoubouError
from koubou_common.keys import fingerprint, read_public
from koubou_simulator.demo.cli_choice import Choice, choose
from koubou_simulator.demo.jobs import TASKS, drafts, jobs, source
from koubou_simulator.demo.play import Play, Trouble
from koubou_simulator.demo.report import (
    example_placement,
    models_at,
    next_steps,
    priorities_table,
    result_json,
    workers_table,
)
from koubou_simulator.demo.screen import Screen
from koubou_simulator.demo.stage import open_workshop
from koubou_simulator.demo.verdict import Verdict, judge
from koubou_simulator.workshop import StartError, Workshop

_SIMULATED_LIMIT_S = 180.0  # three times what a slow machine needs: something hangs
_REAL_LIMIT_S = 3_600.0  # thirty answers of a real model on a small machine
_ASK_S = 5.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


class _Interrupted(BaseException):
    """Somebody pressed Ctrl-C, or ended us otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every promise was kept, 1 when not, 130 after Ctrl-C."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.ollama:
        given.ollama, fault = _checked_ollama(given.ollama, given.model)
        if fault:
            parser.error(fault)
    elif given.model:
        parser.error("--model goes with --ollama URL: the simulated ones have their own")
    screen = Screen(is_silent=given.json)
    home = Path(tempfile.mkdtemp(prefix="koubou-demo-"))
    code = _FAILED
    try:
        with _signals_raise():
            code = _play(given, screen, home)
    except _Interrupted:
        screen.say("\nInterrupted; everything that was started has been ended.")
        code = _INTERRUPTED
    except (Trouble, StartError, KoubouError) as error:
        _complain(error, as_json=given.json)
    finally:
        if code == _FAILED or given.keep:
            print(f"The logs are in {home / 'log'}, everything else in {home}.", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)
    return code


def _play(given: argparse.Namespace, screen: Screen, home: Path) -> int:
    _banner(screen, given.ollama, given.model)
    cli = choose(home, screen.say)
    where = source()
    asked = drafts(jobs(where.files, given.seed), where)
    files = "this repository's own" if where.is_checkout else "the installed packages' own"
    screen.say(f"  gemini-repo-cli   {cli.label}")
    screen.say(f"  context files     {files}, {len(where.files)} to choose from")
    screen.start_clock()
    with Workshop(home, cli_python=cli.python) as workshop:
        ollamas = open_workshop(workshop, given.ollama, given.model, given.seed)
        key = fingerprint(read_public(home / "keys" / "broker.pub"))
        screen.say(f"  broker            {workshop.address} (CURVE, key {key})\n")
        limit_s = given.time_limit or (_SIMULATED_LIMIT_S if ollamas.is_simulated else _REAL_LIMIT_S)
        with Client(home=home) as client:
            play = Play(workshop, ollamas, screen, limit_s)
            course = play.run(client, asked)
            verdict = judge(client, course, asked, ollamas)
            workers = list(client.status().workers)
        if given.json:
            kept = str(home / "log") if given.keep or not verdict.is_good else None
            print(json.dumps({"v": 1, "data": result_json(verdict, course, cli, ollamas, kept)}), flush=True)
            return 0 if verdict.is_good else _FAILED
        screen.say(f"\n{workers_table(verdict, workers)}\n\n{priorities_table(verdict)}\n")
        screen.say(
            f"{course.joined} joined live in {course.join_s:.1f} s; {course.killed} was killed (kill -9),"
            f" {len(course.moved)} of its tasks moved; all was done {course.seconds_s:.1f} s after the set-up."
        )
        screen.say(example_placement(verdict))
        screen.say(f"\n{next_steps(ollamas)}\n")
    return _conclude(screen, verdict, cli, is_simulated=ollamas.is_simulated)


def _conclude(screen: Screen, verdict: Verdict, cli: Choice, *, is_simulated: bool) -> int:
    """The last lines; by now every process has ended."""
    for fault in verdict.faults:
        screen.say(f"WRONG: {fault}")
    simulated = [name for name, is_so in (("Ollama", is_simulated), ("gemini-repo-cli", cli.is_simulated)) if is_so]
    if simulated:
        screen.say(f"SIMULATED here: {' and '.join(simulated)}. Real: broker, agents, keys, queue, every process.")
    screen.say(verdict.line)
    return 0 if verdict.is_good else _FAILED


def _complain(error: Exception, *, as_json: bool) -> None:
    hint = error.hint if isinstance(error, KoubouError) else ""
    if as_json:
        document = {"code": "demo_failed", "message": str(error), "hint": hint}
        print(json.dumps({"v": 1, "error": document}), file=sys.stderr)
    else:
        print(f"\ndemo: failed: {error}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)


def _banner(screen: Screen, ollama_url: str, model: str) -> None:
    screen.say("Koubou demo: a broker, three agents, thirty tasks; real processes, real keys, on this machine alone.")
    if ollama_url:
        screen.say(f"  Ollama            {ollama_url}, model {model}: real answers, as slow as they are")
    else:
        screen.say(
            "  Ollama            SIMULATED: three servers that behave like it; no model runs, answers are made up"
        )


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """The first signal ends the play; while everything is being ended, further ones are ignored."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for name in _SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        raise _Interrupted

    for name in _SIGNALS:
        signal.signal(getattr(signal, name), stop)
    yield


def _checked_ollama(url: str, model: str) -> tuple[str, str]:
    """The URL in full, and what is wrong with it or the model (empty: nothing)."""
    try:
        url = check_ollama_url(url, loopback_only=False)
    except AddressError as error:
        return url, f"--ollama {url!r} {error.message}"
    models = models_at(url, _ASK_S)
    if models is None:
        return url, f"no Ollama answers on {url}"
    if model not in models and f"{model}:latest" not in models:
        return url, f"name one of its models with --model: {', '.join(models) or 'it has none'}"
    return url, ""


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("seconds above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="koubou-ctl demo",
        description=f"Broker, three agents and {TASKS} tasks on this machine. One box joins while they run, one agent"
        " is killed half way, and the result is checked. Ollama is simulated unless --ollama names one.",
    )
    parser.add_argument("--ollama", metavar="URL", default="", help="use this Ollama instead of simulated ones")
    parser.add_argument("--model", metavar="M", default="", help="the model of that Ollama")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="chooses files and answers (1)")
    parser.add_argument("--time-limit", type=_positive, metavar="S", help="give up after S seconds (180; real: 3600)")
    parser.add_argument("--keep", action="store_true", help="keep keys, database and logs afterwards")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end, nothing else")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
