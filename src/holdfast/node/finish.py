"""A run's last event."""

from __future__ import annotations

from typing import Any

from holdfast.action import Settlement
from holdfast.journal.base import Appended, InboxItem, Patch
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import RunState
from holdfast.node.run import SENT, Run
from holdfast.policy.decide import settlements

STATUS = {
    Kind.RUN_COMPLETED: "completed",
    Kind.RUN_FAILED: "failed",
    Kind.RUN_DENIED: "denied",
    Kind.RUN_TERMINATED: "terminated",
    Kind.RUN_KILLED: "killed",
}
"""The events that end a run, and the status that each leaves it in."""


async def finish(
    run: Run, kind: Kind, data: dict[str, Any], payloads: dict[str, bytes] | None = None, generation: int | None = None
) -> bool:
    """Write a run's last event, settle what it still held, tell its parent; False when a kill came first."""
    state, header = run.state, run.header
    await run.recorder.flush()
    deliver: tuple[InboxItem, ...] = ()
    if header.parent:
        told = {"run": header.stream, "status": STATUS[kind], "message": data.get("message", "")}
        told["labels"] = run.beyond.labels.leaving(header.tenant, header.region)
        deliver = (
            InboxItem(
                tenant=header.tenant,
                stream=header.parent,
                kind="child",
                data=told,
                payload=(payloads or {}).get("output", b""),
                principal=header.principal,
                auth=header.auth,
                at=run.services.clock.now(),
            ),
        )
    witness = Witness.BOUNDARY if kind in (Kind.RUN_COMPLETED, Kind.RUN_FAILED) else Witness.NODE
    result = await run.recorder.write(
        run.recorder.draft(kind, data, payloads, witness=witness),
        settle=left_open(state),
        kill_generation=generation,
        deliver=deliver,
        patch=Patch(status=STATUS[kind], ready_at=None, set_ready=True, release=True),
    )
    if isinstance(result, Appended) and header.parent:
        run.services.nudge(header.parent)
    return isinstance(result, Appended)


def left_open(state: RunState) -> tuple[Settlement, ...]:
    """What settles calls that have an intent and no outcome: in full where they may have left."""
    return tuple(
        settlement
        for record in state.open()
        for settlement in settlements(record.reservations, sent=record.action.kind in SENT)
    )
