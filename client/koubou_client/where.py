"""Which broker to talk to, and as whom: client.yaml where one joined, else the broker of this very home."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from koubou_common.client_settings import load_client_settings
from koubou_common.errors import Code, KoubouError
from koubou_common.home import Home
from koubou_common.keys import KeyPair, read_key_pair, read_public


@dataclass(frozen=True, slots=True)
class Where:
    """A broker's addresses and public key, and our own key pair."""

    addresses: tuple[str, ...]
    broker_key: str
    pair: KeyPair


def find_broker(environ: Mapping[str, str], home: str | Path | None = None) -> Where:
    """The broker that this account uses; KoubouError (bad_configuration) with the next step if none is known."""
    place = Home.from_env(environ, home)
    settings_file = place.config_file("client")
    broker_key = place.keys / "broker.pub"
    if not settings_file.exists() and not broker_key.exists():
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"no broker is known here: there is no {settings_file}, and no broker was started in {place.root}",
            "`koubou-ctl join TOKEN` with an operator's invitation, or start one: `koubou-ctl up`",
        )
    settings = load_client_settings(settings_file)
    addresses = settings.broker_addresses if settings_file.exists() else _running_here(place)
    pair_file = place.resolve(settings.key_file) if settings.key_file else place.key_file("operator")
    return Where(addresses, settings.broker_public_key or read_public(broker_key), read_key_pair(pair_file))


def _running_here(place: Home) -> tuple[str, ...]:
    """Where the broker of this home listens: it says so when it starts."""
    address = place.state / "broker.address"
    if not address.exists():
        raise KoubouError(
            Code.BROKER_UNREACHABLE,
            f"the broker of {place.root} has not run yet",
            "start it: `koubou-ctl up`, or `koubou-broker`",
        )
    return (address.read_text(encoding="utf-8").strip(),)
