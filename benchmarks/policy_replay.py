"""The time machine: a candidate bundle over 10,000 recorded runs, of 10 actions each.

Floor: 60 s. The runs are written as a node leaves them, with verdicts that the gate gave; a replay with the bundle that
was in force must find no difference, and the candidate stops some runs and asks about others.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import common

TARGET_S = 60.0
RUNS = 10_000
BATCH = 200
FORCE: tuple[dict[str, Any], ...] = (
    {"id": "tools", "category": "tool_allowlist", "with": {"allow": ["wire_*", "look*"]}},
    {"id": "calls", "category": "tool_call_limit", "with": {"limit": 50}},
    {"id": "loops", "category": "loop_detection"},
    {"id": "wall", "category": "wall_clock_limit", "with": {"limit": "24h"}},
    {"id": "spend", "category": "budget_usd", "with": {"limit": 1}},
    {"id": "day", "category": "budget_usd", "with": {"limit": 100_000, "window": "day"}},
    {"id": "cards", "category": "pan_guard", "gates": ["tool"], "on_breach": "deny"},
    {"id": "large", "category": "require_approval", "when": "action.name == 'wire' && action.args.amount > 100000"},
    {"id": "deep", "category": "kill_switch", "gates": ["tool", "step"], "when": "facts.depth > 8"},
)
CANDIDATE: tuple[dict[str, Any], ...] = (
    *FORCE[:4],
    {"id": "spend", "category": "budget_usd", "with": {"limit": "0.5"}},
    {"id": "day", "category": "budget_usd", "with": {"limit": 20, "window": "day"}},
    FORCE[6],
    {"id": "large", "category": "require_approval", "when": "action.name == 'wire_out' && action.args.amount > 900"},
    {"id": "often", "category": "kill_switch", "gates": ["tool"], "when": 'history.count("tool", "wire_*") > 3'},
    FORCE[8],
)


def bundle(policies: tuple[dict[str, Any], ...]) -> Any:
    """A bundle of plain policies."""
    from holdfast.policy.bundle import Bundle
    from holdfast.policy.model import one

    return Bundle([one(policy) for policy in policies])


def fill(service: Any, rules: Any, count: int) -> int:
    """Write completed runs; gives how many decisions they hold."""
    from holdfast.action import Action, Effect, Facts, Price
    from holdfast.journal.base import Append, Appended, Draft, Header, Patch, StreamKind
    from holdfast.node.submit import run_id
    from holdfast.policy.decide import decide
    from holdfast.values import digest, dump

    model = service.submit(f"{common.AGENTS}:One", b"{}")
    store = service.store
    header: Header = store.stream(model).header
    created = store.events(model)[0]
    store.put_blobs({rules.digest: rules.to_bytes()})
    decisions, began = 0, store.now() - 86_400_000_000

    def run(number: int) -> Append:
        nonlocal decisions
        name, start = run_id(), began + number * 4_000_000
        drafts: list[Draft] = []

        def add(kind: str, data: dict[str, Any], **payloads: bytes) -> None:
            at = start + len(drafts) * 20_000
            drafts.append(Draft(kind=kind, data=data, payloads=payloads, at=at, principal="uid:0", auth="peer-uid:0"))

        add("run.created", {**created.data, "bundle": rules.digest}, input=b"{}")
        counters = {"steps": 0, "tool_calls": 0, "llm_calls": 0, "cost": 0, "tokens": 0}
        recent: list[str] = []
        for place in range(10):
            kind = ("step", "llm", "tool", "step", "llm", "tool", "step", "llm", "tool", "step")[place]
            args: dict[str, Any] = {"amount": (number * 37 + place * 101) % 1000, "payload": common.PAYLOAD}
            action = Action(kind=kind, name=f"{kind}_{place}", id=f"{kind}.{place}", args=args)
            if kind == "tool":
                action = msgspec.structs.replace(action, name="wire_out", effect=Effect.IDEMPOTENT)
            if kind == "llm":
                args = {"system": "", "messages": [{"role": "user", "content": "book it"}], "categories": []}
                action = msgspec.structs.replace(
                    action, name="generate", args=args, model="m-1", provider="p", max_tokens=200, input_tokens=500
                )
            action = msgspec.structs.replace(action, digest=digest(kind, action.name, dump(args)))
            facts = Facts(
                now=start + len(drafts) * 20_000, agent=header.agent, workflow=header.workflow, run=name, root=name,
                principal="uid:0", auth="peer-uid:0", isolation="namespace", deployment=header.deployment,
                started_at=start, active_at=start, counters=dict(counters), recent=tuple(recent),
                price=Price(input=1000, output=5000) if kind == "llm" else None,
            )  # fmt: skip
            verdict = decide(action, facts, rules)
            assert verdict.allowed, verdict.reason
            decisions += 1
            stored = msgspec.structs.replace(action, args={})
            said = {"action": stored, "facts": facts, "verdict": verdict, "parent": "", "place": place}
            add("intent", said, args=dump(args))
            ended: dict[str, Any] = {"id": action.id, "status": "ok"}
            if kind == "llm":
                ended |= {"cost": 1_500_000, "tokens": 700, "usage": {"input": 500, "output": 200}}
                counters["cost"] += 1_500_000
                counters["tokens"] += 700
            if kind == "tool":
                recent.append(action.digest)
            counters[{"llm": "llm_calls", "tool": "tool_calls"}.get(kind, "steps")] += 1
            add("outcome", ended, result=b"null")
        add("run.completed", {}, output=b"null")
        return Append(
            stream=name,
            epoch=0,
            node="benchmark",
            drafts=tuple(drafts),
            create=msgspec.structs.replace(header, stream=name, root=name, kind=StreamKind.RUN, created_at=start),
            patch=Patch(status="completed", ready_at=None, set_ready=True, release=True),
        )

    for first in range(0, count, BATCH):
        for result in store.transact([run(number) for number in range(first, min(first + BATCH, count))]):
            assert isinstance(result, Appended), result
    return decisions


def _cpu() -> float:
    """Processor seconds of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def measure(where: Path, count: int) -> dict[str, Any]:
    """Fill a home, and replay it twice."""
    from holdfast.config import load
    from holdfast.node import replay
    from holdfast.node.service import Service

    home = common.configure(where)
    force, candidate = bundle(FORCE), bundle(CANDIDATE)
    with Service.open(load(home, cwd=home.parent, environ={}), home) as service:
        began = time.perf_counter()
        decisions = fill(service, force, count)
        result: dict[str, Any] = {"runs": count, "decisions": decisions}
        result["filled_s"] = round(time.perf_counter() - began, 1)
        streams = [one for one in replay.recorded_runs(service.store) if one.status == "completed"]
        for name, rules in (("same", force), ("candidate", candidate)):
            began, busy = time.perf_counter(), _cpu()
            found = replay.replay("sqlite", home, service.store, rules, streams)
            took = time.perf_counter() - began
            result[name] = {
                "s": round(took, 2),
                "cpu_s": round(_cpu() - busy, 2),
                "decisions_per_s": round(decisions / took),
                "runs_changed": sum(delta.changed for delta in found),
                "new_denials": sum(delta.denied for delta in found),
                "new_approvals": sum(delta.asked for delta in found),
                "saved_usd": sum(delta.saved for delta in found) / 1e9,
                "same": sum(delta.same for delta in found),
                "differ": sum(delta.differ for delta in found),
            }
    assert result["same"]["differ"] == 0 == result["same"]["runs_changed"]
    assert result["same"]["same"] == decisions
    return result


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    count = RUNS // 10 if options.quick else RUNS
    with common.folder("policy_replay") as where:
        result = {"machine": common.machine(), "target_s": TARGET_S, **measure(where, count)}
    rows: list[tuple[object, ...]] = []
    for name, what in (("same", "the bundle in force"), ("candidate", "a candidate with tighter budgets")):
        told = result[name]
        met = common.verdict(told["s"] <= TARGET_S)
        took = f"{told['s']} s ({told['cpu_s']} s of processor time)"
        rows.append((f"{what}, over {count:,} runs", took, f"{TARGET_S:g} s", met))
        rows.append(("  runs that change, denials, approvals", f"{told['runs_changed']:,}, {told['new_denials']:,}, "
                     f"{told['new_approvals']:,}", "", ""))  # fmt: skip
    same = result["same"]
    rows.append(("verdicts as recorded", f"{same['same']:,} of {result['decisions']:,}", "all", common.verdict(True)))
    common.report("policy_replay", result, rows, options.json)


if __name__ == "__main__":
    main()
