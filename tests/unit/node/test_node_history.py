"""What rules over a whole tenant ask about follows the drafts that are written, and closes what has ended."""

from __future__ import annotations

from typing import Any

from holdfast.action import Action, Past
from holdfast.journal.base import Draft
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record, RunState
from holdfast.node.history import remembered

PAY = Action(kind="tool", name="pay", id="pay.1", digest="d")


def past(state: str = "open", **more: Any) -> Past:
    return Past(gate="tool", name="pay", at=5, state=state, agent="a", **more)


def draft(kind: str, at: int = 9, **data: Any) -> Draft:
    return Draft(kind=kind, data=data, at=at)


def open_run(**more: Any) -> RunState:
    record = Record(id="pay.1", parent="", action=PAY, attempt=2, past="7", grants=[])
    return RunState(records={"pay.1": record}, past={"7": past(**more)})


def test_an_intent_that_some_rule_remembers_is_under_way() -> None:
    [held] = remembered([draft(Kind.INTENT, action=PAY, past=past())], RunState())
    assert (held.step, held.attempt, held.past) == ("pay.1", 1, past())
    assert remembered([draft(Kind.INTENT, action=PAY)], RunState()) == ()


def test_its_outcome_closes_it_with_what_it_cost() -> None:
    [held] = remembered([draft(Kind.OUTCOME, id="pay.1", status="ok", cost=3)], open_run())
    assert (held.attempt, held.past) == (2, past("ok", ended_at=9, figures={"$cost": 3}))
    [held] = remembered([draft(Kind.ATTEMPT_FAILED, id="pay.1")], open_run())
    assert held.past == past("failed", ended_at=9)


def test_both_in_one_commit() -> None:
    drafts = [draft(Kind.INTENT, action=PAY, past=past()), draft(Kind.OUTCOME, id="pay.1", status="ok")]
    [held] = remembered(drafts, RunState())
    assert held.past == past("ok", ended_at=9)


def test_the_end_of_a_run_closes_what_is_left() -> None:
    [held] = remembered([draft(Kind.RUN_KILLED)], open_run())
    assert held.past == past("failed", ended_at=9)
    assert remembered([draft(Kind.RUN_COMPLETED)], open_run(state="ok")) == ()


def test_what_nobody_remembers_costs_nothing() -> None:
    assert remembered([draft(Kind.OUTCOME, id="x.1", status="ok"), draft(Kind.LOG)], RunState()) == ()
    assert remembered([draft(Kind.OUTCOME, id="x.1", status="ok")], open_run()) == ()
