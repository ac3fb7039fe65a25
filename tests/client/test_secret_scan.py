"""Slips that the scan finds, and ordinary files that it leaves alone."""

import pytest

from koubou_client.secret_scan import find_secret


@pytest.mark.parametrize(
    "name",
    [
        ".env", "app/.env.production", "server.pem", "id_ed25519", "home/.netrc", "credentials.json", "secrets.yaml",
        "tls.KEY", "store.p12", "vault.kdbx",
    ],
)  # fmt: skip
def test_files_are_known_by_their_names(name: str) -> None:
    assert "name" in find_secret(name, b"harmless text")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN " + "PRIVATE KEY-----", "private key"),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "private key"),
        ("-----BEGIN PGP " + "PRIVATE KEY BLOCK-----", "private key"),
        ("id = AKIA" + "ABCDEFGHIJKLMNOP", "cloud access key"),
        ("ghp_" + "a" * 36, "code host"),
        ("xoxb-" + "1" * 24, "chat token"),
        ("sk-" + "a" * 40, "API key"),
        ("AIza" + "a" * 35, "API key"),
        ("kbj1_" + "a" * 100, "join token"),
    ],
)
def test_files_are_known_by_what_they_hold(text: str, kind: str) -> None:
    assert kind in find_secret("notes.txt", f"before\n{text}\nafter".encode())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".env.example", "PASSWORD="),
        ("environment.py", "env = os.environ"),
        ("keys.py", "def find_key(): ..."),
        ("monkey.md", "a key"),
        ("cert.txt", "-----BEGIN CERTIFICATE-----"),
        ("id_rsa.pub.md", "ssh-ed25519 AAAA"),
        ("a.py", "sk-short"),
    ],
)
def test_ordinary_files_are_left_alone(name: str, text: str) -> None:
    assert find_secret(name, text.encode()) == ""
