"""The real agent - loop, core, link, spool, cache - whose attempts answer at once; it notes what it told and was told.

Called as `python -m powercut.agent HOME WORKER_ID NOTES`. Every note is made before the agent speaks or acts on what it
heard: what it says is true of the disk from then on.
"""

import hashlib
import signal
import sys
import threading
from pathlib import Path

from koubou_agent.agent import Agent
from koubou_agent.attempt import AttemptRun
from koubou_agent.box import Box
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.effects import Outcome, StartAttempt, Success
from koubou_agent.join import ensure_key
from koubou_agent.single import SingleAgent
from koubou_common import logs
from koubou_common.codec import DecodeError, decode
from koubou_common.home import Home
from koubou_common.keys import KeyPair
from koubou_common.messages import Dispatch, Message, Result, ResultStored
from koubou_common.messages.values import AgentHealth, Body, Metrics, ModelSeen
from powercut.notes import Heard, Notebook, Told
from powercut.work import MODEL, answer_to, pause_of

_OLLAMA_URL = "http://127.0.0.1:11434"  # named because a worker has one; never asked
_HEALTH = AgentHealth(
    ollama_ok=True,
    ollama_version="0.0.0",
    models=(ModelSeen(name=MODEL, digest="", size_bytes=0, family="", context_length=0, loaded=True),),
)


class _Box(Box):
    """A box on which nothing has to be looked at."""

    def start(self) -> None:
        self._report(_HEALTH)

    def stop(self) -> None:
        """Nothing was started."""


class _Run(AttemptRun):
    """An attempt that fetches its inputs as usual and knows its answer."""

    def _work(self) -> tuple[Outcome | None, bytes]:
        prompt, _ = self._inputs()
        if self._cancel.wait(pause_of(prompt)) and self._stop is not None:
            return self._failed(self._stop.error_class, self._stop.message), b""
        raw = answer_to(prompt)
        success = Success(
            attempt_uid=self.uid,
            raw=Body(hashlib.sha256(raw).digest(), len(raw)),
            output_offset=0,
            output_length=len(raw),
            flags=(),
            model=self._dispatch.model,
            model_digest="",
            metrics=Metrics(prompt_tokens=256, output_tokens=256, total_ms=1),
            log="",
        )
        return success, raw


class NotingAgent(Agent):
    """Writes down each promise that passes."""

    def __init__(self, config: AgentConfig, pair: KeyPair, notes: Notebook) -> None:
        super().__init__(config, pair)
        self._box = _Box(config, self._post)
        self._notes = notes

    def _start(self, effect: StartAttempt) -> None:
        run = _Run(effect, self._equipment)
        thread = threading.Thread(target=self._attempt, args=(run,), name=f"attempt-{run.uid[:8]}", daemon=True)
        self._runs[run.uid] = run
        self._threads[run.uid] = thread
        thread.start()

    def _send(self, message: Message) -> None:
        if isinstance(message, Result):
            self._notes.add(Told(message.attempt_uid, message.raw.sha256.hex()))
        super()._send(message)

    def _receive(self, data: bytes) -> None:
        try:
            message = decode(data).message
        except DecodeError:
            message = None
        if isinstance(message, Dispatch):
            self._notes.add(Heard(message.attempt_uid, is_stored=False))
        elif isinstance(message, ResultStored):
            self._notes.add(Heard(message.attempt_uid, is_stored=True))
        super()._receive(data)


def main(home: str, worker_id: str, notes: str) -> int:
    """Until SIGTERM."""
    logs.set_up("info", "text")
    config = agent_config(Home.from_env({}, home), worker_id=worker_id, ollama_url=_OLLAMA_URL)
    with SingleAgent(config.state_dir, worker_id):
        agent = NotingAgent(config, ensure_key(config), Notebook(Path(notes)))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop(0.0))
        return agent.run().code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
