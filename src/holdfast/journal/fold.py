"""Events to state: what a run has done, what it waits for, what it has used. Pure.

The state of a run is the fold of its stream and nothing else; a node that takes a run over folds what is there and
goes on. What ``data`` of each kind holds:

=================  ==================================================================================================
run.created        agent, workflow, target, deployment, bundle, isolation, parent, forked_from,
                   mandate (for whom it acts), labels; payload ``input``
run.started        incarnation, held (:class:`holdfast.sandbox.base.Held`), labels
intent             action, facts, verdict, parent, place, key, undo, past; payload ``args``
verdict            the same: it led to no intent (denied); with retry_at (throttled) it is decided again then
outcome            id, status (ok, fault), code, message, rule, cost, tokens, usage, effect, labels (new to the run),
                   kept (labels of what the agent got only a handle of), after (verdict and facts of the rules that
                   looked at what came back), cut (where a stream was stopped); payloads ``result``, and ``received``
                   where that is not what came in
attempt.failed     id, attempt, code, message, retry_at, cost, tokens
wait               action, parent, place, wait (its kind), wake_at, name, approval, spec; payload ``args``
inbox              item, kind, id (of the record it answers), accepted, labels, declassified (label, by, reason), and
                   what its kind carries; payload ``data``
sample             action, parent, place, labels; payload ``result``
log                level, message, fields
bundle.pinned      bundle, rules (ids); of a run also was: it goes on under another bundle
run.continued      bundle, counters, started_at, incarnation, signals, recent, files; payload ``input``
run.in_doubt       id, name
run.resolved       id, how
run.diverged       id, expected, found
run.undoing        kill, and how the run will end: code, message, rule
run.killed         code, message, rule; after a kill that compensates also compensate (its id), undone, left (id, why)
run.completed      memory_peak (bytes, of the boundary that ends; also in each other event that ends one)
secret.set         name, binding (where it may go, and how)
secret.removed     name
=================  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from holdfast.action import Action, ApprovalSpec, Declassified, Facts, Grant, Past, Reservation, Verdict
from holdfast.journal.event import Event, Kind

FINAL = frozenset({"completed", "failed", "denied", "terminated", "killed", "refused"})
"""Statuses that a run never leaves."""
RECENT = 64
MAX_PAST = 2000
"""Actions that rules over the record can look back on."""

_ENDS = {
    Kind.RUN_COMPLETED: "completed",
    Kind.RUN_FAILED: "failed",
    Kind.RUN_DENIED: "denied",
    Kind.RUN_TERMINATED: "terminated",
    Kind.RUN_KILLED: "killed",
    Kind.RUN_REFUSED: "refused",
}
FINAL_KINDS = frozenset(_ENDS)
"""Kinds of the events that end a run."""
_COUNTED = {"step": "steps", "decision": "steps", "llm": "llm_calls", "tool": "tool_calls", "spawn": "spawns"}

T = TypeVar("T")


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a record waits for."""

    kind: str
    """approval, ask, signal, timer or join."""
    since: int
    wake_at: int | None = None
    """When the waiting ends by itself."""
    name: str = ""
    """Signal's name, or child's run id."""
    approval: str = ""
    """Id that people answer to (approval and ask)."""
    spec: ApprovalSpec | None = None
    args: str = ""
    """Commitment to what is shown to people."""


class Record(msgspec.Struct, kw_only=True):
    """One call of the run, with all that happened to it."""

    id: str
    parent: str
    action: Action
    key: str = ""
    undo: str = ""
    state: str = "open"
    """open, retry, waiting, done or fault."""
    attempt: int = 0
    result: str = ""
    """Commitment to the result."""
    received: str = ""
    """Commitment to what came in where that is not what was handed on."""
    kept: tuple[str, ...] | None = None
    """Labels of what came in, where the agent got only a handle of it."""
    code: str = ""
    message: str = ""
    rule: str = ""
    retry_at: int = 0
    reservations: tuple[Reservation, ...] = ()
    wait: Wait | None = None
    grants: list[Grant] = []
    approval_state: str = ""
    args: str = ""
    past: str = ""
    """Key of the latest attempt in what rules over the record ask about."""
    value: bytes | None = None
    """The result's bytes where they are at hand; never part of the record."""

    @property
    def finished(self) -> bool:
        """Whether it has an outcome that replay serves."""
        return self.state in ("done", "fault")


