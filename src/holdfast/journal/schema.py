"""The journal's tables as they are now (SQLAlchemy Core). How they came to be so is in ``migrations``.

The names ``events`` and ``payloads`` are a public contract. Imported by migrations and tests only: the stores speak
SQL, because importing SQLAlchemy takes longer than a step.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

_ID = BigInteger().with_variant(Integer(), "sqlite")
# Byte order, in every locale: keys are compared with what Python sorted.
_NAME = Text().with_variant(Text(collation="C"), "postgresql")


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, _NAME if key else Text(), nullable=False)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger(), nullable=False)


def _bytes(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary(), nullable=nullable)


events = Table(
    "events",
    metadata,
    _text("tenant", key=True),
    _number("idx"),
    _text("stream", key=True),
    _number("seq"),
    _text("kind"),
    _number("at"),
    _number("clock_error"),
    _text("node"),
    _number("epoch"),
    _text("witness"),
    _text("principal"),
    _text("auth"),
    _text("prev"),
    _text("leaf"),
    _number("before"),
    _bytes("body"),
    UniqueConstraint("tenant", "idx", name="uq_events_log"),
)
"""``body`` is the event; the other columns repeat parts of it, for people and indexes. ``before`` is the ``idx`` of the
event before it in its stream (-1: the first): a stream is read from its latest event backwards. An index over streams
would change a page for each of them in each commit."""

payloads = Table(
    "payloads",
    metadata,
    _text("tenant", key=True),
    _number("idx"),
    _text("role", key=True),
    _text("commitment"),
    _text("key_id"),
    _bytes("ciphertext"),
    UniqueConstraint("tenant", "idx", "role", name="uq_payloads"),
)
"""By the event that commits to them, in the order of the log. Commitments are random: an index over them would change
a page for each payload in each commit."""

tenant_keys = Table(
    "tenant_keys",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("id", _NAME, primary_key=True),
    _number("created_at"),
    _bytes("wrapped", nullable=True),
    Column("erased_at", BigInteger(), nullable=True),
    sqlite_with_rowid=False,
)
"""Data keys, wrapped by the master key. Erased: ``wrapped`` is null."""

streams = Table(
    "streams",
    metadata,
    Column("stream", _NAME, primary_key=True),
    _text("tenant", key=True),
    _text("region"),
    _text("kind"),
    _text("agent"),
    _text("workflow"),
    _text("root"),
    _text("parent"),
    _number("depth"),
    _text("principal"),
    _text("auth"),
    _text("deployment"),
    _number("created_at"),
    _text("status"),
    _number("epoch"),
    _text("owner"),
    _number("seq"),
    _text("head"),
    _number("tail"),
    Column("ready_at", BigInteger(), nullable=True),
    _number("replay_from"),
    _number("asking"),
    Index(
        "ix_streams_asking",
        "asking",
        "created_at",
        sqlite_where=text("asking = 1"),
        postgresql_where=text("asking = 1"),
    ),
    Index("ix_streams_created", "created_at"),
    Index("ix_streams_status", "status", "created_at"),
    Index(
        "ix_streams_ready",
        "ready_at",
        sqlite_where=text("owner = '' AND ready_at IS NOT NULL"),
        postgresql_where=text("owner = '' AND ready_at IS NOT NULL"),
    ),
    Index(
        "ix_streams_waiting",
        "tenant",
        "ready_at",
        sqlite_where=text("owner = '' AND ready_at IS NOT NULL"),
        postgresql_where=text("owner = '' AND ready_at IS NOT NULL"),
    ),
    Index("ix_streams_owner", "owner", sqlite_where=text("owner <> ''"), postgresql_where=text("owner <> ''")),
    sqlite_with_rowid=False,
)
"""``head`` is the leaf of the latest event, ``tail`` its ``idx`` (-1: there is none)."""

tenants = Table(
    "tenants",
    metadata,
    Column("name", _NAME, primary_key=True),
    _text("region"),
    _number("created_at"),
    _number("log_size"),
    _bytes("frontier"),
    sqlite_with_rowid=False,
)
"""``frontier``: see :mod:`holdfast.journal.frontier`."""

inbox = Table(
    "inbox",
    metadata,
    Column("id", _ID, Identity(always=True), primary_key=True, autoincrement=True),
    _text("tenant", key=True),
    _text("stream", key=True),
    _text("kind"),
    _text("data"),
    _text("key_id"),
    _bytes("ciphertext"),
    _text("principal"),
    _text("auth"),
    _number("at"),
    Index("ix_inbox_stream", "stream", "id"),
    sqlite_autoincrement=True,
)

ledger = Table(
    "ledger",
    metadata,
    Column("key", _NAME, primary_key=True),
    _text("kind"),
    _number("reserved"),
    _number("settled"),
    _number("ceiling"),
    _number("tat"),
    _text("holders"),
    sqlite_with_rowid=False,
)

kills = Table(
    "kills",
    metadata,
    Column("id", _NAME, primary_key=True),
    _text("scope"),
    _text("name"),
    _text("tenant", key=True),
    _text("reason"),
    _text("issued_by"),
    _number("at"),
    Column("compensate", Boolean(), nullable=False),
    sqlite_with_rowid=False,
)
"""Kills in force."""

meta = Table(
    "meta",
    metadata,
    Column("key", _NAME, primary_key=True),
    _number("value"),
    sqlite_with_rowid=False,
)
"""``kill_generation``: counts kills and lifts."""

secrets = Table(
    "secrets",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    _number("version"),
    _text("key_id"),
    _bytes("ciphertext"),
    _text("binding"),
    _number("created_at"),
    sqlite_with_rowid=False,
)
"""Credentials that are added on the way out. ``version`` is the sequence number of the event that set it."""

pasts = Table(
    "pasts",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("stream", _NAME, primary_key=True),
    Column("step", _NAME, primary_key=True),
    Column("attempt", BigInteger(), primary_key=True),
    _text("agent", key=True),
    _text("gate", key=True),
    _text("name", key=True),
    _number("at"),
    _text("state"),
    _number("ended_at"),
    _text("figures"),
    Index("ix_pasts_at", "tenant", "at"),
    sqlite_with_rowid=False,
)
"""What rules over a whole tenant ask about: a projection of the intents that some rule wanted remembered."""

nodes = Table(
    "nodes",
    metadata,
    Column("node", _NAME, primary_key=True),
    _text("host"),
    _text("boot"),
    _number("pid"),
    _number("pid_start"),
    _number("lease_until"),
    sqlite_with_rowid=False,
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", _NAME, primary_key=True),
    _bytes("data"),
)

memory = Table(
    "memory",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("agent", _NAME, primary_key=True),
    Column("key", _NAME, primary_key=True),
    _text("key_id"),
    _bytes("ciphertext"),
    sqlite_with_rowid=False,
)
