"""A database that goes away and comes back, and writers in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import StoreError
from holdfast.journal import postgres as postgres_store
from holdfast.journal.base import Append, Appended, Draft, InboxItem, NodeRow, Tenant
from holdfast.journal.event import GENESIS, decode, encode, leaf
from holdfast.journal.frontier import push
from holdfast.journal.open import open_store
from holdfast.journal.postgres import PostgresStore
from holdfast.journal.postgres_quick import Call
from holdfast.journal.sqlstore import SqlStore

TENANT = Tenant(name="acme", region="x", created_at=1)

WRITER = """
import sys
from pathlib import Path
from holdfast.journal.base import Append, Appended, Draft
from holdfast.journal.open import open_store

url, home, name, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = open_store(url, home)
print("ready", flush=True)
sys.stdin.readline()
draft = Draft(kind="log", at=1, data={"by": name}, payloads={"x": name.encode()})
done = 0
while done != count:
    (result,) = store.transact([Append(stream="control:acme", epoch=0, node=name, drafts=(draft, draft))])
    assert isinstance(result, Appended), result
    done += 1
    print(result.events[-1].index, flush=True)
"""


def append(size: int = 1) -> Append:
    drafts = (Draft(kind="log", at=1, payloads={"x": b"x" * size}),)
    return Append(stream="control:acme", epoch=0, node="n", drafts=drafts)


def check(store: SqlStore) -> list[str]:
    """The whole log hangs together; gives who wrote each event."""
    head, frontier, by = GENESIS, b"", []
    for expected, (index, body) in enumerate(store.log("acme", limit=100_000)):
        event = decode(body)
        assert encode(event) == body
        assert (index, event.index, event.seq, event.prev) == (expected, expected, expected + 1, head)
        head = leaf(body)
        frontier = push(frontier, bytes.fromhex(head))
        by.append(event.node)
        for commitment in event.payloads.values():
            assert store.payload("acme", commitment) is not None
    assert store.frontier("acme") == frontier
    return by


def spawn(url: str, home: Path, name: str, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(home), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_write_one_log(store: SqlStore, store_url: str, tmp_path: Path) -> None:
    store.create_tenant(TENANT, Draft(kind="tenant.created", at=1), "n0")
    processes = [spawn(store_url, tmp_path / "home", name, 40) for name in ("n1", "n2")]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=110)
        assert process.returncode == 0
    by = check(store)
    assert (len(by), by.count("n1"), by.count("n2")) == (161, 80, 80)


def test_what_was_answered_survives_kill_9(store: SqlStore, store_url: str, tmp_path: Path) -> None:
    store.create_tenant(TENANT, Draft(kind="tenant.created", at=1), "n0")
    process = spawn(store_url, tmp_path / "home", "n1", -1)
    go(process)
    assert process.stdout is not None
    answered = [int(process.stdout.readline()) for _ in range(20)][-1]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (result,) = store.transact([append()])
    assert isinstance(result, Appended)
    by = check(store)
    assert len(by) > answered
    # A commit is whole or not there: each of the process's appends has two events.
    assert by.count("n1") % 2 == 0


class TestServerGone:
    @pytest.fixture
    def store(self, own_postgres: Any, tmp_path: Path) -> Any:
        opened = open_store(own_postgres.create(), tmp_path / "home")
        opened.create_tenant(TENANT, Draft(kind="tenant.created", at=1), "n0")
        yield opened
        opened.close()

    def test_every_call_says_so_and_works_again_afterwards(self, own_postgres: Any, store: SqlStore) -> None:
        store.transact([append()])
        assert store.now() > 0
        own_postgres.stop()
        item = InboxItem(tenant="acme", stream="control:acme", kind="x", data={}, principal="", auth="", at=1)
        calls: list[Callable[[], object]] = [
            lambda: store.transact([append()]),
            store.now,
            store.kill_generation,
            lambda: store.events("control:acme"),
            lambda: store.deliver(item),
            lambda: store.renew("n", 1),
        ]
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert caught.value.exit_status == 10
        own_postgres.start()
        for call in calls:
            call()
        assert check(store) == ["n0", "n", "n"]
        # A restart in between is not even noticed.
        own_postgres.stop()
        own_postgres.start()
        (result,) = store.transact([append()])
        assert isinstance(result, Appended)
        assert store.kill_generation() == 0
        assert check(store) == ["n0", "n", "n", "n"]


def end_backend(store: PostgresStore) -> None:
    """End the server's process for the writing connection; the server waits for its end, up to a minute."""
    assert store._writer is not None
    assert store._query("SELECT pg_terminate_backend(?, 60000)", (store._writer.info.backend_pid,)) == [(True,)]


