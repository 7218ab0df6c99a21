"""The journal in one SQLite file: WAL, synchronous=FULL, one conditional transaction a batch.

Several processes may write; ``BEGIN IMMEDIATE`` lets one at a time. What a transaction needs to know is kept in memory
and written through, until ``PRAGMA data_version`` says that another connection committed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import StoreError
from holdfast.journal import migrate
from holdfast.journal.base import Append, LedgerRow, Result, Tenant
from holdfast.journal.columns import (
    EVENT,
    INBOX,
    LEDGER,
    PAYLOAD,
    STREAM,
    ledger_line,
    ledger_row,
    stream_change,
    stream_line,
    stream_row,
)
from holdfast.journal.payloads import Keyring, TenantKey
from holdfast.journal.rows import StreamRow, TenantRow
from holdfast.journal.sqlstore import Execute, SqlStore, must
from holdfast.journal.transaction import Transaction

LOCK_TIMEOUT = 10.0
"""Seconds that a writer waits for another process's transaction."""
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "cache_size = -32768", "wal_autocheckpoint = 4000")
"""What every connection sets. The pages that each commit changes are few and the same, so that checkpoints (in pages)
are far apart: each one writes them once."""
_POLL = 0.001
_MOST_ROWS = 20_000
"""Rows of one kind kept in memory, at most."""
_T = TypeVar("_T")


def _marks(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))


