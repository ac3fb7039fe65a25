"""Addresses as people write them: ZeroMQ endpoints to bind and to connect to, and Ollama's URL."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_BROKER_ADDRESS = "tcp://127.0.0.1:5570"
DEFAULT_OLLAMA_PORT = 11434
DEFAULT_OLLAMA_URL = f"http://127.0.0.1:{DEFAULT_OLLAMA_PORT}"

_PORT_MAX = 65_535
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT: what Tailscale gives its machines
_ENDPOINT = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%A-Za-z]+\]|[^\[\]:/\s]+):(?P<port>[0-9]+|\*)")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")


class AddressError(ValueError):
    """An address that cannot be used: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed `tcp://HOST:PORT`; port 0 lets the system choose one."""

    host: str  # without brackets
    port: int


def check_connect(address: str) -> Endpoint:
    """An address a peer may connect to; AddressError otherwise."""
    endpoint = _parse(address)
    if endpoint.host == "*" or _is_unspecified(endpoint.host):
        raise AddressError("names every interface, not a machine", "write the broker's own address")
    if endpoint.port == 0:
        raise AddressError("needs a port", f"the default is {DEFAULT_BROKER_ADDRESS}")
    check_host(endpoint.host)
    return endpoint


def check_bind(address: str, *, allow_public: bool) -> Endpoint:
    """An address the broker may listen on: of this host or a private network unless `allow_public`."""
    endpoint = _parse(address)
    wildcard = endpoint.host == "*"
    ip = None if wildcard else _ip(endpoint.host)
    if not wildcard and ip is None and endpoint.host != "localhost":
        raise AddressError(
            "needs the address of an interface, not a name", f"for this host alone: {DEFAULT_BROKER_ADDRESS}"
        )
    if allow_public:
        return endpoint
    if wildcard or (ip is not None and ip.is_unspecified):
        raise AddressError(
            "listens on every interface, public ones too",
            "write the address of the private interface (list several if needed), or set allow_public: true",
        )
    if ip is not None and not _is_private(ip):
        raise AddressError(
            "is a public address",
            "use one of the private network, or set allow_public: true if that is meant",
        )
    return endpoint


def check_host(host: str) -> str:
    """A host name or an IP address, alone; AddressError otherwise."""
    if "://" in host or "/" in host:
        raise AddressError("should be a host alone, not a URL", "write 192.168.1.100, the port goes beside it")
    if _ip(host) is None and not _HOST_NAME.fullmatch(host):
        raise AddressError("is neither a host name nor an IP address", "an example: 192.168.1.100")
    return host


def ollama_url(host: str, port: int) -> str:
    """The URL of the Ollama on a host."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_ollama_url(url: str, *, loopback_only: bool) -> str:
    """Ollama's URL as `http://host:port`; AddressError if it is none or leaves this host against the rule."""
    example = f"an example: {DEFAULT_OLLAMA_URL}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise AddressError("is not a URL", example) from error
    if parts.scheme != "http" or not host:
        raise AddressError("should begin with http:// and name a host", example)
    if parts.username is not None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise AddressError("should be host and port alone", example)
    check_host(host)
    if _is_unspecified(host):
        raise AddressError("is an address to listen on, not to connect to", example)
    if loopback_only and not is_loopback(host):
        raise AddressError("leaves this host: prompts would cross the network in the clear")
    return ollama_url(host, DEFAULT_OLLAMA_PORT if port is None else port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address."""
    ip = _ip(host)
    return host.lower() == "localhost" if ip is None else ip.is_loopback


def _parse(address: str) -> Endpoint:
    found = _ENDPOINT.fullmatch(address)
    if found is None:
        raise AddressError("should look like tcp://HOST:PORT", f"an example: {DEFAULT_BROKER_ADDRESS}")
    port = 0 if found["port"] == "*" else int(found["port"])
    if port > _PORT_MAX:
        raise AddressError(f"has a port above {_PORT_MAX}", f"the default is {DEFAULT_BROKER_ADDRESS}")
    return Endpoint(found["host"].strip("[]"), port)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_unspecified(host: str) -> bool:
    ip = _ip(host)
    return ip is not None and ip.is_unspecified


def _is_private(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return _is_private(ip.ipv4_mapped)
    # is_private alone would also admit ranges for documentation and the like: nobody's network.
    if isinstance(ip, ipaddress.IPv4Address):
        private = any(ip in ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
        return private or ip.is_loopback or ip.is_link_local or ip in _SHARED
    return ip in ipaddress.ip_network("fc00::/7") or ip.is_loopback or ip.is_link_local
