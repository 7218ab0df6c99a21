"""Signed heads: they follow the log, never move back, and never sign a past that was changed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.audit import heads
from holdfast.audit.heads import HeadKeeper, note_path, open_head, read_heads, read_leaves
from holdfast.audit.keys import ensure
from holdfast.audit.merkle import hash_leaf, root
from holdfast.audit.note import Checkpoint
from holdfast.errors import AuditError, HoldfastError, StoreError
from holdfast.journal.base import Tenant
from holdfast.journal.event import GENESIS, Event


class Log:
    """A log in memory, and the events that tell of it."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {}
        self.reads = 0

    def tenants(self) -> list[Tenant]:
        return [Tenant(name=n, region="", created_at=0, log_size=len(log)) for n, log in self.bodies.items()]

    def log(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        self.reads += 1
        bodies = self.bodies.get(tenant, [])
        return list(enumerate(bodies))[start : start + limit]

    def grow(self, count: int, tenant: str = "default") -> list[Event]:
        bodies = self.bodies.setdefault(tenant, [])
        start = len(bodies)
        bodies += [f"{tenant} {index}".encode() for index in range(start, start + count)]
        return [event(tenant, index) for index in range(start, start + count)]


def event(tenant: str, index: int) -> Event:
    return Event(
        v=1,
        tenant=tenant,
        stream="run",
        seq=index + 1,
        index=index,
        epoch=1,
        kind="log",
        at=1,
        clock_error=-1,
        node="n",
        witness="node",
        principal="",
        auth="system",
        prev=GENESIS,
        data={},
        payloads={},
    )


def keeper(home: Path, log: Log) -> HeadKeeper:
    return HeadKeeper(home, ensure(home), log, interval=0)


def head(home: Path, tenant: str = "default") -> Checkpoint:
    return open_head(read_heads(home)[tenant], tenant, ensure(home).public)


def expected(log: Log, tenant: str = "default", size: int | None = None) -> bytes:
    return root(hash_leaf(body) for body in log.bodies[tenant][:size])


def test_a_flush_signs_the_furthest_head_of_each_log_that_grew(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(3))
    keep.committed([*log.grow(4), *log.grow(2, "acme/eu")])
    assert not (tmp_path / "heads").exists()
    assert keep.flush() == 2
    assert (head(tmp_path).size, head(tmp_path).root) == (7, expected(log))
    assert (head(tmp_path, "acme/eu").size, head(tmp_path, "acme/eu").root) == (2, expected(log, "acme/eu"))
    assert keep.flush() == 0
    assert sorted(read_heads(tmp_path)) == ["acme/eu", "default"]
    assert read_leaves(tmp_path, "default", 7) == [hash_leaf(body) for body in log.bodies["default"]]


def test_the_next_head_reads_only_what_is_new(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(2000))
    keep.flush()
    log.reads = 0
    keep.committed(log.grow(1))
    assert keep.flush() == 1
    assert log.reads == 1
    assert head(tmp_path).root == expected(log)


def test_another_process_goes_on_from_the_files(tmp_path: Path) -> None:
    log = Log()
    first = keeper(tmp_path, log)
    first.committed(log.grow(5))
    first.flush()
    second = keeper(tmp_path, log)
    second.committed(log.grow(6))
    second.flush()
    first.committed(log.grow(1))
    first.flush()
    assert (head(tmp_path).size, head(tmp_path).root) == (12, expected(log))
    assert read_leaves(tmp_path, "default", 12) == [hash_leaf(body) for body in log.bodies["default"]]


@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "both gone"])
def test_what_stands_beside_the_note_is_made_again(tmp_path: Path, damage: str) -> None:
    log = Log()
    first = keeper(tmp_path, log)
    first.committed(log.grow(1100))
    first.flush()
    path = note_path(tmp_path, "default")
    if damage in ("gone", "both gone"):
        path.with_suffix(".frontier").unlink()
    if damage == "both gone":
        path.with_suffix(".leaves").unlink()
    if damage == "cut":
        path.with_suffix(".frontier").write_bytes(path.with_suffix(".frontier").read_bytes()[:-5])
        path.with_suffix(".leaves").write_bytes(path.with_suffix(".leaves").read_bytes()[:-45])
    if damage == "changed":
        path.with_suffix(".frontier").write_bytes(b"\0" * len(path.with_suffix(".frontier").read_bytes()))
    second = keeper(tmp_path, log)
    second.committed(log.grow(2))
    assert second.flush() == 1
    assert head(tmp_path).root == expected(log)
    assert read_leaves(tmp_path, "default", 1102) == [hash_leaf(body) for body in log.bodies["default"]]


def test_a_nearer_head_never_replaces_a_further_one(tmp_path: Path) -> None:
    log = Log()
    early = log.grow(5)
    ahead = keeper(tmp_path, log)
    ahead.committed(log.grow(5))
    ahead.flush()
    note = read_heads(tmp_path)["default"]
    behind = keeper(tmp_path, log)
    behind.committed(early)
    assert behind.flush() == 0
    assert read_heads(tmp_path)["default"] == note


def test_a_log_that_was_put_back_keeps_its_further_head(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(10))
    keep.flush()
    note = read_heads(tmp_path)["default"]
    del log.bodies["default"][4:]
    for other in (keep, keeper(tmp_path, log)):
        other.committed(log.grow(2))
        other.flush()
    assert read_heads(tmp_path)["default"] == note


