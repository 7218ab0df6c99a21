"""Payloads at rest: sealed under a tenant's key, committed to with a salt, erased by destroying the key.

The home's master key wraps each tenant's data key; the wrapped keys stand in the table ``tenant_keys``. A sealed
payload is ``iv ‖ AES-256-GCM(nonce ‖ payload)`` with the tenant as associated data; its commitment, SHA-256(nonce ‖
payload), is what the event holds. Without the key neither can be had, so the commitment tells nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import StoreError
from holdfast.journal.masterkey import KEY_BYTES, MASTER_VARIABLE, master_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 16
IV_BYTES = 12


class TenantKey:
    """A tenant's data key, ready for use."""

    __slots__ = ("_aad", "_decrypt", "_encrypt", "id", "tenant")

    def __init__(self, tenant: str, key_id: str, cipher: AESGCM) -> None:
        self.tenant = tenant
        self.id = key_id
        self._aad = tenant.encode()
        self._encrypt = cipher.encrypt
        self._decrypt = cipher.decrypt

    def seal(self, payload: bytes) -> tuple[str, bytes]:
        """The payload's commitment (hex) and its ciphertext."""
        noise = os.urandom(NONCE_BYTES + IV_BYTES)
        salted = noise[:NONCE_BYTES] + payload
        iv = noise[NONCE_BYTES:]
        return sha256(salted).hexdigest(), iv + self._encrypt(iv, salted, self._aad)

    def open(self, commitment: str, ciphertext: bytes) -> bytes:
        """The payload.

        Raises:
            StoreError: the ciphertext was changed, or is not what the commitment stands for.
        """
        salted = self._plain(ciphertext, f"payload {commitment[:16]}… of tenant {self.tenant}")
        if sha256(salted).hexdigest() != commitment:
            raise StoreError(
                f"payload {commitment[:16]}… of tenant {self.tenant} is not what its event commits to: the journal was "
                "changed. Restore it from a backup; `holdfast audit verify` names what else was changed."
            )
        return salted[NONCE_BYTES:]

    def encrypt(self, data: bytes, context: bytes = b"") -> bytes:
        """Ciphertext of data that no event commits to (an inbox item's payload, memory, a secret).

        With ``context`` it opens only in the same one: a row that was copied elsewhere does not.
        """
        noise = os.urandom(IV_BYTES)
        return noise + self._encrypt(noise, data, self._aad + context)

    def decrypt(self, ciphertext: bytes, what: str, context: bytes = b"") -> bytes:
        """The data of :meth:`encrypt`.

        Raises:
            StoreError: the ciphertext was changed, or is that of another context; names ``what``.
        """
        return self._plain(ciphertext, what, context)

    def _plain(self, ciphertext: bytes, what: str, context: bytes = b"") -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._decrypt(ciphertext[:IV_BYTES], ciphertext[IV_BYTES:], self._aad + context)
        except (InvalidTag, ValueError):
            raise StoreError(
                f"{what} cannot be decrypted: its bytes were changed. Restore the journal from a backup; "
                "`holdfast audit verify` names what else was changed."
            ) from None


class Keyring:
    """The master key of a home, and the tenants' keys that it unwraps. Read on first use."""

    def __init__(self, master: Callable[[], bytes]) -> None:
        self._read = master
        self._master: AESGCM | None = None
        self._keys: dict[tuple[str, str, bytes], TenantKey] = {}

    @classmethod
    def of(cls, home: Path) -> Keyring:
        """The keyring of a home, with its master key (:func:`holdfast.journal.masterkey.master_key`)."""
        return cls(lambda: master_key(home))

    def new(self, tenant: str) -> tuple[str, bytes]:
        """A fresh data key for a tenant: its id and its wrapped form, for the table ``tenant_keys``."""
        key_id = secrets.token_hex(8)
        iv = os.urandom(IV_BYTES)
        wrapped = iv + self._cipher().encrypt(iv, os.urandom(KEY_BYTES), _wrap_aad(tenant, key_id))
        return key_id, wrapped

    def key(self, tenant: str, key_id: str, wrapped: bytes) -> TenantKey:
        """A tenant's data key.

        Raises:
            StoreError: it was wrapped by another master key, or the row was changed.
        """
        found = self._keys.get((tenant, key_id, wrapped))
        if found is None:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            try:
                raw = self._cipher().decrypt(wrapped[:IV_BYTES], wrapped[IV_BYTES:], _wrap_aad(tenant, key_id))
            except (InvalidTag, ValueError):
                raise StoreError(
                    f"the key of tenant {tenant} was not made with this master key. Put the right master key into the "
                    f"home, or set {MASTER_VARIABLE}."
                ) from None
            found = TenantKey(tenant, key_id, AESGCM(raw))
            if len(self._keys) >= 4096:
                self._keys.clear()
            self._keys[tenant, key_id, wrapped] = found
        return found

    def forget(self) -> None:
        """Drop every unwrapped key from memory."""
        self._keys.clear()

    def _cipher(self) -> AESGCM:
        if self._master is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._master = AESGCM(self._read())
        return self._master


def secret_context(name: str, version: int) -> bytes:
    """What a sealed secret belongs to, beside its tenant. A tenant's name holds no NUL."""
    return f"\0secret:{name}:{version}".encode()


def _wrap_aad(tenant: str, key_id: str) -> bytes:
    return f"{key_id}:{tenant}".encode()
