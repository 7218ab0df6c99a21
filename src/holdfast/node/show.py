"""Runs as people see them: folded from the journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.journal.base import Store, StreamKind, StreamState
from holdfast.journal.fold import RunState
from holdfast.node.artefacts import Artefacts
from holdfast.node.history import state_of
from holdfast.node.views import ApprovalView, FileView, Pending, RunRow, RunView
from holdfast.node.waits import pending
from holdfast.values import load


def find(store: Store, run: str) -> StreamState:
    """A run's stream.

    Raises:
        UsageError: there is none.
    """
    found = store.stream(run)
    if found is None or found.header.kind is not StreamKind.RUN:
        raise UsageError(f"there is no run {run}; `holdfast runs list` shows them")
    return found


def view(store: Store, run: str) -> RunView:
    """A run as it stands.

    Raises:
        UsageError: there is none.
    """
    stream = find(store, run)
    state = state_of(store, stream)
    output = store.payload(state.tenant, state.output) if state.output else None
    held = state.held
    return RunView(
        run_id=run,
        status=stream.status,
        agent=stream.header.agent,
        workflow=stream.header.workflow,
        tenant=stream.header.tenant,
        created_at=state.created_at,
        output=load(output) if output else None,
        error=state.error,
        error_code=state.code,
        rule=state.rule,
        isolation=str(held.get("level") if isinstance(held, dict) and held else state.created.get("isolation", "")),
        cost_nano=state.counters.get("cost", 0),
        steps=state.counters.get("steps", 0),
        pending=() if state.final else _pending(state),
        files=_files(state),
    )


def _files(state: RunState) -> tuple[FileView, ...]:
    found = [FileView(name=name, size=size, digest=digest) for name, (digest, size) in state.files.items()]
    found += [FileView(name=name, size=size, digest=at) for name, (_, size, at) in state.collected.items()]
    return tuple(sorted(found, key=lambda one: one.name))


def read_file(store: Store, home: Path, run: str, name: str) -> Iterator[bytes]:
    """The bytes of a file that a run keeps, checked as they come.

    Raises:
        UsageError: there is no such run or file, or it was erased.
        StoreError: it cannot be read, or was changed.
    """
    stream = find(store, run)
    state = state_of(store, stream)
    held = state.collected.get(name) or state.files.get(name)
    if held is None:
        raise UsageError(f"{run} keeps no file {name!r}; `holdfast runs files {run}` lists them")
    payload = store.payload(state.tenant, held[0])
    if payload is None:
        raise UsageError(f"the file {name!r} of {run} was erased")
    return Artefacts(home).read(state.tenant, name, payload) if name in state.collected else iter((payload,))


def _pending(state: RunState) -> tuple[Pending, ...]:
    found = [Pending(**pending(state.run, record)) for record in state.waiting()]
    if state.doubt:
        found.append(Pending(kind="resolve", id=state.run, step=state.doubt))
    if state.diverged:
        found.append(Pending(kind="resolve", id=state.run, step=state.diverged))
    return tuple(found)


def rows(store: Store, limit: int | None) -> list[RunRow]:
    """Runs, newest first."""
    return [
        RunRow(
            run_id=s.header.stream,
            status=s.status,
            agent=s.header.agent,
            workflow=s.header.workflow,
            tenant=s.header.tenant,
            created_at=s.header.created_at,
        )
        for s in store.streams(kind=StreamKind.RUN, limit=limit)
    ]


def approvals(store: Store) -> list[ApprovalView]:
    """Requests for approval and questions that are open, newest run first."""
    streams = [*store.asking(), *store.streams(kind=StreamKind.RUN, status="running")]
    return [view for stream in streams for view in _approvals(store, state_of(store, stream))]


def _approvals(store: Store, state: RunState) -> list[ApprovalView]:
    found = []
    for record in state.waiting():
        wait = record.wait
        if wait is None or not wait.approval:
            continue
        what = store.payload(state.tenant, wait.args) if wait.args else None
        shown = load(what) if what else None
        if record.action.kind != "approval" and wait.kind == "approval":
            shown = {"action": record.action.kind, "name": record.action.name, "args": shown}
        approved = {grant.principal for grant in record.grants if grant.approved}
        found.append(
            ApprovalView(
                id=wait.approval,
                run_id=state.run,
                step=record.id,
                what=shown,
                digest=record.action.digest,
                expires_at=wait.wake_at,
                quorum=wait.spec.quorum if wait.spec else 1,
                given=len(approved),
                kind="approval" if wait.kind == "approval" else "answer",
                approvers=wait.spec.approvers if wait.spec else (),
            )
        )
    return found
