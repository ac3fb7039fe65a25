"""client.yaml: how the commands of a person reach the broker (PyYAML alone: no pydantic on a laptop)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from koubou_common.addresses import DEFAULT_BROKER_ADDRESS, AddressError, check_connect
from koubou_common.did_you_mean import did_you_mean
from koubou_common.errors import ConfigError
from koubou_common.keys import is_key
from koubou_common.yaml_marks import Document, Problem, Route, read_document

_ADDRESSES_MAX = 16  # as for agents


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The whole of client.yaml."""

    broker_addresses: tuple[str, ...] = (DEFAULT_BROKER_ADDRESS,)
    broker_public_key: str | None = None  # None: that of the broker in the same KOUBOU_HOME
    key_file: Path | None = None  # None: keys/operator.key there; a relative path counts from KOUBOU_HOME

    def to_yaml(self) -> str:
        """The file that reads back as these settings."""
        key_file = None if self.key_file is None else self.key_file.as_posix()
        return (
            "# Settings of Koubou: client.yaml.\n"
            "# The broker: one address, or a list tried in turn.\n"
            f"broker_addresses: {json.dumps(self.broker_addresses)}\n"
            "# The broker's public key; null: that of the broker in this KOUBOU_HOME.\n"
            f"broker_public_key: {json.dumps(self.broker_public_key)}\n"
            "# Your own key; null: keys/operator.key in KOUBOU_HOME, from which relative paths count.\n"
            f"key_file: {json.dumps(key_file, ensure_ascii=False)}\n"
        )


def load_client_settings(path: Path, *, missing_ok: bool = True) -> ClientSettings:
    """Read client.yaml; ConfigError lists every fault. No file: the broker of this host and account."""
    if missing_ok and not path.exists():
        return ClientSettings()
    document = read_document(path)
    settings, problems = _read(document)
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    return settings


def check_client_settings(path: Path) -> list[Problem]:
    """Every fault of the file; ConfigError if it cannot be read at all."""
    return _read(read_document(path))[1]


def _read(document: Document) -> tuple[ClientSettings, list[Problem]]:
    problems = list(document.problems)
    written = document.data
    if written is None:
        return ClientSettings(), problems
    if not isinstance(written, Mapping):
        hint = f"an example: broker_addresses: {DEFAULT_BROKER_ADDRESS}"
        return ClientSettings(), [*problems, document.problem((), "should hold settings", hint)]
    known = [field.name for field in fields(ClientSettings)]
    for name in written:
        if name not in known:
            hint = did_you_mean(name, known) or f"known here: {', '.join(known)}"
            problems.append(document.problem((name,), "unknown setting", hint, at_key=True))
    settings = ClientSettings(
        _addresses(written.get("broker_addresses"), document, problems),
        _public_key(written.get("broker_public_key"), document, problems),
        _key_file(written.get("key_file"), document, problems),
    )
    return settings, sorted(problems, key=lambda problem: (problem.line, problem.column))


def _addresses(written: object, document: Document, problems: list[Problem]) -> tuple[str, ...]:
    if written is None:
        return ClientSettings().broker_addresses
    name = "broker_addresses"
    several = written if isinstance(written, list) else [written]
    if not 0 < len(several) <= _ADDRESSES_MAX:
        problems.append(document.problem((name,), f"should be 1 to {_ADDRESSES_MAX} addresses"))
    for number, address in enumerate(several):
        route: Route = (name, number) if isinstance(written, list) else (name,)
        try:
            if not isinstance(address, str):
                raise AddressError("should be text", f"an example: {DEFAULT_BROKER_ADDRESS}")
            check_connect(address)
        except AddressError as error:
            problems.append(document.problem(route, f"{error.message} (got {address!r})", error.hint))
    return tuple(address for address in several if isinstance(address, str))


def _public_key(written: object, document: Document, problems: list[Problem]) -> str | None:
    if written is None or (isinstance(written, str) and is_key(written)):
        return str(written) if written is not None else None
    hint = "`koubou-broker` prints it when it starts; put it in quotes"
    problems.append(document.problem(("broker_public_key",), "is not a public key: it has 40 characters", hint))
    return None


def _key_file(written: object, document: Document, problems: list[Problem]) -> Path | None:
    if written is None:
        return None
    if isinstance(written, str) and written and "\0" not in written:
        return Path(written)
    problems.append(document.problem(("key_file",), "should be a path", "an example: keys/operator.key"))
    return None
