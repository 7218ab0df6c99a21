"""A run comes into being: its code and policies are pinned, and a standing kill refuses it."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from holdfast.action import Facts, Kill
from holdfast.clock import Clock
from holdfast.config import FILE, Settings
from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import Append, Appended, Draft, Header, Patch, Refused, Store, StreamKind, Tenant
from holdfast.journal.event import Event, Kind
from holdfast.node.bundles import Bundles
from holdfast.node.children import creation
from holdfast.node.deployment import Pinned, pin
from holdfast.node.mandate import Mandate
from holdfast.node.views import Principal
from holdfast.policy.bundle import Bundle
from holdfast.policy.kills import standing
from holdfast.policy.patterns import fits_any
from holdfast.sandbox.levels import level
from holdfast.values import load, sha256

DEFAULT_TENANT = "default"
DEFAULT_REGION = "us-east"
CLI = "command-line"
"""Node name of what no node but a command writes."""
_OVERLOADED = (
    "{limit} new runs of tenant {tenant} wait already; try again later, start another node, or raise [node] queue"
)
_NONE = Mandate()
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Refusal(NamedTuple):
    """Why a run is refused."""

    code: str
    """Of the error's class (:mod:`holdfast.errors`)."""
    message: str
    rule: str = ""


def run_id() -> str:
    """A run's id: Crockford's base 32, sorted by time to the millisecond."""
    number = (time.time_ns() // 1_000_000) << 40 | secrets.randbits(40)
    digits = []
    for _ in range(18):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "run-" + "".join(reversed(digits))


def ensure_default(store: Store, clock: Clock, principal: Principal) -> None:
    """Make the default tenant when a home is new."""
    if not any(tenant.name == DEFAULT_TENANT for tenant in store.tenants()):
        create_tenant(store, clock, DEFAULT_TENANT, DEFAULT_REGION, principal)


def create_tenant(store: Store, clock: Clock, name: str, region: str, principal: Principal) -> bool:
    """Make a tenant; False when it is there."""
    draft = Draft(
        kind=Kind.TENANT_CREATED,
        data={"name": name, "region": region},
        at=clock.now(),
        clock_error=clock.clock_error(),
        principal=principal.name,
        auth=principal.auth,
    )
    return store.create_tenant(Tenant(name=name, region=region, created_at=clock.now()), draft, CLI)


def submit(
    store: Store,
    clock: Clock,
    settings: Settings,
    target: str,
    input_: bytes,
    *,
    workflow: str,
    tenant: str,
    policy_files: tuple[Path, ...],
    isolation: str,
    principal: Principal,
    mandate: Mandate = _NONE,
    policies: Bundles | None = None,
) -> tuple[str, tuple[Event, ...]]:
    """Create a run; gives its id and its first event. ``policies``: those in force; None: they are read now.

    Raises:
        UsageError: unknown target, workflow, tenant, level, or a policy file that cannot be used: no run exists then.
        IsolationError: the level is not in this version.
        StoreError: the store cannot be written.
    """
    if not isinstance(load(input_), dict):
        raise UsageError('the input must be a JSON object, as in --input \'{"transaction": "…"}\'')
    _may_act_for(settings, principal, mandate.on_behalf_of)
    pinned = pin(target, workflow)
    bundle = (policies or Bundles(settings)).now(tenant, pinned.description.agent, policy_files)
    chosen = isolation or settings.sandbox.level
    level(chosen, uid_range=settings.sandbox.uid_range)
    limit = settings.node.queue
    full = store.count(tenant=tenant, kind=StreamKind.RUN, status="pending", limit=limit) >= limit
    region = next((t.region for t in store.tenants() if t.name == tenant), None)
    if region is None:
        raise UsageError(
            f"there is no tenant {tenant}; create it with: holdfast tenant create {tenant} --region us-east"
        )
    _tenants_apart(store, tenant)
    store.put_blobs({**pinned.blobs, sha256(bundle.to_bytes()): bundle.to_bytes()})
    refusal = Refusal("overloaded", _OVERLOADED.format(limit=limit, tenant=tenant)) if full else None
    return create(
        store,
        clock,
        pinned,
        bundle,
        input_,
        tenant=tenant,
        region=region,
        isolation=chosen,
        principal=principal,
        mandate=mandate,
        refusal=refusal,
    )


def create(
    store: Store,
    clock: Clock,
    pinned: Pinned,
    bundle: Bundle,
    input_: bytes,
    *,
    tenant: str,
    region: str,
    isolation: str,
    principal: Principal,
    mandate: Mandate = _NONE,
    refusal: Refusal | None = None,
) -> tuple[str, tuple[Event, ...]]:
    """Create a run of pinned code, under the kills that are in force at that very moment."""
    name = run_id()
    header = Header(
        stream=name,
        tenant=tenant,
        region=region,
        kind=StreamKind.RUN,
        agent=pinned.description.agent,
        workflow=pinned.workflow,
        root=name,
        principal=principal.name,
        auth=principal.auth,
        deployment=pinned.digest,
        created_at=clock.now(),
    )
    created = creation(
        header,
        bundle.digest,
        isolation,
        input_,
        target=pinned.deployment.target,
        more={"mandate": _held(mandate, header, principal)},
        at=clock.now(),
        clock_error=clock.clock_error(),
    )
    return name, begin(store, clock, header, created, refusal=refusal)


def _may_act_for(settings: Settings, principal: Principal, person: str) -> None:
    known = settings.principals.get(principal.name)
    if person and person != principal.name and not (known and fits_any(known.acts_for, person)):
        raise UsageError(
            f"{principal.name} may not start runs for {person}; "
            f'name them in [principals."{principal.name}"] acts_for of {FILE}'
        )


def _held(mandate: Mandate, header: Header, principal: Principal) -> Mandate:
    """A mandate with what this door has found out itself: the people's roles, and whose code was pinned here."""
    if mandate.identity:
        found = mandate
    else:
        claims = {"sub": header.agent, "deployment": header.deployment}
        found = msgspec.structs.replace(mandate, identity="local", claims=claims)
    return msgspec.structs.replace(found, roles=mandate.roles or principal.roles)


def begin(
    store: Store,
    clock: Clock,
    header: Header,
    created: Draft,
    history: tuple[Draft, ...] = (),
    refusal: Refusal | None = None,
) -> tuple[Event, ...]:
    """Write a run's first event, and a history that it shares, unless it is refused: by a standing kill, or by
    ``refusal``; gives its events.

    Raises:
        StoreError: it cannot be written.
    """
    facts = Facts(
        now=clock.now(), tenant=header.tenant, agent=header.agent, workflow=header.workflow, run=header.stream
    )
    while True:
        generation = store.kill_generation()
        kill = standing(store.kills(), facts)
        why = _killed(kill) if kill else refusal
        append = Append(
            stream=header.stream,
            epoch=0,
            node=CLI,
            drafts=(_refused(created, why),) if why else (created, *history),
            create=header,
            kill_generation=generation,
            patch=Patch(status="refused", set_ready=True) if why else None,
        )
        result = store.transact([append])[0]
        if isinstance(result, Appended):
            return result.events
        if isinstance(result, Refused) and result.reason != "kill":
            raise StoreError(f"the run could not be written: {result.message}")


def _killed(kill: Kill) -> Refusal:
    name = f" {kill.name}" if kill.name else ""
    message = (
        f"{kill.scope}{name} is stopped by kill {kill.id}: {kill.reason}; lift it with: holdfast kill lift {kill.id}"
    )
    return Refusal("killed", message, f"kill:{kill.id}")


def _refused(draft: Draft, why: Refusal) -> Draft:
    data = {**draft.data, "code": why.code, "message": why.message, "rule": why.rule}
    return Draft(
        kind=Kind.RUN_REFUSED,
        data=data,
        payloads=draft.payloads,
        at=draft.at,
        clock_error=draft.clock_error,
        principal=draft.principal,
        auth=draft.auth,
    )


def _tenants_apart(store: Store, tenant: str) -> None:
    """Without a uid for each run, tenants would share one: serving several is refused."""
    if os.geteuid() == 0:
        return
    others = [t.name for t in store.tenants() if t.name not in (tenant, DEFAULT_TENANT, "*")]
    if others:
        raise UsageError(
            "several tenants need a uid for each run, which only a node started as root can give; "
            f"run as root, or give {others[0]} a home of its own"
        )
