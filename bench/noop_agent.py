"""An agent whose attempts succeed at once: the real core, link and codec; no model, no child, no spool."""

import contextlib
import hashlib
import os
import platform
import secrets
import signal
import sys
import time
import typing
from collections import deque
from dataclasses import replace

import click
import zmq

from koubou_agent.agent import software
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.core import AgentCore, CoreSettings
from koubou_agent.effects import (
    Effect,
    Exit,
    Log,
    Send,
    SpoolDelete,
    SpoolWrite,
    StartAttempt,
    StopAttempt,
    Success,
    WipeCaches,
)
from koubou_agent.join import ensure_key
from koubou_common.codec import decode, encode
from koubou_common.home import Home
from koubou_common.keys import KeyPair
from koubou_common.link import Connected, Disconnected, Link, Received
from koubou_common.messages import Result, ToAgent
from koubou_common.messages.values import AgentHealth, Body, Metrics, ModelSeen

ANSWER_BYTES = 1024  # as the prompt; every one is another, as answers are

_TURN_MOST_S = 1.0
_TO_AGENT = typing.get_args(ToAgent)


class NoopAgent:
    """One loop, as the real agent's; `run` blocks until it is asked to stop."""

    def __init__(self, config: AgentConfig, pair: KeyPair, model: str) -> None:
        seen = ModelSeen(name=model, digest="", size_bytes=0, family="", context_length=0, loaded=True)
        health = AgentHealth(ollama_ok=True, ollama_version="0.0.0", models=(seen,))
        settings = CoreSettings(software(), platform.system(), secrets.token_hex(16), 0)
        self._core = AgentCore(settings, (), health, time.monotonic())
        self._link = Link(config.addresses, config.server_key, pair)
        self._outgoing: deque[bytes] = deque()
        self._answers: dict[str, bytes] = {}
        self._wake_in, self._wake_out = os.pipe()
        self._end: Exit | None = None
        self._asked_to_stop = False

    def stop(self) -> None:
        """From a signal handler."""
        self._asked_to_stop = True
        os.write(self._wake_out, b"\0")

    def run(self) -> int:
        """Until stopped."""
        while self._end is None:
            self._wait()
            now_s = time.monotonic()
            for event in self._link.pump(now_s):
                match event:
                    case Connected():
                        self._outgoing.clear()
                        self._do(self._core.connected(now_s))
                    case Disconnected():
                        self._do(self._core.disconnected(now_s))
                    case Received(data):
                        envelope = decode(data)
                        if isinstance(envelope.message, _TO_AGENT):
                            message = typing.cast(ToAgent, envelope.message)
                            self._do(self._core.receive(message, envelope.epoch, now_s))
            if self._asked_to_stop:
                self._asked_to_stop = False
                self._do(self._core.stop(0.0, now_s))
            self._do(self._core.tick(now_s))
            while self._outgoing and self._link.send(self._outgoing[0]):
                self._outgoing.popleft()
        self._link.close()
        return self._end.code

    def _wait(self) -> None:
        deadlines = [at_s for at_s in (self._core.next_deadline, self._link.next_deadline) if at_s is not None]
        wait_s = min([_TURN_MOST_S, *(at_s - time.monotonic() for at_s in deadlines)])
        poller = zmq.Poller()
        poller.register(self._wake_in, zmq.POLLIN)
        for door in self._link.sockets():
            poller.register(door, zmq.POLLIN)
        with contextlib.suppress(InterruptedError):
            poller.poll(max(0, int(wait_s * 1_000) + 1) if wait_s > 0 else 0)

    def _do(self, effects: list[Effect]) -> None:
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            now_s = time.monotonic()
            match effect:
                case Send(Result() as result):
                    raw = replace(result.raw, inline=self._answers[result.attempt_uid])
                    self._outgoing.append(encode(replace(result, raw=raw)))
                case Send(message):
                    self._outgoing.append(encode(message))
                case StartAttempt():
                    waiting.extend(self._core.ended(effect.dispatch.attempt_uid, self._success(effect), now_s))
                case SpoolWrite(outcome):
                    waiting.extend(self._core.spooled(outcome.attempt_uid, now_s))
                case SpoolDelete(uid):
                    self._answers.pop(uid, None)
                case Exit():
                    self._end = effect
                case StopAttempt() | WipeCaches() | Log():
                    pass
                case _:
                    typing.assert_never(effect)

    def _success(self, start: StartAttempt) -> Success:
        uid = start.dispatch.attempt_uid
        answer = uid.encode().ljust(ANSWER_BYTES, b".")
        self._answers[uid] = answer
        return Success(
            attempt_uid=uid,
            raw=Body(hashlib.sha256(answer).digest(), len(answer)),
            output_offset=0,
            output_length=len(answer),
            flags=(),
            model=start.dispatch.model,
            model_digest="",
            metrics=Metrics(prompt_tokens=256, output_tokens=256, total_ms=1),
            log="",
        )


@click.command()
@click.argument("verb")
@click.option("--worker-id", required=True)
@click.option("--home", required=True)
@click.option("--ollama-url", required=True)
def main(verb: str, worker_id: str, home: str, ollama_url: str) -> None:
    """Called as `koubou-agent run` is; asks no Ollama."""
    assert verb == "run", verb
    config = agent_config(Home.from_env(os.environ, home), worker_id=worker_id, ollama_url=ollama_url)
    agent = NoopAgent(config, ensure_key(config), os.environ["KOUBOU_BENCH_MODEL"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    sys.exit(agent.run())


if __name__ == "__main__":
    main()
