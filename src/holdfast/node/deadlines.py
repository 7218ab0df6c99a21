"""Rules that object to a run that does nothing: wall_clock_limit and idle_limit, held to by a timer."""

from __future__ import annotations

from holdfast.action import Outcome
from holdfast.errors import DeniedError, TerminatedError
from holdfast.journal.event import Kind
from holdfast.node.run import Run, Stop
from holdfast.policy.decide import Deadline, deadlines

_ENDING = (Outcome.TERMINATE, Outcome.DENY)


def earliest(run: Run) -> Deadline | None:
    """The first deadline that ends the run; None when no rule sets one. A run that never started has none yet."""
    if not run.state.started_at:
        return None
    return next((one for one in deadlines(run.facts({}, None, None), run.bundle) if one.outcome in _ENDING), None)


def overdue(run: Run) -> Stop | None:
    """How the run ends because its time is up; None while it is not."""
    found = earliest(run)
    if found is None or found.at > run.services.clock.now():
        return None
    if found.outcome is Outcome.TERMINATE:
        return Stop(Kind.RUN_TERMINATED, code=TerminatedError.code, message=found.reason, rule=found.rule)
    return Stop(Kind.RUN_DENIED, code=DeniedError.code, message=found.reason, rule=found.rule)


async def mind(run: Run) -> None:
    """End the run when its time is up. Progress moves some deadlines, so that each is looked at again when it comes."""
    while (found := earliest(run)) is not None:
        late = overdue(run)
        if late is not None:
            run.end(late)
            return
        await run.services.until(found.at + 1)


def wake_at(run: Run) -> int | None:
    """When a run that waits wants to be looked at: for what it waits for, or because its time is up then."""
    found = earliest(run)
    times = [at for at in (run.state.wake_at, found.at if found else None) if at is not None]
    return min(times, default=None)
