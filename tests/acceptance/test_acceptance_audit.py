"""Whatever is done to a journal behind its back, verification fails and names the victim; untouched, it holds.

The journal is a real one: several tenants, runs, payloads and recorded decisions, written through the store, with heads
signed outside it. Each test changes a copy with plain SQL, as somebody with access to the file would.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.action import Action, Effect, Facts
from holdfast.audit.heads import HeadKeeper, note_path
from holdfast.audit.keys import ensure
from holdfast.audit.report import CODES, Finding, Report
from holdfast.audit.verify import verify
from holdfast.journal import frontier
from holdfast.journal.base import Append, Appended, Draft, Header, NodeRow, Patch, StreamKind, Tenant
from holdfast.journal.event import Event, Kind, decode, encode, leaf
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.policy.bundle import builtin
from holdfast.policy.decide import decide
from holdfast.values import dump, sha256

START = 1_700_000_000_000_000
COLUMNS = [
    "stream",
    "seq",
    "kind",
    "at",
    "clock_error",
    "node",
    "epoch",
    "witness",
    "principal",
    "auth",
    "prev",
    "leaf",
]


class Scribe:
    """Writes runs as a node would."""

    def __init__(self, home: Path) -> None:
        self.store = open_store("sqlite", home)
        self.keeper = HeadKeeper(home, ensure(home), self.store)
        self.at = START
        now = self.store.now()
        self.store.register(NodeRow(node="n1", host="h", boot="b", pid=1, pid_start=1, lease_until=now + 10**12))

    def tenant(self, name: str) -> None:
        tenant = Tenant(name=name, region="us-east", created_at=self.tick())
        self.store.create_tenant(tenant, Draft(kind=Kind.TENANT_CREATED, data={"name": name}, at=self.at), "n1")

    def tick(self) -> int:
        self.at += 250_000
        return self.at

    def write(self, append: Append) -> None:
        (result,) = self.store.transact([append])
        assert isinstance(result, Appended), result
        self.keeper.committed(result.events)

    def draft(self, kind: Kind, data: dict[str, Any] | None = None, **payloads: bytes) -> Draft:
        return Draft(
            kind=kind,
            data=data or {},
            payloads=payloads,
            at=self.tick(),
            clock_error=1000,
            principal="ann",
            auth="test",
        )

    def run(self, tenant: str, name: str, steps: int, *, ended: bool = True) -> None:
        header = Header(
            stream=name, tenant=tenant, region="us-east", kind=StreamKind.RUN, agent="clerk", created_at=self.tick()
        )
        created = self.draft(Kind.RUN_CREATED, {"agent": "clerk", "bundle": builtin().digest}, input=dump({"n": steps}))
        self.write(Append(stream=name, epoch=0, node="n1", drafts=(created,), create=header))
        epoch = self.store.claim(name, "n1")
        assert epoch is not None
        started = self.draft(Kind.RUN_STARTED, {"incarnation": 1, "held": {}})
        self.write(Append(stream=name, epoch=epoch, node="n1", drafts=(started,), patch=Patch(status="running")))
        for number in range(steps):
            self.write(Append(stream=name, epoch=epoch, node="n1", drafts=self.step(tenant, name, number)))
        if ended:
            done = self.draft(Kind.RUN_COMPLETED, {}, output=dump("done"))
            patch = Patch(status="completed", release=True)
            self.write(Append(stream=name, epoch=epoch, node="n1", drafts=(done,), patch=patch))

    def step(self, tenant: str, run: str, number: int) -> tuple[Draft, ...]:
        args = dump({"number": number})
        action = Action(
            kind="step",
            name="work",
            id=f"work.{number + 1}",
            args={"number": number},
            digest=sha256(args),
            effect=Effect.PURE,
        )
        facts = Facts(now=self.tick(), tenant=tenant, agent="clerk", run=run, started_at=START, active_at=self.at)
        data = {
            "action": Action(kind="step", name="work", id=action.id, digest=action.digest),
            "facts": facts,
            "verdict": decide(action, facts, builtin()),
            "parent": "",
        }
        return (
            self.draft(Kind.INTENT, data, args=args),
            self.draft(Kind.OUTCOME, {"id": action.id, "status": "ok"}, result=dump(f"{tenant} {run} {number}")),
        )


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a journal; not to be changed. Beside it stands ``older``, the database at an earlier moment."""
    home = tmp_path_factory.mktemp("audit") / "home"
    scribe = Scribe(home)
    bundle = builtin()
    scribe.store.put_blobs({bundle.digest: bundle.to_bytes()})
    scribe.tenant("default")
    scribe.tenant("acme")
    scribe.run("default", "run-a", 4)
    scribe.run("acme", "run-b", 3)
    scribe.keeper.flush()
    scribe.store.close()
    shutil.copy(home / "holdfast.db", home.parent / "older.db")
    scribe = Scribe(home)
    scribe.at = START + 60_000_000
    scribe.run("default", "run-c", 2, ended=False)
    scribe.run("default", "run-d", 3)
    scribe.run("acme", "run-e", 1)
    scribe.keeper.close()
    scribe.store.close()
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(written, tmp_path / "home")
    return tmp_path / "home"


