"""Signed heads: the furthest checkpoint of each tenant's log, kept as files outside the database.

In ``$HOLDFAST_HOME/heads``, for each tenant: ``NAME.note``, a checkpoint in the form of :mod:`holdfast.audit.note`,
which a log that was cut or rewritten no longer fits; ``NAME.leaves``, the hash of each event under it (32 bytes
each), by which a changed event can be named; ``NAME.frontier``, from which the next head is computed. Only the note
is signed; the other two hold as far as they give its root.

A head never moves backwards, whichever process of the home writes it. And the next head continues the last one with
the events that came since: an older event that was changed in the database is never signed anew. What is newer than
the last head, about a second of events, can be cut unnoticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from holdfast.audit.keys import PrivateKey, PublicKey
from holdfast.audit.merkle import HASH_SIZE, hash_leaf
from holdfast.audit.note import Checkpoint, origin, parse, parse_checkpoint, sign_checkpoint, verified
from holdfast.errors import AuditError, HoldfastError, StoreError
from holdfast.journal import frontier
from holdfast.journal.base import Tenant
from holdfast.journal.event import Event

FOLDER = "heads"
INTERVAL = 1.0
"""Seconds between two heads of a log, at least."""
_PAGE = 500


class LogSource(Protocol):
    """What heads are computed from: a store."""

    def tenants(self) -> list[Tenant]:
        """All tenants, with the sizes of their logs."""

    def log(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        """A tenant's log: (index, canonical bytes) in order."""


def note_path(home: Path, tenant: str) -> Path:
    """File of a tenant's head."""
    return home / FOLDER / f"{quote(tenant, safe='')}.note"


