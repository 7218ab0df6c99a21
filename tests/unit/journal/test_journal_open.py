"""Opening a journal: what is made, what is refused, and what the message says; and what SQLite meets later."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from holdfast.errors import ConfigError, HoldfastError, StoreError
from holdfast.journal import migrate, sqlite
from holdfast.journal.base import Append, Appended, Draft, Tenant
from holdfast.journal.open import DATABASE, open_store
from holdfast.journal.postgres import _without_password
from holdfast.journal.schema import metadata
from holdfast.journal.sqlite import SqliteStore

TENANT = Tenant(name="acme", region="x", created_at=1)


def draft(size: int = 1) -> Draft:
    return Draft(kind="log", at=1, payloads={"x": bytes(size)})


def append(size: int = 1) -> Append:
    return Append(stream="control:acme", epoch=0, node="n", drafts=(draft(size),))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store("sqlite", tmp_path / "home")
    assert isinstance(opened, SqliteStore)
    opened.create_tenant(TENANT, draft(), "n")
    yield opened
    opened.close()


class TestOpening:
    def test_the_home_and_the_file_are_for_the_owner_only(self, tmp_path: Path) -> None:
        home = tmp_path / "a" / "home"
        open_store("sqlite", home).close()
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / DATABASE).stat().st_mode) == 0o600

    def test_a_journal_outlives_its_store(self, tmp_path: Path) -> None:
        for expected in ([], ["acme"]):
            opened = open_store("sqlite", tmp_path)
            assert [tenant.name for tenant in opened.tenants()] == expected
            opened.create_tenant(TENANT, draft(), "n")
            opened.close()

    def test_durability_is_not_negotiable(self, store: SqliteStore) -> None:
        assert store._writer is not None
        assert store._writer.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert store._writer.execute("PRAGMA synchronous").fetchall() == [(2,)]

    @pytest.mark.parametrize("url", ["mysql://x", "sqlite:///other.db", "nonsense"])
    def test_another_kind_of_url(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="postgresql"):
            open_store(url, tmp_path)

    def test_a_home_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match="is a file"):
            open_store("sqlite", tmp_path / "file")
        with pytest.raises(StoreError, match="below a file"):
            open_store("sqlite", tmp_path / "file" / "home")

    def test_a_home_that_cannot_be_made(self) -> None:
        with pytest.raises(StoreError, match="HOLDFAST_HOME"):
            open_store("sqlite", Path("/proc/1/nothing/home"))

    def test_a_journal_that_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / DATABASE).mkdir()
        with pytest.raises(StoreError, match="cannot be opened"):
            open_store("sqlite", tmp_path)

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / DATABASE).write_bytes(b"not a database at all" * 100)
        with pytest.raises(StoreError, match="no SQLite database"):
            open_store("sqlite", tmp_path)

    def test_a_database_of_something_else(self, tmp_path: Path) -> None:
        connection = sqlite3.connect(tmp_path / DATABASE)
        connection.execute("CREATE TABLE mine (x)")
        connection.close()
        with pytest.raises(StoreError, match="something else"):
            open_store("sqlite", tmp_path)

    def test_no_server(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            open_store(f"postgresql://me:secret@/db?host={tmp_path}", tmp_path)
        assert "secret" not in str(caught.value)

    def test_a_url_is_shown_without_its_password(self) -> None:
        assert _without_password("postgresql://me:pw@db.example:5432/x?password=pw") == (
            "postgresql://me@db.example:5432/x"
        )
        assert _without_password("postgresql:///x?host=/tmp") == "postgresql:///x"


class TestVersions:
    def test_a_newer_journal_is_refused(self, store: SqliteStore) -> None:
        store._write(lambda run: run("UPDATE alembic_version SET version_num = '9999'", ()))
        with pytest.raises(StoreError, match=r"newer Holdfast.*9999.*Upgrade"):
            open_store("sqlite", store.path.parent)

    def test_every_revision_has_its_sql(self) -> None:
        for revision in migrate.REVISIONS:
            for dialect in ("sqlite", "postgresql"):
                assert migrate.statements(dialect, revision)

    def test_an_older_journal_is_brought_up(self, tmp_path: Path) -> None:
        """Alembic starts from before the first revision: the oldest journal that there can be."""
        path = tmp_path / DATABASE
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.close()
        opened = open_store("sqlite", tmp_path)
        assert opened.create_tenant(TENANT, draft(), "n")
        opened.close()

    @pytest.mark.parametrize("way", ["created", "migrated"])
    def test_the_tables_are_those_of_the_schema(self, way: str, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / DATABASE}"
        if way == "migrated":
            migrate.upgrade(url)
        else:
            open_store("sqlite", tmp_path).close()
        self.compare(url)

    @pytest.mark.parametrize("way", ["created", "migrated"])
    def test_and_so_they_are_in_postgresql(self, way: str, store_place: str, tmp_path: Path) -> None:
        url = "postgresql+psycopg://" + store_place.split("://", 1)[1]
        if way == "migrated":
            migrate.upgrade(url)
        open_store(store_place, tmp_path).close()
        self.compare(url)

    @pytest.fixture
    def store_place(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue("postgres").create())

    def compare(self, url: str) -> None:
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": True})
                assert compare_metadata(context, metadata) == []
                found = inspect(connection)
                for table in metadata.sorted_tables:
                    keys = found.get_pk_constraint(table.name)["constrained_columns"]
                    assert keys == [column.name for column in table.primary_key.columns]
                    indexes = {str(index["name"]) for index in found.get_indexes(table.name)}
                    assert {str(index.name) for index in table.indexes} <= indexes
        finally:
            engine.dispose()


class TestTrouble:
    def refused(self, store: SqliteStore, says: str, size: int = 1) -> None:
        with pytest.raises(StoreError, match=says) as caught:
            store.transact([append(size)])
        assert isinstance(caught.value, HoldfastError)
        assert caught.value.exit_status == 10

    def works(self, store: SqliteStore) -> None:
        (result,) = store.transact([append()])
        assert isinstance(result, Appended)

    def test_a_full_disk(self, store: SqliteStore) -> None:
        assert store._writer is not None
        pages = store._writer.execute("PRAGMA page_count").fetchall()[0][0]
        store._writer.execute(f"PRAGMA max_page_count = {pages}")
        before = store.log("acme")
        self.refused(store, "disk is full", size=100_000)
        assert store.log("acme") == before
        assert store._writer is not None
        store._writer.execute("PRAGMA max_page_count = 1000000")
        self.works(store)

    def test_a_read_only_file(self, store: SqliteStore) -> None:
        assert store._writer is not None
        store._writer.execute("PRAGMA query_only = ON")
        self.refused(store, "read-only")
        store._writer.execute("PRAGMA query_only = OFF")
        self.works(store)

    def test_a_lock_that_is_not_given_up(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 0.0)
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self.refused(store, "locked by another process")
        assert store.tenants()[0].name == "acme"
        other.execute("ROLLBACK")
        other.close()
        self.works(store)

    def test_a_lock_that_is_given_up_is_waited_for(self, store: SqliteStore) -> None:
        other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.05, lambda: other.execute("ROLLBACK"))
        timer.start()
        self.works(store)
        timer.join()
        other.close()

    def test_a_file_that_was_removed_is_not_written_to(self, store: SqliteStore) -> None:
        store.path.unlink()
        self.refused(store, "was removed")

    def test_a_file_that_was_replaced_is_not_written_to(self, store: SqliteStore) -> None:
        copy = store.path.with_name("copy")
        copy.write_bytes(store.path.read_bytes())
        copy.rename(store.path)
        self.refused(store, "was replaced")

    def test_a_damaged_event_is_named(self, store: SqliteStore) -> None:
        store._write(lambda run: run("UPDATE events SET body = 'x' WHERE idx = 0", ()))
        with pytest.raises(StoreError, match="event 1 of control:acme"):
            store.events("control:acme")

    def test_an_auditor_can_look_at_anything(self, store: SqliteStore) -> None:
        store._write(lambda run: run("UPDATE events SET kind = CAST(x'ff41' AS TEXT), at = 'soon', body = 7", ()))
        (row,) = store.event_rows("acme")
        assert row.kind.endswith("A")
        assert row.body == b"7"

    def test_a_damaged_file(self, store: SqliteStore, tmp_path: Path) -> None:
        for _ in range(50):
            store.transact([append(5000)])
        store.close()
        data = bytearray(store.path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        store.path.write_bytes(bytes(data))
        with pytest.raises(StoreError, match="damaged"):
            open_store("sqlite", store.path.parent).log("acme")

    def test_what_another_process_commits_is_seen_at_once(self, store: SqliteStore) -> None:
        self.works(store)
        other = open_store("sqlite", store.path.parent)
        for expected in (3, 4, 5, 6):
            (result,) = (store, other)[expected % 2].transact([append()])
            assert isinstance(result, Appended)
            assert result.events[0].seq == expected
        other.close()
