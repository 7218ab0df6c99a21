"""What every store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from holdfast.action import Budget, Hold, Kill, Once, Past, Rate, Release, Settle
from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import (
    Append,
    Appended,
    Draft,
    Header,
    InboxItem,
    MemoryWrite,
    NodeRow,
    PastWrite,
    Patch,
    Refused,
    Result,
    SecretWrite,
    StreamKind,
    Tenant,
)
from holdfast.journal.event import GENESIS, Kind, decode, encode, leaf
from holdfast.journal.frontier import push, root
from holdfast.journal.sqlstore import SqlStore
from holdfast.journal.transaction import MAX_EVENT, MAX_INBOX, MAX_PAYLOAD

HOUR = 3_600_000_000
Opener = Callable[[], SqlStore]


def draft(kind: str = Kind.LOG, **payloads: bytes) -> Draft:
    return Draft(kind=kind, at=1_700_000_000_000_000, data={"n": 1}, payloads=payloads)


def header(stream: str, tenant: str = "acme", created_at: int = 1, kind: StreamKind = StreamKind.RUN) -> Header:
    return Header(
        stream=stream,
        tenant=tenant,
        region="eu-west",
        kind=kind,
        agent="a",
        workflow="w",
        root=stream,
        parent="",
        depth=2,
        principal="ada",
        auth="peer-uid:1000",
        deployment="d" * 64,
        created_at=created_at,
    )


def node(store: SqlStore, name: str = "n1", lease: int = HOUR) -> NodeRow:
    return NodeRow(node=name, host="h", boot="b", pid=1, pid_start=2, lease_until=store.now() + lease)


def seed(store: SqlStore, *streams: str, tenant: str = "acme") -> None:
    """A tenant, a node and streams that the node drives in epoch 1."""
    store.create_tenant(Tenant(name=tenant, region="eu-west", created_at=1), draft(Kind.TENANT_CREATED), "n1")
    if not any(row.node == "n1" for row in store.nodes()):
        store.register(node(store))
    for stream in streams:
        create(store, stream, tenant=tenant)
        assert store.claim(stream, "n1") == 1


def create(store: SqlStore, stream: str, tenant: str = "acme", created_at: int = 1, **patch: Any) -> None:
    done(
        store,
        Append(
            stream=stream,
            epoch=0,
            node="n1",
            drafts=(draft(Kind.RUN_CREATED),),
            create=header(stream, tenant, created_at),
            patch=Patch(**patch) if patch else None,
        ),
    )


def item(stream: str, tenant: str = "acme", payload: bytes = b"", **data: Any) -> InboxItem:
    return InboxItem(
        tenant=tenant, stream=stream, kind="signal", data=data, payload=payload, principal="bob", auth="x", at=5
    )


def append(stream: str = "r1", *drafts: Draft, epoch: int = 1, by: str = "n1", **more: Any) -> Append:
    return Append(stream=stream, epoch=epoch, node=by, drafts=drafts or (draft(),), **more)


def done(store: SqlStore, *appends: Append) -> list[Appended]:
    found: list[Appended] = []
    for result in store.transact(appends):
        assert isinstance(result, Appended), result
        found.append(result)
    return found


def refused(store: SqlStore, one: Append) -> Refused:
    (result,) = store.transact([one])
    assert isinstance(result, Refused), result
    return result


def kill(number: str, tenant: str = "acme") -> Kill:
    return Kill(id=number, scope="run", name="r1", tenant=tenant, reason="why", by="ada", at=7)


def check_log(store: SqlStore, tenant: str) -> int:
    """Indices without a gap, each stream a chain, the frontier that of exactly these leaves; gives the size."""
    heads: dict[str, tuple[int, str]] = {}
    frontier = b""
    size = 0
    while page := store.log(tenant, start=size, limit=100):
        for index, body in page:
            event = decode(body)
            assert encode(event) == body
            assert (event.index, event.tenant) == (index, tenant) == (size, tenant)
            seq, head = heads.get(event.stream, (0, GENESIS))
            assert (event.seq, event.prev) == (seq + 1, head)
            heads[event.stream] = (event.seq, leaf(body))
            frontier = push(frontier, bytes.fromhex(leaf(body)))
            size += 1
    assert store.frontier(tenant) == frontier
    assert {row.name: row.log_size for row in store.tenants()}[tenant] == size
    for stream, (seq, head) in heads.items():
        state = store.stream(stream)
        assert state is not None
        assert state.seq == seq
        (last,) = [row for row in store.event_rows(tenant, limit=size) if (row.stream, row.seq) == (stream, seq)]
        assert last.leaf == head
    return size


class TestStreams:
    def test_a_tenant_is_made_once_and_has_a_control_stream(self, store: SqlStore) -> None:
        tenant = Tenant(name="acme", region="eu-west", created_at=3)
        assert store.create_tenant(tenant, draft(Kind.TENANT_CREATED), "n1")
        assert not store.create_tenant(tenant, draft(Kind.TENANT_CREATED), "n1")
        assert store.tenants() == [Tenant(name="acme", region="eu-west", created_at=3, log_size=1)]
        (event,) = store.events("control:acme")
        assert (event.kind, event.seq, event.index, event.prev) == ("tenant.created", 1, 0, GENESIS)
        state = store.stream("control:acme")
        assert state is not None
        assert (state.header.kind, state.ready_at) == (StreamKind.CONTROL, None)

    def test_a_stream_keeps_its_header_and_its_events(self, store: SqlStore) -> None:
        seed(store)
        create(store, "r1", status="pending")
        state = store.stream("r1")
        assert state is not None
        assert state.header == header("r1")
        assert (state.status, state.epoch, state.owner, state.seq, state.replay_from) == ("pending", 0, "", 1, 1)
        assert [event.kind for event in store.events("r1")] == ["run.created"]
        assert store.stream("r2") is None
        assert store.events("r2") == []

    def test_streams_that_rest_with_a_question_are_found_without_looking_at_others(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        for stream, asking in (("r1", True), ("r2", False)):
            patch = Patch(status="suspended", set_ready=True, release=True, asking=asking)
            done(store, append(stream, patch=patch))
        assert [state.header.stream for state in store.asking()] == ["r1"]
        assert store.claim("r1", "n1") == 2
        done(store, append("r1", epoch=2))
        assert [state.header.stream for state in store.asking()] == ["r1"]
        done(store, append("r1", epoch=2, patch=Patch(status="running", set_ready=True)))
        assert store.asking() == []

    def test_streams_of_one_log_are_read_apart_and_from_anywhere(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        for _ in range(3):
            done(store, append("r2", draft(), draft()), append("r1"))
        for stream, last in (("r1", 4), ("r2", 7)):
            for start in range(-1, last + 3):
                assert [one.seq for one in store.events(stream, start=start)] == list(range(max(start, 1), last + 1))

    def test_a_stream_with_a_gap_is_an_error_and_not_a_shorter_stream(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append(), append(), append())
        store._write(lambda run: run("DELETE FROM events WHERE stream = 'r1' AND seq = 2", ()))
        with pytest.raises(StoreError, match="event 2 of r1 is missing"):
            store.events("r1")
        assert [one.seq for one in store.events("r1", start=3)] == [3, 4]
        store._write(lambda run: run("DELETE FROM events WHERE stream = 'r1' AND seq = 4", ()))
        with pytest.raises(StoreError, match="event 4 of r1 is missing"):
            store.events("r1", start=4)

    def test_what_is_answered_is_what_is_stored(self, store: SqlStore) -> None:
        seed(store, "r1")
        (result,) = done(store, append("r1", draft("intent", args=b"1"), draft("outcome")))
        assert list(result.events) == store.events("r1", start=2)
        assert [encode(event) for event in result.events] == [body for _, body in store.log("acme", start=2)]
        rows = store.event_rows("acme", start=2)
        for row, event in zip(rows, result.events, strict=True):
            assert (row.stream, row.seq, row.idx, row.kind, row.prev) == (
                event.stream,
                event.seq,
                event.index,
                event.kind,
                event.prev,
            )
            assert row.leaf == leaf(row.body)

    def test_appends_of_one_batch_see_each_other(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        results = done(store, append("r1"), append("r2"), append("r1"), append("r1", draft(), draft()))
        assert [event.seq for result in results for event in result.events] == [2, 2, 3, 4, 5]
        assert check_log(store, "acme") == 8

    @pytest.mark.parametrize(
        ("reason", "one"),
        [
            ("exists", Append(stream="r1", epoch=0, node="n1", drafts=(draft(),), create=header("r1"))),
            ("tenant", Append(stream="r9", epoch=0, node="n1", drafts=(draft(),), create=header("r9", "nobody"))),
            ("missing", append("r9")),
            ("invalid", Append(stream="r9", epoch=0, node="n1", drafts=(draft(),), create=header("r8"))),
            ("invalid", append("r1", Draft(kind="log", at=1, data={"x": object()}))),
            ("invalid", append("r1", kills=(kill("k1"),))),
            ("size", append("r1", Draft(kind="log", at=1, data={"x": "y" * MAX_EVENT}))),
            ("size", append("r1", draft(result=b"x" * (MAX_PAYLOAD + 1)))),
            ("missing", append("r1", deliver=(item("r9"),))),
            ("size", append("r1", deliver=(item("r1", payload=b"x" * MAX_INBOX),))),
            ("invalid", append("r1", memory=(MemoryWrite(agent="a", key="a\0b", value=b""),))),
        ],
    )
    def test_a_refused_append_leaves_no_trace_and_the_others_alone(
        self, store: SqlStore, reason: str, one: Append
    ) -> None:
        seed(store, "r1", "r2")
        first, second, third = store.transact([append("r2"), one, append("r2")])
        assert isinstance(second, Refused)
        assert second.reason == reason
        assert second.message
        assert isinstance(first, Appended)
        assert isinstance(third, Appended)
        assert check_log(store, "acme") == 5
        assert store.stream("r9") is None

    def test_patch(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append("r1", draft(), draft(), patch=Patch(status="running", replay_from_here=True)))
        state = store.stream("r1")
        assert state is not None
        assert (state.status, state.replay_from, state.seq, state.owner) == ("running", 2, 3, "n1")
        done(store, append("r1", patch=Patch(status="suspended", ready_at=99, set_ready=True, release=True)))
        state = store.stream("r1")
        assert state is not None
        assert (state.status, state.ready_at, state.owner, state.replay_from) == ("suspended", 99, "", 2)

    def test_listing(self, store: SqlStore) -> None:
        seed(store)
        seed(store, tenant="other")
        for number in range(5):
            create(store, f"r{number}", created_at=10 + number, status="running" if number % 2 else "pending")
        create(store, "o1", tenant="other", created_at=50)
        kind = StreamKind.RUN

        def names(**wanted: Any) -> list[str]:
            return [state.header.stream for state in store.streams(**wanted)]

        assert names(tenant="acme", kind=kind) == ["r4", "r3", "r2", "r1", "r0"]
        assert names(kind=kind, limit=2) == ["o1", "r4"]
        assert names(tenant="acme", status="running") == ["r3", "r1"]
        assert names(kind=StreamKind.CONTROL, tenant="other") == ["control:other"]

    def test_the_fleet_has_a_control_stream_once_something_is_in_it(self, store: SqlStore) -> None:
        seed(store)
        assert [tenant.name for tenant in store.tenants()] == ["acme"]
        done(store, append("control:*", draft(Kind.KILL_ISSUED), epoch=0, kills=(kill("k1", tenant=""),)))
        done(store, append("control:*", draft(Kind.KILL_LIFTED), epoch=0, by="cli", lifts=("k1",)))
        assert [tenant.name for tenant in store.tenants()] == ["*", "acme"]
        assert check_log(store, "*") == 2


class TestFencing:
    def test_another_epoch_is_refused(self, store: SqlStore) -> None:
        seed(store, "r1")
        for wrong in (append("r1", epoch=0), append("r1", epoch=2), append("r1", by="n2")):
            assert refused(store, wrong).reason == "epoch"
        done(store, append("r1"))

    def test_a_claim_fences_the_one_before(self, store: SqlStore) -> None:
        seed(store, "r1")
        store.register(node(store, "n2"))
        assert store.claim("r1", "n2") is None
        assert store.claim("r1", "n2", free=("n1",)) == 2
        assert refused(store, append("r1")).reason == "epoch"
        done(store, append("r1", epoch=2, by="n2"))

    def test_what_was_released_is_not_written_to(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append("r1", patch=Patch(release=True)))
        assert refused(store, append("r1")).reason == "epoch"
        assert store.claim("r1", "n1") == 2

    def test_anyone_appends_to_a_control_stream_in_epoch_0(self, store: SqlStore) -> None:
        seed(store)
        done(store, append("control:acme", epoch=0, by="cli"), append("control:acme", epoch=0, by="n7"))
        assert refused(store, append("control:acme", epoch=1)).reason == "epoch"

    def test_another_store_is_fenced_though_it_remembers(self, opener: Opener) -> None:
        older, younger = opener(), opener()
        seed(older, "r1")
        done(older, append("r1"))
        younger.register(node(younger, "n2"))
        assert younger.claim("r1", "n2", free=("n1",)) == 2
        done(younger, append("r1", epoch=2, by="n2"))
        assert refused(older, append("r1")).reason == "epoch"
        assert check_log(older, "acme") == 4


class TestKills:
    def test_an_intent_names_the_generation_in_force(self, store: SqlStore) -> None:
        seed(store, "r1")
        assert store.kill_generation() == 0
        done(store, append("r1", kill_generation=0))
        done(store, append("control:acme", epoch=0, kills=(kill("k1"),)))
        assert store.kill_generation() == 1
        no = refused(store, append("r1", kill_generation=0))
        assert (no.reason, no.kill_generation) == ("kill", 1)
        done(store, append("r1"), append("r1", kill_generation=1))

    def test_a_kill_in_a_batch_stops_what_follows_it(self, store: SqlStore) -> None:
        seed(store, "r1")
        results = store.transact(
            [
                append("r1", kill_generation=0),
                append("control:acme", epoch=0, kills=(kill("k1"),)),
                append("r1", kill_generation=0),
            ]
        )
        assert [type(result).__name__ for result in results] == ["Appended", "Appended", "Refused"]

    def test_kills_stand_until_lifted(self, store: SqlStore) -> None:
        seed(store)
        done(store, append("control:acme", epoch=0, kills=(kill("k1"), kill("k2"))))
        assert store.kills() == [kill("k1"), kill("k2")]
        done(store, append("control:acme", epoch=0, lifts=("k1",)))
        assert store.kills() == [kill("k2")]
        assert store.kill_generation() == 2

    def test_a_kill_of_another_store_is_seen(self, opener: Opener) -> None:
        one, other = opener(), opener()
        seed(one, "r1")
        done(one, append("r1", kill_generation=0))
        done(other, append("control:acme", epoch=0, by="cli", kills=(kill("k1"),)))
        assert refused(one, append("r1", kill_generation=0)).reason == "kill"
        assert one.kill_generation() == 1


class TestLedger:
    def test_a_reservation_that_does_not_fit_is_refused_with_the_reasons(self, store: SqlStore) -> None:
        seed(store, "r1")
        budget = Budget(key="b", amount=60, limit=100, policy="ceiling")
        rate = Rate(key="r", limit=1, period_us=HOUR, burst=1, policy="pace")
        done(store, append("r1", reserve=(budget, rate)))
        no = refused(store, append("r1", reserve=(budget, rate, Once(key="o", holder="x"))))
        assert no.reason == "reservation"
        assert [(one.key, one.policy, one.limit) for one in no.refusals] == [("b", "ceiling", 100), ("r", "pace", 1)]
        assert no.refusals[0].used == 60
        assert 0 < no.refusals[1].retry_after_us <= HOUR
        assert [(row.key, row.reserved) for row in store.ledger()] == [("b", 60), ("r", 0)]

    def test_what_an_outcome_frees_is_there_for_the_intent_beside_it(self, store: SqlStore) -> None:
        seed(store, "r1")
        whole = Budget(key="b", amount=100, limit=100)
        done(store, append("r1", reserve=(whole,)))
        rest = Budget(key="b", amount=70, limit=100)
        done(store, append("r1", settle=(Settle(key="b", reserved=100, actual=30),), reserve=(rest,)))
        (row,) = store.ledger("b")
        assert (row.reserved, row.settled, row.limit) == (70, 30, 100)

    def test_a_refused_append_settles_nothing(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append("r1", reserve=(Budget(key="b", amount=50, limit=100),)))
        refused(
            store,
            append(
                "r1",
                settle=(Settle(key="b", reserved=50, actual=50),),
                reserve=(Budget(key="c", amount=2, limit=1),),
            ),
        )
        assert [(row.key, row.reserved, row.settled) for row in store.ledger()] == [("b", 50, 0)]

    def test_a_batch_admits_as_many_as_fit(self, store: SqlStore) -> None:
        names = [f"r{number}" for number in range(10)]
        seed(store, *names)
        results = store.transact([append(name, reserve=(Budget(key="b", amount=30, limit=100),)) for name in names])
        assert [isinstance(result, Appended) for result in results] == [True] * 3 + [False] * 7

    def test_places_and_keys(self, store: SqlStore) -> None:
        seed(store, "r1")
        first, second = (Hold(key="h", holder=who, limit=1, ttl_us=HOUR) for who in ("a", "b"))
        done(store, append("r1", reserve=(first, Once(key="o", holder="a"))))
        assert refused(store, append("r1", reserve=(second,))).refusals[0].used == 1
        assert refused(store, append("r1", reserve=(Once(key="o", holder="b"),))).reason == "reservation"
        done(store, append("r1", settle=(Release(key="h", holder="a"),), reserve=(second,)))
        assert {row.key: list(row.holders) for row in store.ledger()} == {"h": ["b"], "o": ["a"]}

    def test_prefix(self, store: SqlStore) -> None:
        seed(store, "r1")
        keys = ["a/1", "a/2", "a/é", "b/1", "a_3", "%"]
        done(store, append("r1", reserve=tuple(Budget(key=key, amount=1, limit=9) for key in keys)))
        assert [row.key for row in store.ledger("a/")] == ["a/1", "a/2", "a/é"]
        assert [row.key for row in store.ledger("%")] == ["%"]
        assert [row.key for row in store.ledger()] == sorted(keys)


class TestInbox:
    def test_an_item_arrives_and_is_consumed_once(self, store: SqlStore) -> None:
        seed(store, "r1")
        first = store.deliver(item("r1", x=1))
        second = store.deliver(item("r1", payload=b"secret", x=2))
        got = store.inbox("r1")
        assert [(one.id, one.data, one.payload) for one in got] == [
            (first, {"x": 1}, b""),
            (second, {"x": 2}, b"secret"),
        ]
        assert (got[1].principal, got[1].auth, got[1].at, got[1].kind) == ("bob", "x", 5, "signal")
        done(store, append("r1", consume=(first,)))
        assert refused(store, append("r1", consume=(first,))).reason == "consumed"
        assert [one.id for one in store.inbox("r1")] == [second]

    def test_two_consumers_in_one_batch(self, store: SqlStore) -> None:
        seed(store, "r1")
        number = store.deliver(item("r1"))
        results = store.transact([append("r1", consume=(number,)), append("r1", consume=(number,))])
        assert [type(result).__name__ for result in results] == ["Appended", "Refused"]
        other = store.deliver(item("r1"))
        assert refused(store, append("r1", consume=(other, other))).reason == "consumed"

    def test_the_item_of_another_stream_is_not_consumed(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        number = store.deliver(item("r1"))
        assert refused(store, append("r2", consume=(number,))).reason == "consumed"

    def test_numbers_are_never_given_again(self, store: SqlStore) -> None:
        seed(store, "r1")
        first = store.deliver(item("r1"))
        done(store, append("r1", consume=(first,)))
        assert store.deliver(item("r1")) > first

    def test_a_delivery_makes_the_stream_ready(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append("r1", patch=Patch(status="suspended", set_ready=True, ready_at=None, release=True)))
        assert store.ready(limit=10) == []
        store.deliver(item("r1"))
        assert [state.header.stream for state in store.ready(limit=10)] == ["r1"]

    def test_an_append_delivers_to_another_stream(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        done(store, append("r2", patch=Patch(set_ready=True, release=True)))
        done(store, append("r1", deliver=(item("r2", payload=b"p", x=1), item("r2", x=2))))
        assert [(one.data, one.payload) for one in store.inbox("r2")] == [({"x": 1}, b"p"), ({"x": 2}, b"")]
        assert [state.header.stream for state in store.ready(limit=10)] == ["r2"]

    def test_what_arrives_while_the_owner_lets_go_wakes_it(self, store: SqlStore) -> None:
        seed(store, "r1")
        number = store.deliver(item("r1"))
        asleep = Patch(status="suspended", set_ready=True, ready_at=None, release=True)
        done(store, append("r1", patch=asleep))
        assert [state.header.stream for state in store.ready(limit=10)] == ["r1"]
        assert store.claim("r1", "n1") == 2
        knowing = Patch(status="suspended", set_ready=True, ready_at=None, release=True, seen=number)
        done(store, append("r1", epoch=2, patch=knowing))
        assert store.ready(limit=10) == []

    @pytest.mark.parametrize("status", ["completed", "failed", "denied", "terminated", "killed", "refused"])
    def test_nothing_is_delivered_to_what_has_ended(self, store: SqlStore, status: str) -> None:
        seed(store, "r1", "r2")
        done(store, append("r1", patch=Patch(status=status, set_ready=True, ready_at=1, release=True)))
        with pytest.raises(UsageError, match=status):
            store.deliver(item("r1"))
        done(store, append("r2", deliver=(item("r1"),)))
        assert store.inbox("r1") == []
        assert store.ready(limit=10) == []
        assert store.claim("r1", "n1") is None

    def test_bad_deliveries(self, store: SqlStore) -> None:
        seed(store, "r1")
        seed(store, "o1", tenant="other")
        for wrong in (item("nobody"), item("r1", tenant="other"), item("r1", payload=b"x" * (MAX_INBOX + 1))):
            with pytest.raises(UsageError):
                store.deliver(wrong)
        assert refused(store, append("r1", deliver=(item("o1", tenant="other"),))).reason == "tenant"
        assert refused(store, append("r1", deliver=(item("o1"),))).reason == "tenant"


class TestLeases:
    def test_claim_release_claim(self, store: SqlStore) -> None:
        seed(store, "r1")
        assert store.owned("n1") == ["r1"]
        assert store.claim("r1", "n1") is None
        assert store.claim("nobody", "n1") is None
        done(store, append("r1", patch=Patch(release=True)))
        assert store.owned("n1") == []
        assert [state.header.stream for state in store.ready(limit=1)] == ["r1"]

    def test_only_a_registered_node_with_a_lease_claims(self, store: SqlStore) -> None:
        seed(store)
        create(store, "r1")
        assert store.claim("r1", "n9") is None
        store.register(node(store, "n9", lease=-1))
        assert store.claim("r1", "n9") is None
        assert store.renew("n9", HOUR) is not None
        assert store.claim("r1", "n9") == 1

    def test_registering(self, store: SqlStore) -> None:
        row = node(store, "n1")
        store.register(row)
        assert store.nodes() == [row]
        until = store.renew("n1", 2 * HOUR)
        assert until is not None
        assert until > row.lease_until
        assert store.nodes()[0].lease_until == until
        store.unregister("n1")
        assert store.nodes() == []
        assert store.renew("n1", HOUR) is None

    def test_a_node_that_lost_a_stream_must_register_again(self, store: SqlStore) -> None:
        seed(store, "r1", "r2")
        store.register(node(store, "n2"))
        assert store.claim("r1", "n2", free=("n1",)) == 2
        assert store.renew("n1", HOUR) is None
        assert store.owned("n1") == []
        assert [state.header.stream for state in store.ready(limit=9)] == ["r2"]
        assert refused(store, append("r2")).reason == "epoch"
        assert store.claim("r2", "n1") is None
        store.register(node(store, "n1"))
        assert store.claim("r2", "n1") == 2

    def test_a_lapsed_lease_from_which_nothing_was_taken_is_renewed(self, store: SqlStore) -> None:
        seed(store, "r1")
        store.register(node(store, "n2", lease=-HOUR))
        assert store.renew("n2", HOUR) is not None

    def test_a_new_life_of_a_node_owns_nothing(self, store: SqlStore) -> None:
        seed(store, "r1")
        store.register(node(store, "n1"))
        assert store.owned("n1") == []
        assert refused(store, append("r1")).reason == "epoch"

    def test_what_a_dead_node_drove_is_ready(self, store: SqlStore) -> None:
        seed(store, "r1")
        done(store, append("r1", patch=Patch(status="running")))
        store.unregister("n1")
        assert [state.header.stream for state in store.ready(limit=9)] == ["r1"]

    def test_what_a_dead_node_drove_is_ready_even_when_it_wished_for_nothing(self, store: SqlStore) -> None:
        """Whoever takes one stream of a dead node frees them all, and may die before it takes the next."""
        seed(store, "r1", "r2", "r3")
        done(store, *(append(name, patch=Patch(status="running", set_ready=True)) for name in ("r1", "r2")))
        done(store, append("r3", patch=Patch(status="completed", set_ready=True)))
        store.register(node(store, "n2"))
        assert store.claim("r1", "n2", free=("n1",)) == 2
        assert [state.header.stream for state in store.ready(limit=9)] == ["r2"]
        store.unregister("n2")
        assert {state.header.stream for state in store.ready(limit=9)} == {"r1", "r2"}

    def test_ready_is_the_oldest_wish_first_and_only_what_is_due(self, store: SqlStore) -> None:
        seed(store)
        now = store.now()
        for number, at in enumerate([now - 10, now + HOUR, now - 30, now - 20]):
            create(store, f"r{number}", status="suspended", set_ready=True, ready_at=at)
        create(store, "r9", status="suspended", set_ready=True, ready_at=None)
        assert [state.header.stream for state in store.ready(limit=10)] == ["r2", "r3", "r0"]
        assert [state.header.stream for state in store.ready(limit=2)] == ["r2", "r3"]
        assert [state.header.stream for state in store.ready(limit=10, root="r3")] == ["r3"]

    def test_what_waits_is_looked_at_by_tenant(self, store: SqlStore) -> None:
        now = store.now()
        for tenant, count in (("a", 2), ("b", 0), ("c", 3)):
            seed(store, tenant=tenant)
            for number in range(count):
                wish = {"set_ready": True, "ready_at": now - number}
                create(store, f"{tenant}{number}", tenant=tenant, status="pending", **wish)
        assert store.ready_tenants() == ["a", "c"]
        assert [state.header.stream for state in store.ready(limit=2, tenant="c")] == ["c2", "c1"]
        counted = {"kind": StreamKind.RUN, "status": "pending"}
        assert [store.count(tenant=name, limit=10, **counted) for name in "abc"] == [2, 0, 3]
        assert store.count(tenant="c", limit=2, **counted) == 2

    def test_thousands_that_wait_are_passed_over_by_the_index(self, store: SqlStore) -> None:
        seed(store)
        waiting = Patch(status="suspended", set_ready=True, ready_at=None)
        for part in range(4):
            done(
                store,
                *(
                    Append(
                        stream=f"w{part}-{number:04}",
                        epoch=0,
                        node="n1",
                        drafts=(draft(Kind.RUN_CREATED),),
                        create=header(f"w{part}-{number:04}"),
                        patch=waiting,
                    )
                    for number in range(500)
                ),
            )
        assert store.ready(limit=10) == []
        create(store, "r1")
        assert [state.header.stream for state in store.ready(limit=10)] == ["r1"]
        if store.url.startswith("sqlite"):
            plan = store._query(
                "EXPLAIN QUERY PLAN SELECT stream FROM streams WHERE owner = '' AND ready_at IS NOT NULL "
                "AND ready_at <= ? ORDER BY ready_at LIMIT ?",
                (1, 1),
            )
            assert "ix_streams_ready" in str(plan)


class TestPayloads:
    def test_round_trip(self, store: SqlStore) -> None:
        seed(store, "r1")
        (result,) = done(store, append("r1", draft("intent", args=b"one", more=b""), draft("outcome", result=b"two")))
        first, second = (event.payloads for event in result.events)
        assert store.payload("acme", first["args"]) == b"one"
        assert store.payload("acme", first["more"]) == b""
        wanted = [first["args"], second["result"]]
        assert store.payloads("acme", wanted) == dict(zip(wanted, (b"one", b"two"), strict=True))
        assert store.payloads("acme", []) == {}

    def test_the_same_payload_has_another_commitment_each_time(self, store: SqlStore) -> None:
        seed(store, "r1")
        one, other = done(store, append("r1", draft(result=b"yes")), append("r1", draft(result=b"yes")))
        assert one.events[0].payloads != other.events[0].payloads

    def test_another_store_reads_it(self, opener: Opener) -> None:
        one, other = opener(), opener()
        seed(one, "r1")
        (result,) = done(one, append("r1", draft(result=b"yes")))
        assert other.payload("acme", result.events[0].payloads["result"]) == b"yes"

    def test_erasure(self, opener: Opener) -> None:
        store, other = opener(), opener()
        seed(store, "r1")
        seed(store, "o1", tenant="other")
        mine, theirs = done(store, append("r1", draft(result=b"mine")), append("o1", draft(result=b"theirs")))
        memory = MemoryWrite(agent="a", key="k", value=b"v")
        done(store, append("r1", memory=(memory,)))
        store.deliver(item("r1", payload=b"p"))
        assert other.erase("acme") == 1
        commitment = mine.events[0].payloads["result"]
        assert store.payload("acme", commitment) is None
        assert store.payloads("acme", [commitment]) == {}
        assert store.memory("acme", "a", "k") is None
        assert [one.payload for one in store.inbox("r1")] == [b""]
        assert store.payload("other", theirs.events[0].payloads["result"]) == b"theirs"
        (later,) = done(store, append("r1", draft(result=b"new")))
        assert store.payload("acme", later.events[0].payloads["result"]) == b"new"
        assert check_log(store, "acme") > 0

    def test_a_payload_of_another_tenant_is_not_to_be_had(self, store: SqlStore) -> None:
        seed(store, "r1")
        seed(store, tenant="other")
        (result,) = done(store, append("r1", draft(result=b"mine")))
        with pytest.raises(StoreError):
            store.payload("other", result.events[0].payloads["result"])

    def test_a_payload_is_found_without_its_event_and_where_it_was_moved_to(
        self, store: SqlStore, opener: Opener
    ) -> None:
        seed(store, "r1")
        (one, two) = done(store, append("r1", draft(a=b"1", b=b"2")), append("r1", draft(a=b"3")))
        wanted = {**dict(zip(one.events[0].payloads.values(), (b"1", b"2"), strict=True))}
        wanted[two.events[0].payloads["a"]] = b"3"
        assert opener().payloads("acme", list(wanted)) == wanted
        other = opener()
        assert other.events("r1") == store.events("r1")
        store._write(lambda run: run("UPDATE payloads SET idx = idx + 100", ()))
        assert other.payloads("acme", list(wanted)) == wanted

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE payloads SET ciphertext = ?",
            "UPDATE payloads SET commitment = 'x', ciphertext = ?",
            "DELETE FROM payloads WHERE ciphertext <> ?",
            "UPDATE tenant_keys SET wrapped = ?",
        ],
    )
    def test_damage_is_an_error_not_an_erasure(self, store: SqlStore, damage: str) -> None:
        seed(store, "r1")
        (result,) = done(store, append("r1", draft(result=b"mine")))
        store._write(lambda run: run(damage, (b"\x00" * 60,)))
        with pytest.raises(StoreError):
            store.payload("acme", result.events[0].payloads["result"])

    def test_secrets(self, store: SqlStore) -> None:
        def write(value: bytes | None, name: str = "bank") -> Append:
            secret = SecretWrite(name=name, value=value, binding={"host": "bank.example"})
            kind = Kind.SECRET_REMOVED if value is None else Kind.SECRET_SET
            return append("control:acme", draft(kind), epoch=0, by="cli", secrets=(secret,))

        seed(store, "r1")
        [first] = done(store, write(b"s3cret-one"))
        [row] = store.secrets("acme")
        assert (row.name, row.version, row.binding) == ("bank", first.events[0].seq, {"host": "bank.example"})
        assert store.secret(row) == b"s3cret-one"
        [second] = done(store, write(b"s3cret-two"))
        [after] = store.secrets("acme")
        assert after.version == second.events[0].seq > row.version
        assert (store.secret(row), store.secret(after)) == (None, b"s3cret-two")
        assert store.secrets("other") == []
        done(store, write(b"another-one", "mail"))
        assert [one.name for one in store.secrets("acme")] == ["bank", "mail"]
        done(store, write(None))
        assert [one.name for one in store.secrets("acme")] == ["mail"]
        assert refused(store, append("r1", secrets=(SecretWrite(name="x", value=b"y"),))).reason == "invalid"
        store._write(lambda run: run("UPDATE secrets SET name = ?", ("bank",)))
        with pytest.raises(StoreError, match="cannot be decrypted"):
            store.secret(store.secrets("acme")[0])
        store.erase("acme")
        with pytest.raises(StoreError, match="Set the secret again"):
            store.secret(store.secrets("acme")[0])

    def test_memory(self, store: SqlStore) -> None:
        seed(store, "r1", "o1")

        def write(key: str, value: bytes | None) -> MemoryWrite:
            return MemoryWrite(agent="a", key=key, value=value)

        done(store, append("r1", memory=(write("k", b"1"), write("j", b"2"))), append("o1", memory=(write("k", b"3"),)))
        assert store.memory("acme", "a", "k") == b"3"
        assert store.memory_keys("acme", "a") == ["j", "k"]
        assert store.memory("acme", "b", "k") is None
        done(store, append("r1", memory=(write("k", None), write("none", None))))
        assert store.memory("acme", "a", "k") is None
        assert store.memory_keys("acme", "a") == ["j"]

    def test_blobs(self, store: SqlStore) -> None:
        from holdfast.values import sha256

        data = {sha256(one): one for one in (b"", b"x", b"y" * 100_000)}
        store.put_blobs(data)
        store.put_blobs(data)
        store.put_blobs({})
        assert {digest: store.blob(digest) for digest in data} == data
        assert store.blob("0" * 64) is None
        with pytest.raises(UsageError):
            store.put_blobs({"0" * 64: b"x"})
        store._write(lambda run: run("UPDATE blobs SET data = ? WHERE digest = ?", (b"z", sha256(b"x"))))
        with pytest.raises(StoreError):
            store.blob(sha256(b"x"))


def race(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks side by side, started together; raises what one of them raised."""
    start = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            start.wait(60)
            task()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


