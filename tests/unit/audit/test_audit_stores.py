"""Verification on both kinds of store: untouched, beside a writer, and after plain SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.audit.heads import HeadKeeper
from holdfast.audit.keys import ensure
from holdfast.audit.report import Report
from holdfast.audit.verify import verify
from holdfast.journal.base import Append, Appended, Draft, Header, Patch, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.sqlstore import SqlStore

Opener = Callable[[], SqlStore]
START = 1_700_000_000_000_000


class Clerk:
    """Writes runs of one event after another, and signs heads when told to."""

    def __init__(self, store: SqlStore, home: Path) -> None:
        self.store = store
        self.keeper = HeadKeeper(home, ensure(home), store)
        self.at = START
        for name in ("acme", "default"):
            store.create_tenant(
                Tenant(name=name, region="r", created_at=START), Draft(kind=Kind.TENANT_CREATED, at=START), "n"
            )

    def draft(self, kind: str, **payloads: bytes) -> Draft:
        self.at += 1000
        return Draft(kind=kind, at=self.at, payloads=payloads)

    def run(self, name: str, tenant: str = "acme", events: int = 3) -> None:
        header = Header(stream=name, tenant=tenant, region="r", kind=StreamKind.RUN, created_at=self.at)
        drafts = [self.draft(Kind.RUN_CREATED, input=b"1")]
        drafts += [self.draft(Kind.LOG, text=str(number).encode()) for number in range(events)]
        done = self.draft(Kind.RUN_COMPLETED, output=b"2")
        for append in (
            Append(stream=name, epoch=0, node="n", drafts=tuple(drafts), create=header),
            Append(stream=name, epoch=0, node="n", drafts=(done,), patch=Patch(status="completed")),
        ):
            (result,) = self.store.transact([append])
            assert isinstance(result, Appended), result
            self.keeper.committed(result.events)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def clerk(store: SqlStore, home: Path) -> Clerk:
    clerk = Clerk(store, home)
    for number in range(3):
        clerk.run(f"run-{number}")
    clerk.run("run-d", "default")
    clerk.keeper.flush()
    return clerk


def change(store_url: str, home: Path, statement: str) -> None:
    """Run plain SQL on the journal, behind the store's back."""
    if store_url == "sqlite":
        with closing(sqlite3.connect(home / "holdfast.db")) as connection, connection:
            assert connection.execute(statement).rowcount > 0
        return
    import psycopg

    with psycopg.connect(store_url) as connection:
        assert connection.execute(statement.encode()).rowcount > 0


def found(report: Report) -> set[tuple[str, str, int | None]]:
    return {(finding.code, finding.stream, finding.seq) for finding in report.findings}


def test_an_untouched_journal_verifies(clerk: Clerk, home: Path) -> None:
    report = verify(clerk.store, home)
    assert report.ok, report.findings
    assert (report.counts.tenants, report.counts.runs, report.counts.heads) == (2, 4, 2)
    assert (report.counts.events, report.counts.payloads, report.counts.unsigned) == (22, 20, 0)
    assert report.warnings == []


def test_what_is_written_meanwhile_is_no_damage(clerk: Clerk, home: Path, opener: Opener) -> None:
    other = Clerk(opener(), home)
    numbers = iter(range(100, 200))

    def write(done: int, of: int) -> None:
        other.run(f"run-{next(numbers)}")
        other.run(f"run-{next(numbers)}", "default")
        other.keeper.flush()

    report = verify(clerk.store, home, progress=write)
    assert report.ok, report.findings
    assert report.counts.runs >= 4
    again = verify(clerk.store, home)
    assert again.ok, again.findings
    assert again.counts.runs == 8


def test_what_is_newer_than_the_head_is_counted(clerk: Clerk, home: Path) -> None:
    clerk.run("run-9")
    report = verify(clerk.store, home)
    assert report.ok
    assert report.counts.unsigned == 5


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE events SET principal = 'x' WHERE stream = 'run-1' AND seq = 2", ("event.columns", "run-1", 2)),
        ("UPDATE events SET leaf = 'x' WHERE stream = 'run-1' AND seq = 2", ("event.hash", "run-1", 2)),
        ("DELETE FROM events WHERE stream = 'run-1' AND seq = 2", ("event.missing", "run-1", 2)),
        ("DELETE FROM events WHERE stream = 'run-2' AND seq = 5", ("log.cut", "", None)),
        ("UPDATE streams SET status = 'failed' WHERE stream = 'run-1'", ("stream.row", "run-1", 5)),
        ("UPDATE streams SET seq = 4 WHERE stream = 'run-1'", ("event.extra", "run-1", 5)),
        ("DELETE FROM streams WHERE stream = 'run-1'", ("stream.row", "run-1", 5)),
        ("UPDATE tenants SET log_size = 15 WHERE name = 'acme'", ("event.extra", "run-2", 5)),
        ("DELETE FROM tenants WHERE name = 'acme'", ("event.extra", "run-0", 1)),
        ("UPDATE payloads SET key_id = 'x' WHERE tenant = 'default'", ("payload.missing", "run-d", 1)),
        ("DELETE FROM payloads WHERE tenant = 'default'", ("payload.missing", "run-d", 1)),
        ("DELETE FROM tenant_keys WHERE tenant = 'default'", ("payload.missing", "run-d", 1)),
        (
            "INSERT INTO payloads (tenant, idx, role, commitment, key_id, ciphertext) "
            "SELECT tenant, idx, 'other', 'zz', key_id, ciphertext FROM payloads ORDER BY commitment LIMIT 1",
            ("payload.extra", "", None),
        ),
        ("UPDATE payloads SET idx = idx + 99 WHERE tenant = 'default'", ("payload.changed", "run-d", 1)),
        ("UPDATE payloads SET role = 'x' WHERE tenant = 'default'", ("payload.changed", "run-d", 1)),
        ("UPDATE events SET before = 0 WHERE stream = 'run-1' AND seq = 3", ("event.columns", "run-1", 3)),
        ("UPDATE streams SET tail = 0 WHERE stream = 'run-1'", ("stream.row", "run-1", 5)),
    ],
)
def test_plain_sql_is_found_out(
    clerk: Clerk, home: Path, store_url: str, statement: str, expected: tuple[str, str, int | None]
) -> None:
    change(store_url, home, statement)
    assert expected in found(verify(clerk.store, home))


def test_erasure_is_no_damage(clerk: Clerk, home: Path) -> None:
    clerk.store.erase("acme")
    report = verify(clerk.store, home)
    assert report.ok, report.findings
    assert report.counts.erased == 15


def test_another_home_on_the_same_journal_signs_its_own_heads(clerk: Clerk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    report = verify(clerk.store, other)
    assert report.ok
    assert len(report.warnings) == 2
    HeadKeeper(other, ensure(other), clerk.store).flush(["acme", "default"])
    report = verify(clerk.store, other)
    assert report.ok
    assert (report.counts.heads, report.warnings) == (2, [])