def read_heads(home: Path) -> dict[str, bytes]:
    """The bytes of each tenant's note on a home, by tenant. Nothing in them is checked.

    Raises:
        StoreError: a note cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in sorted((home / FOLDER).glob("*.note")):
        data = _read(path)
        if data is not None:
            found[unquote(path.name.removesuffix(".note"))] = data
    return found


def read_leaves(home: Path, tenant: str, size: int) -> list[bytes]:
    """The hashes kept beside a head, ``size`` of them at most. They hold as far as they give the head's root.

    Raises:
        StoreError: they cannot be read.
    """
    data = (_read(note_path(home, tenant).with_suffix(".leaves")) or b"")[: size * HASH_SIZE]
    return [data[at : at + HASH_SIZE] for at in range(0, len(data) - HASH_SIZE + 1, HASH_SIZE)]


def open_head(data: bytes, tenant: str, key: PublicKey) -> Checkpoint:
    """The head that a home's note states, once its signature holds.

    Raises:
        AuditError: it is no checkpoint of this tenant's, or this key did not sign it; says which.
    """
    name = origin(key.home, tenant)
    note = parse(data)
    head = parse_checkpoint(note.text)
    if head.origin != name:
        raise AuditError(f"it is the head of {head.origin}, not of {name}")
    if not verified(note, name, key.raw, key.check):
        raise AuditError(f"it was not signed by the key of {key.name}")
    return head


class HeadKeeper:
    """Signs the heads of a home's logs. ``committed`` is cheap and may be called from any thread; ``flush`` does the
    work. Nothing happens in the background unless ``start`` was called.

    ``source`` is read by one thread at a time: the one that ``start`` began, and whoever calls ``flush`` or ``close``.
    """

    def __init__(
        self,
        home: Path,
        key: PrivateKey,
        source: LogSource,
        *,
        interval: float = INTERVAL,
        on_error: Callable[[HoldfastError], None] | None = None,
    ) -> None:
        self._home = home
        self._key = key
        self._source = source
        self._interval = interval
        self._on_error = on_error
        self._sizes: dict[str, int] = {}
        self._known: dict[str, tuple[bytes, bytes]] = {}
        self._work = threading.Condition()
        self._flushing = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def committed(self, events: Iterable[Event]) -> None:
        """Take note of events that are durable. Their logs get a new head at the next flush."""
        with self._work:
            sizes = self._sizes
            for event in events:
                if event.index >= sizes.get(event.tenant, 0):
                    sizes[event.tenant] = event.index + 1
            self._work.notify()

    def flush(self, tenants: Iterable[str] = ()) -> int:
        """Sign the furthest head of each log that grew, and of ``tenants``; gives how many heads moved.

        Raises:
            AuditError: a head or the log under it was tampered with: nothing of that log is signed.
            StoreError: the log cannot be read or the head cannot be written; it is tried again at the next flush.
        """
        with self._flushing:
            with self._work:
                wanted = {**dict.fromkeys(tenants, 0), **self._sizes}
                self._sizes = {}
            if not wanted:
                return 0
            moved = 0
            failure: HoldfastError | None = None
            with self._locked() as folder:
                for tenant, size in wanted.items():
                    try:
                        moved += self._advance(tenant, size)
                    except StoreError as error:
                        failure = failure or error
                        with self._work:
                            self._sizes[tenant] = max(size, self._sizes.get(tenant, 0))
                    except AuditError as error:
                        failure = failure or error
                if moved:
                    os.fsync(folder)
        if failure is not None:
            raise failure
        return moved

    def start(self) -> None:
        """Flush in a thread, at most once in ``interval`` seconds; first what a process that died left unsigned."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heads", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and flush what is left.

        Raises:
            AuditError, StoreError: as ``flush``.
        """
        with self._work:
            self._closing.set()
            self._work.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.flush()

    def _run(self) -> None:
        self._guarded(self._catch_up)
        while True:
            with self._work:
                self._work.wait_for(lambda: self._sizes or self._closing.is_set())
            if self._closing.is_set():
                return
            self._guarded(self.flush)
            self._closing.wait(self._interval)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except HoldfastError as error:
            if self._on_error is not None:
                self._on_error(error)

    def _catch_up(self) -> None:
        logs = [(tenant.name, tenant.log_size) for tenant in self._source.tenants() if tenant.log_size]
        with self._work:
            for name, size in logs:
                self._sizes[name] = max(size, self._sizes.get(name, 0))

    def _advance(self, tenant: str, size: int) -> bool:
        path = note_path(self._home, tenant)
        old = _read(path)
        edge = self._edge(tenant, old)
        start = frontier.size(edge)
        if 0 < size <= start:
            return False
        leaves = bytearray()
        for leaf in self._leaves(tenant, start):
            leaves += leaf
            edge = frontier.push(edge, leaf)
        if not leaves and old is not None:
            return False
        head = Checkpoint(origin(self._key.public.home, tenant), frontier.size(edge), frontier.root(edge))
        note = sign_checkpoint(head, self._key.public.raw, self._key.sign)
        self._keep(tenant, start, leaves)
        _replace(path.with_suffix(".frontier"), edge, durable=False)
        _replace(path, note, durable=True)
        self._known[tenant] = (note, edge)
        return True

    def _leaves(self, tenant: str, start: int, end: int | None = None) -> Iterator[bytes]:
        while end is None or start < end:
            page = self._source.log(tenant, start=start, limit=_PAGE if end is None else min(_PAGE, end - start))
            for index, data in page:
                if index != start:
                    raise AuditError(f"the log of tenant {tenant} lacks event {start}. Run: holdfast audit verify")
                yield hash_leaf(data)
                start += 1
            if len(page) < _PAGE:
                return

    def _edge(self, tenant: str, note: bytes | None) -> bytes:
        """The frontier under the head as it stands: known, from the file beside the note, or computed from the log."""
        if note is None:
            return b""
        known = self._known.get(tenant)
        if known is not None and known[0] == note:
            return known[1]
        try:
            head = open_head(note, tenant, self._key.public)
        except AuditError as error:
            raise AuditError(
                f"the signed head of tenant {tenant} cannot be continued: {error}. Run holdfast audit verify, and "
                f"restore {note_path(self._home, tenant)} and audit.key from a backup."
            ) from None
        edge = _read(note_path(self._home, tenant).with_suffix(".frontier")) or b""
        if not _fits(edge, head):
            edge = b""
            for leaf in self._leaves(tenant, 0, head.size):
                edge = frontier.push(edge, leaf)
            if not _fits(edge, head):
                raise AuditError(f"the log of tenant {tenant} does not fit its signed head. Run: holdfast audit verify")
        self._known[tenant] = (note, edge)
        return edge

    def _keep(self, tenant: str, start: int, leaves: bytes | bytearray) -> None:
        """Put hashes where they belong in the file of leaves, after those that an earlier crash may have lost."""
        path = note_path(self._home, tenant).with_suffix(".leaves")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                kept = os.fstat(descriptor).st_size // HASH_SIZE
                if kept < start:
                    leaves = b"".join(self._leaves(tenant, kept, start)) + leaves
                    start = kept
                _write_at(descriptor, leaves, start * HASH_SIZE)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unwritable(path, error) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Only one process of a home moves heads at a time: else a nearer head could replace a further one. Gives a
        descriptor of the folder.
        """
        folder = self._home / FOLDER
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _fits(edge: bytes, head: Checkpoint) -> bool:
    whole = len(edge) == 8 + HASH_SIZE * head.size.bit_count() if head.size else not edge
    return whole and frontier.size(edge) == head.size and frontier.root(edge) == head.root


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}. Make it readable for this user.") from None


def _write_at(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _replace(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file whole: the old content or the new is there at any time. The lock makes the temporary name ours."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be written: {error.strerror}. Free some space, or make the home writable.")