class TestCommitNotAnswered:
    """The connection breaks while committing: before it took place, or just after."""

    @pytest.fixture
    def store(self, postgres: Any, tmp_path: Path) -> Any:
        opened = open_store(postgres.create(), tmp_path / "home")
        opened.create_tenant(TENANT, Draft(kind="tenant.created", at=1), "n0")
        yield opened
        opened.close()

    def test_it_took_place(self, store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
        flush = store._flush

        def break_after(connection: Any, *rest: Any) -> None:
            flush(connection, *rest)
            connection.close()
            raise postgres_store._Lost(RuntimeError("the line went dead"), committing=True)

        monkeypatch.setattr(store, "_flush", break_after)
        (result,) = store.transact([append()])
        monkeypatch.undo()
        assert isinstance(result, Appended)
        assert check(store) == ["n0", "n"]
        assert list(result.events) == store.events("control:acme", start=2)

    def test_it_did_not(self, store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def break_before(connection: Any, *rest: Any) -> None:
            connection.close()
            raise postgres_store._Lost(RuntimeError("the line went dead"), committing=True)

        monkeypatch.setattr(store, "_flush", break_before)
        with pytest.raises(StoreError, match="the line went dead"):
            store.transact([append()])
        monkeypatch.undo()
        store.transact([append()])
        assert check(store) == ["n0", "n"]

    def test_a_backend_that_is_ended_is_replaced(self, store: PostgresStore) -> None:
        end_backend(store)
        (result,) = store.transact([append()])
        assert isinstance(result, Appended)

    def test_a_step_that_took_place_unanswered_is_not_written_twice(
        self, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send, sent = Call.send, []

        def break_after(call: Call, connection: Any) -> int:
            sent.append(send(call, connection))
            end_backend(store)
            return send(call, connection)

        store.transact([append()])
        monkeypatch.setattr(Call, "send", break_after)
        (result,) = store.transact([append()])
        monkeypatch.undo()
        assert isinstance(result, Appended)
        assert check(store) == ["n0", "n", "n"]
        assert list(result.events) == store.events("control:acme", start=3)
        assert len(sent) == 1
        store.transact([append()])
        assert check(store) == ["n0", "n", "n", "n"]

    def test_a_step_that_did_not_take_place_is_sent_again(self, store: PostgresStore) -> None:
        store.transact([append()])
        end_backend(store)
        store.transact([append()])
        assert check(store) == ["n0", "n", "n"]

    def test_a_statement_that_was_dropped_is_prepared_again(self, store: PostgresStore) -> None:
        for _ in range(2):
            store.transact([append()])
        assert store._writer is not None
        store._writer.pgconn.exec_(b"DEALLOCATE ALL")
        store.transact([append()])
        assert check(store) == ["n0", "n", "n", "n"]

    def test_the_node_is_told_when_its_row_is_gone(self, store: PostgresStore) -> None:
        store.register(NodeRow(node="n", host="h", boot="b", pid=1, pid_start=1, lease_until=store.now() + 10**9))
        store.unregister("n")
        assert store.renew("n", 10**9) is None
