"""What people do to runs from outside: answer, signal, resolve, kill, lift. Works beside a busy node, or with none."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from holdfast.action import Facts, Grant, Kill
from holdfast.clock import Clock
from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import FLEET, Append, Appended, Draft, InboxItem, Patch, Store, StreamKind, StreamState
from holdfast.journal.event import Event, Kind
from holdfast.journal.fold import FINAL, Record
from holdfast.node.approvals import eligible
from holdfast.node.dispatch.local import nudge
from holdfast.node.history import state_of
from holdfast.node.lease import Lease, dead
from holdfast.node.show import find
from holdfast.node.submit import CLI
from holdfast.node.views import KillResult, Principal
from holdfast.policy.kills import SCOPES, matches
from holdfast.sandbox import registry
from holdfast.sandbox.base import Label
from holdfast.values import dump

PEN_US = 60_000_000
"""Lease of a command that writes to the streams of a node that is gone."""


def answer(store: Store, clock: Clock, home: Path, id_: str, value: Any, reason: str, principal: Principal) -> None:
    """Answer a request for approval (True, False) or a question (any JSON).

    Raises:
        UsageError: nothing waits under this id, or this principal may not answer.
    """
    run = id_.rpartition("-")[0]
    stream = store.stream(run) if run else None
    record = _waiting(store, stream, id_) if stream is not None and stream.status not in FINAL else None
    if record is None or record.wait is None or stream is None:
        raise UsageError(f"nothing waits under {id_}; `holdfast approvals list` shows what does")
    data: dict[str, Any] = {"approval": id_, "digest": record.action.digest, "reason": reason}
    payload = b""
    if record.wait.kind == "ask":
        kind, payload = "answer", dump(value, "the answer")
    else:
        if not isinstance(value, bool):
            raise UsageError(f"{id_} asks for approval: use approve or deny")
        kind = "approval"
        data |= {"approved": value, "roles": list(principal.roles)}
        grant = Grant(principal=principal.name, auth=principal.auth, roles=principal.roles)
        why = eligible(record.wait.spec, grant, stream.header.principal) if record.wait.spec else ""
        if why:
            raise UsageError(f"{id_}: {why}")
    _deliver(store, clock, home, stream, kind, data, payload, principal)


def _waiting(store: Store, stream: StreamState | None, id_: str) -> Record | None:
    if stream is None:
        return None
    for record in state_of(store, stream).waiting():
        if record.wait is not None and record.wait.approval == id_:
            return record
    return None


def signal(store: Store, clock: Clock, home: Path, run: str, name: str, data: bytes, principal: Principal) -> None:
    """Send a signal to a run.

    Raises:
        UsageError: there is no such run, or it has ended.
    """
    _deliver(store, clock, home, find(store, run), "signal", {"name": name, "from": ""}, data, principal)


def resolve(store: Store, clock: Clock, home: Path, run: str, how: str, data: bytes, principal: Principal) -> None:
    """Say how a doubt or a divergence ends.

    Raises:
        UsageError: the run is in neither.
    """
    stream = find(store, run)
    state = state_of(store, stream)
    if not state.doubt and not state.diverged:
        raise UsageError(f"{run} is {stream.status} and has nothing to resolve")
    if state.diverged and how == "done":
        raise UsageError(f"{run} has diverged: there is no outcome to give; use --retry after repairing it, or --fail")
    _deliver(store, clock, home, stream, "resolve", {"how": how}, data, principal)


def _deliver(
    store: Store,
    clock: Clock,
    home: Path,
    stream: StreamState,
    kind: str,
    data: dict[str, Any],
    payload: bytes,
    principal: Principal,
) -> None:
    item = InboxItem(
        tenant=stream.header.tenant,
        stream=stream.header.stream,
        kind=kind,
        data=data,
        payload=payload,
        principal=principal.name,
        auth=principal.auth,
        at=clock.now(),
    )
    store.deliver(item)
    nudge(home)


def kill(
    store: Store,
    clock: Clock,
    home: Path,
    scope: str,
    name: str,
    reason: str,
    principal: Principal,
    compensate: bool = False,
) -> tuple[KillResult, Kill, tuple[Event, ...]]:
    """Put a kill in force, and end this host's process trees under it before anything else.

    Raises:
        UsageError: the scope is unknown, or a run or tenant of that name does not exist.
        StoreError: the kill is not durable.
    """
    if scope not in SCOPES:
        raise UsageError(f"{scope} is no scope of a kill; use one of {', '.join(SCOPES)}")
    tenant = FLEET
    if scope == "run":
        tenant = find(store, name).header.tenant
    elif scope == "tenant":
        if not any(t.name == name for t in store.tenants()):
            raise UsageError(f"there is no tenant {name}; `holdfast tenant list` shows them")
        tenant = name
    put = Kill(
        id=f"kill-{secrets.token_hex(6)}",
        scope=scope,
        name=name,
        tenant=tenant,
        reason=reason,
        by=principal.name,
        at=clock.now(),
        compensate=compensate,
    )
    data = {"id": put.id, "scope": scope, "name": name, "reason": reason, "compensate": compensate}
    events = write_control(store, clock, tenant, Kind.KILL_ISSUED, data, principal, kills=(put,))
    began = time.monotonic()
    ended = registry.end_matching(home, lambda label: matches(put, facts_of(label)))
    ms = (time.monotonic() - began) * 1000
    nudge(home)
    left = [one for one in ended if not one.gone]
    if left:
        raise StoreError(f"{put.id} is in force, but {len(left)} boundaries did not end; end their processes by hand")
    return KillResult(id=put.id, ended=len(ended), ms=ms), put, events


def facts_of(label: Label) -> Facts:
    """A boundary's label as the facts that a kill is matched against."""
    return Facts(
        now=0, tenant=label.tenant, agent=label.agent, workflow=label.workflow, session=label.session, run=label.run
    )


