"""The cases that ``holdfast policy explain`` takes: an action on record, or one that somebody typed."""

from __future__ import annotations

import time

import msgspec

from holdfast.action import Action, Ended, Facts
from holdfast.audit.redecide import arguments, arguments_of
from holdfast.errors import UsageError
from holdfast.journal.base import Store
from holdfast.journal.event import Event
from holdfast.node.replay import looked_at
from holdfast.policy.bundle import Bundle
from holdfast.values import digest, dump, load


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be decided, and the bundle that was in force."""

    action: Action
    facts: Facts
    bundle: Bundle
    ended: Ended | None = None
    """What came back, when that is what was decided on last."""


def recorded(store: Store, run: str, step: str) -> Case:
    """The latest verdict on a step of a run, or on any step when none is named: on the action, or on what came back.

    Raises:
        UsageError: there is no such run or verdict, or it is not whole any more.
    """
    stream = store.stream(run)
    if stream is None:
        raise UsageError(f"there is no run {run}; `holdfast runs list` shows them")
    found: Event | None = None
    back: Event | None = None
    known: list[str] = []
    for event in store.events(run):
        if "verdict" in event.data and "facts" in event.data:
            known.append(event.data["action"]["id"])
            if step in ("", known[-1]):
                found, back = event, None
        elif found is not None and "after" in event.data and event.data["id"] == found.data["action"]["id"]:
            back = event
    if found is None:
        some = ", ".join(dict.fromkeys(known[-10:])) or "none"
        raise UsageError(f"{run} has no verdict on {step or 'anything'}; the latest are on: {some}")
    tenant = stream.header.tenant
    action = msgspec.convert({**found.data["action"], "args": {}}, Action)
    recorded = arguments_of(found)
    if recorded:
        payload = store.payload(tenant, recorded)
        if payload is None:
            raise UsageError(f"the arguments of {action.id} were erased, so it cannot be decided again")
        action = msgspec.structs.replace(action, args=arguments(action.kind, payload))
    said = found.data if back is None else back.data["after"]
    pinned = store.blob(said["verdict"]["bundle"])
    if pinned is None:
        raise UsageError(f"the bundle of {run} is not in the store; explain it with --policy FILE instead")
    facts = msgspec.convert(said["facts"], Facts)
    ended = _ended(store, tenant, back, action.kind) if back is not None else None
    return Case(action=action, facts=facts, bundle=Bundle.from_bytes(pinned), ended=ended)


def _ended(store: Store, tenant: str, event: Event, kind: str) -> Ended | None:
    data, commitment = event.data, event.payloads.get("received") or event.payloads.get("result", "")
    payload = store.payload(tenant, commitment) if commitment else None
    if payload is None:
        raise UsageError(f"what came back of {data['id']} was erased, so it cannot be decided again")
    return Ended(
        value=looked_at(load(payload), of_model=kind == "llm"), cost=data.get("cost"), tokens=data.get("tokens")
    )


def typed(action: bytes, facts: bytes, bundle: Bundle) -> Case:
    """A case from JSON.

    Raises:
        UsageError: the JSON is no action or no facts.
    """
    try:
        made = msgspec.json.decode(action, type=Action)
    except msgspec.ValidationError as error:
        raise UsageError(f"--action is no action: {error}; give at least kind and name") from None
    if not made.digest:
        key = digest(made.kind, made.name, dump(dict(made.args), "args"))
        made = msgspec.structs.replace(made, digest=key)
    try:
        given = msgspec.json.decode(facts)
        now = {"now": time.time_ns() // 1000} if isinstance(given, dict) else {}
        known = msgspec.convert({**now, **given} if now else given, Facts)
    except msgspec.ValidationError as error:
        raise UsageError(f'--facts are no facts: {error}; give an object such as {{"agent": "NAME"}}') from None
    return Case(action=made, facts=known, bundle=bundle)
