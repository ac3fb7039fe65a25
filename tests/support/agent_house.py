"""A whole agent in a thread, as `koubou-agent run` starts it, beside a simulated Ollama and for any broker."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from koubou_agent.agent import Agent
from koubou_agent.config import AgentConfig, agent_config
from koubou_agent.effects import Exit
from koubou_common.home import Home
from koubou_common.keys import KeyPair, write_key_pair, write_public


class AgentHouse:
    """A home with the settings of one agent, and the agent's thread."""

    def __init__(self, folder: Path, *, broker_address: str, broker_key: str, ollama_url: str, python: Path) -> None:
        self.home = Home(folder)
        self.home.create()
        self.home.config_file("agent").write_text(
            f"worker_id: lan_001\nbroker_addresses: ['{broker_address}']\n"
            f"ollama_url: {ollama_url}\ncli_python: {python}\nslots_ceiling: 1\n"
        )
        write_public(self.home.public_key_file("broker"), broker_key)
        self.exit: Exit | None = None

    @property
    def config(self) -> AgentConfig:
        return agent_config(self.home)

    def keep(self, pair: KeyPair) -> None:
        """Have the key on disk, as after a join."""
        write_key_pair(self.config.key_file, pair)

    @contextmanager
    def agent(self, pair: KeyPair) -> Iterator[tuple[Agent, threading.Thread]]:
        """The agent at work; ended at once on leaving."""
        agent = Agent(self.config, pair)
        thread = threading.Thread(target=self._run, args=(agent,))
        thread.start()
        try:
            yield agent, thread
        finally:
            agent.stop(0)
            agent.stop(0)  # a second one does not wait for the broker
            thread.join(20)
            assert not thread.is_alive()

    def _run(self, agent: Agent) -> None:
        self.exit = agent.run()
