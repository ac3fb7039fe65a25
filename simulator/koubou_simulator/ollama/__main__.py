"""`python -m koubou_simulator.ollama`: the simulated Ollama as a process of its own."""

import argparse
import os
import signal
import threading

from .models import SimModel, model_named, text_models, tiny_models
from .settings import PRESETS, Mode, SimSettings
from .simulated import SimulatedOllama


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; answers in the middle break off, as they do in the original."""
    parser = _parser()
    given = parser.parse_args(arguments)
    settings = SimSettings(
        mode=Mode(given.mode),
        host=given.host,
        port=given.port,
        speed=given.speed,
        num_parallel=given.num_parallel,
        max_loaded=given.max_loaded,
        max_queue=given.max_queue,
        version=given.version,
    )
    try:
        simulated = SimulatedOllama(settings, _models(given.model, given.preset), given.seed)
    except ValueError as error:
        parser.error(str(error))
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        simulated.start()
    except OSError as error:
        parser.error(f"cannot listen on {given.host} port {given.port}: {os.strerror(error.errno or 0)}")
    print(f"simulated Ollama on {simulated.url}", flush=True)
    over.wait()
    simulated.stop()
    return 0


def _models(names: list[str], preset: str) -> list[SimModel]:
    if not names:
        return [*text_models(preset), *tiny_models()]
    parts = [name.partition("=") for name in names]
    return [model_named(name, own_preset or preset) for name, _, own_preset in parts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m koubou_simulator.ollama",
        description="An HTTP server that behaves like Ollama. No model runs: every answer is made up and says so.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast", help="how fast the machine is")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], default=Mode.LEGACY.value)
    parser.add_argument("--version", default="", help="what /api/version says instead of the mode's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per real one")
    parser.add_argument("--num-parallel", type=int, default=1)
    parser.add_argument("--max-loaded", type=int, default=3)
    parser.add_argument("--max-queue", type=int, default=512)
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME[=PRESET]", help="offer this model; may be repeated"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