class RunState(msgspec.Struct, kw_only=True):
    """A run, as its events tell it."""

    run: str = ""
    tenant: str = ""
    status: str = "pending"
    created: dict[str, Any] = {}
    created_at: int = 0
    principal: str = ""
    auth: str = ""
    input: str = ""
    output: str = ""
    code: str = ""
    error: str = ""
    rule: str = ""
    held: dict[str, Any] = {}
    incarnation: int = 0
    losses: int = 0
    """Workers lost in a row without progress."""
    counters: dict[str, int] = {}
    started_at: int = 0
    active_at: int = 0
    records: dict[str, Record] = {}
    children: dict[str, dict[int, str]] = {}
    """Ids by enclosing path and place: the order of the calls, which is not always that of the commits."""
    signals: dict[str, list[str]] = {}
    """Commitments of signals that nobody has taken yet, by name."""
    ended: dict[str, dict[str, Any]] = {}
    """Children that ended: run id to status, code, message, output (commitment)."""
    recent: list[str] = []
    past: dict[str, Past] = {}
    """What rules over the record ask about, by the intent's place, oldest first; kept only where a rule asks."""
    files: dict[str, tuple[str, int]] = {}
    collected: dict[str, tuple[str, int, str]] = {}
    """Files out of a workspace: name to the payload that opens it, its size, and its address in the store."""
    """Artefacts: name to (commitment, bytes)."""
    compensable: list[str] = []
    """Ids of compensable effects that hold, oldest first."""
    undone: list[str] = []
    """Ids of compensable effects that were undone, in that order."""
    undoing: dict[str, Any] = {}
    """What ``run.undoing`` said; empty: nothing is to be undone."""
    doubt: str = ""
    diverged: str = ""
    failing: str = ""
    """Who said that a diverged run is to fail; empty: nobody."""
    labels: tuple[str, ...] = ()
    """Labels of what the run has taken in: a high-water mark."""
    sources: list[str] = []
    """Names of what the run has read, where some rule looks at citations."""
    declassified: list[Declassified] = []
    """Labels that people have taken off."""
    asked: list[str] = []
    """Commitments to what the run's principal itself said: the first input, and answers."""
    seq: int = 0

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return self.status in FINAL

    def waiting(self) -> list[Record]:
        """Records that wait, oldest first."""
        return [record for record in self.records.values() if record.state == "waiting" and self._wanted(record)]

    def open(self) -> list[Record]:
        """Records with an intent and no outcome."""
        return [record for record in self.records.values() if record.state == "open"]

    @property
    def wake_at(self) -> int | None:
        """When the run wants to go on by itself."""
        times = [r.wait.wake_at for r in self.waiting() if r.wait and r.wait.wake_at is not None]
        # Without a time it is for an attempt of the enclosing step to try again, if that asks for it at all.
        times += [r.retry_at for r in self.records.values() if r.state == "retry" and r.retry_at and self._wanted(r)]
        return min(times, default=None)

    def _wanted(self, record: Record) -> bool:
        """Whether anybody may still ask for it: no step around it has ended."""
        parts = record.id.split("/")
        around = (self.records.get("/".join(parts[:depth])) for depth in range(1, len(parts)))
        return not any(outer is not None and outer.finished for outer in around)


def fold(events: Iterable[Event]) -> RunState:
    """The state after ``events``, which are a stream's from its start (or its first and those after a continue)."""
    state = RunState()
    for event in events:
        apply(state, event)
    return state


def apply(state: RunState, event: Event) -> None:
    """Bring ``state`` forward by one event."""
    state.seq = event.seq
    kind = event.kind
    data = event.data
    if "labels" in data:
        state.labels = tuple(sorted({*state.labels, *data["labels"]}))
        # What comes in after a label was taken off carries it anew.
        state.declassified = [one for one in state.declassified if one.label not in data["labels"]]
    if kind == Kind.INTENT:
        record = _record(state, event)
        record.state = "open"
        record.attempt = record.action.attempt
        record.reservations = _as(data["verdict"], Verdict).reservations
        record.wait = None
        _count(state, record.action)
        if "past" in data:
            record.past = str(event.seq)
            state.past[record.past] = _as(data["past"], Past)
            while len(state.past) > MAX_PAST:
                del state.past[next(iter(state.past))]
    elif kind == Kind.OUTCOME:
        _outcome(state, state.records[data["id"]], event)
    elif kind == Kind.SAMPLE:
        record = _record(state, event)
        record.state = "done"
        record.result = event.payloads.get("result", "")
    elif kind == Kind.WAIT:
        _wait(state, event)
    elif kind == Kind.INBOX:
        _inbox(state, event)
    elif kind == Kind.ATTEMPT_FAILED:
        record = state.records[data["id"]]
        record.state, record.retry_at, record.reservations = "retry", data["retry_at"], ()
        record.code, record.message = data["code"], data["message"]
        _remember(state, record, "failed", event)
        # Another attempt is served what its calls achieved, and may try again what failed.
        for other in state.records.values():
            if other.state == "fault" and other.id.startswith(record.id + "/"):
                other.state, other.retry_at = "retry", 0
        _spend(state, data)
    elif kind == Kind.VERDICT:
        record = _record(state, event)
        verdict = _as(data["verdict"], Verdict)
        retry_at = data.get("retry_at", 0)
        record.state, record.retry_at = ("retry", retry_at) if retry_at else ("fault", record.retry_at)
        record.code = "throttled" if retry_at else "denied"
        record.message, record.rule, record.wait = verdict.reason, verdict.rule, None
    else:
        _life(state, event)