@contextmanager
def opened(home: Path) -> Iterator[SqlStore]:
    store = open_store("sqlite", home)
    try:
        yield store
    finally:
        store.close()


def checked(home: Path, **options: Any) -> Report:
    with opened(home) as store:
        return verify(store, home, **options)


def sql(home: Path, statement: str, *params: Any) -> None:
    with closing(sqlite3.connect(home / "holdfast.db")) as connection, connection:
        assert connection.execute(statement, params).rowcount != 0, "nothing was changed"


def rows(home: Path, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "holdfast.db")) as connection:
        return connection.execute(statement, params).fetchall()


def body(home: Path, stream: str, seq: int) -> bytes:
    return rows(home, "SELECT body FROM events WHERE stream = ? AND seq = ?", stream, seq)[0][0]


def place(home: Path, stream: str, seq: int) -> tuple[str, int]:
    return rows(home, "SELECT tenant, idx FROM events WHERE stream = ? AND seq = ?", stream, seq)[0]


def named(report: Report, stream: str, seq: int) -> list[Finding]:
    return [finding for finding in report.findings if (finding.stream, finding.seq) == (stream, seq)]


def rewrite(home: Path, stream: str, seq: int, change: Callable[[Event], Event]) -> None:
    """Change an event as somebody would who knows the format: row, hash and columns agree again."""
    event = change(decode(body(home, stream, seq)))
    data = encode(event)
    values = [leaf(data) if name == "leaf" else getattr(event, name) for name in COLUMNS]
    sets = ", ".join(f"{name} = ?" for name in COLUMNS)
    sql(home, f"UPDATE events SET body = ?, {sets} WHERE stream = ? AND seq = ?", data, *values, stream, seq)


def relink(home: Path, tenant: str, start: int = 0) -> None:
    """Make all links, hashes and rows of a tenant's log agree with its bodies: the perfect forgery of a database."""
    heads: dict[str, tuple[int, str, int]] = {}
    edge = b""
    with closing(sqlite3.connect(home / "holdfast.db")) as connection, connection:
        found = connection.execute("SELECT rowid, body FROM events WHERE tenant = ? ORDER BY idx", (tenant,)).fetchall()
        connection.execute("UPDATE events SET idx = -idx - 1, seq = -seq WHERE tenant = ?", (tenant,))
        for index, (rowid, data) in enumerate(found):
            event = decode(data)
            seq, prev, before = heads.get(event.stream, (0, "0" * 64, -1))
            event = type(event)(
                **{
                    **{f: getattr(event, f) for f in event.__struct_fields__},
                    "seq": seq + 1,
                    "prev": prev,
                    "index": index,
                }
            )
            data = encode(event)
            edge = frontier.push(edge, bytes.fromhex(leaf(data)))
            heads[event.stream] = (seq + 1, leaf(data), index)
            values = [leaf(data) if name == "leaf" else getattr(event, name) for name in COLUMNS]
            sets = ", ".join(f"{name} = ?" for name in COLUMNS)
            connection.execute(
                f"UPDATE events SET idx = ?, before = ?, body = ?, {sets} WHERE rowid = ?",
                (index, before, data, *values, rowid),
            )
        for stream, (seq, head, tail) in heads.items():
            connection.execute(
                "UPDATE streams SET seq = ?, head = ?, tail = ? WHERE stream = ?", (seq, head, tail, stream)
            )
        connection.execute("UPDATE tenants SET log_size = ?, frontier = ? WHERE name = ?", (len(found), edge, tenant))


