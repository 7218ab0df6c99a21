"""The record for people: the latest events, those that come, and an event as a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from holdfast.action import Outcome
from holdfast.audit.report import printable
from holdfast.errors import StoreError
from holdfast.journal.base import Store
from holdfast.journal.event import Event, decode

_PAGE = 500


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One event for people. What does not apply is empty."""

    at: int
    """Microseconds since the Unix epoch."""
    tenant: str
    run: str
    seq: int
    index: int
    kind: str
    name: str
    """What was done: a step's id, an agent, the name of what was killed."""
    verdict: str
    """allow, deny, …; of an outcome: ok or fault."""
    rule: str
    reason: str
    witness: str
    principal: str


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted; None: all of them."""

    tenant: str | None = None
    run: str | None = None
    kind: str | None = None
    """A kind, or its beginning up to a dot: ``run`` is every ``run.…``."""

    def wants(self, event: Event) -> bool:
        """Whether an event is wanted."""
        if self.run is not None and event.stream != self.run:
            return False
        kind = self.kind
        return kind is None or event.kind == kind or event.kind.startswith(kind + ".")


def row(event: Event) -> Row:
    """An event as a row. Never fails, whatever its data holds; what agents wrote cannot move a terminal's cursor."""
    data = event.data
    verdict = _object(data.get("verdict"))
    action = _object(data.get("action"))
    name = action.get("id") or data.get("id") or data.get("name") or data.get("agent") or action.get("name") or ""
    word = _word(verdict.get("outcome")) if verdict else data.get("status", "")
    return Row(
        at=event.at,
        tenant=event.tenant,
        run=printable(event.stream),
        seq=event.seq,
        index=event.index,
        kind=printable(event.kind),
        name=_text(name),
        verdict=_text(word),
        rule=_text(verdict.get("rule") or data.get("rule") or ""),
        reason=_text(verdict.get("reason") or data.get("reason") or data.get("message") or ""),
        witness=event.witness,
        principal=event.principal,
    )


def latest(store: Store, wanted: Filter, count: int) -> list[Event]:
    """The latest ``count`` events that are wanted, oldest first.

    Raises:
        StoreError: the journal, or an event in it, cannot be read.
    """
    if count <= 0:
        return []
    found: list[Event] = []
    if wanted.run is not None:
        found = [event for event in store.events(wanted.run) if wanted.wants(event)]
    else:
        for tenant, size in _logs(store, wanted).items():
            found += _latest(store, wanted, tenant, size, count)
    return sorted(found, key=_order)[-count:]


def follow(
    store: Store, wanted: Filter, wait: Callable[[], bool], start: dict[str, int] | None = None
) -> Iterator[Event]:
    """Events as they come, by their place in each tenant's log.

    ``start`` gives the first index wanted by tenant; by default what comes from now on. ``wait`` is called when there
    is nothing new and says whether to go on.

    Raises:
        StoreError: the journal, or an event in it, cannot be read.
    """
    places = dict(_logs(store, wanted) if start is None else start)
    while True:
        fresh: list[Event] = []
        for tenant in _logs(store, wanted):
            page = _page(store, tenant, places.get(tenant, 0), _PAGE)
            if page:
                places[tenant] = page[-1].index + 1
                fresh += page
        yield from sorted(filter(wanted.wants, fresh), key=_order)
        if not fresh and not wait():
            return


def _order(event: Event) -> tuple[int, str, int]:
    return (event.at, event.tenant, event.index)


def _latest(store: Store, wanted: Filter, tenant: str, end: int, count: int) -> list[Event]:
    found: list[Event] = []
    while end > 0 and len(found) < count:
        start = max(0, end - _PAGE)
        found = [event for event in _page(store, tenant, start, end - start) if wanted.wants(event)] + found
        end = start
    return found[-count:]


def _logs(store: Store, wanted: Filter) -> dict[str, int]:
    return {
        tenant.name: tenant.log_size
        for tenant in store.tenants()
        if wanted.tenant is None or tenant.name == wanted.tenant
    }


def _page(store: Store, tenant: str, start: int, limit: int) -> list[Event]:
    events: list[Event] = []
    for index, data in store.log(tenant, start=start, limit=limit):
        try:
            events.append(decode(data))
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise StoreError(
                f"event {index} of tenant {tenant} cannot be read: its bytes were changed. Run: holdfast audit verify"
            ) from None
    return events


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(outcome: Any) -> str:
    try:
        return Outcome(outcome).word
    except ValueError:
        return str(outcome)


def _text(value: Any) -> str:
    return printable(value if isinstance(value, str) else msgspec.json.encode(value).decode())