_INSERT_EVENT = f"INSERT INTO events ({EVENT}) VALUES ({_marks(EVENT)})"  # noqa: S608
_INSERT_PAYLOAD = f"INSERT INTO payloads ({PAYLOAD}) VALUES ({_marks(PAYLOAD)})"  # noqa: S608
_INSERT_STREAM = f"INSERT INTO streams ({STREAM}) VALUES ({_marks(STREAM)})"  # noqa: S608
_INSERT_INBOX = f"INSERT INTO inbox ({INBOX}) VALUES ({_marks(INBOX)})"  # noqa: S608
_PUT_LEDGER = f"INSERT OR REPLACE INTO ledger ({LEDGER}) VALUES ({_marks(LEDGER)})"  # noqa: S608
_TOUCH_STREAM = "UPDATE streams SET seq = ?, head = ?, tail = ? WHERE stream = ?"
_MOVE_STREAM = (
    "UPDATE streams SET status = ?, owner = ?, seq = ?, head = ?, tail = ?, ready_at = ?, replay_from = ?, "
    "asking = ? WHERE stream = ?"
)
_SELECT_STREAM = f"SELECT {STREAM} FROM streams WHERE stream = ?"  # noqa: S608
_SELECT_LEDGER = f"SELECT {LEDGER} FROM ledger WHERE key = ?"  # noqa: S608
_PUT_MEMORY = "INSERT OR REPLACE INTO memory (tenant, agent, key, key_id, ciphertext) VALUES (?, ?, ?, ?, ?)"
_PUT_SEALED = (
    "INSERT OR REPLACE INTO secrets (tenant, name, version, key_id, ciphertext, binding, created_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_PUT_PAST = (
    "INSERT OR REPLACE INTO pasts (tenant, stream, step, attempt, agent, gate, name, at, state, ended_at, figures) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PUT_KILL = (
    "INSERT OR REPLACE INTO kills (id, scope, name, tenant, reason, issued_by, at, compensate) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class SqliteStore(SqlStore):
    """A journal in the file ``path``. May be used from several threads."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.path = path
        self._name = os.fspath(path)
        self.url = f"sqlite:///{path}"
        self.keyring = keyring
        self._places: dict[str, int] = {}
        self.heads: dict[str, bytes] = {}
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)
        self._version = -1
        self._streams: dict[str, StreamRow] = {}
        self._ledger: dict[str, LedgerRow | None] = {}
        self._tenants: dict[str, TenantRow] = {}
        self._keys: dict[str, TenantKey] = {}
        self._generation: int | None = None
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; install 3.35 or newer.")
        with self._write_lock:
            try:
                self._connection()
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                raise self._failure(error) from None

    def now(self) -> int:
        """This host's clock, microseconds: a SQLite file has no other."""
        return time.time_ns() // 1000

    def close(self) -> None:
        """Close both connections."""
        with self._write_lock, self._read_lock:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    connection.close()
            self._writer = self._reader = None
            self._drop()

    def transact(self, batch: Sequence[Append]) -> list[Result]:
        """Commit a batch: one transaction, one flush; a refused append leaves the others alone.

        Raises:
            StoreError: nothing of the batch is durable; says the cure.
        """

        def work(run: sqlite3.Cursor) -> list[Result]:
            step = Transaction(self._rows(run))
            results = [step.append(item) for item in batch]
            self._flush(run, step)
            return results

        return self._transaction(work)

    def _create_tenant(self, tenant: Tenant, item: Append) -> bool:
        def work(run: sqlite3.Cursor) -> bool:
            step = Transaction(self._rows(run))
            if not step.create_tenant(tenant):
                return False
            must(step.append(item))
            self._flush(run, step)
            return True

        return self._transaction(work)

    def _write(self, work: Callable[[Execute], _T]) -> _T:
        def inner(cursor: sqlite3.Cursor) -> _T:
            # These statements change rows behind the back of what is kept in memory.
            self._drop()
            return work(lambda sql, params: cursor.execute(sql, params).fetchall())

        return self._transaction(inner)

    def _transaction(self, work: Callable[[sqlite3.Cursor], _T]) -> _T:
        with self._write_lock:
            try:
                connection = self._connection()
                cursor = connection.cursor()
                self._begin(cursor)
                version = cursor.execute("PRAGMA data_version").fetchone()[0]
                if version != self._version:
                    self._drop()
                    self._version = version
                result = work(cursor)
                cursor.execute("COMMIT")
            except BaseException as error:
                self._abandon()
                if isinstance(error, sqlite3.Error | OSError):
                    raise self._failure(error) from None
                raise
            return result

    def _begin(self, cursor: sqlite3.Cursor) -> None:
        """Take the write lock. SQLite's own waiting backs off to 100 ms: too long for a kill behind a busy node."""
        deadline = 0.0
        while True:
            try:
                cursor.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if not deadline:
                    deadline = time.monotonic() + LOCK_TIMEOUT
                elif time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)

    def _flush(self, run: sqlite3.Cursor, step: Transaction) -> None:
        many = run.executemany
        for name, tenant in step.new_tenants.items():
            run.execute(
                "INSERT INTO tenants (name, region, created_at, log_size, frontier) VALUES (?, ?, ?, ?, ?)",
                (name, tenant.region, tenant.created_at, tenant.size, tenant.frontier),
            )
            self._tenants[name] = tenant
        if step.created:
            many(_INSERT_STREAM, map(stream_line, step.created.values()))
            self._streams.update(step.created)
        many(_INSERT_EVENT, step.events)
        if step.payloads:
            many(_INSERT_PAYLOAD, step.payloads)
        if step.touched:
            many(_TOUCH_STREAM, [(row.seq, row.head, row.tail, name) for name, row in step.touched.items()])
        if step.moved:
            many(_MOVE_STREAM, map(stream_change, step.moved.values()))
        many(
            "UPDATE tenants SET log_size = ?, frontier = ? WHERE name = ?",
            [(row.size, row.frontier, name) for name, row in step.tenants.items() if name not in step.new_tenants],
        )
        if step.ledger:
            many(_PUT_LEDGER, map(ledger_line, step.ledger.values()))
            self._ledger.update(step.ledger)
        if step.consumed:
            many("DELETE FROM inbox WHERE id = ?", [(number,) for number in step.consumed])
        if step.inbox:
            many(_INSERT_INBOX, step.inbox)
        if step.memory:
            self._flush_memory(run, step)
        if step.pasts:
            many(_PUT_PAST, [(*place, *past) for place, past in step.pasts.items()])
        for place, secret in step.secrets.items():
            if secret is None:
                run.execute("DELETE FROM secrets WHERE tenant = ? AND name = ?", place)
            else:
                run.execute(_PUT_SEALED, (*place, *secret))
        if step.generation is not None:
            self._flush_kills(run, step)
        self.heads = {name: row.frontier for name, row in step.tenants.items()}

    def _flush_memory(self, run: sqlite3.Cursor, step: Transaction) -> None:
        for (tenant, agent, key), value in step.memory.items():
            if value is None:
                run.execute("DELETE FROM memory WHERE tenant = ? AND agent = ? AND key = ?", (tenant, agent, key))
            else:
                run.execute(_PUT_MEMORY, (tenant, agent, key, *value))

    def _flush_kills(self, run: sqlite3.Cursor, step: Transaction) -> None:
        run.executemany(
            _PUT_KILL,
            [
                (kill.id, kill.scope, kill.name, kill.tenant, kill.reason, kill.by, kill.at, kill.compensate)
                for kill in step.kills.values()
            ],
        )
        run.executemany("DELETE FROM kills WHERE id = ?", [(number,) for number in step.lifts])
        run.execute("UPDATE meta SET value = ? WHERE key = 'kill_generation'", (step.generation,))
        self._generation = step.generation

    def _rows(self, run: sqlite3.Cursor) -> _Cached:
        for kept in (self._streams, self._ledger):
            if len(kept) > _MOST_ROWS:
                kept.clear()
        return _Cached(self, run)

    def _drop(self) -> None:
        self._streams.clear()
        self._ledger.clear()
        self._tenants.clear()
        self._keys.clear()
        self._generation = None

    def _abandon(self) -> None:
        """Undo whatever is under way; where even that fails, the connection is given up."""
        self._drop()
        connection = self._writer
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._writer = None
            connection.close()

    def _query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._read_lock:
            try:
                if self._reader is None:
                    self._reader = self._connect()
                try:
                    return self._reader.execute(sql, params).fetchall()
                except sqlite3.OperationalError as error:
                    if "decode" not in str(error):
                        raise
                    # Text that is no UTF-8: somebody changed the file, and an auditor must be able to look at it.
                    self._reader.text_factory = _text
                    return self._reader.execute(sql, params).fetchall()
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                raise self._failure(error) from None

    def _connection(self) -> sqlite3.Connection:
        """The writing connection. A file that was moved away or replaced is not written to unseen."""
        if self._writer is not None:
            try:
                found = os.stat(self._name)
            except FileNotFoundError:
                raise StoreError(
                    f"{self.path} was removed while it was in use: nothing more is recorded. Put it back and "
                    "start again."
                ) from None
            if (found.st_dev, found.st_ino) == self._file:
                return self._writer
            raise StoreError(
                f"{self.path} was replaced by another file while it was in use: nothing more is recorded. Start "
                "again to use the new one."
            )
        if not self.path.exists():
            # Made here, so that nobody else can read it, whatever the umask.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._writer = connection = self._connect()
        found = os.stat(self.path)
        self._file = (found.st_dev, found.st_ino)
        try:
            self._ensure(connection)
        except BaseException:
            self._writer = None
            connection.close()
            raise
        connection.execute("PRAGMA busy_timeout = 1")
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _ensure(self, connection: sqlite3.Connection) -> None:
        if self._current(connection):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._current(connection) and not self._has_tables(connection):
                migrate.create("sqlite", connection.execute)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if not self._current(connection):
            migrate.upgrade(self.url)

    def _current(self, connection: sqlite3.Connection) -> bool:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            if self._has_tables(connection):
                raise StoreError(f"{self.path} is a database of something else. Name another home with HOLDFAST_HOME.")
            return False
        rows = connection.execute(migrate.READ_VERSION).fetchall()
        return bool(rows) and migrate.check(rows[0][0], str(self.path))

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' LIMIT 1").fetchall())

    def _failure(self, error: BaseException) -> StoreError:
        """What went wrong with the file, and what to do about it."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, OSError):
            return StoreError(f"{self.path} cannot be used ({error.strerror}). Check the folder and its owner.")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, UnicodeDecodeError):
            # SQLite quotes a damaged schema in its message, and the quotation is no text.
            code = sqlite3.SQLITE_CORRUPT
        cause = _CAUSES.get(code, "cannot be used ({error}). Check the disk; `holdfast doctor` says more")
        return StoreError(f"{self.path} {cause.format(error=error, seconds=int(LOCK_TIMEOUT))}.")


class _Cached:
    """The rows of one transaction: from memory, else from the file."""

    __slots__ = ("_run", "_store")

    def __init__(self, store: SqliteStore, run: sqlite3.Cursor) -> None:
        self._store = store
        self._run = run

    def now(self) -> int:
        return self._store.now()

    def tenant(self, name: str) -> TenantRow | None:
        kept = self._store._tenants
        row = kept.get(name)
        if row is None:
            found = self._run.execute(
                "SELECT name, region, created_at, log_size, frontier FROM tenants WHERE name = ?", (name,)
            ).fetchone()
            if found is not None:
                row = kept[name] = TenantRow(*found)
        return row

    def stream(self, name: str) -> StreamRow | None:
        kept = self._store._streams
        row = kept.get(name)
        if row is None:
            found = self._run.execute(_SELECT_STREAM, (name,)).fetchone()
            if found is not None:
                row = kept[name] = stream_row(found)
        return row

    def ledger(self, key: str) -> LedgerRow | None:
        kept = self._store._ledger
        try:
            return kept[key]
        except KeyError:
            found = self._run.execute(_SELECT_LEDGER, (key,)).fetchone()
            row = kept[key] = None if found is None else ledger_row(found)
            return row

    def generation(self) -> int:
        store = self._store
        if store._generation is None:
            found = self._run.execute("SELECT value FROM meta WHERE key = 'kill_generation'").fetchone()
            store._generation = int(found[0])
        return store._generation

    def waiting(self, stream: str) -> Collection[int]:
        return {row[0] for row in self._run.execute("SELECT id FROM inbox WHERE stream = ?", (stream,))}

    def key(self, tenant: str) -> TenantKey:
        store = self._store
        key = store._keys.get(tenant)
        if key is None:
            key = store._keys[tenant] = store._sealing_key(
                lambda sql, params: self._run.execute(sql, params).fetchall(), tenant
            )
        return key


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


_CAUSES = {
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full. Free some space; nothing that was recorded is lost",
    sqlite3.SQLITE_READONLY: "is read-only. Make the file and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Make its folder writable for this user",
    sqlite3.SQLITE_CORRUPT: "is damaged. Restore it from a backup; `holdfast audit verify` says what is left",
    sqlite3.SQLITE_NOTADB: "is no SQLite database. Restore it from a backup, or name another home with HOLDFAST_HOME",
    sqlite3.SQLITE_BUSY: "was locked by another process for {seconds} s. End the process that holds it and try again",
    sqlite3.SQLITE_LOCKED: "was locked by another process for {seconds} s. End the process that holds it and try again",
    sqlite3.SQLITE_IOERR: "cannot be written or read ({error}). Check the disk and its free space",
    sqlite3.SQLITE_PERM: "may not be used by this user. Check its owner",
}
