"""How an agent gets its key: by a token from an operator, or by itself on the broker's own host and account."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from koubou_agent.agent import software
from koubou_agent.config import AgentConfig, check_driven_here, key_file
from koubou_common.enrol import invite
from koubou_common.errors import ConfigError, KoubouError
from koubou_common.home import Home
from koubou_common.joining import exchange, read_token, write_settings
from koubou_common.keys import KeyPair, read_key_pair
from koubou_common.messages.values import Role
from koubou_common.settings import AgentSettings, load
from koubou_common.tokens import JoinToken


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join did."""

    worker_id: str
    address: str
    config_file: Path
    kept_as: Path | None  # the settings that were there before


def join(text: str, home: Home) -> Joined:
    """Exchange the token for a key of this box's own, and write the settings that use it."""
    token = read_token(text, time.time(), (Role.WORKER,), "a person joins with `koubou-ctl join kbj1_...`")
    home.create()
    exchange(token, key_file(home, token.name))
    config_file, kept_as = _write_settings(home, token)
    return Joined(token.name, token.addresses[0], config_file, kept_as)


def ensure_key(config: AgentConfig) -> KeyPair:
    """The agent's key; on the broker's own host and account it is made and enrolled here, once."""
    path = config.key_file
    if path.exists():
        return read_key_pair(path)
    operator = config.home.key_file("operator")
    if not operator.exists():
        raise ConfigError(
            f"this box has no key yet: there is no {path}",
            f"`koubou-ctl workers invite {config.worker_id}` on the main host prints the line to run here",
        )
    check_driven_here(config.home, config.worker_id)
    token = invite(
        config.addresses,
        config.server_key,
        read_key_pair(operator),
        software=software(),
        name=config.worker_id,
        role=Role.WORKER,
    )
    return exchange(_at(token, config.addresses), path)


def _at(token: JoinToken, addresses: tuple[str, ...]) -> JoinToken:
    """Through the address that works from here, not the ones that the broker tells other machines."""
    return JoinToken(addresses, token.server_key, token.enrol_secret, token.role, token.name, token.expires_s)


def _write_settings(home: Home, token: JoinToken) -> tuple[Path, Path | None]:
    """agent.yaml, or agent-<id>.yaml where that one is another worker's; what was there is kept aside."""
    path = home.config_file("agent")
    if path.exists() and _worker_of(path) != token.name:
        path = home.config_file(f"agent-{token.name}")
    lines = [
        "# Written by `koubou-agent join`. Every setting: config/agent.yaml of the distribution.",
        f"worker_id: {_quoted(token.name)}",
        "broker_addresses:",
        *(f"  - {_quoted(address)}" for address in token.addresses),
        f"broker_public_key: {_quoted(token.server_key)}",
        "",
    ]
    return path, write_settings(path, "\n".join(lines))


def _worker_of(path: Path) -> str | None:
    with contextlib.suppress(KoubouError):
        return load(path, AgentSettings).worker_id
    return None


def _quoted(text: str) -> str:
    """A YAML text; z85 has neither quote nor backslash, names and addresses are checked by the token."""
    return "'" + text.replace("'", "''") + "'"
