"""The same workflow at each isolation level: the same verdicts, the same effects, the same record."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from holdfast.sandbox import levels

LEVELS = [name for name in levels.AVAILABLE if name not in (levels.DEFAULT, "microvm")]
"""A guest of level microvm boots for too long here: ``make microvm`` runs a workflow in one."""

AGENT = """
from holdfast import DeniedError, agent, workflow


@agent(name="payer")
class Payer:
    @workflow
    def run(self, ctx):
        with open("scratch", "w") as file:
            file.write("of this boundary")
        paid = []
        for amount in ctx.input.amounts:
            try:
                paid.append(ctx.tool("pay", amount=amount))
            except DeniedError as error:
                paid.append(error.rule)
        return {"paid": paid, "sum": ctx.call(self.add, ctx.input.amounts)}

    def add(self, ctx, amounts):
        return sum(amounts)
"""
BANK = """
def pay(amount):
    with open("ledger", "a") as file:
        file.write(f"{amount}\\n")
    return amount
"""
POLICY = """
- id: two-payments
  category: tool_call_limit
  with: {limit: 2}
"""


@functools.cache
def missing(level: str) -> str:
    """Why a level cannot be had here, in its own words; empty when it can."""
    found = asyncio.run(levels.level(level).probe())
    return "" if found.available else f"{found.reason}: {found.cure}"


def outcome(folder: Path, lab: Any, level: str) -> dict[str, Any]:
    run = lab.submit("agents.py:Payer", {"amounts": [5, 50, 7]}, policies=POLICY, isolation=level)
    view = lab.drive(run)
    assert view.isolation == level
    ledger = folder / "ledger"
    effects = ledger.read_text().split() if ledger.exists() else []
    ledger.unlink(missing_ok=True)
    return {
        "status": view.status,
        "output": view.output,
        "error": view.error,
        "effects": effects,
        "events": [(event.kind, event.data.get("step"), event.data.get("verdict")) for event in lab.events(run)],
    }


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_verdicts_and_effects(lab: Any, level: str) -> None:
    if why := missing(level):
        pytest.skip(why)
    lab.write("agents.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings('[connectors.pay]\ncall = "bank.py:pay"\n')
    expected = outcome(lab.folder, lab, levels.DEFAULT)
    assert expected["effects"] == ["5", "50"], expected
    assert expected["output"] == {"paid": [5, 50, "two-payments"], "sum": 62}
    assert outcome(lab.folder, lab, level) == expected
