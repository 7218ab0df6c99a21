"""Requests by what they are: which one a step repeats, what twice would mean, what rules see, what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.action import Action, Effect
from holdfast.egress.base import Body, RequestHead, ResponseHead
from holdfast.journal.fold import Record
from holdfast.node import effects


def head(method: str = "POST", **given: Any) -> RequestHead:
    return RequestHead(method=method, scheme="https", host="api.example", port=443, path="/pay", **given)


def record(id_: str, method: str, state: str = "done") -> Record:
    return Record(id=id_, parent="pay.1/http", action=Action(kind="http", name="x", id=id_, method=method), state=state)


def test_equal_requests_are_told_apart_by_their_ordinal_and_begin_anew_with_each_attempt() -> None:
    ledger = effects.Ledger()
    sha = effects.sha_of(head(), Body(data=b"1"))
    first, second = ledger.next("pay.1", 1, sha), ledger.next("pay.1", 1, sha)
    assert (first, second) == (f"pay.1/http@{sha[:16]}.1", f"pay.1/http@{sha[:16]}.2")
    assert ledger.next("pay.1", 2, sha) == first
    assert ledger.next("", 1, sha) == f"http@{sha[:16]}.1"
    assert sha != effects.sha_of(head(), Body(data=b"2"))
    assert sha != effects.sha_of(head("PUT"), Body(data=b"1"))
    assert sha != effects.sha_of(head(query="a=1"), Body(data=b"1"))


@pytest.mark.parametrize(
    ("method", "state", "left"),
    [("POST", "done", True), ("DELETE", "done", True), ("GET", "done", False), ("POST", "open", False)],
)
def test_a_change_on_record_that_was_not_made_again_is_named(method: str, state: str, left: bool) -> None:
    ledger = effects.Ledger()
    sha = effects.sha_of(head(), Body())
    found = record(f"pay.1/http@{sha[:16]}.1", method, state)
    assert (ledger.left("pay.1", 1, [found]) is found) is left
    ledger.next("pay.1", 1, sha)
    assert ledger.left("pay.1", 1, [found]) is None
    assert (ledger.left("pay.1", 2, [found]) is found) is left


def test_places_rise_beyond_what_is_on_record() -> None:
    ledger = effects.Ledger()
    assert [ledger.place("pay.1", known) for known in (3, 3, 9)] == [3, 4, 9]


@pytest.mark.parametrize(
    ("request_head", "enclosing", "keyed", "expected"),
    [
        (head("GET"), None, False, Effect.PURE),
        (head("PUT"), None, False, Effect.IDEMPOTENT),
        (head("POST"), None, False, Effect.IRREVERSIBLE),
        (head("POST"), None, True, Effect.IDEMPOTENT),
        (head("POST"), Effect.IDEMPOTENT, False, Effect.IDEMPOTENT),
        (head("POST"), Effect.COMPENSABLE, False, Effect.IRREVERSIBLE),
        (head("GET", upgrade="websocket"), None, True, Effect.IRREVERSIBLE),
    ],
)
def test_what_twice_would_mean(
    request_head: RequestHead, enclosing: Effect | None, keyed: bool, expected: Effect
) -> None:
    assert effects.effect_of(request_head, enclosing, keyed) is expected


@pytest.mark.parametrize(
    ("data", "kind", "body", "operation"),
    [
        (b'{"jsonrpc": "2.0", "method": "pay"}', b"application/json", {"jsonrpc": "2.0", "method": "pay"}, "pay"),
        (b'{"query": "mutation Pay { a }"}', b"application/json", {"query": "mutation Pay { a }"}, "Pay"),
        (b"a=1", b"application/x-www-form-urlencoded", "a=1", ""),
        (b"\xff4111", b"application/octet-stream", "\xff4111", ""),
        (b"{", b"application/json", "{", ""),
    ],
)
def test_what_rules_see(data: bytes, kind: bytes, body: Any, operation: str) -> None:
    fields = ((b"content-type", kind), (b"authorization", b"Bearer of its own"))
    found = effects.arguments(head(headers=fields), Body(data=data, decoded=data))
    assert found["body"] == body
    assert found.get("operation", "") == operation
    assert "authorization" not in found["headers"]


def test_a_kept_answer_is_served_as_it_was_and_a_persons_word_as_json() -> None:
    answer = ResponseHead(status=201, headers=((b"x-a", b"\xe9"),))
    served = effects.recorded(effects.keep(answer, b"\x00\xff"))
    assert (served.head.status, served.head.headers, served.body) == (201, answer.headers, b"\x00\xff")
    settled = effects.recorded(b'{"receipt":7}')
    assert (settled.head.status, settled.body) == (200, b'{"receipt":7}')
