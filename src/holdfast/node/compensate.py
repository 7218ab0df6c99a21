"""What a kill with ``--compensate`` undoes before its run ends: the compensable effects of connectors, latest first.

Each undo is an effect of its own: decided (the kill that asks for it aside), intended, made under a key of its own, and
recorded. An author's tool is undone by code inside the boundary, which the kill has ended; the record says that it
still holds. Another node goes on where a dead one stopped, whether or not the kill still stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.action import Action, Effect, Facts, Kill, Outcome, Refusal, Settlement, Verdict
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError
from holdfast.gate import Passage, enter
from holdfast.journal.base import Result
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import Record, RunState
from holdfast.node.connector_process import ConnectorFailure
from holdfast.node.run import THROTTLE_LIMIT_US, Place, Run, Stop, idempotency_key, pause_us
from holdfast.policy.decide import settlements
from holdfast.policy.kills import matches
from holdfast.values import digest, load

PLACE = 1 << 30
"""Behind whatever the workflow itself called."""
ATTEMPTS = 3
"""How often an undo that may be repeated is tried, at least."""


def wanted(kills: tuple[Kill, ...], facts: Facts) -> Kill | None:
    """The kill that asks for a run's effects to be undone; None when none does."""
    return next((kill for kill in kills if kill.compensate and matches(kill, facts)), None)


def begun(kill: str, stop: Stop) -> dict[str, Any]:
    """What ``run.undoing`` says: which kill asks for it, and how the run will end."""
    return {"kill": kill, "code": stop.code, "message": stop.message, "rule": stop.rule}


def resumed(state: RunState) -> Stop:
    """How a run ends whose undoing had begun."""
    asked = state.undoing
    return Stop(Kind.RUN_KILLED, code=asked["code"], message=asked["message"], rule=asked["rule"])


async def undo(run: Run, stop: Stop) -> dict[str, Any]:
    """Undo what a killed run did, where the kill asks for it; gives what its end says about that.

    Raises:
        Fenced, StoreError: nothing more of this run lands here; whoever takes it over goes on.
    """
    state = run.state
    if state.undoing:
        kill = str(state.undoing["kill"])
    else:
        found = wanted(run.control.kills, run.facts({}, None, None))
        if found is None:
            return {}
        kill = found.id
    undoes = {*state.compensable, *state.undone}
    uncertain = [r.id for r in state.open() if r.action.effect == Effect.COMPENSABLE and r.parent not in undoes]
    settle: list[Settlement] = []
    for record in state.open():
        settle += settlements(record.reservations, sent=record.action.kind in ("llm", "tool"))
    await run.recorder.write(run.recorder.draft(Kind.RUN_UNDOING, begun(kill, stop)), settle=tuple(settle))
    left = [{"id": id_, "why": "it was begun and its outcome is not known"} for id_ in uncertain]
    for id_ in reversed(list(state.compensable)):
        why = await _one(run, state.records[id_], kill)
        if why:
            left.append({"id": id_, "why": why})
    return {"compensate": kill, "undone": list(state.undone), "left": left}


async def _one(run: Run, record: Record, kill: str) -> str:
    """Undo one effect; gives why it still holds, empty when it is undone."""
    if record.action.witness == Witness.BOUNDARY:
        return "its undo is the agent's own code, which the kill has ended"
    tenant = run.header.tenant
    connector = run.services.connectors.settings(tenant, record.undo) if record.undo else None
    if connector is None:
        return f"there is no connector {record.undo} any more" if record.undo else "nothing undoes it"
    at = Place(f"{record.id}/undo.{record.undo}", record.id, PLACE)
    known = run.state.records.get(at.id)
    if known is not None and known.finished:
        return known.message
    effect = Effect(connector.effect)
    if known is not None and known.state == "open" and effect is Effect.IRREVERSIBLE:
        return await _gave_up(run, at, "it was begun and its outcome is not known", sent=True)
    args = await run.services.payload(tenant, record.args) if record.args else b"{}"
    # What the effect itself gave, not what the rules left of that for the agent.
    given = record.received or record.result
    result = await run.services.payload(tenant, given) if given else b"null"
    if args is None or result is None:
        return "its arguments or its result were erased"
    action = Action(
        kind="tool",
        name=record.undo,
        id=at.id,
        args=load(args),
        digest=digest("tool", record.undo, args),
        labels=record.action.labels,
        effect=effect,
        attempt=(known.attempt if known else 0) + 1,
    )
    try:
        return await _attempts(run, connector, action, at, args, result, kill)
    except PayloadError as error:
        return str(error)


