"""Child runs: started as an effect of the parent, exactly once, in a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from holdfast import wire
from holdfast.action import Action
from holdfast.journal.base import Draft, Header, Refused, StreamKind
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record
from holdfast.node import deployment
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.mandate import mandate
from holdfast.node.run import Place, idempotency_key
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import settlements
from holdfast.policy.model import one
from holdfast.policy.units import format_usd
from holdfast.values import digest, dump, load


@handles(wire.Spawn)
def on_spawn(inc: Incarnation, message: wire.Spawn) -> None:
    """Start a child run."""
    data = inc.value(message.input)
    args = dump(
        {
            "target": message.target,
            "workflow": message.workflow,
            "input": load(data),
            "budget_nano": message.budget_nano,
        }
        | ({} if message.authority is None else {"authority": list(message.authority)})
    )
    sha = call_digest("spawn", message.target, args)
    place, record = inc.place(message.id, message.scope, "spawn", message.target, sha)
    inc.start(message.id, _spawn(inc, message, place, record, data, args, sha))


async def _spawn(
    inc: Incarnation, message: wire.Spawn, place: Place, record: Record | None, data: bytes, args: bytes, sha: str
) -> None:
    run, services = inc.run, inc.run.services
    if record is not None and record.finished:
        inc.serve(message.id, record)
        return
    parent = deployment.load(services.store, run.header.deployment)
    pinned, _ = deployment.child(services.store, parent, message.target, message.workflow)
    action = Action(
        kind="spawn", name=pinned.description.agent, id=place.id, args=load(args), digest=sha,
        attempt=(record.attempt if record else 0) + 1,
    )  # fmt: skip
    passage = await run.gate(action, place, args, key=idempotency_key(run.state.run, place.id), streams=inc.prefix())
    if passage.written is None:
        inc.denied(message.id, passage)
        return
    child = child_id(run.state.run, place.id)
    bundle = run.bundle
    if message.budget_nano:
        bundle = with_ceiling(bundle, child, message.budget_nano)
    services.store.put_blobs({**pinned.blobs, bundle.digest: bundle.to_bytes()})
    header = Header(
        stream=child,
        tenant=run.header.tenant,
        region=run.header.region,
        kind=StreamKind.RUN,
        agent=pinned.description.agent,
        workflow=pinned.workflow,
        root=run.header.root,
        parent=run.state.run,
        depth=run.header.depth + 1,
        principal=run.header.principal,
        auth=run.header.auth,
        deployment=pinned.digest,
        created_at=services.clock.now(),
    )
    created = creation(
        header,
        bundle.digest,
        run.isolation,
        data,
        target=pinned.deployment.target,
        budget_nano=message.budget_nano,
        more={
            "labels": run.beyond.labels.leaving(run.header.tenant, run.header.region),
            # What the first run's principal said vouches for its children too; what their parent says does not.
            "asked": run.state.asked[0],
            "mandate": mandate(run.state.created).passed_on(message.authority),
        },
        at=services.clock.now(),
        clock_error=services.clock.clock_error(),
    )
    result = await run.recorder.create(header, created)
    # A child that is there already was made by an incarnation that died before it could say so.
    if isinstance(result, Refused) and result.reason != "exists":
        data_ = {"id": place.id, "status": "fault", "code": "step_failed", "message": result.message}
        run.recorder.note(
            run.recorder.draft(Kind.OUTCOME, data_), settlements(passage.verdict.reservations, sent=False)
        )
        inc.fault(message.id, "step_failed", result.message)
        return
    value = dump(child)
    draft = run.recorder.draft(Kind.OUTCOME, {"id": place.id, "status": "ok"}, {"result": value})
    run.recorder.note(draft, settlements(passage.verdict.reservations, sent=True))
    services.nudge(child)
    inc.reply(message.id, value)


def child_id(parent: str, step: str) -> str:
    """A child's run id: the same for every incarnation of its parent."""
    return f"run-{digest(parent, step)[:16]}"


def with_ceiling(bundle: Bundle, run: str, nano: int) -> Bundle:
    """The policies in force, and a budget for one run on top."""
    held = msgspec.json.decode(bundle.to_bytes())["policies"]
    ceiling = {
        "id": f"spawn.{run}",
        "category": "budget_usd",
        "scope": {"run": run},
        "with": {"limit": format_usd(nano), "window": "run"},
        "on_breach": "terminate",
        "description": "The ceiling that the parent gave this run.",
    }
    return Bundle([one(policy, "pinned bundle") for policy in (*held, ceiling)])


def creation(
    header: Header,
    bundle: str,
    isolation: str,
    input_: bytes,
    *,
    target: str,
    budget_nano: int = 0,
    more: Mapping[str, Any] = MappingProxyType({}),
    at: int,
    clock_error: int,
) -> Draft:
    """The first event of a run's stream."""
    data: dict[str, Any] = {
        "agent": header.agent,
        "workflow": header.workflow,
        "target": target,
        "deployment": header.deployment,
        "bundle": bundle,
        "isolation": isolation,
        "region": header.region,
        "root": header.root,
        "parent": header.parent,
        "depth": header.depth,
        "budget_nano": budget_nano,
        **more,
    }
    return Draft(
        kind=Kind.RUN_CREATED,
        data=data,
        payloads={"input": input_},
        at=at,
        clock_error=clock_error,
        principal=header.principal,
        auth=header.auth,
    )
