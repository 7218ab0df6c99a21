"""Artefacts: files that came out of a workspace, kept sealed beside the journal, apart for each tenant.

The bytes go through the collector into a store by content, encrypted with a key of each file's own. That key, and the
digest of the plain bytes, stand in a payload of the event that records the file, under the tenant's key: destroying
that one erases the files too. The event itself holds the digest of the encrypted bytes, which tells nothing of what is
in them and can be checked without any key. Files are encrypted in frames, each bound to its place and the last marked
as such (STREAM: Hoang, Reyhanitabar, Rogaway, Vizár 2015), so none can be cut, swapped or repeated unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import HoldfastError, PayloadError, StoreError
from holdfast.journal.fold import RunState
from holdfast.sandbox.collector import Bounds, Collected, FolderBlobs, Refused, collect

FOLDER = "artefacts"
"""Below the home."""
FRAME = 1 << 20
"""Plain bytes in one frame."""
MAX_FILES = 1000
"""Files that a run may keep."""
MAX_LEFT = 100
"""Files left behind that are named to the caller."""
_KEY = 32
_TAG = 16
_LENGTH = struct.Struct("!I")
_NONCE = struct.Struct("!7xI?")


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """One file as its manifest tells it: what is needed to open it."""

    name: str
    size: int
    sha256: str
    """Of the plain bytes, hex."""
    executable: bool
    address: str
    """SHA-256 of the encrypted bytes, hex: its name in the store."""
    key: bytes


_manifests: msgspec.json.Decoder[list[Sealed]] = msgspec.json.Decoder(list[Sealed])


class SealedBlobs:
    """A store for the collector that encrypts what it is given. Implements
    :class:`holdfast.sandbox.collector.Blobs`."""

    def __init__(self, folder: FolderBlobs) -> None:
        self._folder = folder
        self.put_here: dict[str, tuple[bytes, str]] = {}
        """Address to the key and the digest of the plain bytes."""

    def put(self, tenant: str, chunks: Iterator[bytes]) -> str:
        """Keep the bytes, and give the address of what was kept.

        Raises:
            StoreError: the disk cannot be used.
        """
        key, plain = os.urandom(_KEY), hashlib.sha256()

        def read() -> Iterator[bytes]:
            for chunk in chunks:
                plain.update(chunk)
                yield chunk

        address = self._folder.put(tenant, seal(key, tenant, read()))
        self.put_here[address] = key, plain.hexdigest()
        return address

    def discard(self, tenant: str) -> None:
        """Remove what was put: nothing will refer to it."""
        for address in self.put_here:
            self._folder.discard(tenant, address)


def seal(key: bytes, tenant: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Encrypt a stream, frame by frame."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, aad = AESGCM(key), tenant.encode()
    number, held = 0, bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) > FRAME:
            yield _frame(cipher.encrypt(_NONCE.pack(number, False), bytes(held[:FRAME]), aad))
            del held[:FRAME]
            number += 1
    yield _frame(cipher.encrypt(_NONCE.pack(number, True), bytes(held), aad))


def unseal(key: bytes, tenant: str, read: Any) -> Iterator[bytes]:
    """The plain bytes of an encrypted stream; ``read`` gives so many bytes of it.

    Raises:
        StoreError: it was cut or changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, aad = AESGCM(key), tenant.encode()
    number, frame = 0, _next(read)
    try:
        while True:
            follows = _next(read)
            yield cipher.decrypt(_NONCE.pack(number, not follows), frame, aad)
            if not follows:
                return
            number, frame = number + 1, follows
    except InvalidTag:
        raise StoreError("an artefact cannot be opened: its bytes were changed. Restore it from a backup.") from None


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of a workspace, before it is decided on."""

    files: tuple[Sealed, ...]
    left: tuple[Refused, ...]

    def manifest(self) -> bytes:
        """The payload that opens the files."""
        return msgspec.json.encode(self.files)

    def recorded(self) -> list[list[Any]]:
        """What the event says: name, size and address of each."""
        return [[one.name, one.size, one.address] for one in self.files]

    def told(self) -> dict[str, Any]:
        """What the caller is told."""
        return {
            "names": [one.name for one in self.files],
            "left": {one.path: one.reason for one in self.left[:MAX_LEFT]},
        }


class Artefacts:
    """The artefacts of a home."""

    def __init__(self, home: Path) -> None:
        self.folder = FolderBlobs(home / FOLDER)

    def gather(self, workspace: int, tenant: str, path: str, state: RunState) -> tuple[Gathered, SealedBlobs]:
        """Copy what is at a path of a workspace into the store. Blocking; nothing refers to it yet.

        Raises:
            PayloadError: there is nothing, or more than a run may keep.
            IsolationError: files cannot be collected safely here.
            StoreError: the disk cannot be used.
        """
        held = sum(size for _, size, _ in state.collected.values())
        bounds = Bounds(total_size=max(Bounds().total_size - held, 0))
        blobs = SealedBlobs(self.folder)
        try:
            found: Collected = collect(workspace, blobs, tenant, bounds, path)
            files = tuple(
                Sealed(
                    name=one.path,
                    size=one.size,
                    sha256=blobs.put_here[one.digest][1],
                    executable=one.executable,
                    address=one.digest,
                    key=blobs.put_here[one.digest][0],
                )
                for one in found.artefacts
            )
            names = {one.name for one in files} | set(state.files) | set(state.collected)
            if len(names) > MAX_FILES:
                raise PayloadError(f"a run keeps at most {MAX_FILES} files, and would have {len(names)}; collect fewer")
        except HoldfastError:
            blobs.discard(tenant)
            raise
        return Gathered(files=files, left=found.refused), blobs

    def read(self, tenant: str, name: str, manifest: bytes) -> Iterator[bytes]:
        """A file's bytes, checked as they come.

        Raises:
            StoreError: it is not there, or was changed.
        """
        one = next(one for one in _manifests.decode(manifest) if one.name == name)
        plain = hashlib.sha256()
        try:
            with open(self.folder.path(tenant, one.address), "rb") as file:
                for chunk in unseal(one.key, tenant, file.read):
                    plain.update(chunk)
                    yield chunk
        except OSError as error:
            raise StoreError(
                f"the artefact {name} cannot be read ({error.strerror}): it was collected in another home, or removed"
            ) from None
        if plain.hexdigest() != one.sha256:
            raise StoreError(f"the artefact {name} is not what was recorded; restore it from a backup")


def _frame(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _next(read: Any) -> bytes:
    head = read(_LENGTH.size)
    if not head:
        return b""
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    data: bytes = read(size) if _TAG <= size <= FRAME + _TAG else b""
    if len(data) != size or not size:
        raise StoreError("an artefact cannot be opened: it was cut. Restore it from a backup.")
    return data
