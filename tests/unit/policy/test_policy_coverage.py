from __future__ import annotations

from typing import Any

import msgspec

from holdfast.action import Action, Facts
from holdfast.journal.event import Event, Kind
from holdfast.policy.bundle import Bundle
from holdfast.policy.coverage import coverage
from holdfast.policy.decide import decide
from holdfast.policy.model import one

RULES = Bundle([one({"id": "r", "category": "tool_allowlist", "scope": {"agent": "fin*"}, "with": {"allow": ["a"]}})])


def event(kind: Kind, **data: Any) -> Event:
    return Event(
        v=1, tenant="t", stream="r", seq=1, index=0, epoch=1, kind=kind, at=1, clock_error=0, node="n", witness="node",
        principal="p", auth="x", prev="", data=msgspec.to_builtins(data), payloads={},
    )  # fmt: skip


def decided(kind: Kind, name: str, id_: str, agent: str = "finance", gate: str = "tool") -> Event:
    action, facts = Action(kind=gate, name=name, id=id_), Facts(now=1, agent=agent)
    return event(kind, action=action, facts=facts, verdict=decide(action, facts, RULES))


def test_shares_bypasses_and_what_no_rule_looked_at() -> None:
    first = [
        event(Kind.RUN_CREATED, agent="finance"),
        decided(Kind.INTENT, "a", "a.1"),
        event(Kind.OUTCOME, id="a.1", status="ok"),
        decided(Kind.VERDICT, "b", "b.1"),
        decided(Kind.INTENT, "s", "s.1", gate="step"),
        event(Kind.WAIT, action=Action(kind="sleep", name="sleep", id="sleep.1"), wait="timer"),
        event(Kind.OUTCOME, id="sleep.1", status="ok"),
        event(Kind.OUTCOME, id="x.1/ghost.2", status="ok"),
    ]
    second = [
        decided(Kind.INTENT, "a", "a.1", agent="ops"),
        event(Kind.INTENT, action=Action(kind="tool", name="side_door", id="d.1")),
        decided(Kind.INTENT, "a", "a.2"),
        decided(Kind.INTENT, "a", "a.2"),
    ]
    found = coverage([first, second], {RULES.digest: RULES}.get)
    shares = {kind: (share.actions, share.gated, share.ruled) for kind, share in found.kinds.items()}
    assert shares == {"tool": (5, 4, 3), "step": (1, 1, 0), "unknown": (1, 0, 0)}
    assert found.bypasses == {"unknown ghost": 1, "tool side_door": 1}
    assert found.unruled == {"step s": 1, "tool a": 1}
    assert (found.actions, found.gated) == (7, 5)


def test_a_bundle_that_is_not_on_record_counts_as_no_rule() -> None:
    found = coverage([[decided(Kind.INTENT, "a", "a.1")]], lambda _: None)
    assert found.kinds["tool"].ruled == 0
    assert found.unruled == {"tool a": 1}
    assert coverage([], lambda _: None).actions == 0