class TestConcurrency:
    def test_two_writers_of_one_tenant_leave_no_gap(self, opener: Opener) -> None:
        stores = [opener(), opener()]
        seed(stores[0], "r0", "r1")

        def write(store: SqlStore, stream: str) -> None:
            for number in range(25):
                done(store, append(stream, draft(result=b"x")), append("control:acme", epoch=0, by=stream))
                store.deliver(item(stream, n=number))

        race([lambda: write(stores[0], "r0"), lambda: write(stores[1], "r1")])
        assert check_log(stores[0], "acme") == 103
        assert [len(stores[1].inbox(stream)) for stream in ("r0", "r1")] == [25, 25]

    def test_a_budget_holds_over_all_writers(self, opener: Opener) -> None:
        stores = [opener(), opener(), opener()]
        seed(stores[0], "r0")
        for number in range(3):
            seed(stores[0], f"s{number}", tenant=f"t{number}")
        admitted = itertools.count()

        def spend(number: int) -> None:
            for _ in range(15):
                budget = Budget(key="fleet/budget", amount=1, limit=20)
                (result,) = stores[number].transact([append(f"s{number}", reserve=(budget,))])
                if isinstance(result, Appended):
                    next(admitted)

        race([lambda: spend(0), lambda: spend(1), lambda: spend(2)])
        assert next(admitted) == 20
        (row,) = stores[0].ledger("fleet/")
        assert row.reserved == 20

    def test_an_item_is_consumed_by_one_of_two(self, opener: Opener) -> None:
        stores = [opener(), opener()]
        seed(stores[0], "r1")
        numbers = [stores[0].deliver(item("r1")) for _ in range(10)]
        results: list[Result] = []

        def consume(store: SqlStore) -> None:
            for number in numbers:
                results.extend(store.transact([append("r1", consume=(number,))]))

        race([lambda: consume(stores[0]), lambda: consume(stores[1])])
        assert sum(isinstance(result, Appended) for result in results) == 10

    def test_a_stream_is_claimed_by_one_of_several(self, opener: Opener) -> None:
        stores = [opener() for _ in range(3)]
        seed(stores[0])
        for number in range(5):
            create(stores[0], f"r{number}")
        for number, store in enumerate(stores):
            store.register(node(store, f"m{number}"))
        won: list[tuple[str, int | None]] = []

        def claim(number: int) -> None:
            won.extend((f"r{each}", stores[number].claim(f"r{each}", f"m{number}")) for each in range(5))

        race([lambda: claim(0), lambda: claim(1), lambda: claim(2)])
        assert sorted(stream for stream, epoch in won if epoch is not None) == [f"r{each}" for each in range(5)]

    def test_a_kill_is_before_or_after_each_intent(self, opener: Opener) -> None:
        stores = [opener(), opener()]
        seed(stores[0], "r1")

        def work() -> None:
            for _ in range(400):
                (result,) = stores[0].transact([append("r1", kill_generation=0)])
                if isinstance(result, Refused):
                    assert result.reason == "kill"
                    return
            raise AssertionError("the kill never came")

        def stop() -> None:
            done(stores[1], append("control:acme", draft(Kind.KILL_ISSUED), epoch=0, by="cli", kills=(kill("k"),)))

        race([work, stop])
        kinds = [decode(body).kind for _, body in stores[0].log("acme", limit=1000)]
        assert kinds[-1] == "kill.issued"

    def test_what_another_writer_changed_is_seen(self, store: SqlStore, opener: Opener) -> None:
        """Whatever a writer keeps in memory of rows that it wrote, it believes only while they stand."""
        seed(store, "r1", "r2")
        other = opener()

        def spend(amount: int, **more: Any) -> Append:
            budget = Budget(key="b", amount=amount, limit=100)
            return append("r1", draft(result=b"x"), reserve=(budget,), kill_generation=generation, **more)

        generation = store.kill_generation()
        for _ in range(3):
            done(store, spend(10))
        done(other, append("r2", draft(result=b"y"), reserve=(Budget(key="b", amount=40, limit=100),)))
        assert refused(store, spend(31)).refusals[0].used == 70
        for _ in range(2):
            done(store, spend(10))
        assert [row.reserved for row in other.ledger("b")] == [90]

        done(other, append("control:acme", epoch=0, kills=(kill("k1"),)))
        assert refused(store, spend(1)).reason == "kill"
        generation = store.kill_generation()
        done(store, spend(1))

        assert other.erase("acme") == 1
        (later,) = done(store, spend(1))
        assert other.payload("acme", later.events[0].payloads["result"]) == b"x"

        other.register(node(other, "n2"))
        assert other.claim("r1", "n2", free=("n1",)) == 2
        assert refused(store, spend(1)).reason == "epoch"
        done(other, spend(1, epoch=2, by="n2"))
        assert check_log(store, "acme") > 0

    def test_the_first_tenant_and_the_first_fleet_event_are_made_once(self, opener: Opener) -> None:
        stores = [opener(), opener(), opener()]
        made: list[bool] = []

        def make(store: SqlStore) -> None:
            made.append(store.create_tenant(Tenant(name="t", region="x", created_at=1), draft(), "n"))
            done(store, append("control:*", epoch=0, by="n"))

        race([lambda: make(stores[0]), lambda: make(stores[1]), lambda: make(stores[2])])
        assert sorted(made) == [False, False, True]
        assert check_log(stores[0], "*") == 3
        assert check_log(stores[0], "t") == 1

    def test_two_who_open_an_empty_journal_at_once(self, opener: Opener) -> None:
        opened: list[SqlStore] = []
        race([lambda: opened.append(opener()), lambda: opened.append(opener())])
        assert [store.tenants() for store in opened] == [[], []]


