"""Which broker to talk to, and as whom: client.yaml where one joined, else the broker of this very home."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from koubou_common.client_settings import load_client_settings
from koubou_common.errors import Code, KoubouError
from koubou_common.home import ENVIRONMENT_NAME, Home
from koubou_common.keys import KeyPair, read_key_pair, read_public

SERVICE_HOME = Path("/var/lib/koubou")  # of the broker that systemd/koubou-broker.service runs


@dataclass(frozen=True, slots=True)
class Where:
    """A broker's addresses and public key, and our own key pair."""

    addresses: tuple[str, ...]
    broker_key: str
    pair: KeyPair


def home_of(
    environ: Mapping[str, str], override: str | Path | None = None, *, service_home: Path = SERVICE_HOME
) -> Home:
    """The home in force; where none was named and this account has none, that of a broker run as a service.

    So `sudo koubou-ctl` on the main host operates the service, and nobody else can read that folder.
    """
    home = Home.from_env(environ, override)
    if override or environ.get(ENVIRONMENT_NAME) or _knows_a_broker(home):
        return home
    service = Home(service_home)
    return service if os.access(service.root, os.R_OK) and _knows_a_broker(service) else home


def find_broker(environ: Mapping[str, str], home: str | Path | None = None) -> Where:
    """The broker that this account uses; KoubouError (bad_configuration) with the next step if none is known."""
    place = home_of(environ, home)
    settings_file = place.config_file("client")
    if not settings_file.exists():
        return broker_here(place)
    settings = load_client_settings(settings_file)
    pair_file = place.resolve(settings.key_file) if settings.key_file else place.key_file("operator")
    broker_key = settings.broker_public_key or read_public(place.public_key_file("broker"))
    return Where(settings.broker_addresses, broker_key, _read_pair(place, pair_file))


def broker_here(place: Home) -> Where:
    """The broker of this very home, with its operator key; KoubouError where it has none or has not run."""
    broker_key = place.public_key_file("broker")
    if not broker_key.exists():
        raise KoubouError(
            Code.BAD_CONFIGURATION,
            f"no broker is known here: there is no {place.config_file('client')},"
            f" and no broker was started in {place.root}",
            "`koubou-ctl join TOKEN` with an operator's invitation, or start one: `koubou-ctl up`",
        )
    return Where(_running_here(place), read_public(broker_key), _read_pair(place, place.key_file("operator")))


def _knows_a_broker(place: Home) -> bool:
    return any(os.access(path, os.R_OK) for path in (place.config_file("client"), place.public_key_file("broker")))


def _running_here(place: Home) -> tuple[str, ...]:
    """Where the broker of this home listens, one address a line: it says so when it starts."""
    address = place.state / "broker.address"
    try:
        found = tuple(address.read_text(encoding="utf-8").split())
    except OSError:
        found = ()
    if not found:
        raise KoubouError(
            Code.BROKER_UNREACHABLE,
            f"the broker of {place.root} does not run",
            "start it: `koubou-ctl up`, or `koubou-broker`; as a service: `sudo systemctl start koubou-broker`",
        )
    return found


def _read_pair(place: Home, path: Path) -> KeyPair:
    # Root on the main host operates the service's broker: the folder's owner is whom it trusts there.
    owner = place.root.stat().st_uid if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    return read_key_pair(path, trusted_owner=owner)