def test_the_untouched_journal_verifies(home: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = checked(home, progress=lambda done, of: seen.append((done, of)))
    assert report.ok, report.findings
    assert report.warnings == []
    counts = report.counts
    total = rows(home, "SELECT count(*) FROM events")[0][0]
    assert (counts.tenants, counts.runs, counts.heads, counts.events) == (2, 5, 2, total)
    assert counts.payloads == rows(home, "SELECT count(*) FROM payloads")[0][0]
    assert (counts.decisions, counts.undecided, counts.erased, counts.unsigned) == (13, 0, 0, 0)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("scope", [{"run": "run-a"}, {"tenant": "acme"}, {"run": "run-c", "tenant": "default"}])
def test_a_part_verifies(home: Path, scope: dict[str, str]) -> None:
    report = checked(home, **scope)
    assert report.ok, report.findings
    assert report.counts.tenants == 1
    assert report.counts.runs == (1 if "run" in scope else 2)


@pytest.mark.parametrize("scope", [{"run": "run-z"}, {"tenant": "nobody"}])
def test_an_unknown_part_is_said_to_be_unknown(home: Path, scope: dict[str, str]) -> None:
    assert [finding.code for finding in checked(home, **scope).findings] == ["run.unknown"]


CHANGES: dict[str, Any] = {
    "stream": "run-x",
    "seq": 999,
    "kind": "log",
    "at": 7,
    "clock_error": 5,
    "node": "n9",
    "epoch": 77,
    "witness": "boundary",
    "principal": "bob",
    "auth": "none",
    "prev": "f" * 64,
    "leaf": "f" * 64,
    "idx": 9999,
    "tenant": "acme",
}


@pytest.mark.parametrize("column", sorted(CHANGES))
@pytest.mark.parametrize("seq", [1, 4, 11])
def test_a_changed_column_is_named(home: Path, column: str, seq: int) -> None:
    if column == "tenant":
        sql(home, "UPDATE events SET tenant = 'acme', idx = 500 WHERE stream = 'run-a' AND seq = ?", seq)
    else:
        sql(home, f"UPDATE events SET {column} = ? WHERE stream = 'run-a' AND seq = ?", CHANGES[column], seq)
    report = checked(home)
    assert named(report, "run-a", seq)
    assert {(f.stream, f.seq) for f in report.findings} <= {("run-a", seq), ("run-a", None), ("", None)}


@pytest.mark.parametrize("value", [b"\xff\xfe", "text", None, 1.5])
def test_a_cell_of_another_type_is_no_way_out(home: Path, value: object) -> None:
    for column in ("node", "body", "at"):
        try:
            sql(home, f"UPDATE events SET {column} = ? WHERE stream = 'run-a' AND seq = 3", value)
        except sqlite3.IntegrityError:
            continue
        assert named(checked(home), "run-a", 3)


def test_names_that_would_fool_a_terminal_are_escaped(home: Path) -> None:
    sql(home, "UPDATE events SET stream = 'a' || char(27) || '[2J', body = x'00' WHERE stream = 'run-a' AND seq = 3")
    sql(home, "UPDATE events SET kind = CAST(x'ff' AS TEXT), leaf = 'x' WHERE stream = 'run-a' AND seq = 5")
    report = checked(home)
    assert json.loads(msgspec.json.encode(report.findings))
    assert "a\\x1b[2J" in {finding.stream for finding in report.findings}
    assert all((f.message + f.stream + f.kind).isprintable() for f in report.findings)


def test_text_that_is_no_text_is_named(home: Path) -> None:
    sql(home, "UPDATE events SET node = CAST(x'ff80' AS TEXT) WHERE stream = 'run-a' AND seq = 3")
    report = checked(home)
    assert [finding.code for finding in named(report, "run-a", 3)] == ["event.columns"]


@pytest.mark.parametrize("seq", [1, 2, 5, 11])
def test_a_removed_event_is_named(home: Path, seq: int) -> None:
    index = place(home, "run-a", seq)[1]
    sql(home, "DELETE FROM events WHERE stream = 'run-a' AND seq = ?", seq)
    missing = [finding for finding in checked(home).findings if finding.code == "event.missing"]
    assert [(finding.stream, finding.seq, finding.index) for finding in missing] == [("run-a", seq, index)]


def test_several_removed_events_are_named(home: Path) -> None:
    sql(home, "DELETE FROM events WHERE stream = 'run-a' AND seq IN (3, 4, 8)")
    missing = [finding for finding in checked(home).findings if finding.code == "event.missing"]
    assert {(finding.stream, finding.seq) for finding in missing if finding.stream} == {("run-a", 3), ("run-a", 8)}
    assert any("3 to 4" in finding.message for finding in missing)


def test_a_removed_run_is_named(home: Path) -> None:
    sql(home, "DELETE FROM events WHERE stream = 'run-b'")
    assert named(checked(home), "run-b", 1)
    sql(home, "DELETE FROM streams WHERE stream = 'run-b'")
    report = checked(home)
    assert {finding.code for finding in report.findings} >= {"event.missing", "log.root"}


def test_an_inserted_event_is_named(home: Path) -> None:
    event = decode(body(home, "run-a", 11))
    size = rows(home, "SELECT log_size FROM tenants WHERE name = 'default'")[0][0]
    forged = type(event)(**{
        **{field: getattr(event, field) for field in event.__struct_fields__},
        "seq": 12, "index": size, "prev": leaf(body(home, "run-a", 11)), "kind": "log", "payloads": {},
    })  # fmt: skip
    data = encode(forged)
    values = [leaf(data) if name == "leaf" else getattr(forged, name) for name in COLUMNS]
    marks = ", ".join("?" * (len(COLUMNS) + 3))
    sql(
        home,
        f"INSERT INTO events (before, tenant, idx, body, {', '.join(COLUMNS)}) VALUES (0, {marks})",
        "default", size, data, *values,
    )  # fmt: skip
    assert [finding.code for finding in named(checked(home), "run-a", 12)] == ["event.extra"]
    sql(home, "UPDATE tenants SET log_size = log_size + 1 WHERE name = 'default'")
    assert "event.extra" in {finding.code for finding in named(checked(home), "run-a", 12)}


@pytest.mark.parametrize("index", [-3, 70_000])
def test_an_event_put_outside_the_log_is_named(home: Path, index: int) -> None:
    sql(
        home,
        f"INSERT INTO events (before, tenant, idx, body, {', '.join(COLUMNS)}) SELECT 0, tenant, ?, body, 'run-q', "
        f"{', '.join(COLUMNS[1:])} FROM events WHERE stream = 'run-a' AND seq = 2",
        index,
    )
    found = [finding for finding in checked(home).findings if finding.code == "event.extra"]
    assert [(finding.stream, finding.index) for finding in found] == [("run-q", index)]


def swap(home: Path, columns: list[str], one: tuple[str, int], other: tuple[str, int]) -> None:
    with closing(sqlite3.connect(home / "holdfast.db")) as connection, connection:
        select = f"SELECT rowid, {', '.join(columns)} FROM events WHERE stream = ? AND seq = ?"
        first, second = (connection.execute(select, which).fetchone() for which in (one, other))
        sets = ", ".join(f"{column} = ?" for column in columns)
        for which in (first, second):
            if "idx" in columns or "seq" in columns:
                connection.execute("UPDATE events SET idx = -idx - 900, seq = -seq WHERE rowid = ?", (which[0],))
        keep = "" if "seq" in columns or "idx" not in columns else ", seq = -seq"
        connection.execute(f"UPDATE events SET {sets}{keep} WHERE rowid = ?", (*second[1:], first[0]))
        connection.execute(f"UPDATE events SET {sets}{keep} WHERE rowid = ?", (*first[1:], second[0]))


@pytest.mark.parametrize("columns", [["body"], ["body", "leaf"], ["idx"], ["kind", "body", "leaf", "prev", "at"]])
@pytest.mark.parametrize(
    "pair", [(("run-a", 3), ("run-a", 8)), (("run-a", 5), ("run-a", 6)), (("run-a", 4), ("run-d", 4))]
)
def test_swapped_events_are_both_named(home: Path, columns: list[str], pair: tuple[Any, Any]) -> None:
    swap(home, columns, *pair)
    report = checked(home)
    for victim in pair:
        assert named(report, *victim)
    assert {(f.stream, f.seq) for f in report.findings if f.code.startswith("event.")} == set(pair)


@pytest.mark.parametrize("seq", [1, 4, 11])
def test_a_forged_event_with_its_own_hash_is_named(home: Path, seq: int) -> None:
    rewrite(home, "run-a", seq, lambda event: type(event)(**{
        **{field: getattr(event, field) for field in event.__struct_fields__}, "principal": "mallory",
    }))  # fmt: skip
    found = named(checked(home), "run-a", seq)
    assert {finding.code for finding in found} == {"event.chain", "event.signed"}


def test_a_perfectly_forged_log_is_found_by_its_head_and_the_event_named(home: Path) -> None:
    rewrite(home, "run-a", 4, lambda event: type(event)(**{
        **{field: getattr(event, field) for field in event.__struct_fields__}, "principal": "mallory",
    }))  # fmt: skip
    relink(home, "default")
    report = checked(home)
    assert {finding.code for finding in report.findings} == {"log.root", "event.signed"}
    first = min(finding.index for finding in report.findings if finding.code == "event.signed")
    assert first == place(home, "run-a", 4)[1]
    assert named(report, "run-a", 4)
    assert not [finding for finding in report.findings if finding.tenant == "acme"]


def test_an_event_removed_by_a_perfect_forger_is_found(home: Path) -> None:
    index = place(home, "run-d", 3)[1]
    sql(home, "DELETE FROM events WHERE stream = 'run-d' AND seq = 3")
    relink(home, "default")
    report = checked(home)
    codes = {finding.code for finding in report.findings}
    assert {"log.cut", "event.signed"} <= codes
    assert min(f.index for f in report.findings if f.code == "event.signed") == index


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("careful", [False, True])
def test_a_cut_tail_is_found(home: Path, count: int, careful: bool) -> None:
    size = rows(home, "SELECT log_size FROM tenants WHERE name = 'default'")[0][0]
    sql(home, "DELETE FROM events WHERE tenant = 'default' AND idx >= ?", size - count)
    if careful:
        relink(home, "default")
    report = checked(home)
    cut = [finding for finding in report.findings if finding.code == "log.cut"]
    assert [(finding.tenant, finding.index) for finding in cut] == [("default", size - count)]
    assert f"the last {count} were cut" in cut[0].message
    if not careful:
        assert named(report, "run-d", 9 - count + 1)


def test_an_older_copy_of_the_database_is_found(home: Path, written: Path) -> None:
    shutil.copy(written.parent / "older.db", home / "holdfast.db")
    report = checked(home)
    cut = {finding.tenant: finding for finding in report.findings if finding.code == "log.cut"}
    assert set(cut) == {"default", "acme"}
    assert "older copy" in cut["acme"].message


def test_the_database_of_another_home_is_found(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    scribe = Scribe(other)
    scribe.tenant("default")
    scribe.tenant("acme")
    for number in range(6):
        scribe.run("default", f"run-{number}", 9)
        scribe.run("acme", f"run-{number}x", 9)
    scribe.store.close()
    shutil.copy(other / "holdfast.db", home / "holdfast.db")
    assert {f.tenant for f in checked(home).findings if f.code == "log.root"} == {"default", "acme"}


def payload_of(home: Path, stream: str, seq: int, role: str) -> str:
    return decode(body(home, stream, seq)).payloads[role]


@pytest.mark.parametrize("where", [0, 12, -1])
def test_a_changed_payload_is_named(home: Path, where: int) -> None:
    commitment = payload_of(home, "run-b", 4, "result")
    data = bytearray(rows(home, "SELECT ciphertext FROM payloads WHERE commitment = ?", commitment)[0][0])
    data[where] ^= 1
    sql(home, "UPDATE payloads SET ciphertext = ? WHERE commitment = ?", bytes(data), commitment)
    (found,) = checked(home).findings
    assert (found.code, found.stream, found.seq, found.payload) == ("payload.changed", "run-b", 4, commitment)
    assert found.tenant == "acme"


@pytest.mark.parametrize("value", [b"", b"short", "text", 3])
def test_a_payload_that_is_none_is_named(home: Path, value: object) -> None:
    commitment = payload_of(home, "run-b", 4, "result")
    sql(home, "UPDATE payloads SET ciphertext = ? WHERE commitment = ?", value, commitment)
    assert [(f.code, f.payload) for f in checked(home).findings] == [("payload.changed", commitment)]


def test_swapped_payloads_are_both_named(home: Path) -> None:
    one, other = payload_of(home, "run-a", 3, "args"), payload_of(home, "run-a", 5, "args")
    first, second = (rows(home, "SELECT ciphertext FROM payloads WHERE commitment = ?", c)[0][0] for c in (one, other))
    sql(home, "UPDATE payloads SET ciphertext = ? WHERE commitment = ?", second, one)
    sql(home, "UPDATE payloads SET ciphertext = ? WHERE commitment = ?", first, other)
    found = checked(home).findings
    assert {(f.code, f.stream, f.seq) for f in found} == {
        ("payload.changed", "run-a", 3),
        ("payload.changed", "run-a", 5),
    }


def test_a_removed_payload_is_named(home: Path) -> None:
    commitment = payload_of(home, "run-a", 4, "result")
    sql(home, "DELETE FROM payloads WHERE commitment = ?", commitment)
    found = checked(home).findings
    assert [(f.code, f.stream, f.seq, f.payload) for f in found] == [("payload.missing", "run-a", 4, commitment)]


def test_an_inserted_payload_is_named(home: Path) -> None:
    sql(
        home,
        "INSERT INTO payloads (tenant, idx, role, commitment, key_id, ciphertext) "
        "SELECT tenant, idx, 'other', ?, key_id, ciphertext "
        "FROM payloads WHERE tenant = 'acme' LIMIT 1",
        "ab" * 32,
    )
    assert [(f.code, f.tenant, f.payload) for f in checked(home).findings] == [("payload.extra", "acme", "ab" * 32)]


def test_a_payload_moved_to_another_tenant_is_named(home: Path) -> None:
    commitment = payload_of(home, "run-b", 4, "result")
    sql(home, "UPDATE payloads SET tenant = 'default', idx = 500 WHERE commitment = ?", commitment)
    found = {(f.code, f.tenant, f.payload) for f in checked(home).findings}
    assert found == {("payload.missing", "acme", commitment), ("payload.extra", "default", commitment)}


def test_erased_payloads_are_no_damage(home: Path) -> None:
    with opened(home) as store:
        store.erase("acme")
    report = checked(home)
    assert report.ok, report.findings
    assert report.counts.erased == rows(home, "SELECT count(*) FROM payloads WHERE tenant = 'acme'")[0][0]
    assert (report.counts.decisions, report.counts.undecided) == (9, 4)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tenant_keys WHERE tenant = 'acme'",
        "UPDATE tenant_keys SET wrapped = NULL WHERE tenant = 'acme'",
        "UPDATE tenant_keys SET wrapped = x'00' WHERE tenant = 'acme'",
        "UPDATE payloads SET key_id = 'other' WHERE tenant = 'acme'",
    ],
)
def test_a_lost_key_is_no_erasure(home: Path, statement: str) -> None:
    sql(home, statement)
    report = checked(home)
    assert {finding.tenant for finding in report.findings} == {"acme"}
    assert {finding.code for finding in report.findings} <= {"payload.missing", "payload.changed"}
    assert report.counts.erased == 0


