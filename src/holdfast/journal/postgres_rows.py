"""Rows of the journal in PostgreSQL: locked and read in one pipeline, written in another.

Locks are taken in one order (tenants, streams, the kill generation, ledger keys; each kind sorted), so that no two
transactions wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.journal.base import Append, LedgerRow
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
from holdfast.journal.transaction import Transaction

if TYPE_CHECKING:
    import psycopg

GENERATION_LOCK = 0x686F6C64
"""Advisory lock: shared by intents, exclusive for a kill, so that each intent is before or after it."""


def _marks(columns: str) -> str:
    return ", ".join(["%s"] * (columns.count(",") + 1))


_INSERT_EVENT = f"INSERT INTO events ({EVENT}) VALUES ({_marks(EVENT)})"  # noqa: S608
_INSERT_PAYLOAD = f"INSERT INTO payloads ({PAYLOAD}) VALUES ({_marks(PAYLOAD)})"  # noqa: S608
_INSERT_STREAM = f"INSERT INTO streams ({STREAM}) VALUES ({_marks(STREAM)})"  # noqa: S608
_INSERT_INBOX = f"INSERT INTO inbox ({INBOX}) VALUES ({_marks(INBOX)})"  # noqa: S608
_INSERT_LEDGER = f"INSERT INTO ledger ({LEDGER}) VALUES ({_marks(LEDGER)})"  # noqa: S608
_INSERT_KEY = "INSERT INTO tenant_keys (tenant, id, created_at, wrapped) VALUES (%s, %s, %s, %s)"
_PUT_MEMORY = (
    "INSERT INTO memory (tenant, agent, key, key_id, ciphertext) VALUES (%s, %s, %s, %s, %s) "
    "ON CONFLICT (tenant, agent, key) DO UPDATE SET key_id = EXCLUDED.key_id, ciphertext = EXCLUDED.ciphertext"
)
_PUT_PAST = (
    "INSERT INTO pasts (tenant, stream, step, attempt, agent, gate, name, at, state, ended_at, figures) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, stream, step, attempt) DO UPDATE SET "
    "state = excluded.state, ended_at = excluded.ended_at, figures = excluded.figures"
)
_PUT_SEALED = (
    "INSERT INTO secrets (tenant, name, version, key_id, ciphertext, binding, created_at) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, name) DO UPDATE SET version = excluded.version, "
    "key_id = excluded.key_id, ciphertext = excluded.ciphertext, binding = excluded.binding, "
    "created_at = excluded.created_at"
)
_PUT_KILL = (
    "INSERT INTO kills (id, scope, name, tenant, reason, issued_by, at, compensate) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING"
)
LOCK_TENANTS = (
    "SELECT name, region, created_at, log_size, frontier FROM tenants WHERE name = ANY(%s) ORDER BY name FOR UPDATE"
)
_LOCK_STREAMS = f"SELECT {STREAM} FROM streams WHERE stream = ANY(%s) ORDER BY stream FOR UPDATE"  # noqa: S608
_LOCK_LEDGER = f"SELECT {LEDGER} FROM ledger WHERE key = ANY(%s) ORDER BY key FOR UPDATE"  # noqa: S608
_KEYS = (
    "SELECT DISTINCT ON (tenant) tenant, id, wrapped FROM tenant_keys WHERE tenant = ANY(%s) AND wrapped IS NOT NULL "
    "ORDER BY tenant, created_at DESC, id DESC"
)


class Loaded:
    """The rows of one transaction, locked and read."""

    def __init__(self, keyring: Keyring, now: int, generation: int, asked: Collection[str]) -> None:
        self.asked = asked
        """Keys of the ledger that were looked up."""
        self.read_at = time.monotonic_ns() // 1000
        self.tenants: dict[str, TenantRow] = {}
        self.streams: dict[str, StreamRow] = {}
        self.rows: dict[str, LedgerRow] = {}
        self.inbox: dict[str, set[int]] = {}
        self.keys: dict[str, TenantKey] = {}
        self.new_keys: list[tuple[str, str, int, bytes]] = []
        self._keyring = keyring
        self._now = now
        self._generation = generation

    def now(self) -> int:
        return self._now

    def tenant(self, name: str) -> TenantRow | None:
        return self.tenants.get(name)

    def stream(self, name: str) -> StreamRow | None:
        return self.streams.get(name)

    def ledger(self, key: str) -> LedgerRow | None:
        return self.rows.get(key)

    def generation(self) -> int:
        return self._generation

    def waiting(self, stream: str) -> Collection[int]:
        return self.inbox.get(stream, ())

    def key(self, tenant: str) -> TenantKey:
        found = self.keys.get(tenant)
        if found is None:
            key_id, wrapped = self._keyring.new(tenant)
            self.new_keys.append((tenant, key_id, self._now, wrapped))
            found = self.keys[tenant] = self._keyring.key(tenant, key_id, wrapped)
        return found


def load(
    connection: psycopg.Connection[Any],
    batch: Sequence[Append],
    tenants_of: Callable[[set[str]], set[str]],
    tenants: Sequence[str],
    keyring: Keyring,
) -> Loaded:
    """Begin a transaction: lock and read, in one pipeline, every row that the batch may need.

    ``tenants_of`` gives the tenants of streams; ``tenants`` are to be locked in any case.
    """
    streams: set[str] = set()
    created: dict[str, str] = {}
    keys: set[str] = set()
    waiting: set[str] = set()
    guarded = killing = sealing = False
    for item in batch:
        streams.add(item.stream)
        if item.create is not None:
            created[item.stream] = item.create.tenant
        streams.update(message.stream for message in item.deliver)
        keys.update(op.key for op in item.reserve)
        keys.update(op.key for op in item.settle)
        if item.consume or (item.patch is not None and (item.patch.set_ready or item.patch.release)):
            waiting.add(item.stream)
        guarded = guarded or item.kill_generation is not None
        killing = killing or bool(item.kills or item.lifts)
        sealing = (
            sealing or any(draft.payloads for draft in item.drafts) or bool(item.memory or item.deliver or item.secrets)
        )
    names = {*tenants, *created.values(), *tenants_of(streams - created.keys())}
    ordered, sorted_keys = sorted(names), sorted(keys)
    with connection.pipeline():
        connection.execute("BEGIN")
        locked_tenants = connection.execute(LOCK_TENANTS, (ordered,))
        locked_streams = connection.execute(_LOCK_STREAMS, (sorted(streams),))
        if killing or guarded:
            shared = "" if killing else "_shared"
            connection.execute(f"SELECT pg_advisory_xact_lock{shared}(%s)", (GENERATION_LOCK,))
        state = connection.execute(
            "SELECT value, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM meta "
            "WHERE key = 'kill_generation'"
        )
        locked_ledger = connection.execute(_LOCK_LEDGER, (sorted_keys,)) if keys else None
        inbox = (
            connection.execute("SELECT stream, id FROM inbox WHERE stream = ANY(%s)", (sorted(waiting),))
            if waiting
            else None
        )
        sealed = connection.execute(_KEYS, (ordered,)) if sealing else None
    generation, now = state.fetchall()[0]
    rows = Loaded(keyring, now, generation, sorted_keys)
    for row in locked_tenants:
        rows.tenants[row[0]] = TenantRow(row[0], row[1], row[2], row[3], bytes(row[4]))
    for row in locked_streams:
        rows.streams[row[0]] = stream_row(row)
    for row in locked_ledger or ():
        rows.rows[row[0]] = ledger_row(row)
    for stream, number in inbox or ():
        rows.inbox.setdefault(stream, set()).add(number)
    for tenant, key_id, wrapped in sealed or ():
        rows.keys[tenant] = keyring.key(tenant, key_id, bytes(wrapped))
    return rows


def send(run: psycopg.Cursor[Any], step: Transaction, rows: Loaded) -> None:
    """Write what the transaction gathered. Within a pipeline: nothing is waited for."""

    def many(sql: str, lines: Collection[Sequence[Any]]) -> None:
        for line in lines:
            run.execute(sql, line)

    many(_INSERT_KEY, rows.new_keys)
    many(
        "INSERT INTO tenants (name, region, created_at, log_size, frontier) VALUES (%s, %s, %s, %s, %s)",
        [(row.name, row.region, row.created_at, row.size, row.frontier) for row in step.new_tenants.values()],
    )
    many(_INSERT_STREAM, [stream_line(row) for row in step.created.values()])
    many(_INSERT_EVENT, step.events)
    many(_INSERT_PAYLOAD, step.payloads)
    many(
        "UPDATE streams SET seq = %s, head = %s, tail = %s WHERE stream = %s",
        [(row.seq, row.head, row.tail, name) for name, row in step.touched.items()],
    )
    many(
        "UPDATE streams SET status = %s, owner = %s, seq = %s, head = %s, tail = %s, ready_at = %s, replay_from = %s, "
        "asking = %s WHERE stream = %s",
        [stream_change(row) for row in step.moved.values()],
    )
    many(
        "UPDATE tenants SET log_size = %s, frontier = %s WHERE name = %s",
        [(row.size, row.frontier, name) for name, row in step.tenants.items() if name not in step.new_tenants],
    )
    for key, row in step.ledger.items():
        line = ledger_line(row)
        if key in rows.rows:
            run.execute(
                "UPDATE ledger SET kind = %s, reserved = %s, settled = %s, ceiling = %s, tat = %s, holders = %s "
                "WHERE key = %s",
                (*line[1:], key),
            )
        else:
            # Another transaction may have made it meanwhile: then this one starts again.
            run.execute(_INSERT_LEDGER, line)
    many("DELETE FROM inbox WHERE id = %s", [(number,) for number in step.consumed])
    many(_INSERT_INBOX, step.inbox)
    for place, value in step.memory.items():
        if value is None:
            run.execute("DELETE FROM memory WHERE tenant = %s AND agent = %s AND key = %s", place)
        else:
            run.execute(_PUT_MEMORY, (*place, *value))
    many(_PUT_PAST, [(*held, *past) for held, past in step.pasts.items()])
    for owned, secret in step.secrets.items():
        if secret is None:
            run.execute("DELETE FROM secrets WHERE tenant = %s AND name = %s", owned)
        else:
            run.execute(_PUT_SEALED, (*owned, *secret))
    if step.generation is not None:
        many("DELETE FROM kills WHERE id = %s", [(lifted,) for lifted in step.lifts])
        many(
            _PUT_KILL,
            [
                (kill.id, kill.scope, kill.name, kill.tenant, kill.reason, kill.by, kill.at, kill.compensate)
                for kill in step.kills.values()
            ],
        )
        run.execute("UPDATE meta SET value = %s WHERE key = 'kill_generation'", (step.generation,))
