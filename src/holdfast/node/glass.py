"""Breaking the glass: what people ask of it, and what a node knows of it when it decides."""

from __future__ import annotations

import secrets
from typing import Any

from holdfast.action import Glass
from holdfast.clock import Clock
from holdfast.errors import UsageError
from holdfast.journal.base import Store
from holdfast.journal.event import Event, Kind
from holdfast.node.operate import write_control
from holdfast.node.views import Principal
from holdfast.policy.glass import ASKED_FOR_US, Ledger, Shown

MIN_REASON = 20
"""Characters of a reason, at least: so many as a policy asks for that says nothing else."""


class Glasses:
    """The glasses of every tenant, read again when its control stream has grown."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[int, Ledger]] = {}

    def of(self, tenant: str, now: int) -> tuple[Glass, ...]:
        """What rules must know of the tenant's glasses now.

        Raises:
            StoreError: the store cannot be read.
        """
        return self.ledger(tenant).telling(now)

    def ledger(self, tenant: str) -> Ledger:
        """All of the tenant's glasses."""
        stream = self._store.stream(f"control:{tenant}")
        seq, ledger = self._known.get(tenant, (0, Ledger()))
        if stream is not None and stream.seq > seq:
            events = self._store.events(f"control:{tenant}", start=seq + 1)
            ledger.feed(events)
            seq += len(events)
        self._known[tenant] = (seq, ledger)
        return ledger


def ask(
    store: Store,
    clock: Clock,
    tenant: str,
    reason: str,
    for_us: int,
    review_within_us: int,
    people: int,
    principal: Principal,
) -> tuple[Shown, tuple[Event, ...]]:
    """The first person's word.

    Raises:
        UsageError: there is no such tenant, the reason is too short, or the last glass was not reviewed.
    """
    if not any(one.name == tenant for one in store.tenants()):
        raise UsageError(f"there is no tenant {tenant}; `holdfast tenant list` shows them")
    if len(reason.strip()) < MIN_REASON:
        raise UsageError(f"a reason of at least {MIN_REASON} characters is needed; say what happened with --reason")
    if people < 2:
        raise UsageError("one person alone cannot break the glass; give --people 2 or more")
    if for_us <= 0 or review_within_us <= 0:
        raise UsageError("how long it stays open and when its review is due must be more than nothing")
    ledger = Glasses(store).ledger(tenant)
    _reviewed(ledger, clock.now())
    id_ = f"glass-{secrets.token_hex(4)}"
    data = {
        "id": id_,
        "reason": reason.strip(),
        "for_us": for_us,
        "review_within_us": review_within_us,
        "people": people,
        "roles": list(principal.roles),
    }
    return _write(store, clock, tenant, Kind.GLASS_ASKED, data, principal)


def join(store: Store, clock: Clock, tenant: str, id_: str, principal: Principal) -> tuple[Shown, tuple[Event, ...]]:
    """Another person's word; with enough of them the glass is open.

    Raises:
        UsageError: nobody asked, this person did already, too late, or the last glass was not reviewed.
    """
    ledger = Glasses(store).ledger(tenant)
    found, now = _find(ledger, id_), clock.now()
    if (state := found.state(now)) != "asked":
        hint = f" (others may join for {ASKED_FOR_US // 60_000_000} minutes)" if state == "lapsed" else ""
        raise UsageError(f"{id_} is {state}{hint}; ask for another one with --reason")
    if any(one.principal == principal.name for one in found.by):
        raise UsageError(f"{principal.name} has opened {id_} already; another person must join, with --as NAME")
    _reviewed(ledger, now)
    return _write(store, clock, tenant, Kind.GLASS_JOINED, {"id": id_, "roles": list(principal.roles)}, principal)


def close(store: Store, clock: Clock, tenant: str, id_: str, principal: Principal) -> tuple[Shown, tuple[Event, ...]]:
    """End it before its time.

    Raises:
        UsageError: it is not open.
    """
    found = _find(Glasses(store).ledger(tenant), id_)
    if (state := found.state(clock.now())) != "open":
        raise UsageError(f"{id_} is {state}, not open; `holdfast policy glass list` shows what is")
    return _write(store, clock, tenant, Kind.GLASS_CLOSED, {"id": id_}, principal)


def review(
    store: Store, clock: Clock, tenant: str, id_: str, note: str, principal: Principal
) -> tuple[Shown, tuple[Event, ...]]:
    """Record what was found when somebody else looked at what was done.

    Raises:
        UsageError: it is open, was never, or is reviewed; this person opened it; or nothing is said.
    """
    found = _find(Glasses(store).ledger(tenant), id_)
    if (state := found.state(clock.now())) != "unreviewed":
        cure = f"close it first: holdfast policy glass close {id_}" if state == "open" else "there is nothing to review"
        raise UsageError(f"{id_} is {state}; {cure}")
    if any(one.principal == principal.name for one in found.by):
        raise UsageError(f"{principal.name} opened {id_}; somebody else must review it, with --as NAME")
    if not note.strip():
        raise UsageError("a review says what was found; write it with --note")
    return _write(store, clock, tenant, Kind.GLASS_REVIEWED, {"id": id_, "note": note.strip()}, principal)


def _find(ledger: Ledger, id_: str) -> Shown:
    found = ledger.glasses.get(id_)
    if found is None:
        raise UsageError(f"there is no glass {id_} in this tenant; `holdfast policy glass list` shows them")
    return found


def _reviewed(ledger: Ledger, now: int) -> None:
    pending = ledger.pending(now)
    if pending is not None:
        raise UsageError(
            f"{pending.id} is {pending.state(now)}: no other glass can be opened before it is reviewed; record that "
            f"with: holdfast policy glass review {pending.id} --note TEXT"
        )


def _write(
    store: Store, clock: Clock, tenant: str, kind: Kind, data: dict[str, Any], principal: Principal
) -> tuple[Shown, tuple[Event, ...]]:
    events = write_control(store, clock, tenant, kind, data, principal)
    return Glasses(store).ledger(tenant).glasses[data["id"]], events
