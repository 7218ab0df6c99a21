"""Where a home's master key comes from: a file, the environment, the system's keyring, or an external key service.

``HOLDFAST_MASTER_KEY`` says which:

- not set: the file ``master.key`` in the home, made on first use, for its owner only
- 32 bytes in base64: the key itself
- ``file:PATH``: another file of 32 bytes
- ``keyring:NAME``: the keyring of the operating system, entry ``NAME`` of the service ``holdfast``
- ``vault:MOUNT/KEY``: HashiCorp Vault's transit engine. ``VAULT_ADDR``, ``VAULT_TOKEN``, ``VAULT_NAMESPACE`` and
  ``VAULT_CACERT`` mean what they mean to Vault's own client. The home keeps the key only as Vault wrapped it.

Another key service is one more :class:`KeyService`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from holdfast.errors import StoreError

MASTER_FILE = "master.key"
WRAPPED_FILE = "master.key.wrapped"
MASTER_VARIABLE = "HOLDFAST_MASTER_KEY"
KEY_BYTES = 32
SERVICE = "holdfast"
"""Service name in the system's keyring."""
TIMEOUT = 10.0
"""Seconds that a key service may take."""


class KeyService(Protocol):
    """A service that wraps keys under one that never leaves it."""

    name: str
    """For messages."""

    def new(self) -> tuple[bytes, str]:
        """A fresh key of 32 bytes, and its wrapped form.

        Raises:
            StoreError: the service cannot be used; says the cure.
        """

    def unwrap(self, wrapped: str) -> bytes:
        """The key of a wrapped form.

        Raises:
            StoreError: the service cannot be used, or did not wrap it.
        """


def master_key(home: Path, environ: Mapping[str, str] | None = None) -> bytes:
    """The home's master key (32 bytes), made on first use.

    Raises:
        StoreError: it cannot be had from where the variable says; says the cure.
    """
    environ = os.environ if environ is None else environ
    text = environ.get(MASTER_VARIABLE, "")
    kind, colon, rest = text.partition(":")
    if not text:
        return _from_file(home / MASTER_FILE)
    if not colon:
        return _decoded(text, MASTER_VARIABLE)
    if kind == "file" and rest:
        return _from_file(Path(rest))
    if kind == "keyring" and rest:
        return _from_keyring(rest)
    if kind == "vault":
        return wrapped_key(home / WRAPPED_FILE, VaultTransit.of(rest, environ))
    raise StoreError(
        f"{MASTER_VARIABLE} is none of: {KEY_BYTES} bytes in base64, file:PATH, keyring:NAME, vault:MOUNT/KEY. "
        "Correct it, or remove it to use the file in the home."
    )


def wrapped_key(path: Path, service: KeyService) -> bytes:
    """The key that ``path`` holds in wrapped form; made by the service on first use.

    Raises:
        StoreError: the file or the service cannot be used.
    """
    try:
        wrapped = path.read_text("ascii").strip()
    except FileNotFoundError:
        key, made = service.new()
        _checked(key, service.name)
        _write_once(path, made.encode("ascii"))
        # Another process may have been first: then its key counts.
        wrapped = path.read_text("ascii").strip()
        if wrapped == made:
            return key
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Run Holdfast as the user who owns it.") from None
    return _checked(service.unwrap(wrapped), service.name)