def _record(state: RunState, event: Event) -> Record:
    data = event.data
    action = _as(data["action"], Action)
    record = state.records.get(action.id)
    if record is None:
        record = Record(id=action.id, parent=data["parent"], action=action, grants=[])
        state.records[action.id] = record
        state.children.setdefault(record.parent, {})[data["place"]] = action.id
    record.action = action
    record.key = data.get("key", record.key)
    record.undo = data.get("undo", record.undo)
    record.args = event.payloads.get("args", record.args)
    return record


def _count(state: RunState, action: Action) -> None:
    counters = state.counters
    name = _COUNTED.get(action.kind)
    if name is None:
        return
    counters[name] = counters.get(name, 0) + 1
    if action.kind == "tool":
        key = f"tool_calls:{action.name}"
        counters[key] = counters.get(key, 0) + 1
        state.recent.append(action.digest)
        del state.recent[:-RECENT]


def _spend(state: RunState, data: dict[str, Any]) -> None:
    for name in ("cost", "tokens"):
        if data.get(name):
            state.counters[name] = state.counters.get(name, 0) + data[name]


def _remember(state: RunState, record: Record, how: str, event: Event) -> None:
    """What rules over the record may ask of an action that has ended."""
    key = record.past
    held = state.past.get(key)
    if held is not None:
        cost = event.data.get("cost")
        figures = held.figures if cost is None else {**held.figures, "$cost": cost}
        state.past[key] = msgspec.structs.replace(held, state=how, ended_at=event.at, figures=figures)


def _outcome(state: RunState, record: Record, event: Event) -> None:
    data = event.data
    record.reservations = ()
    record.wait = None
    _remember(state, record, "ok" if data["status"] == "ok" else "failed", event)
    if data["status"] == "ok":
        record.state = "done"
        record.result = event.payloads.get("result", "")
    else:
        record.state = "fault"
        record.code, record.message, record.rule = data["code"], data["message"], data.get("rule", "")
    record.received = event.payloads.get("received", "")
    record.kept = tuple(data["kept"]) if "kept" in data else None
    if "sources" in data:
        state.sources = [*state.sources, *data["sources"]][-MAX_PAST:]
    effect = data.get("effect")
    if effect is not None:
        _effect(state, record, effect, event)
    _spend(state, data)
    state.active_at = event.at
    state.losses = 0


def _effect(state: RunState, record: Record, effect: dict[str, Any], event: Event) -> None:
    """What an outcome changes beyond its record."""
    if "compensable" in effect:
        state.compensable.append(record.id)
    if "undone" in effect:
        state.compensable = [id_ for id_ in state.compensable if id_ not in effect["undone"]]
        state.undone = [*state.undone, *effect["undone"]]
    if "file" in effect:
        state.files[effect["file"]] = (event.payloads["data"], effect["size"])
        state.collected.pop(effect["file"], None)
    for name, size, address in effect.get("collected", ()):
        state.collected[name] = (event.payloads["files"], size, address)
        state.files.pop(name, None)
    if "deleted" in effect:
        state.files.pop(effect["deleted"], None)
        state.collected.pop(effect["deleted"], None)


def _wait(state: RunState, event: Event) -> None:
    data = event.data
    record = _record(state, event)
    record.state = "waiting"
    spec = data.get("spec")
    record.wait = Wait(
        kind=data["wait"],
        since=event.at,
        wake_at=data.get("wake_at"),
        name=data.get("name", ""),
        approval=data.get("approval", ""),
        spec=None if spec is None else _as(spec, ApprovalSpec),
        args=event.payloads.get("args", ""),
    )
    if data.get("taken"):
        _take_signal(state, data["taken"])


def _take_signal(state: RunState, name: str) -> None:
    waiting = state.signals.get(name)
    if waiting:
        waiting.pop(0)
        if not waiting:
            del state.signals[name]