def test_the_root_is_that_of_the_whole_log(store: SqlStore) -> None:
    seed(store, "r1")
    for _ in range(5):
        done(store, append("r1"))
    assert store.heads["acme"] == store.frontier("acme")
    assert len(root(store.frontier("acme"))) == 32
    assert store.frontier("nobody") == b""


class TestPasts:
    def test_what_rules_over_a_tenant_ask_about(self, store: SqlStore) -> None:
        def past(name: str, at: int, state: str = "open", agent: str = "a") -> Past:
            return Past(gate="tool", name=name, at=at, state=state, agent=agent, figures={"amount": 1.5, "n": at})

        def write(step: str, one: Past, attempt: int = 1) -> PastWrite:
            return PastWrite(step=step, attempt=attempt, past=one)

        seed(store, "r1")
        done(store, append("r1", pasts=(write("s.1", past("wire", 10)), write("s.2", past("look", 20)))))
        done(store, append("r1", pasts=(write("s.1", past("wire", 10, "ok")),)))
        done(store, append("r1", pasts=(write("s.1", past("wire", 30, agent="b"), 2),)))
        assert store.pasts("acme", limit=9) == [past("wire", 10, "ok"), past("look", 20), past("wire", 30, agent="b")]
        assert store.pasts("acme", name="wire", since=11, limit=9) == [past("wire", 30, agent="b")]
        assert store.pasts("acme", agent="a", gate="tool", limit=1) == [past("look", 20)]
        assert store.pasts("other", limit=9) == []
