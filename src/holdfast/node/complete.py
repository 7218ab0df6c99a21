"""The workflow returned: what it hands out passes a gate of its own, and the run ends with the same commit."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.action import Action, Outcome
from holdfast.journal.event import Kind
from holdfast.node.content import handed, read_ahead
from holdfast.node.finish import finish
from holdfast.node.run import Place, Run, Stop
from holdfast.values import dump, load


async def complete(run: Run, value: bytes, measured: dict[str, Any]) -> Stop | None:
    """End the run with its output; gives how it ends instead when a policy holds the output back.

    Args:
        value: the output's canonical JSON. measured: what the record says of the process.

    Raises:
        Stop: a policy or a kill ends the run.
        Fenced, StoreError: nothing more of this run lands here.
    """
    action = Action(kind="output", name=run.header.workflow, id="output", args={"value": load(value)})
    # Not among the workflow's own calls: a replay does not ask for it.
    at = Place("output", "output", 0)
    await read_ahead(run, "output", action.args, len(value))
    while True:
        passage = await run.decide(action, at, value)
        verdict = passage.verdict
        stored = msgspec.structs.replace(action, args={})
        data = {"action": stored, "facts": passage.facts, "verdict": verdict, **measured}
        if not verdict.allowed:
            if verdict.outcome is Outcome.REQUIRE_APPROVAL:
                passage = await run.gate(action, at, value)
                if passage.written is not None:
                    continue
            else:
                run.note_verdict(action, at, passage, value)
            return Stop(Kind.RUN_DENIED, code="denied", message=passage.verdict.reason, rule=passage.verdict.rule)
        payloads = {"output": value}
        if verdict.redactions:
            payloads = {"returned": value, "output": dump(handed(action.args, verdict)["value"])}
        if await finish(run, Kind.RUN_COMPLETED, data, payloads, generation=passage.facts.kill_generation):
            return None
        run.control.refresh()
