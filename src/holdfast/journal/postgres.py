"""The journal in PostgreSQL, for several nodes: the same transaction, under row locks taken in one order.

A tenant's row is where its log ends, so appends of one tenant follow one another; each node's writer groups its own.
A batch of steps takes one round trip (:mod:`holdfast.journal.postgres_quick`), any other two: one pipeline locks and
reads, the other writes and commits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.errors import ConfigError, StoreError
from holdfast.journal import migrate
from holdfast.journal.base import Append, Appended, Result, Tenant
from holdfast.journal.payloads import Keyring
from holdfast.journal.postgres_quick import PLANS, Kept
from holdfast.journal.postgres_rows import LOCK_TENANTS, Loaded, load, send
from holdfast.journal.sqlstore import Execute, SqlStore, must
from holdfast.journal.transaction import Raced, Transaction

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT = 5
"""Seconds to wait for a connection."""
LOST_AFTER = 10
"""Seconds without an acknowledgement from the server's host after which a connection counts as broken."""
ATTEMPTS = 5
"""How often a transaction is tried that lost to another one."""
_MIGRATION_LOCK = 0x686F6C65
_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_MOST_STREAMS = 100_000
_T = TypeVar("_T")


class _Lost(Exception):
    """The connection broke: before anything was committed, or while committing."""

    def __init__(self, cause: Exception, committing: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.committing = committing


class PostgresStore(SqlStore):
    """A journal in the database that ``url`` names. May be used from several threads.

    Raises:
        ConfigError: psycopg is not installed.
        StoreError: the database cannot be used; says the cure.
    """

    def __init__(self, url: str, keyring: Keyring) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(
                f"PostgreSQL needs psycopg, which cannot be imported ({error}). Run `pip install 'holdfast[postgres]'`."
            ) from None
        self._psycopg = psycopg
        self._dsn = url
        self.url = _without_password(url)
        self.keyring = keyring
        self._places: dict[str, int] = {}
        self.heads: dict[str, bytes] = {}
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writer: psycopg.Connection[Any] | None = None
        self._reader: psycopg.Connection[Any] | None = None
        self._tenant_of: dict[str, str] = {}
        self._sql: dict[str, str] = {}
        self._kept = Kept()
        self._migrate()

    @property
    def _lock(self) -> str:
        return " FOR UPDATE"

    def now(self) -> int:
        """The server's clock, microseconds."""
        return int(self._query(_CLOCK)[0][0])

    def _clock(self, run: Execute) -> int:
        return int(run(_CLOCK, ())[0][0])

    def close(self) -> None:
        """Close both connections."""
        with self._write_lock, self._read_lock:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    connection.close()
            self._writer = self._reader = None

    def transact(self, batch: Sequence[Append]) -> list[Result]:
        """Commit a batch: one transaction, one flush; a refused append leaves the others alone.

        When the connection breaks during the commit, looks afterwards whether it took place.

        Raises:
            StoreError: nothing of the batch is durable, or, where the message says so, that cannot be known now.
        """

        with self._write_lock:
            if (results := self._commit_quickly(batch)) is not None:
                return results

        def decide(step: Transaction) -> list[Result]:
            return [step.append(item) for item in batch]

        return self._batch(batch, decide)

    def _commit_quickly(self, batch: Sequence[Append]) -> list[Result] | None:
        """Commit on the rows that are kept; None when that does not do, and nothing was written."""
        kept = self._kept
        if self._writer is None or self._writer.closed or not kept.fits(batch):
            return None
        call = kept.call(batch)
        step, stale = call.step, False
        try:
            results = [step.append(item) for item in batch]
            # Whether it would be refused on rows as they are now is for those rows to say.
            if all(type(result) is Appended for result in results):
                kept.succeeded(step, call.send(self._writer))
                self.heads = {name: row.frontier for name, row in step.tenants.items()}
                return results
        except self._psycopg.errors.SerializationFailure:
            stale = True
        except self._psycopg.Error:
            kept.failed(batch, False)
            if not self._writer.broken or not self._took_place(step):
                return None
            self.heads = {name: row.frontier for name, row in step.tenants.items()}
            return results
        except BaseException:
            kept.failed(batch, False)
            raise
        kept.failed(batch, stale)
        return None

    def _create_tenant(self, tenant: Tenant, item: Append) -> bool:
        def decide(step: Transaction) -> bool:
            if not step.create_tenant(tenant):
                return False
            must(step.append(item))
            return True

        return self._batch([item], decide, (tenant.name,))

    def _batch(self, batch: Sequence[Append], decide: Callable[[Transaction], _T], tenants: Sequence[str] = ()) -> _T:
        kept: list[tuple[Transaction, _T]] = []
        read: list[Loaded] = []

        def work(connection: psycopg.Connection[Any]) -> _T:
            rows = load(connection, batch, lambda streams: self._tenants(connection, streams), tenants, self.keyring)
            step = Transaction(rows)
            result = decide(step)
            kept[:] = [(step, result)]
            read[:] = [rows]
            self._flush(connection, step, rows)
            return result

        with self._write_lock:
            try:
                result = self._transaction(work)
            except _Lost as lost:
                step, result = kept[0]
                if not self._took_place(step):
                    raise self._failure(lost.cause) from None
            step = kept[0][0]
            self._kept.learn(read[0], step)
            self.heads = {name: row.frontier for name, row in step.tenants.items()}
            return result

    def _write(self, work: Callable[[Execute], _T]) -> _T:
        def inner(connection: psycopg.Connection[Any]) -> _T:
            def run(sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
                cursor = connection.execute(self._translated(sql), params)
                return cursor.fetchall() if cursor.description is not None else []

            connection.execute("BEGIN")
            result = work(run)
            self._commit(connection)
            return result

        with self._write_lock:
            try:
                return self._transaction(inner)
            except _Lost as lost:
                raise StoreError(
                    f"the connection to {self.url} broke during a commit ({_reason(lost.cause)}). Look whether it took "
                    "effect before you try again."
                ) from None

    def _commit(self, connection: psycopg.Connection[Any]) -> None:
        try:
            connection.execute("COMMIT")
        except self._psycopg.OperationalError as error:
            if connection.broken or connection.closed:
                raise _Lost(error, committing=True) from None
            raise

    def _transaction(self, work: Callable[[psycopg.Connection[Any]], _T]) -> _T:
        """Do ``work``, again after a lost race, and once more after a connection that broke before its commit."""
        errors = self._psycopg.errors
        again = (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation, Raced)
        reconnected = False
        for attempt in range(ATTEMPTS):
            try:
                if self._writer is None or self._writer.closed:
                    self._writer = self._connect()
                    self._writer.execute(PLANS)
                    reconnected = True
                return work(self._writer)
            except again as error:
                self._abandon()
                if attempt == ATTEMPTS - 1:
                    raise self._failure(error) from None
            except self._psycopg.OperationalError as error:
                broken = self._writer is None or self._writer.broken
                self._abandon()
                if not broken or reconnected:
                    raise self._failure(error) from None
            except self._psycopg.Error as error:
                self._abandon()
                raise self._failure(error) from None
            except BaseException:
                self._abandon()
                raise
        raise AssertionError("the last attempt returns or raises")

    def _abandon(self) -> None:
        connection = self._writer
        if connection is None:
            return
        try:
            connection.execute("ROLLBACK")
        except self._psycopg.Error:
            self._writer = None
            connection.close()

    def _took_place(self, step: Transaction) -> bool:
        """Whether a transaction whose commit was not answered is there. Waits for the tenant's lock: for its end."""
        if not step.events:
            return False
        tenant, index, leaf = step.events[0][0], step.events[0][1], step.events[0][13]

        def look(connection: psycopg.Connection[Any]) -> bool:
            connection.execute("BEGIN")
            connection.execute(LOCK_TENANTS, ([tenant],))
            found = connection.execute(
                "SELECT leaf FROM events WHERE tenant = %s AND idx = %s", (tenant, index)
            ).fetchall()
            connection.execute("COMMIT")
            return bool(found) and found[0][0] == leaf

        try:
            return self._transaction(look)
        except (StoreError, _Lost) as error:
            raise StoreError(
                f"the connection to {self.url} broke during a commit, and whether it took place cannot be known before "
                f"the database is back ({_reason(error)}). Start the database, then start the node again."
            ) from None

    def _tenants(self, connection: psycopg.Connection[Any], streams: set[str]) -> set[str]:
        """Whose the streams are: that never changes, so it is remembered."""
        known = self._tenant_of
        unknown = [stream for stream in streams if stream not in known]
        if unknown:
            if len(known) > _MOST_STREAMS:
                known.clear()
                unknown = list(streams)
            found = connection.execute("SELECT stream, tenant FROM streams WHERE stream = ANY(%s)", (unknown,))
            known.update(found.fetchall())
        return {known[stream] for stream in streams if stream in known}

    def _flush(self, connection: psycopg.Connection[Any], step: Transaction, rows: Loaded) -> None:
        try:
            with connection.pipeline():
                send(connection.cursor(), step, rows)
                connection.execute("COMMIT")
        except self._psycopg.OperationalError as error:
            if connection.broken or connection.closed:
                raise _Lost(error, committing=True) from None
            raise

    def _query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._read_lock:
            for attempt in (1, 2):
                fresh = self._reader is None or self._reader.closed
                try:
                    if self._reader is None or self._reader.closed:
                        self._reader = self._connect()
                    return self._reader.execute(self._translated(sql), params).fetchall()
                except self._psycopg.Error as error:
                    if self._reader is not None and self._reader.broken:
                        self._reader.close()
                        self._reader = None
                        if attempt == 1 and not fresh:
                            continue
                    raise self._failure(error) from None
        raise AssertionError("the second attempt returns or raises")

    def _translated(self, sql: str) -> str:
        found = self._sql.get(sql)
        if found is None:
            found = self._sql[sql] = sql.replace("?", "%s")
        return found

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            return self._psycopg.connect(
                self._dsn,
                autocommit=True,
                prepare_threshold=2,
                connect_timeout=CONNECT_TIMEOUT,
                tcp_user_timeout=LOST_AFTER * 1000,
                application_name="holdfast",
            )
        except self._psycopg.Error as error:
            raise StoreError(
                f"the database at {self.url} cannot be reached ({_reason(error)}). Start it, or correct [store] url in "
                "holdfast.toml."
            ) from None

    def _migrate(self) -> None:
        with self._write_lock:
            try:
                self._writer = connection = self._connect()
                connection.execute(PLANS)
                if self._current(connection):
                    return
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
                    if not self._has(connection, "alembic_version"):
                        if self._has(connection, "events"):
                            raise StoreError(
                                f"{self.url} holds a table `events` of something else. Name another "
                                "database in [store] url."
                            )
                        migrate.create("postgresql", lambda sql, _: connection.execute(sql))
                if not self._current(connection):
                    migrate.upgrade("postgresql+psycopg://" + self._dsn.split("://", 1)[1])
            except self._psycopg.Error as error:
                raise self._failure(error) from None

    def _current(self, connection: psycopg.Connection[Any]) -> bool:
        if not self._has(connection, "alembic_version"):
            return False
        rows = connection.execute(migrate.READ_VERSION).fetchall()
        return bool(rows) and migrate.check(rows[0][0], self.url)

    def _has(self, connection: psycopg.Connection[Any], table: str) -> bool:
        # Not to_regclass: its caches may lag behind a transaction that was waited for.
        found = connection.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = %s", (table,)
        )
        return bool(found.fetchall())

    def _failure(self, error: Exception) -> StoreError:
        """What went wrong with the database, and what to do about it."""
        errors = self._psycopg.errors
        cure = "Look into the server's log"
        for kind, text in (
            (errors.DiskFull, "Free some space on the server; nothing that was recorded is lost"),
            (errors.ReadOnlySqlTransaction, "Point [store] url to the primary server"),
            (errors.InsufficientPrivilege, "Grant the user of [store] url rights on the tables"),
            (errors.TooManyConnections, "Raise max_connections, or run fewer nodes"),
            (self._psycopg.OperationalError, "Start it or wait until it is back; nothing that was recorded is lost"),
        ):
            if isinstance(error, kind):
                cure = text
                break
        return StoreError(f"the database at {self.url} failed ({_reason(error)}). {cure}.")


def _reason(error: BaseException) -> str:
    """First line of an error; libpq's go on for several."""
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__


def _without_password(url: str) -> str:
    """Where a database is, without what would open it."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    name = path.split("?", 1)[0]
    return f"{scheme}://{user.split(':', 1)[0]}{at}{host}{slash}{name}"
