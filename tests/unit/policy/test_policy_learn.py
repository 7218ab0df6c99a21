"""Rules that are learnt from what recorded runs did."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, Facts, Outcome, Price
from holdfast.policy.bundle import Bundle, load
from holdfast.policy.decide import decide
from holdfast.policy.learn import Proposal, propose, watch
from holdfast.policy.lint import Severity, lint
from holdfast.policy.model import one
from holdfast.policy.recorded import Decided, Done, Recorded
from holdfast.policy.whatif import Replay

NOW = 1_772_445_600_000_000
PRICE = Price(input=1000, output=5000)
OPEN = Bundle(
    [
        one({"id": "open", "category": "tool_call_limit", "with": {"limit": 10_000}}),
        one({"id": "web", "category": "egress_allowlist", "with": {"hosts": ["*.example", "*.example:8443"]}}),
    ]
)
KINDS = {
    "look": Action(kind="tool", name="look"),
    "pay": Action(kind="tool", name="pay"),
    "step": Action(kind="step", name="check"),
    "ask": Action(kind="llm", name="generate", provider="p", model="m-1", max_tokens=100, input_tokens=50),
    "get": Action(kind="http", name="GET", host="api.example", method="GET", path="/x"),
    "post": Action(kind="http", name="POST", host="api.example:8443", method="POST", path="/y"),
}


def recorded(names: list[str], rules: Bundle = OPEN, agent: str = "clerk", run: str = "r") -> Recorded:
    items: list[Decided | Done] = []
    counters = {"steps": 0, "tool_calls": 0, "cost": 0}
    for number, name in enumerate(names):
        at = NOW + number * 1_000_000
        action = msgspec.structs.replace(KINDS[name], id=f"{name}.{number}", digest=f"{name}{number}")
        facts = Facts(
            now=at, run=run, root=run, agent=agent, counters=dict(counters), price=PRICE if name == "ask" else None
        )
        verdict = decide(action, facts, rules)
        went = verdict.allowed
        items.append(
            Decided(run=run, seq=2 * number + 1, at=at, action=action, facts=facts, verdict=verdict, went=went)
        )
        if went:
            cost = 300_000 if name == "ask" else 0
            counters["cost"] += cost
            counters["steps"] += name == "step"
            counters["tool_calls"] += action.kind == "tool"
            items.append(Done(run=run, seq=2 * number + 2, at=at + 1, id=action.id, cost=cost))
    return Recorded(run=run, agent=agent, items=items)


def learnt(folder: Path, *runs: Recorded, known: tuple[str, ...] = ()) -> tuple[Proposal, Bundle]:
    made = propose(watch(runs), known=known)
    path = folder / "learnt.yaml"
    path.write_text(made.to_yaml())
    return made, load([path])


def test_what_was_done_may_be_done_and_nothing_else(tmp_path: Path) -> None:
    _, rules = learnt(tmp_path, recorded(["look", "ask", "get", "step"]))
    facts = Facts(now=NOW, agent="clerk", run="r2", root="r2", price=PRICE)
    for name in ("look", "ask", "get", "step"):
        assert decide(KINDS[name], facts, rules).allowed, name
    others = (KINDS["pay"], KINDS["post"], msgspec.structs.replace(KINDS["ask"], model="m-2"))
    for other in (*others, msgspec.structs.replace(KINDS["get"], method="DELETE")):
        assert decide(other, facts, rules).outcome >= Outcome.DENY, other
    assert decide(KINDS["pay"], msgspec.structs.replace(facts, agent="other"), rules).allowed


def test_what_was_refused_is_not_learnt_and_said(tmp_path: Path) -> None:
    strict = Bundle([one({"id": "x", "category": "tool_allowlist", "with": {"allow": ["look"]}})])
    made, rules = learnt(tmp_path, recorded(["look", "pay"], strict))
    assert decide(KINDS["pay"], Facts(now=NOW, agent="clerk"), rules).outcome is Outcome.DENY
    assert any("refused tool pay" in note for note in made.notes)


def test_the_notes_say_what_ends_and_what_to_look_at(tmp_path: Path) -> None:
    runs = [recorded(["look"], run=f"r{number}") for number in range(200)]
    made, _ = learnt(tmp_path, *runs, recorded(["pay", "look"], run="rare"), known=("look", "pay", "wipe"))
    notes = "\n".join(made.notes)
    for words in ("learnt from 201 runs", "no longer call wipe", "look at the tools pay", "everything stays closed"):
        assert words in notes


def test_an_agent_that_did_nothing_may_do_nothing(tmp_path: Path) -> None:
    _, rules = learnt(tmp_path, recorded(["step"]))
    facts = Facts(now=NOW, agent="clerk", price=PRICE)
    for name in ("look", "ask"):
        assert decide(KINDS[name], facts, rules).outcome >= Outcome.DENY


@pytest.mark.parametrize("agent", ["clerk", "näh/maschine", "_x", "a b"])
def test_the_file_lints_clean_whatever_the_agent_is_called(tmp_path: Path, agent: str) -> None:
    learnt(tmp_path, recorded(["look", "ask", "get", "post", "step"], agent=agent), recorded(["step"], run="q"))
    found = lint([tmp_path / "learnt.yaml"])
    assert [one for one in found if one.severity is not Severity.NOTE] == []


@given(st.lists(st.lists(st.sampled_from(sorted(KINDS)), max_size=12), min_size=1, max_size=4))
def test_the_runs_that_were_learnt_from_would_go_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[str]]
) -> None:
    made = [recorded(names, run=f"r{number}") for number, names in enumerate(runs)]
    _, rules = learnt(tmp_path_factory.mktemp("learn"), *made)
    for run in made:
        (delta,) = Replay(rules).family([run]).deltas
        assert not delta.changes