@pytest.mark.parametrize(
    ("statement", "code", "victim"),
    [
        ("UPDATE tenants SET log_size = log_size - 1 WHERE name = 'acme'", "log.row", None),
        ("UPDATE tenants SET log_size = log_size + 1 WHERE name = 'acme'", "event.missing", None),
        ("UPDATE tenants SET frontier = zeroblob(8 + 32) WHERE name = 'acme'", None, None),
        (
            "UPDATE tenants SET frontier = (SELECT frontier FROM tenants WHERE name = 'default') WHERE name = 'acme'",
            "log.row",
            None,
        ),
        ("DELETE FROM tenants WHERE name = 'acme'", "event.extra", None),
        ("UPDATE streams SET seq = seq - 1 WHERE stream = 'run-b'", "event.extra", "run-b"),
        ("UPDATE streams SET seq = seq + 1 WHERE stream = 'run-b'", "event.missing", "run-b"),
        ("UPDATE streams SET head = 'x' WHERE stream = 'run-b'", "event.chain", "run-b"),
        ("UPDATE streams SET epoch = 0 WHERE stream = 'run-b'", "stream.row", "run-b"),
        ("UPDATE streams SET status = 'failed' WHERE stream = 'run-b'", "stream.row", "run-b"),
        ("UPDATE streams SET status = 'running' WHERE stream = 'run-b'", "stream.row", "run-b"),
        ("UPDATE streams SET status = 'completed' WHERE stream = 'run-c'", "stream.row", "run-c"),
        ("DELETE FROM streams WHERE stream = 'run-b'", "stream.row", "run-b"),
    ],
)
def test_a_changed_row_of_a_tenant_or_stream_is_named(
    home: Path, statement: str, code: str | None, victim: str | None
) -> None:
    sql(home, statement)
    findings = checked(home).findings
    if code is None:
        assert findings
        return
    assert code in {finding.code for finding in findings if victim is None or finding.stream == victim}
    assert not [finding for finding in findings if finding.tenant == "default" and victim != "run-c"]


