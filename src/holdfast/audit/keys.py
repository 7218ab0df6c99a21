"""The Ed25519 key of a home: it signs the heads of its logs, evidence bundles and policy bundles.

``$HOLDFAST_HOME/audit.key`` (mode 0600) is the private key, ``audit.pub`` what an auditor takes along: whoever checks a
record on another machine should compare with a copy of ``audit.pub`` that was fetched before. Both are one line in the
encodings of signed notes (https://pkg.go.dev/golang.org/x/mod/sumdb/note): ``PRIVATE+KEY+name+hash+seed`` and
``name+hash+key``. The name is ``holdfast/ID``, where the home's ID is the beginning of its public key's SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from holdfast.audit.note import ED25519, key_id
from holdfast.errors import AuditError, StoreError

KEY_FILE = "audit.key"
PUB_FILE = "audit.pub"


class PublicKey:
    """What checks signatures of a home."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        """32 bytes, as in RFC 8032."""
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @property
    def home(self) -> str:
        """ID of the home: 16 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Name of the key itself (a log's head names its log instead)."""
        return f"holdfast/{self.home}"

    def check(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def line(self) -> str:
        """The key as ``audit.pub`` holds it."""
        return f"{self.name}+{key_id(self.name, self.raw).hex()}+{base64.b64encode(ED25519 + self.raw).decode()}\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.name})"


class PrivateKey:
    """What signs for a home. Its bytes appear in no message and no representation."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Signature (64 bytes) of a message."""
        return self._key.sign(message)

    def line(self) -> str:
        """The key as ``audit.key`` holds it."""
        name, public = self.public.name, self.public.raw
        seed = base64.b64encode(ED25519 + self._seed).decode()
        return f"PRIVATE+KEY+{name}+{key_id(name, public).hex()}+{seed}\n"

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.name})"


def ensure(home: Path) -> PrivateKey:
    """The home's key, made when there is none. Several processes may ask at once: one key comes out.

    Raises:
        AuditError: the key is there and cannot be used; says what to do.
        StoreError: the home cannot be written.
    """
    path = home / KEY_FILE
    try:
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True)
            _create(path, PrivateKey(secrets.token_bytes(32)).line().encode(), 0o600)
        key = load(home)
        if not (home / PUB_FILE).exists():
            _create(home / PUB_FILE, key.public.line().encode(), 0o644)
    except OSError as error:
        raise StoreError(
            f"the audit key {path} cannot be made: {error.strerror}. Make the home writable, or point HOLDFAST_HOME "
            "elsewhere."
        ) from None
    return key


def load(home: Path) -> PrivateKey:
    """The home's private key.

    Raises:
        AuditError: it is missing, open to others, or damaged; says what to do.
    """
    path = home / KEY_FILE
    return load_private(path, f"Restore {path} from a backup; a new key cannot sign on for the old heads.")


def create(path: Path) -> PrivateKey:
    """A new key in a file of its own, with the public one in ``path.pub``.

    Raises:
        AuditError: there is a file of that name.
        StoreError: it cannot be written.
    """
    key, public = PrivateKey(secrets.token_bytes(32)), path.with_name(path.name + ".pub")
    if taken := next((one for one in (path, public) if one.exists()), None):
        raise AuditError(f"{taken} exists. Name another file: a key that is overwritten is gone.")
    try:
        _create(path, key.line().encode(), 0o600)
        _create(public, key.public.line().encode(), 0o644)
    except OSError as error:
        raise StoreError(f"the key {path} cannot be made: {error.strerror}. Name a folder that is writable.") from None
    return key


def load_private(path: Path, cure: str = "Make one with: holdfast policy key FILE") -> PrivateKey:
    """The private key in a file. ``cure``: what to do when there is none.

    Raises:
        AuditError: it is missing, open to others, or damaged; says what to do.
    """
    text = _read(path, cure)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise AuditError(f"the audit key {path} can be read by others. Run: chmod 600 {path}")
    parts = text.split("+", 4)
    seed = _decode(parts[4]) if len(parts) == 5 and parts[:2] == ["PRIVATE", "KEY"] else None
    if seed is not None:
        key = PrivateKey(seed)
        if key.line().strip() == text:
            return key
    raise AuditError(f"the audit key {path} is damaged. Restore it from a backup.")


def load_public(path: Path) -> PublicKey:
    """A public key from a file like ``audit.pub``.

    Raises:
        AuditError: it is missing or damaged; says what to do.
    """
    text = _read(path, f"Restore {path} from the copy that you keep for audits.")
    parts = text.split("+", 2)
    raw = _decode(parts[2]) if len(parts) == 3 else None
    if raw is not None:
        key = PublicKey(raw)
        if key.line().strip() == text:
            return key
    raise AuditError(f"the public audit key {path} is damaged. Restore it from the copy that you keep for audits.")


def _read(path: Path, cure: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise AuditError(f"the audit key {path} is missing. {cure}") from None
    except OSError as error:
        raise AuditError(f"the audit key {path} cannot be read: {error.strerror}") from None
    return data[:4096].decode(errors="replace").strip()


def _decode(text: str) -> bytes | None:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob[1:] if len(blob) == 33 and blob[:1] == ED25519 else None


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet, whole or not at all; leaves one that another process made first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
