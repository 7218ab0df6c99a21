"""The one way for files out of a workspace: what the inside wrote is walked, judged and copied, never trusted.

Every step of a path is opened by ``openat2`` below the workspace's own descriptor, through no link and into no other
mount, so nothing that the inside renames or replaces meanwhile leads elsewhere. Only plain files come out: a link,
device, fifo or socket, a file with setuid bits or a second name, a sparse bomb and a name that is no text stay where
they are, and are named with the reason. Sizes are counted as bytes are read; what a file claims decides nothing.
System call and flags: ``openat2(2)``, ``linux/openat2.h``; the number is the same on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from holdfast.errors import IsolationError, PayloadError, StoreError

_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_RESOLVE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_SETID = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_CHUNK = 1 << 20
_DENSE_BELOW = 1 << 20
_SPARSE = 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much may come out of one workspace. What exceeds it is an error, so that nothing is half collected."""

    entries: int = 10_000
    """Names of any kind that are looked at."""
    file_size: int = 256 << 20
    """Bytes."""
    total_size: int = 1 << 30
    """Bytes."""
    depth: int = 32
    path: int = 1024
    """Bytes of a path below the workspace."""


BOUNDS = Bounds()
"""The default."""


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """One file that came out."""

    path: str
    """Below the workspace, with ``/`` between names."""
    digest: str
    """SHA-256 in hex: its name in the store."""
    size: int
    executable: bool


class Refused(msgspec.Struct, frozen=True):
    """One entry that did not, and why."""

    path: str
    reason: str


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a workspace, in the order of its paths."""

    artefacts: tuple[Artefact, ...]
    refused: tuple[Refused, ...]


class Blobs(Protocol):
    """Where bytes go: a content-addressed store, apart for each tenant."""

    def put(self, tenant: str, chunks: Iterator[bytes]) -> str:
        """Keep the bytes and give their SHA-256 in hex. An error of ``chunks`` leaves nothing behind."""


class FolderBlobs:
    """A store in a folder of the node's: ``TENANT/DI/GEST``, readable for the node alone, never executable.

    A tenant's folder is named by a digest, because a tenant's name is no path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, tenant: str, digest: str) -> Path:
        """Where the bytes of a digest stand."""
        return self._of(tenant) / digest[:2] / digest[2:]

    def put(self, tenant: str, chunks: Iterator[bytes]) -> str:
        """Keep the bytes, flushed to the disk, and give their SHA-256 in hex.

        Raises:
            StoreError: the disk cannot be used.
        """
        digest = hashlib.sha256()
        partial = self._of(tenant) / f".{secrets.token_hex(8)}"
        try:
            partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(partial, "xb", opener=_private) as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            target = self.path(tenant, digest.hexdigest())
            target.parent.mkdir(mode=0o700, exist_ok=True)
            partial.replace(target)
        except OSError as error:
            raise StoreError(f"an artefact cannot be stored ({error.strerror}): check {self._folder}") from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return digest.hexdigest()

    def discard(self, tenant: str, digest: str) -> None:
        """Forget the bytes of a digest; nothing there is no error."""
        with contextlib.suppress(OSError):
            self.path(tenant, digest).unlink()

    def _of(self, tenant: str) -> Path:
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]


def collect(workspace: int, store: Blobs, tenant: str, bounds: Bounds = BOUNDS, path: str = "") -> Collected:
    """Copy a workspace's files, or what is at one path of it, into a store. ``workspace`` is a descriptor of its folder
    (``O_PATH`` will do).

    The inside may run and change everything meanwhile: what comes out is then some mixture of before and after, but
    always bytes that stood in plain files below the folder.

    Raises:
        PayloadError: it holds more than the bounds allow, or nothing stands at the path.
        IsolationError: this kernel cannot open safely (no ``openat2``, Linux 5.6).
        StoreError: the store cannot be used.
    """
    return _Walk(workspace, store, tenant, bounds).result(os.fsencode(os.path.normpath(path)) if path else b".")


class _Unfit(Exception):
    """An entry that stays where it is."""