def test_an_edited_head_is_named(home: Path) -> None:
    path = note_path(home, "acme")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n", 1).replace(b"acme\n", b"acme\n1", 1))
    (found,) = checked(home).findings
    assert (found.code, found.tenant) == ("head.signature", "acme")


@pytest.mark.parametrize("place_", [0, 30, 60, -20])
def test_a_head_with_one_changed_byte_is_named(home: Path, place_: int) -> None:
    path = note_path(home, "acme")
    data = bytearray(path.read_bytes())
    data[place_] ^= 2
    path.write_bytes(bytes(data))
    findings = checked(home).findings
    assert {finding.tenant for finding in findings} == {"acme"}
    assert {finding.code for finding in findings} <= {"head.signature", "head.damaged"}


def test_the_head_of_another_tenant_is_no_head(home: Path) -> None:
    shutil.copy(note_path(home, "default"), note_path(home, "acme"))
    (found,) = checked(home).findings
    assert (found.code, found.tenant) == ("head.signature", "acme")


def test_a_removed_head_is_named_where_it_must_be(home: Path) -> None:
    note_path(home, "default").unlink()
    (found,) = checked(home).findings
    assert (found.code, found.tenant) == ("head.missing", "default")


def test_a_removed_tenant_is_found_by_its_head(home: Path) -> None:
    for table in ("events", "payloads", "streams", "tenant_keys"):
        sql(home, f"DELETE FROM {table} WHERE tenant = 'acme'")
    sql(home, "DELETE FROM tenants WHERE name = 'acme'")
    assert {(f.code, f.tenant) for f in checked(home).findings} == {("log.cut", "acme")}