def lift(store: Store, clock: Clock, home: Path, id_: str, principal: Principal) -> tuple[Event, ...]:
    """Lift a kill.

    Raises:
        UsageError: no kill of this id is in force.
    """
    found = next((one for one in store.kills() if one.id == id_), None)
    if found is None:
        raise UsageError(f"no kill {id_} is in force; `holdfast kill list` shows those that are")
    data = {"id": id_, "scope": found.scope, "name": found.name}
    events = write_control(store, clock, found.tenant, Kind.KILL_LIFTED, data, principal, lifts=(id_,))
    nudge(home)
    return events


def write_control(
    store: Store,
    clock: Clock,
    tenant: str,
    kind: Kind,
    data: dict[str, Any],
    principal: Principal,
    kills: tuple[Kill, ...] = (),
    lifts: tuple[str, ...] = (),
) -> tuple[Event, ...]:
    """Write to a tenant's control stream.

    Raises:
        StoreError: it cannot be written.
    """
    draft = Draft(
        kind=kind,
        data=data,
        at=clock.now(),
        clock_error=clock.clock_error(),
        principal=principal.name,
        auth=principal.auth,
    )
    append = Append(stream=f"control:{tenant}", epoch=0, node=CLI, drafts=(draft,), kills=kills, lifts=lifts)
    result = store.transact([append])[0]
    if not isinstance(result, Appended):
        raise StoreError(f"the {kind} could not be written: {result.message}")
    return result.events


def mark_killed(store: Store, clock: Clock, put: Kill, principal: Principal, dial_us: int) -> list[Event]:
    """End, in the record, the runs under a kill that no living node drives. One with effects to undo is only marked as
    ending: a node undoes them first."""
    pen = Lease(clock, PEN_US, serves=False)
    gone = tuple(dead(store, pen.node, dial_us))
    pen.register(store)
    try:
        return _mark_all(store, clock, put, principal, pen.node, gone)
    finally:
        store.unregister(pen.node)


def _mark_all(
    store: Store, clock: Clock, put: Kill, principal: Principal, pen: str, gone: tuple[str, ...]
) -> list[Event]:
    events: list[Event] = []
    for status in ("pending", "running", "suspended", "in_doubt"):
        for stream in store.streams(kind=StreamKind.RUN, status=status):
            if matches(put, _facts(stream)) and (not stream.owner or stream.owner in gone):
                events += _mark(store, clock, put, stream, principal, pen, gone)
    return events


def _mark(
    store: Store,
    clock: Clock,
    put: Kill,
    stream: StreamState,
    principal: Principal,
    pen: str,
    gone: tuple[str, ...],
) -> tuple[Event, ...]:
    epoch = store.claim(stream.header.stream, pen, free=gone)
    if epoch is None:
        return ()
    message = f"{put.scope} {put.name} was killed: {put.reason}".replace("  ", " ")
    undoing = put.compensate and bool(state_of(store, stream).compensable)
    data = {"code": "killed", "message": message, "rule": f"kill:{put.id}"}
    draft = Draft(
        kind=Kind.RUN_UNDOING if undoing else Kind.RUN_KILLED,
        data={**data, "kill": put.id} if undoing else data,
        at=clock.now(),
        clock_error=clock.clock_error(),
        principal=principal.name,
        auth=principal.auth,
    )
    append = Append(
        stream=stream.header.stream,
        epoch=epoch,
        node=pen,
        drafts=(draft,),
        deliver=() if undoing else _told(stream, message, principal, clock.now()),
        patch=Patch(
            status="running" if undoing else "killed",
            ready_at=clock.now() if undoing else None,
            set_ready=True,
            release=True,
        ),
    )
    result = store.transact([append])[0]
    return result.events if isinstance(result, Appended) else ()


def _told(stream: StreamState, message: str, principal: Principal, at: int) -> tuple[InboxItem, ...]:
    """What the parent of a killed child is told: it may be another agent's, which goes on."""
    header = stream.header
    if not header.parent:
        return ()
    data = {"run": header.stream, "status": "killed", "message": message}
    return (
        InboxItem(
            tenant=header.tenant,
            stream=header.parent,
            kind="child",
            data=data,
            principal=principal.name,
            auth=principal.auth,
            at=at,
        ),
    )


def _facts(stream: StreamState) -> Facts:
    header = stream.header
    return Facts(now=0, tenant=header.tenant, agent=header.agent, workflow=header.workflow, run=header.stream)
