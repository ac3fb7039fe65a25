"""The agent as it is, which also says how long each task stayed with it: dispatch received to result sent."""

import os
import signal
import sys
import time

import click

from koubou_agent.agent import Agent
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.join import ensure_key
from koubou_common.codec import DecodeError, decode
from koubou_common.home import Home
from koubou_common.keys import KeyPair
from koubou_common.messages import Dispatch, Failure, Message, Result

MARK = "bench-stayed"  # begins a line of its log: the uid, and milliseconds


class TimedAgent(Agent):
    """Takes the time before a message is looked at, and after one was handed to the socket."""

    def __init__(self, config: AgentConfig, pair: KeyPair) -> None:
        self._received_s: dict[str, float] = {}
        super().__init__(config, pair)

    def _receive(self, data: bytes) -> None:
        now_s = time.perf_counter()
        try:
            message = decode(data).message
        except DecodeError:
            message = None  # the agent itself says so
        if isinstance(message, Dispatch):
            self._received_s.setdefault(message.attempt_uid, now_s)
        super()._receive(data)

    def _send(self, message: Message) -> None:
        super()._send(message)
        if isinstance(message, Result | Failure):
            received_s = self._received_s.pop(message.attempt_uid, None)
            if received_s is not None:
                stayed_ms = (time.perf_counter() - received_s) * 1_000
                print(MARK, message.attempt_uid, f"{stayed_ms:.3f}", flush=True)


@click.command()
@click.argument("verb")
@click.option("--worker-id", required=True)
@click.option("--home", required=True)
@click.option("--ollama-url", required=True)
def main(verb: str, worker_id: str, home: str, ollama_url: str) -> None:
    """Called as `koubou-agent run` is."""
    assert verb == "run", verb
    config = agent_config(Home.from_env(os.environ, home), worker_id=worker_id, ollama_url=ollama_url)
    agent = TimedAgent(config, ensure_key(config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop(0.0))
    sys.exit(agent.run().code)


if __name__ == "__main__":
    main()