async def _attempts(
    run: Run, connector: ConnectorSettings, action: Action, at: Place, args: bytes, result: bytes, kill: str
) -> str:
    key = idempotency_key(run.state.run, at.id)
    last = action.attempt + max(connector.retries + 1, ATTEMPTS if action.effect != Effect.IRREVERSIBLE else 1) - 1
    while True:
        passage = await _gate(run, action, at, args, key, kill)
        if passage.written is None:
            run.note_verdict(action, at, passage, args, key)
            await run.recorder.flush()
            return passage.verdict.reason
        try:
            await run.services.connectors.call(
                run.header.tenant, action.name, load(args), key, 0, run.services.before_dial, undoes=result
            )
        except ConnectorFailure as failure:
            again = failure.retryable or (failure.sent and not failure.answered)
            if action.attempt >= last or not again or (failure.sent and action.effect == Effect.IRREVERSIBLE):
                return await _gave_up(run, at, str(failure), sent=failure.sent, passage=passage)
            wait = connector.backoff * 2 ** min(action.attempt - 1, 6)
            data = {
                "id": at.id,
                "attempt": action.attempt,
                "code": "step_failed",
                "message": f"{at.id}: {failure}",
                "retry_at": run.services.clock.now() + wait,
            }
            settle = settlements(passage.verdict.reservations, sent=failure.sent)
            await run.recorder.write(run.recorder.draft(Kind.ATTEMPT_FAILED, data), settle=settle)
            await run.services.until(data["retry_at"])
            action = msgspec.structs.replace(action, attempt=action.attempt + 1)
            continue
        outcome = {"id": at.id, "status": "ok", "effect": {"undone": [at.parent]}}
        settle = settlements(passage.verdict.reservations, sent=True)
        await run.recorder.write(run.recorder.draft(Kind.OUTCOME, outcome, {"result": b"null"}), settle=settle)
        return ""


async def _gave_up(run: Run, at: Place, why: str, *, sent: bool, passage: Passage | None = None) -> str:
    message = f"{at.id}: {why}; undo it by hand (key {idempotency_key(run.state.run, at.id)})"
    data = {"id": at.id, "status": "fault", "code": "step_failed", "message": message}
    settle = settlements(passage.verdict.reservations, sent=sent) if passage else ()
    await run.recorder.write(run.recorder.draft(Kind.OUTCOME, data), settle=settle)
    return message


async def _gate(run: Run, action: Action, at: Place, args: bytes, key: str, kill: str) -> Passage:
    """Decide and intend an undo. Nobody waits for people here: what would need them is not done."""
    stored = msgspec.structs.replace(action, args={})

    def facts_of(refusals: Mapping[str, Refusal]) -> Facts:
        facts = run.facts(refusals, run.state.records.get(at.id), None)
        others = tuple(one for one in facts.kills if one.id != kill)
        return msgspec.structs.replace(facts, kills=others)

    async def commit(verdict: Verdict, facts: Facts) -> Result:
        data = {
            "action": stored,
            "facts": facts,
            "verdict": verdict,
            "parent": at.parent,
            "place": at.place,
            "key": key,
            "undo": "",
        }
        return await run.recorder.write(
            run.recorder.draft(Kind.INTENT, data, {"args": args}),
            reserve=verdict.reservations,
            kill_generation=facts.kill_generation,
        )

    waited = 0
    while True:
        passage = await enter(action, run.bundle, run.control, facts_of, commit)
        pause = pause_us(passage.verdict)
        if passage.verdict.outcome is not Outcome.THROTTLE or waited + pause > THROTTLE_LIMIT_US:
            return passage
        if not waited:
            run.note_verdict(action, at, passage, args, key, retry_at=passage.facts.now + pause)
        waited += pause
        await asyncio.sleep(pause / 1e6)
