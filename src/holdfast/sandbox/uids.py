"""A uid of its own for each boundary, from a range that all nodes of a host share.

A uid is leased by an exclusive ``flock`` on a file named after it in one folder of the host, so two homes, nodes or
tenants never hold the same one. The file is not empty while the lease lasts: whoever finds a free lock on a file
that is not empty knows that its holder died, and takes the uid only when no process runs under it any more.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import IsolationError
from holdfast.sandbox import procs

DEFAULT_RANGE = (200_000, 265_535)
"""First and last uid, inclusive: above what distributions give to people and below the usual subuid ranges' end."""
HOST = Path("/run/holdfast")
"""Folder of the host (not of a home) that root's nodes share; empty after a reboot, as leases should be."""


class Lease:
    """A leased uid. :meth:`release` gives it back; so does the end of this process."""

    def __init__(self, uid: int, fd: int, path: Path) -> None:
        self.uid = uid
        self._fd = fd
        self._path = path

    def release(self) -> None:
        """Give the uid back. Only to be called when no process runs under it. Idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def lease(bounds: tuple[int, int] = DEFAULT_RANGE, folder: Path = HOST / "uids") -> Lease:
    """Lease a uid that nothing on this host holds.

    Raises:
        IsolationError: the range is not mapped here, or every uid of it is taken.
    """
    first, last = usable(bounds)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    size = last - first + 1
    offset = random.randrange(size)  # noqa: S311 - spreads the leases of several nodes; the lock decides
    for step in range(size):
        uid = first + (offset + step) % size
        taken = _take(uid, folder / str(uid))
        if taken is not None:
            return taken
    raise IsolationError(
        f"every uid of {first}-{last} is taken by a boundary on this host; widen [sandbox] uid_range in holdfast.toml"
    )


def usable(bounds: tuple[int, int]) -> tuple[int, int]:
    """The range itself, after checking that this user namespace maps all of it.

    Raises:
        IsolationError: it does not, or the range is not one.
    """
    first, last = bounds
    if not 0 < first <= last < (1 << 32) - 2:
        raise IsolationError(f"[sandbox] uid_range {first}-{last} is not a range of uids above 0")
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside <= first and last < inside + count:
            return bounds
    raise IsolationError(
        f"uids {first}-{last} do not exist in this container's user namespace; set [sandbox] uid_range in "
        "holdfast.toml to a range that /proc/self/uid_map holds"
    )


def sweep(folder: Path = HOST / "uids") -> None:
    """Forget leases whose holders died, where no process runs under the uid any more."""
    try:
        names = [name for name in os.listdir(folder) if name.isdigit()]
    except OSError:
        return
    used = procs.used_uids() if names else set()
    for name in names:
        if int(name) not in used and (stale := _lock(folder / name)) is not None:
            (folder / name).unlink(missing_ok=True)
            os.close(stale)


def abandoned(place: Path, folder: Path = HOST / "uids") -> Iterator[Path]:
    """Folders in ``place`` whose group is a boundary's uid that nobody leases and no process runs under.

    While one is looked at its uid cannot be leased, so whatever is done to it there hits nobody else's.
    """
    try:
        found = [(Path(entry.path), entry.stat(follow_symlinks=False).st_gid) for entry in os.scandir(place)]
    except OSError:
        return
    if not found:
        return
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    used = procs.used_uids()
    for path, uid in found:
        if uid == 0 or uid in used or (lock := _lock(folder / str(uid))) is None:
            continue
        try:
            yield path
        finally:
            (folder / str(uid)).unlink(missing_ok=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """An exclusive lock on a lease's file that is still the one of its name; None when somebody holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise IsolationError(f"the uid leases in {path.parent} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder unlinks its file when it releases: a lock on a file without a name excludes nobody.
        current, here = os.stat(path), os.fstat(fd)
        if (current.st_ino, current.st_dev) == (here.st_ino, here.st_dev):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _take(uid: int, path: Path) -> Lease | None:
    fd = _lock(path)
    if fd is None:
        return None
    if os.fstat(fd).st_size and uid in procs.used_uids():
        os.close(fd)
        return None
    os.pwrite(fd, b"held\n", 0)
    return Lease(uid, fd, path)
