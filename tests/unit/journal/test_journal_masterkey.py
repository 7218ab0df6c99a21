"""Every place that a master key may come from."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from keyring.errors import KeyringLocked

from holdfast.errors import StoreError
from holdfast.journal.masterkey import MASTER_VARIABLE, WRAPPED_FILE, master_key
from holdfast.journal.payloads import Keyring


class MemoryKeyring(keyring.backend.KeyringBackend):
    priority = 1.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class Transit:
    """Vault's transit engine, as its API documents it: the key never leaves, ciphertexts are ``vault:v1:base64``."""

    def __init__(self) -> None:
        self.token = "hvs.test-token"
        self.keys = {"holdfast": AESGCM(os.urandom(32))}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.sealed = False
        transit = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, body = transit.answer(self.path, dict(self.headers.items()), data)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, headers: dict[str, str], data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {name.lower(): value for name, value in headers.items()}
        self.seen.append((path, headers))
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if headers.get("x-vault-token") != self.token or headers.get("x-vault-request") != "true":
            return 403, {"errors": ["permission denied"]}
        _, _, mount, action, *rest = path.split("/")
        if mount != "transit" or rest[-1] not in self.keys:
            return 404, {"errors": []}
        cipher = self.keys[rest[-1]]
        if action == "datakey" and rest[0] == "plaintext":
            plain, noise = os.urandom(data["bits"] // 8), os.urandom(12)
            sealed = base64.b64encode(noise + cipher.encrypt(noise, plain, None)).decode()
            return 200, {"data": {"plaintext": base64.b64encode(plain).decode(), "ciphertext": f"vault:v1:{sealed}"}}
        raw = base64.b64decode(data["ciphertext"].removeprefix("vault:v1:"))
        try:
            plain = cipher.decrypt(raw[:12], raw[12:], None)
        except InvalidTag:
            return 400, {"errors": ["invalid ciphertext: unable to decrypt"]}
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}


@pytest.fixture
def transit() -> Iterator[Transit]:
    found = Transit()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(30)


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    before, found = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(found)
    yield found
    keyring.set_keyring(before)


def vault(transit: Transit, **more: str) -> dict[str, str]:
    return {
        MASTER_VARIABLE: "vault:transit/holdfast",
        "VAULT_ADDR": transit.address,
        "VAULT_TOKEN": transit.token,
        **more,
    }


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "my.key"
    path.parent.mkdir()
    key = master_key(tmp_path, {MASTER_VARIABLE: f"file:{path}"})
    assert (len(key), path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (32, key, 0o600)
    assert master_key(tmp_path, {MASTER_VARIABLE: f"file:{path}"}) == key
    assert master_key(tmp_path, {}) != key


def test_the_systems_keyring(tmp_path: Path, ring: MemoryKeyring) -> None:
    key = master_key(tmp_path, {MASTER_VARIABLE: "keyring:prod"})
    assert base64.b64decode(ring.kept["holdfast", "prod"]) == key
    assert master_key(tmp_path, {MASTER_VARIABLE: "keyring:prod"}) == key
    assert list(tmp_path.iterdir()) == []
    ring.kept["holdfast", "prod"] = "short"
    with pytest.raises(StoreError, match="32 bytes"):
        master_key(tmp_path, {MASTER_VARIABLE: "keyring:prod"})
    ring.locked = True
    with pytest.raises(StoreError, match="Unlock it"):
        master_key(tmp_path, {MASTER_VARIABLE: "keyring:prod"})


def test_vault_wraps_the_key(tmp_path: Path, transit: Transit) -> None:
    key = master_key(tmp_path, vault(transit))
    kept = (tmp_path / WRAPPED_FILE).read_bytes()
    assert kept.startswith(b"vault:v1:")
    assert key not in kept
    assert base64.b64encode(key) not in kept
    assert master_key(tmp_path, vault(transit, VAULT_NAMESPACE="team")) == key
    assert [path for path, _ in transit.seen] == [
        "/v1/transit/datakey/plaintext/holdfast",
        "/v1/transit/decrypt/holdfast",
    ]
    assert transit.seen[1][1]["x-vault-namespace"] == "team"


def test_a_tenants_key_opens_only_through_the_same_vault(
    tmp_path: Path, transit: Transit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vault(transit).items():
        monkeypatch.setenv(name, value)
    key_id, wrapped = Keyring.of(tmp_path).new("acme")
    sealed = Keyring.of(tmp_path).key("acme", key_id, wrapped).encrypt(b"secret")
    assert Keyring.of(tmp_path).key("acme", key_id, wrapped).decrypt(sealed, "it") == b"secret"
    transit.keys["holdfast"] = AESGCM(os.urandom(32))
    with pytest.raises(StoreError, match="unable to decrypt"):
        Keyring.of(tmp_path).key("acme", key_id, wrapped)


def test_vault_that_does_not_answer_is_an_error_with_its_cure(tmp_path: Path, transit: Transit) -> None:
    master_key(tmp_path, vault(transit))
    with pytest.raises(StoreError, match="permission denied"):
        master_key(tmp_path, vault(transit, VAULT_TOKEN="hvs.wrong"))
    transit.sealed = True
    with pytest.raises(StoreError, match="sealed"):
        master_key(tmp_path, vault(transit))
    with pytest.raises(StoreError, match="VAULT_ADDR") as caught:
        master_key(tmp_path, vault(transit, VAULT_ADDR="http://127.0.0.1:1"))
    assert transit.token not in str(caught.value)


@pytest.mark.parametrize("missing", ["VAULT_ADDR", "VAULT_TOKEN"])
def test_vault_needs_its_variables(tmp_path: Path, transit: Transit, missing: str) -> None:
    with pytest.raises(StoreError, match=missing):
        master_key(tmp_path, vault(transit, **{missing: ""}))


@pytest.mark.parametrize(
    "value", ["vault:", "vault:key", "vault:../x", "vault:a/b?c", "keyring:", "file:", "aws:x", "c2hvcnQ="]
)
def test_what_is_no_source_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(StoreError, match=MASTER_VARIABLE):
        master_key(tmp_path, {MASTER_VARIABLE: value, "VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t"})
    assert list(tmp_path.iterdir()) == []


def test_two_processes_agree_on_one_wrapped_key(tmp_path: Path, transit: Transit) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(master_key(tmp_path, vault(transit)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1
