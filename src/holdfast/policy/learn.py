"""The least rules under which recorded runs would have gone as they went, and what these rules end. Pure.

What an agent did becomes what it may do: tools, models, hosts with methods, and bounds on steps, tool calls and money
with a margin. What it was refused is not learnt. The file is a proposal: what the runs did not need today it forbids
tomorrow, and the notes say so in plain words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
import yaml

from holdfast.action import NANO
from holdfast.policy.recorded import Done, Recorded
from holdfast.policy.units import format_usd

RARE = 0.01
"""What fewer of the runs than this share did is pointed out."""


class Seen(msgspec.Struct, kw_only=True):
    """What the runs of one agent did."""

    agent: str
    runs: int = 0
    tools: Counter[str] = msgspec.field(default_factory=Counter)
    """By name: runs that called it."""
    models: Counter[str] = msgspec.field(default_factory=Counter)
    hosts: Counter[str] = msgspec.field(default_factory=Counter)
    methods: Counter[str] = msgspec.field(default_factory=Counter)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """``kind name``, of what was refused or waited for people in vain."""
    cost: int = 0
    """Nano-dollars of the dearest run."""
    needed: int = 0
    """Nano-dollars that had to be free at most in a run: what was spent, and the worst case of what was under way."""
    steps: int = 0
    """Of the longest run."""
    calls: int = 0
    """Tool calls of the run with most."""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """Policies for a file, and what they change."""

    policies: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """What ends, what stays possible, and what to look at, in plain words."""

    def to_yaml(self) -> str:
        """The file."""
        head = "".join(f"# {note}\n" for note in ("Learnt from what recorded runs did.", *self.notes))
        return head + yaml.safe_dump({"version": 1, "policies": list(self.policies)}, sort_keys=False, width=110)


def watch(runs: Iterable[Recorded]) -> list[Seen]:
    """What the runs did, by agent."""
    found: dict[str, Seen] = {}
    for run in runs:
        seen = found.setdefault(run.agent, Seen(agent=run.agent))
        seen.runs += 1
        _run(run, seen)
    return [found[agent] for agent in sorted(found)]


def _run(run: Recorded, seen: Seen) -> None:
    went: dict[str, set[str]] = {"tool": set(), "llm": set(), "http": set(), "method": set()}
    cost = steps = calls = 0
    open_: dict[str, str] = {}
    held: dict[str, int] = {}
    for item in run.items:
        if isinstance(item, Done):
            worst = held.pop(item.id, 0)
            cost += worst if item.cost is None else item.cost
            continue
        action = item.action
        if not item.went:
            open_[action.id] = f"{action.kind} {action.target}"
            continue
        open_.pop(action.id, None)
        if action.kind in went:
            went[action.kind].add(action.target)
        if action.kind == "http":
            went["method"].add(action.method)
        if action.kind == "llm" and (price := item.facts.price) is not None:
            limit = item.verdict.max_tokens or action.max_tokens
            held[action.id] = price.input * action.input_tokens + price.output * limit
            seen.needed = max(seen.needed, cost + sum(held.values()))
        steps += action.kind in ("step", "decision")
        calls += action.kind == "tool"
    for name, counter in (("tool", seen.tools), ("llm", seen.models), ("http", seen.hosts), ("method", seen.methods)):
        counter.update(went[name])
    # What was decided without going ahead and is no output was refused, or people did not agree in time.
    seen.refused.update({name for name in open_.values() if not name.startswith(("output ", "approval "))})
    seen.cost, seen.steps, seen.calls = max(seen.cost, cost), max(seen.steps, steps), max(seen.calls, calls)


def propose(found: Iterable[Seen], *, margin: float = 1.5, known: Collection[str] = ()) -> Proposal:
    """The least rules for what was seen.

    Args:
        margin: by how much limits exceed what was needed.
        known: tools that are configured: those that nobody called are named in the notes.
    """
    policies: list[dict[str, Any]] = []
    notes: list[str] = []
    for seen in found:
        rules, said = _agent(seen, margin, known)
        policies += rules
        notes += [f"{seen.agent}: {note}" for note in said]
    return Proposal(policies=tuple(policies), notes=tuple(notes))


def _agent(seen: Seen, margin: float, known: Collection[str]) -> tuple[list[dict[str, Any]], list[str]]:
    rules: list[dict[str, Any]] = []
    notes = [f"learnt from {seen.runs} runs"]

    def rule(name: str, category: str, **params: Any) -> None:
        rules.append(
            {"id": f"{_id(seen.agent)}/{name}", "category": category, "scope": {"agent": seen.agent}, "with": params}
        )

    tools = sorted(seen.tools)
    if tools:
        rule("tools", "tool_allowlist", allow=tools)
        notes.append(f"it may call {_list(tools)}, and no other tool; until now it could call any")
        rule("tool-calls", "tool_call_limit", limit=_wider(seen.calls, margin))
        notes.append(f"it may call tools {_wider(seen.calls, margin)} times in a run; the most so far was {seen.calls}")
    else:
        # An empty list would not lint: a limit of none says the same.
        rule("tool-calls", "tool_call_limit", limit=0)
        notes.append("it called no tool, and may call none")
    if idle := sorted(set(known) - set(tools)):
        notes.append(f"it can no longer call {_list(idle)}, which are configured and which it did not need")
    models = sorted(seen.models)
    if models:
        rule("models", "model_allowlist", allow=models)
        limit = _money(seen.needed, margin)
        rule("spend", "budget_usd", limit=format_usd(limit), window="run")
        notes.append(
            f"it may call {_list(models)}, for at most ${format_usd(limit)} in a run; the dearest run so far cost "
            f"${format_usd(seen.cost)} and needed ${format_usd(seen.needed)} free for the worst case of its calls"
        )
    else:
        rule("spend", "budget_tokens", limit=1, window="run")
        notes.append("it called no model, and a budget of one token lets it call none")
    if seen.hosts:
        hosts, methods = sorted(seen.hosts), sorted(seen.methods)
        rule("hosts", "egress_allowlist", hosts=hosts, methods=methods)
        notes.append(f"it may reach {_list(hosts)} with {_list(methods)}, and no other host")
    else:
        notes.append("it reached no host: there is no egress rule, so that everything stays closed")
    if seen.steps:
        rule("steps", "step_limit", limit=_wider(seen.steps, margin))
        notes.append(f"it may take {_wider(seen.steps, margin)} steps in a run; the longest so far took {seen.steps}")
    for what, counter in (("tool", seen.tools), ("model", seen.models), ("host", seen.hosts)):
        rare = sorted(name for name, count in counter.items() if count < seen.runs * RARE)
        if rare:
            notes.append(f"look at the {what}s {_list(rare)}: fewer than 1 run in {round(1 / RARE)} needed them")
    if seen.refused:
        notes.append(f"it was refused {_list(sorted(seen.refused))}: that was not learnt")
    return rules, notes


def _wider(most: int, margin: float) -> int:
    return max(1, math.ceil(most * margin))


def _money(most: int, margin: float) -> int:
    """Nano-dollars with a margin, rounded up to two digits that count."""
    wide = max(math.ceil(most * margin), NANO // 1000)
    step: int = 10 ** (len(str(wide)) - 2)
    return -(-wide // step) * step


def _id(agent: str) -> str:
    kept = "".join(mark if mark.isascii() and (mark.isalnum() or mark in "._-") else "-" for mark in agent)
    return kept if kept[:1].isalnum() else f"agent{kept}"


def _list(names: Collection[str]) -> str:
    found = list(names)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