class _Walk:
    """One collection under way."""

    def __init__(self, root: int, store: Blobs, tenant: str, bounds: Bounds) -> None:
        self._root = root
        self._store = store
        self._tenant = tenant
        self._bounds = bounds
        self._entries = 0
        self._total = 0
        self._artefacts: list[Artefact] = []
        self._refused: list[Refused] = []

    def result(self, start: bytes) -> Collected:
        pending = [start] if start == b"." else self._take(start)
        if start != b"." and not (pending or self._artefacts or self._refused):
            raise PayloadError(f"nothing stands at {_shown(start)} in the workspace")
        while pending:
            folder = pending.pop()
            for name in self._names(folder):
                pending += self._take(name if folder == b"." else folder + b"/" + name)
        return Collected(
            artefacts=tuple(sorted(self._artefacts, key=lambda one: one.path)),
            refused=tuple(sorted(self._refused, key=lambda one: one.path)),
        )

    def _take(self, path: bytes) -> list[bytes]:
        """Take one entry, or say why not; gives it back when it is a folder to be looked into."""
        self._entries += 1
        if self._entries > self._bounds.entries:
            raise PayloadError(f"the workspace holds more than {self._bounds.entries} entries; remove some")
        try:
            return [path] if self._entry(path) else []
        except _Unfit as unfit:
            self._refused.append(Refused(_shown(path), str(unfit)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._refused.append(Refused(_shown(path), _why(error)))
        return []

    def _names(self, folder: bytes) -> list[bytes]:
        try:
            fd = open_beneath(self._root, folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            self._refused.append(Refused(_shown(folder), _why(error)))
            return []
        try:
            names = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    names.append(os.fsencode(entry.name))
                    if self._entries + len(names) > self._bounds.entries:
                        break
            return sorted(names)
        finally:
            os.close(fd)

    def _entry(self, path: bytes) -> bool:
        """Take one entry; whether it is a folder to be looked into."""
        if len(path) > self._bounds.path or path.count(b"/") >= self._bounds.depth:
            raise _Unfit("its path is too long or too deep")
        text = _text(path)
        # A descriptor that opens nothing yet: a device's driver and a fifo's reader learn nothing of it.
        fd = open_beneath(self._root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                return True
            _judge(status)
            reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(fd)
        before = self._total
        try:
            digest = self._store.put(self._tenant, self._bytes(reading, text))
        finally:
            os.close(reading)
        executable = bool(status.st_mode & stat.S_IXUSR)
        self._artefacts.append(Artefact(path=text, digest=digest, size=self._total - before, executable=executable))
        return False

    def _bytes(self, fd: int, path: str) -> Iterator[bytes]:
        size = 0
        while chunk := _read(fd):
            size += len(chunk)
            self._total += len(chunk)
            if size > self._bounds.file_size:
                raise PayloadError(f"{path!r} in the workspace is larger than {self._bounds.file_size} bytes")
            if self._total > self._bounds.total_size:
                raise PayloadError(f"the workspace's files are larger than {self._bounds.total_size} bytes together")
            yield chunk


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open a path below a folder, through no link and into no other mount.

    Raises:
        IsolationError: the kernel has no ``openat2``.
        OSError: it is not there, or leads elsewhere (ELOOP, EXDEV).
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(64):
        fd = int(_libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, how, ctypes.c_size_t(len(how))))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EPERM):
            raise IsolationError(
                "files can be collected only with openat2: use Linux 5.6 or newer, and allow it in this container's "
                "seccomp profile"
            )
        if code not in (errno.EAGAIN, errno.EINTR):
            break  # EAGAIN: something was renamed meanwhile, so the kernel could not be sure
    raise OSError(code, os.strerror(code))


def _judge(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _Unfit(f"it is a {_kind(status.st_mode)}, not a plain file")
    if status.st_mode & _SETID:
        raise _Unfit("it has a setuid, setgid or sticky bit")
    if status.st_nlink != 1:
        raise _Unfit(f"it has {status.st_nlink} names" if status.st_nlink else "it was removed")
    if status.st_size > _DENSE_BELOW and status.st_blocks * 512 * _SPARSE < status.st_size:
        raise _Unfit("it is sparse: almost nothing of its size is there")


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISBLK, "block device"),
    ):
        if test(mode):
            return name
    return "file of another kind"


def _text(path: bytes) -> str:
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise _Unfit("its name is no UTF-8") from None
    if not text.isprintable():
        raise _Unfit("its name holds characters that cannot be printed")
    return text


def _shown(path: bytes) -> str:
    """A path for people, whatever it holds."""
    return ascii(path.decode(errors="replace"))[1:-1]


def _why(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EXDEV):
        return "it leads out of the workspace"
    return os.strerror(error.errno) if error.errno else "it cannot be read"


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        raise _Unfit(_why(error)) from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def open_workspace(path: Path) -> int:
    """A descriptor of a workspace's folder for :func:`collect`; the caller closes it.

    Raises:
        IsolationError: it is not there.
    """
    with contextlib.suppress(OSError):
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    raise IsolationError("the workspace is not there any more: files are collected before the boundary is closed")
