"""``ctx.continue_as_new``: the same run, with another input and an empty history."""

from __future__ import annotations

from holdfast.action import Settlement
from holdfast.journal.base import Patch
from holdfast.journal.event import Kind
from holdfast.node.run import Run, doubt, never_again
from holdfast.policy.decide import settlements

_KEPT = (
    "counters",
    "started_at",
    "incarnation",
    "signals",
    "past",
    "recent",
    "files",
    "collected",
    "labels",
    "asked",
    "declassified",
)


async def begin_anew(run: Run, input_: bytes) -> None:
    """Leave the history behind. What counts against limits goes on: counters, the start, the latest calls; so do files
    and signals that nobody took.

    Raises:
        Stop: an irreversible effect was under way, and what became of it is not known.
        Fenced, StoreError: it cannot be recorded.
    """
    await run.recorder.flush()
    settle: list[Settlement] = []
    for record in run.state.open():
        if never_again(record.action):
            raise doubt(run, record.id, f"{record.id} was under way when the workflow continued as new")
        settle += settlements(record.reservations, sent=record.action.kind in ("llm", "tool"))
    data = {name: getattr(run.state, name) for name in _KEPT}
    data["bundle"] = run.bundle.digest
    draft = run.recorder.draft(Kind.RUN_CONTINUED, data, {"input": input_})
    await run.recorder.write(draft, settle=tuple(settle), patch=Patch(replay_from_here=True))
