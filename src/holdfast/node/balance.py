"""What is left of a run's budgets."""

from __future__ import annotations

from holdfast.action import Action, Price
from holdfast.node.run import Run
from holdfast.policy.categories.base import Spend
from holdfast.policy.decide import consult

_PROBE = Action(kind="llm", name="balance", model="balance", max_tokens=1, input_tokens=0)
_PRICE = Price(input=1, output=1)


def balance(run: Run) -> dict[str, int | None]:
    """Nano-dollars and tokens that are left under the tightest budget in force; None where nothing limits them.

    Budgets with a condition are left out: whether they bind depends on the call that is made.
    """
    facts = run.facts({}, None, _PRICE)
    left: dict[str, int | None] = {"usd_nano": None, "tokens": None}
    units = {"budget_usd": "usd_nano", "budget_tokens": "tokens"}
    for rule in run.bundle.plan("llm", facts):
        unit = units.get(rule.category.name)
        if unit is None or not rule.enforced or rule.when is not None:
            continue
        spend = consult(rule, _PROBE, facts, None)
        if not isinstance(spend, Spend):
            continue
        rows = {row.key: row for row in run.services.store.ledger(spend.key)} if spend.key else {}
        row = rows.get(spend.key)
        used = row.reserved + row.settled if row is not None else spend.used
        rest = max(0, spend.limit - used)
        known = left[unit]
        left[unit] = rest if known is None else min(known, rest)
    return left
