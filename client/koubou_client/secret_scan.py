"""Does a context file look like a secret? A guard against slips, not against intent."""

import re
from pathlib import PurePosixPath

_SECRET_NAMES = re.compile(
    r"""(?ix) ^ (?: \.env (?:\..+)? | .*\.pem | .*\.p12 | .*\.pfx | .*\.kdbx | id_(?:rsa|dsa|ecdsa|ed25519)
    | \.netrc | \.pgpass | \.htpasswd | credentials(?:\.json)? | secrets?\.(?:ya?ml|json|toml) | .*\.key ) $"""
)
_HARMLESS_NAMES = re.compile(r"(?i)^\.env\.(?:example|sample|template|dist)$")
_SECRET_TEXTS = (
    (re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"), "a private key"),
    (re.compile(rb"\bAKIA[0-9A-Z]{16}\b"), "a cloud access key"),
    (re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36,}\b"), "a code host's token"),
    (re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}"), "a chat token"),
    (re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}"), "an API key"),
    (re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"), "an API key"),
    (re.compile(rb"\bkbj1_[A-Za-z0-9_-]{60,}"), "a Koubou join token"),
)


def find_secret(name: str, data: bytes) -> str:
    """What kind of secret the file looks like; empty if it looks harmless."""
    last = PurePosixPath(name).name
    if _SECRET_NAMES.match(last) and not _HARMLESS_NAMES.match(last):
        return f"its name {last!r}"
    for pattern, kind in _SECRET_TEXTS:
        if pattern.search(data):
            return kind
    return ""