def _inbox(state: RunState, event: Event) -> None:
    data = event.data
    kind = data["kind"]
    if not data.get("accepted", True):
        return
    # A run that waited for people has not been idle.
    state.active_at = event.at
    if kind == "signal":
        state.signals.setdefault(data["name"], []).append(event.payloads["data"])
    elif kind == "answer":
        if event.principal == state.principal:
            state.asked.append(event.payloads["data"])
    elif kind == "taken":
        _take_signal(state, data["name"])
    elif kind == "approval":
        record = state.records[data["id"]]
        record.grants.append(
            Grant(
                principal=event.principal,
                auth=event.auth,
                roles=tuple(data["roles"]),
                at=event.at,
                approved=data["approved"],
                reason=data["reason"],
                digest=data.get("digest", ""),
            )
        )
    elif kind == "settled":
        record = state.records[data["id"]]
        record.approval_state = data["state"]
        state.declassified = [*state.declassified, *(_as(one, Declassified) for one in data.get("declassified", ()))]
        if data["state"] == "approved":
            record.state = "open" if record.attempt else "retry"
            record.wait = None
    elif kind == "escalated":
        record = state.records[data["id"]]
        if record.wait is not None and record.wait.spec is not None:
            spec = msgspec.structs.replace(
                record.wait.spec, approvers=tuple(data["approvers"]), on_expiry="deny", escalate_to=()
            )
            record.wait = msgspec.structs.replace(record.wait, spec=spec, wake_at=data["wake_at"])
    elif kind == "resolve":
        state.failing = event.principal if state.diverged and data["how"] == "fail" else ""
    elif kind == "child":
        state.ended[data["run"]] = {**data, "output": event.payloads.get("data", "")}


def _life(state: RunState, event: Event) -> None:
    kind, data = event.kind, event.data
    if kind in (Kind.RUN_CREATED, Kind.RUN_REFUSED) and not state.created:
        state.run, state.tenant = event.stream, event.tenant
        state.created, state.created_at = data, event.at
        state.principal, state.auth = event.principal, event.auth
        state.input = event.payloads["input"]
        state.asked = [data.get("asked") or state.input]
    if kind in _ENDS:
        state.status, state.undoing = _ENDS[Kind(kind)], {}
        state.output = event.payloads.get("output", "")
        state.code, state.error = data.get("code", ""), data.get("message", "")
        state.rule = data.get("rule", "")
    elif kind == Kind.RUN_STARTED:
        state.status, state.incarnation, state.held = "running", data["incarnation"], data["held"]
        state.started_at = state.started_at or event.at
        state.active_at = event.at
        state.diverged = ""
        for record in state.open():
            record.reservations = ()
    elif kind == Kind.RUN_SUSPENDED:
        state.status = "suspended"
    elif kind == Kind.RUN_CONTINUED:
        state.records, state.children, state.ended = {}, {}, {}
        state.input = event.payloads["input"]
        state.counters = dict(data["counters"])
        state.started_at = data["started_at"]
        state.compensable, state.files = [], {name: (c, size) for name, (c, size) in data["files"].items()}
        state.collected = {name: (c, size, at) for name, (c, size, at) in data.get("collected", {}).items()}
        state.signals = {name: list(waiting) for name, waiting in data["signals"].items()}
        state.incarnation, state.recent = data["incarnation"], list(data["recent"])
        state.past = {key: _as(held, Past) for key, held in data.get("past", {}).items()}
        state.asked = list(data.get("asked", state.asked))
        state.sources = list(data.get("sources", ()))
        state.created = {**state.created, "bundle": data.get("bundle", state.created.get("bundle", ""))}
        state.declassified = [_as(held, Declassified) for held in data.get("declassified", ())]
    elif kind == Kind.BUNDLE_PINNED:
        state.created = {**state.created, "bundle": data["bundle"]}
    elif kind == Kind.RUN_DIVERGED:
        state.status, state.diverged, state.error = "suspended", data["id"], data["message"]
    elif kind == Kind.RUN_IN_DOUBT:
        state.status, state.doubt, state.error = "in_doubt", data["id"], data["message"]
    elif kind == Kind.RUN_RESOLVED:
        state.doubt, state.error, state.diverged = "", "", ""
        if data["how"] == "retry" and data["id"] in state.records:
            state.records[data["id"]].state = "retry"
    elif kind == Kind.WORKER_LOST:
        state.losses += 1
    elif kind == Kind.RUN_UNDOING:
        state.status, state.undoing = "running", data
        state.doubt = state.diverged = ""
        for record in state.open():
            record.reservations = ()


def _as(value: Any, kind: type[T]) -> T:
    return value if isinstance(value, kind) else msgspec.convert(value, kind)


def recorded_facts(event: Event) -> Facts | None:
    """The facts of an intent, verdict or wait; None where none were recorded."""
    facts = event.data.get("facts")
    return None if facts is None else _as(facts, Facts)
