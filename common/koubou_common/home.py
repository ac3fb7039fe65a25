"""Where Koubou keeps its files: one folder with config, keys, state and logs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from koubou_common import durable
from koubou_common.errors import ConfigError

ENVIRONMENT_NAME = "KOUBOU_HOME"
DEFAULT_HOME = "~/.koubou"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder and the places inside it; nothing is created before `create`."""

    root: Path

    @classmethod
    def from_env(cls, environ: Mapping[str, str], override: str | Path | None = None) -> "Home":
        """`override` (--home) beats KOUBOU_HOME, which beats ~/.koubou; an empty value is not given."""
        asked = str(override or "") or environ.get(ENVIRONMENT_NAME, "") or DEFAULT_HOME
        return cls(_absolute(asked))

    @property
    def config(self) -> Path:
        """Settings, written by people."""
        return self.root / "config"

    @property
    def keys(self) -> Path:
        """CURVE keys."""
        return self.root / "keys"

    @property
    def state(self) -> Path:
        """The database, spools and caches."""
        return self.root / "state"

    @property
    def log(self) -> Path:
        """What programs started by `koubou-ctl up` print."""
        return self.root / "log"

    def config_file(self, name: str) -> Path:
        """`config_file("broker")` is config/broker.yaml."""
        return self.config / f"{name}.yaml"

    def key_file(self, name: str) -> Path:
        """`key_file("operator")` is keys/operator.key."""
        return self.keys / f"{name}.key"

    def public_key_file(self, name: str) -> Path:
        """`public_key_file("broker")` is keys/broker.pub."""
        return self.keys / f"{name}.pub"

    def agent_state(self, worker_id: str) -> Path:
        """The folder of one agent: several may share this home."""
        return self.state / "agents" / worker_id

    def resolve(self, path: str | Path) -> Path:
        """A path as settings write it: `~` is known, and a relative one counts from this home."""
        try:
            return self.root / Path(path).expanduser()
        except RuntimeError as error:
            raise _no_account(str(path)) from error

    def create(self) -> None:
        """Make the folders that are missing, readable for their owner alone and durable: all else lies in them."""
        for folder in (self.root, self.config, self.keys, self.state, self.log):
            try:
                durable.make_folder(folder)
            except OSError as error:
                raise ConfigError(
                    f"cannot make the folder {folder}: {error.strerror}",
                    f"give this account write access to {folder.parent}, or set {ENVIRONMENT_NAME}",
                ) from error


def _absolute(asked: str) -> Path:
    try:
        path = Path(asked).expanduser()
    except RuntimeError as error:
        raise _no_account(asked) from error
    # Daemons change folder; a relative home must not follow them.
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", resolve() follows links


def _no_account(path: str) -> ConfigError:
    return ConfigError(
        f"{path}: this account has no home folder", f"set {ENVIRONMENT_NAME} to a folder by its full path"
    )
