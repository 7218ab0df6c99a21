"""The record as rows: what each kind of event shows, filters, the latest events, and following."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Hit, Outcome, Verdict
from holdfast.audit.tail import Filter, follow, latest, row
from holdfast.errors import StoreError
from holdfast.journal.base import Tenant
from holdfast.journal.event import GENESIS, Event, Kind, encode


def event(kind: str, data: dict[str, Any] | None = None, **fields: Any) -> Event:
    base: dict[str, Any] = {
        "v": 1, "tenant": "default", "stream": "run-1", "seq": 1, "index": 0, "epoch": 1, "kind": kind, "at": 5,
        "clock_error": -1, "node": "n", "witness": "node", "principal": "ann", "auth": "system", "prev": GENESIS,
        "data": data or {}, "payloads": {},
    }  # fmt: skip
    return Event(**{**base, **fields})


class Shelf:
    """What tail reads of a store."""

    def __init__(self) -> None:
        self.logs: dict[str, list[bytes]] = {"default": [], "acme": []}

    def put(self, kind: str, tenant: str = "default", run: str = "run-1", at: int = 0) -> None:
        log = self.logs[tenant]
        log.append(encode(event(kind, tenant=tenant, stream=run, index=len(log), at=at or len(log))))

    def tenants(self) -> list[Tenant]:
        return [Tenant(name=n, region="", created_at=0, log_size=len(log)) for n, log in sorted(self.logs.items())]

    def log(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        return list(enumerate(self.logs[tenant]))[start : start + limit]

    def events(self, stream: str, *, start: int = 1) -> list[Event]:
        every = [msgspec.json.decode(data, type=Event) for log in self.logs.values() for data in log]
        return [one for one in every if one.stream == stream]


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


ALLOWED = Verdict(outcome=Outcome.ALLOW)
HIT = Hit(rule="no-wire", category="c", outcome=Outcome.DENY, reason="r")
DENIED = Verdict(outcome=Outcome.DENY, rule="no-wire", reason="too much", hits=(HIT,))
ACTION = {"id": "a.1", "name": "a"}
FAULT = {"id": "a.1", "status": "fault", "message": "broke", "rule": "r"}


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        (Kind.INTENT, {"action": ACTION, "verdict": plain(ALLOWED)}, ("a.1", "allow", "", "")),
        (Kind.VERDICT, {"action": ACTION, "verdict": plain(DENIED)}, ("a.1", "deny", "no-wire", "too much")),
        (Kind.OUTCOME, {"id": "a.1", "status": "ok"}, ("a.1", "ok", "", "")),
        (Kind.OUTCOME, FAULT, ("a.1", "fault", "r", "broke")),
        (Kind.OUTCOME, {"id": "\x1b[2J\n"}, ("\\x1b[2J\\n", "", "", "")),
        (Kind.RUN_CREATED, {"agent": "clerk"}, ("clerk", "", "", "")),
        (Kind.KILL_ISSUED, {"name": "clerk", "reason": "odd"}, ("clerk", "", "", "odd")),
        (Kind.RUN_FAILED, {"code": "x", "message": "broke"}, ("", "", "", "broke")),
    ],
)  # fmt: skip
def test_each_kind_shows_what_matters(kind: str, data: dict[str, Any], shown: tuple[str, ...]) -> None:
    one = row(event(kind, data))
    assert (one.name, one.verdict, one.rule, one.reason) == shown
    assert (one.at, one.tenant, one.run, one.seq, one.kind, one.witness, one.principal) == (
        5, "default", "run-1", 1, kind, "node", "ann",
    )  # fmt: skip


_keys = st.sampled_from(["action", "verdict", "id", "name", "status", "rule", "reason", "message", "outcome"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(_keys, _json))
def test_no_data_is_too_odd_for_a_row(data: dict[str, Any]) -> None:
    one = row(event("intent", data))
    assert all(isinstance(text, str) for text in (one.name, one.verdict, one.rule, one.reason))


def test_the_latest_are_shown_over_all_tenants_in_the_order_of_time() -> None:
    shelf = Shelf()
    for at in range(1, 1300, 2):
        shelf.put("log", at=at)
        shelf.put("log", "acme", "run-2", at=at + 1)
    assert [one.at for one in latest(shelf, Filter(), 4)] == [1297, 1298, 1299, 1300]
    assert [one.at for one in latest(shelf, Filter(tenant="acme"), 2)] == [1298, 1300]
    assert [one.at for one in latest(shelf, Filter(run="run-1"), 2)] == [1297, 1299]
    assert latest(shelf, Filter(), 0) == []
    assert latest(shelf, Filter(run="run-9"), 5) == latest(shelf, Filter(kind="intent"), 5) == []


def test_kinds_are_found_far_back_and_by_their_beginning() -> None:
    shelf = Shelf()
    shelf.put("run.created")
    for _ in range(1200):
        shelf.put("log")
    shelf.put("run.completed")
    assert [one.kind for one in latest(shelf, Filter(kind="run"), 9)] == ["run.created", "run.completed"]
    assert [one.kind for one in latest(shelf, Filter(kind="run.created"), 9)] == ["run.created"]
    assert latest(shelf, Filter(kind="ru"), 9) == []


def test_following_yields_what_comes_and_stops_when_told() -> None:
    shelf = Shelf()
    shelf.put("old")
    coming = [[("a", "default")], [], [("b", "acme"), ("c", "default")]]
    seen: list[str] = []

    def wait() -> bool:
        if not coming:
            return False
        for kind, tenant in coming.pop(0):
            shelf.put(kind, tenant)
        return True

    for one in follow(shelf, Filter(), wait):
        seen.append(one.kind)
    assert seen == ["a", "b", "c"]


def test_following_can_begin_in_the_past_and_filters() -> None:
    shelf = Shelf()
    for kind in ("intent", "outcome", "intent"):
        shelf.put(kind)
        shelf.put(kind, "acme", "run-2")
    found = list(follow(shelf, Filter(kind="intent", tenant="acme"), lambda: False, {"acme": 1}))
    assert [(one.tenant, one.index) for one in found] == [("acme", 2)]
    assert len(list(follow(shelf, Filter(run="run-1"), lambda: False, {}))) == 3


def test_a_tenant_that_comes_later_is_followed_from_its_beginning() -> None:
    shelf = Shelf()
    calls = iter([True, False])

    def wait() -> bool:
        if not next(calls):
            return False
        shelf.logs["new"] = []
        shelf.put("log", "new")
        return True

    assert [one.tenant for one in follow(shelf, Filter(), wait)] == ["new"]


def test_an_event_that_cannot_be_read_says_what_to_do() -> None:
    shelf = Shelf()
    shelf.logs["default"].append(b"\xff")
    with pytest.raises(StoreError, match="audit verify"):
        latest(shelf, Filter(), 1)