class VaultTransit:
    """HashiCorp Vault's transit engine (https://developer.hashicorp.com/vault/api-docs/secret/transit)."""

    def __init__(
        self, address: str, mount: str, key: str, token: str, *, namespace: str = "", ca_file: str = ""
    ) -> None:
        self.name = f"Vault at {address}"
        self._base = f"{address.rstrip('/')}/v1/{mount}"
        self._key = key
        self._headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        if namespace:
            self._headers["X-Vault-Namespace"] = namespace
        self._ca_file = ca_file

    @classmethod
    def of(cls, place: str, environ: Mapping[str, str]) -> VaultTransit:
        """The engine that ``MOUNT/KEY`` and Vault's own variables name.

        Raises:
            StoreError: one of them is missing.
        """
        mount, _, key = place.rpartition("/")
        if not re.fullmatch(r"[\w-]+(/[\w-]+)*", mount) or not re.fullmatch(r"[\w.-]+", key):
            raise StoreError(f"{MASTER_VARIABLE}=vault:… needs MOUNT/KEY. Write it like vault:transit/holdfast.")
        missing = [name for name in ("VAULT_ADDR", "VAULT_TOKEN") if not environ.get(name)]
        if missing:
            raise StoreError(f"{MASTER_VARIABLE} names Vault, and {' and '.join(missing)} is not set. Set it.")
        return cls(
            environ["VAULT_ADDR"],
            mount,
            key,
            environ["VAULT_TOKEN"],
            namespace=environ.get("VAULT_NAMESPACE", ""),
            ca_file=environ.get("VAULT_CACERT", ""),
        )

    def new(self) -> tuple[bytes, str]:
        """A fresh data key, and its ciphertext (``vault:vN:…``)."""
        data = self._post(f"datakey/plaintext/{self._key}", {"bits": KEY_BYTES * 8})
        return self._plain(data), str(data.get("ciphertext", ""))

    def unwrap(self, wrapped: str) -> bytes:
        """The data key of a ciphertext."""
        return self._plain(self._post(f"decrypt/{self._key}", {"ciphertext": wrapped}))

    def _plain(self, data: dict[str, Any]) -> bytes:
        return _decoded(str(data.get("plaintext", "")), self.name)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import ssl

        import httpx

        try:
            verify: Any = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
            # Vault's token goes to the address that was configured and nowhere else: no redirect, no proxy.
            with httpx.Client(verify=verify, trust_env=False, timeout=TIMEOUT) as client:
                answer = client.post(f"{self._base}/{path}", json=body, headers=self._headers)
            said = answer.json() if answer.content else {}
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise StoreError(
                f"{self.name} cannot be reached ({type(error).__name__}). Start it, or correct VAULT_ADDR."
            ) from None
        if answer.status_code == 200 and isinstance(said, dict) and isinstance(said.get("data"), dict):
            return dict(said["data"])
        words = said.get("errors") if isinstance(said, dict) else None
        reason = "; ".join(map(str, words))[:200] if isinstance(words, list) and words else "no reason given"
        raise StoreError(
            f"{self.name} refused {path.split('/', 1)[0]} with {answer.status_code} ({reason}). Unseal it, renew "
            f"VAULT_TOKEN, or give the token's policy update on {path}."
        )


def _from_keyring(name: str) -> bytes:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError as error:
        raise StoreError(
            f"{MASTER_VARIABLE}=keyring:… needs the library keyring, which cannot be imported ({error}). "
            "Run `pip install 'holdfast[keyring]'`."
        ) from None
    try:
        text = keyring.get_password(SERVICE, name)
        if text is None:
            keyring.set_password(SERVICE, name, base64.b64encode(os.urandom(KEY_BYTES)).decode())
            text = keyring.get_password(SERVICE, name) or ""
    except (KeyringError, OSError) as error:
        raise StoreError(
            f"the system's keyring cannot be used ({type(error).__name__}). Unlock it, or use another source in "
            f"{MASTER_VARIABLE}."
        ) from None
    return _decoded(text, f"the entry {name} of the system's keyring")


def _decoded(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    return _checked(key, source)


def _checked(key: bytes, source: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise StoreError(f"{source} must give {KEY_BYTES} bytes in base64, as `openssl rand -base64 32` does.")
    return key


def _from_file(path: Path) -> bytes:
    try:
        return _read_key(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). Run Holdfast as the user who owns it.") from None
    _write_once(path, os.urandom(KEY_BYTES))
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        key = file.read(KEY_BYTES + 1)
    if stat.S_IMODE(mode) & 0o077:
        raise StoreError(f"{path} can be read by others. Run `chmod 600 {path}`; and ask who may have read it.")
    if len(key) != KEY_BYTES:
        raise StoreError(f"{path} does not hold {KEY_BYTES} bytes. Restore it from a backup: payloads need it.")
    return key


def _write_once(path: Path, data: bytes) -> None:
    """Write the whole of a new file first and then link it: nobody ever sees half of it, and the first maker wins."""
    try:
        _link(path, data)
    except OSError as error:
        raise StoreError(
            f"the master key cannot be written to {path} ({error.strerror}). Make the folder writable, free some "
            f"space, or set {MASTER_VARIABLE}."
        ) from None


def _link(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
