"""Sealing payloads, and the master key of a home."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import StoreError
from holdfast.journal.event import commitment
from holdfast.journal.masterkey import MASTER_FILE, MASTER_VARIABLE, master_key
from holdfast.journal.payloads import (
    IV_BYTES,
    NONCE_BYTES,
    Keyring,
    TenantKey,
)

MASTER = bytes(range(32))


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MASTER_VARIABLE, raising=False)


def tenant_key(tenant: str = "acme") -> TenantKey:
    ring = Keyring(lambda: MASTER)
    return ring.key(tenant, *ring.new(tenant))


class TestSealing:
    @given(st.binary(max_size=500))
    def test_round_trip_and_commitment(self, payload: bytes) -> None:
        key = tenant_key()
        promised, ciphertext = key.seal(payload)
        assert key.open(promised, ciphertext) == payload
        salted = key.decrypt(ciphertext, "it")
        assert promised == commitment(salted[:NONCE_BYTES], payload)
        assert payload not in ciphertext or len(payload) < 8
        assert len(ciphertext) == IV_BYTES + NONCE_BYTES + len(payload) + 16

    def test_every_changed_byte_is_noticed(self) -> None:
        key = tenant_key()
        promised, ciphertext = key.seal(b"amount: 100")
        for place in range(len(ciphertext)):
            changed = bytearray(ciphertext)
            changed[place] ^= 1
            with pytest.raises(StoreError, match="changed"):
                key.open(promised, bytes(changed))
        with pytest.raises(StoreError):
            key.open(promised, b"")

    def test_a_swapped_payload_is_noticed(self) -> None:
        key = tenant_key()
        promised, _ = key.seal(b"one")
        _, other = key.seal(b"two")
        with pytest.raises(StoreError, match="commits to"):
            key.open(promised, other)

    def test_the_same_key_bytes_do_not_open_for_another_tenant(self) -> None:
        ring = Keyring(lambda: MASTER)
        key_id, wrapped = ring.new("acme")
        with pytest.raises(StoreError, match="master"):
            ring.key("other", key_id, wrapped)

    def test_another_master_key_does_not_unwrap(self) -> None:
        key_id, wrapped = Keyring(lambda: MASTER).new("acme")
        with pytest.raises(StoreError, match=MASTER_FILE):
            Keyring(lambda: b"x" * 32).key("acme", key_id, wrapped)

    def test_no_two_commitments_alike(self) -> None:
        key = tenant_key()
        assert len({key.seal(b"yes")[0] for _ in range(50)}) == 50


class TestMasterKey:
    def test_it_is_made_once_for_the_owner_only(self, tmp_path: Path) -> None:
        made = master_key(tmp_path)
        assert len(made) == 32
        assert master_key(tmp_path) == made
        assert stat.S_IMODE((tmp_path / MASTER_FILE).stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == [MASTER_FILE]

    def test_all_who_make_it_at_once_get_the_same(self, tmp_path: Path) -> None:
        start = threading.Barrier(8)
        got: list[bytes] = []

        def make() -> None:
            start.wait(60)
            got.append(master_key(tmp_path))

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(got) == 8
        assert len(set(got)) == 1
        assert [path.name for path in tmp_path.iterdir()] == [MASTER_FILE]

    def test_the_variable_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MASTER_VARIABLE, base64.b64encode(MASTER).decode())
        assert master_key(tmp_path) == MASTER
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["x", "!!!!", base64.b64encode(b"short").decode()])
    def test_a_bad_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv(MASTER_VARIABLE, text)
        with pytest.raises(StoreError, match="openssl rand"):
            master_key(tmp_path)

    @pytest.mark.parametrize(
        ("content", "mode", "says"),
        [(b"x" * 32, 0o640, "chmod 600"), (b"x" * 31, 0o600, "does not hold"), (b"x" * 33, 0o600, "does not hold")],
    )
    def test_a_bad_file(self, tmp_path: Path, content: bytes, mode: int, says: str) -> None:
        path = tmp_path / MASTER_FILE
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(StoreError, match=says):
            master_key(tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be written"):
            master_key(tmp_path / "gone")

    def test_it_is_read_only_when_needed(self, tmp_path: Path) -> None:
        Keyring.of(tmp_path)
        assert os.listdir(tmp_path) == []
