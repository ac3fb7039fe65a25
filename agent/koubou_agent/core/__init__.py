"""The agent's pure core: messages and events in, effects out; no socket, file, clock, randomness or thread.

Its law: an outcome is durable in the spool before the broker hears of it, and stays there until the broker
says that it is stored.
"""

from koubou_agent.core.core import AgentCore, CoreSettings

__all__ = ["AgentCore", "CoreSettings"]