@pytest.mark.parametrize("files", [["audit.key"], ["audit.pub"], ["audit.key", "audit.pub"]])
def test_a_replaced_key_is_found(home: Path, tmp_path: Path, files: list[str]) -> None:
    ensure(tmp_path / "other")
    for name in files:
        shutil.copy(tmp_path / "other" / name, home / name)
    codes = {finding.code for finding in checked(home).findings}
    assert codes & {"key.unusable", "head.signature"}


def test_a_home_signed_anew_fails_against_the_key_that_an_auditor_kept(home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.pub"
    shutil.copy(home / "audit.pub", kept)
    shutil.rmtree(home / "heads")
    (home / "audit.key").unlink()
    (home / "audit.pub").unlink()
    with opened(home) as store:
        HeadKeeper(home, ensure(home), store).flush(["default", "acme"])
    assert checked(home).ok
    codes = {finding.code for finding in checked(home, trusted=kept).findings}
    assert codes == {"key.unusable", "head.signature"}


def test_a_lost_or_open_key_is_named(home: Path) -> None:
    (home / "audit.key").chmod(0o644)
    assert [finding.code for finding in checked(home).findings] == ["key.unusable"]
    (home / "audit.key").unlink()
    assert checked(home).ok
    (home / "audit.pub").unlink()
    assert [finding.code for finding in checked(home).findings] == ["key.unusable"]


def test_damaged_hashes_beside_a_head_are_no_damage_of_the_record(home: Path) -> None:
    note_path(home, "default").with_suffix(".leaves").write_bytes(b"x" * 100)
    assert checked(home).ok
    rewrite(home, "run-a", 11, lambda event: type(event)(**{
        **{field: getattr(event, field) for field in event.__struct_fields__}, "principal": "mallory",
    }))  # fmt: skip
    report = checked(home)
    assert named(report, "run-a", 11)
    assert "damaged too" in report.warnings[0]


def test_a_changed_bundle_is_named_and_a_removed_one_told(home: Path) -> None:
    sql(home, "UPDATE blobs SET data = x'7b7d' WHERE digest = ?", builtin().digest)
    report = checked(home)
    assert [finding.code for finding in report.findings] == ["bundle.changed"]
    assert builtin().digest[:16] in report.findings[0].message
    sql(home, "DELETE FROM blobs WHERE digest = ?", builtin().digest)
    report = checked(home)
    assert (report.ok, report.counts.decisions, report.counts.undecided) == (True, 0, 13)
    assert [builtin().digest[:16] in warning for warning in report.warnings] == [True]


def test_of_a_run_other_runs_damage_is_told_only_as_far_as_the_log_goes(home: Path) -> None:
    sql(home, "DELETE FROM payloads WHERE commitment = ?", payload_of(home, "run-d", 4, "result"))
    assert checked(home, run="run-a").ok
    assert not checked(home, run="run-d").ok
    assert not checked(home).ok


def test_every_finding_has_a_documented_code_and_says_where(home: Path) -> None:
    sql(home, "UPDATE events SET principal = 'x' WHERE stream = 'run-a' AND seq = 2")
    sql(home, "DELETE FROM payloads WHERE tenant = 'acme'")
    for finding in checked(home).findings:
        assert finding.code in CODES
        assert finding.where
        assert "tenant" in finding.where


@pytest.fixture(scope="session")
def lab(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SqlStore, list[Any]]]:
    """A home that is changed and put right again, many times."""
    home = tmp_path_factory.mktemp("lab") / "home"
    shutil.copytree(written, home)
    with opened(home) as store:
        yield home, store, rows(home, "SELECT rowid, stream, seq, body FROM events ORDER BY rowid")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_changed_byte_of_any_event_is_named(lab: tuple[Path, SqlStore, list[Any]], data: st.DataObject) -> None:
    home, store, events = lab
    rowid, stream, seq, original = data.draw(st.sampled_from(events))
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    sql(home, "UPDATE events SET body = ? WHERE rowid = ?", bytes(changed), rowid)
    try:
        report = verify(store, home)
    finally:
        sql(home, "UPDATE events SET body = ? WHERE rowid = ?", original, rowid)
    assert named(report, stream, seq)
    others = {(f.stream, f.seq) for f in report.findings if f.code.startswith("event.")} - {(stream, seq)}
    assert not others


def test_the_lab_is_left_as_it_was(lab: tuple[Path, SqlStore, list[Any]]) -> None:
    home, store, _ = lab
    assert verify(store, home).ok