@pytest.mark.parametrize("fresh", [False, True])
def test_a_changed_past_is_never_signed(tmp_path: Path, fresh: bool) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(10))
    keep.flush()
    original = list(log.bodies["default"])
    log.bodies["default"][3] = b"changed"
    if fresh:
        keep = keeper(tmp_path, log)
    keep.committed(log.grow(1))
    keep.flush()
    assert head(tmp_path).size == 11
    assert head(tmp_path).root == root(hash_leaf(body) for body in [*original, log.bodies["default"][10]])
    assert head(tmp_path).root != expected(log)


def test_a_changed_past_without_the_frontier_is_refused(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(10))
    keep.flush()
    log.bodies["default"][3] = b"changed"
    note_path(tmp_path, "default").with_suffix(".frontier").unlink()
    again = keeper(tmp_path, log)
    again.committed([*log.grow(1), *log.grow(1, "other")])
    with pytest.raises(AuditError, match="does not fit its signed head"):
        again.flush()
    assert head(tmp_path).size == 10
    assert head(tmp_path, "other").size == 1


def test_an_edited_note_is_not_continued(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.committed(log.grow(10))
    keep.flush()
    path = note_path(tmp_path, "default")
    edited = path.read_bytes().replace(b"\n10\n", b"\n4\n")
    path.write_bytes(edited)
    keep.committed(log.grow(1))
    with pytest.raises(AuditError, match="cannot be continued"):
        keep.flush()
    assert path.read_bytes() == edited


def test_a_gap_in_the_log_is_not_signed(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    events = log.grow(3)
    log.log = lambda tenant, *, start=0, limit=1000: [(0, b"a"), (2, b"c")][start:]  # type: ignore[method-assign]
    keep.committed(events)
    with pytest.raises(AuditError, match="lacks event 1"):
        keep.flush()
    assert read_heads(tmp_path) == {}


def test_an_unreadable_log_is_tried_again(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    read = log.log

    def broken(tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        raise StoreError("the database is gone")

    log.log = broken  # type: ignore[method-assign]
    keep.committed(log.grow(3))
    with pytest.raises(StoreError):
        keep.flush()
    log.log = read  # type: ignore[method-assign]
    assert keep.flush() == 1
    assert head(tmp_path).size == 3


def test_a_home_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    (tmp_path / "heads").write_text("in the way")
    keep.committed(log.grow(1))
    with pytest.raises(StoreError, match="cannot be written"):
        keep.flush()


def test_named_tenants_get_a_head_even_when_their_log_is_empty(tmp_path: Path) -> None:
    log = Log()
    assert keeper(tmp_path, log).flush(["default"]) == 1
    assert head(tmp_path).size == 0
    log.grow(2)
    assert keeper(tmp_path, log).flush(["default"]) == 1
    assert keeper(tmp_path, log).flush(["default"]) == 0
    assert (head(tmp_path).size, head(tmp_path).root) == (2, expected(log))


def test_the_thread_signs_and_close_signs_the_rest(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path, log)
    keep.start()
    keep.start()
    for _ in range(50):
        keep.committed(log.grow(1))
    keep.close()
    assert (head(tmp_path).size, head(tmp_path).root) == (50, expected(log))
    keep.close()


def test_what_a_process_that_died_left_unsigned_is_signed_at_the_next_start(tmp_path: Path) -> None:
    log = Log()
    log.grow(3)
    log.grow(2, "acme")
    keep = keeper(tmp_path, log)
    keep.start()
    keep.close()
    assert (head(tmp_path).size, head(tmp_path, "acme").size) == (3, 2)


def test_the_thread_reports_what_it_cannot_sign(tmp_path: Path) -> None:
    log = Log()
    told = threading.Event()
    errors: list[HoldfastError] = []

    def on_error(error: HoldfastError) -> None:
        errors.append(error)
        told.set()

    (tmp_path / "heads").write_text("in the way")
    keep = HeadKeeper(tmp_path, ensure(tmp_path), log, interval=0, on_error=on_error)
    keep.start()
    keep.committed(log.grow(1))
    assert told.wait(60)
    with pytest.raises(StoreError):
        keep.committed(log.grow(1)) or keep.close()
    assert isinstance(errors[0], StoreError)


def advance(home: Path, sizes: list[int]) -> None:
    log = Log()
    keep = keeper(home, log)
    for size in sizes:
        keep.committed(log.grow(size))
        keep.flush()


def test_processes_that_sign_at_once_leave_the_furthest_head(tmp_path: Path) -> None:
    ensure(tmp_path)
    workers = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path), *map(str, sizes)])
        for sizes in ([7] * 30, [5] * 60, [300])
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    log = Log()
    log.grow(300)
    assert (head(tmp_path).size, head(tmp_path).root) == (300, expected(log))
    assert len(read_leaves(tmp_path, "default", 300)) == 300
    assert not [path for path in (tmp_path / heads.FOLDER).iterdir() if path.name.endswith(".tmp")]


def test_a_head_is_of_its_tenant_and_home_only(tmp_path: Path) -> None:
    log = Log()
    keep = keeper(tmp_path / "a", log)
    keep.committed(log.grow(1))
    keep.flush()
    note = read_heads(tmp_path / "a")["default"]
    with pytest.raises(AuditError, match="not of"):
        open_head(note, "other", ensure(tmp_path / "a").public)
    with pytest.raises(AuditError, match="not of"):
        open_head(note, "default", ensure(tmp_path / "b").public)


if __name__ == "__main__":
    advance(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
