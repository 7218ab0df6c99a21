"""What is left of a run's budgets."""

from __future__ import annotations

from holdfast.node.run import Run
from holdfast.policy.decide import ceilings

_UNITS = {"usd": "usd_nano", "tokens": "tokens"}


def balance(run: Run) -> dict[str, int | None]:
    """Nano-dollars and tokens that are left under the tightest budget in force; None where nothing limits them."""
    left: dict[str, int | None] = {"usd_nano": None, "tokens": None}
    for ceiling in ceilings(run.facts({}, None, None), run.bundle):
        row = next((row for row in run.services.store.ledger(ceiling.key) if row.key == ceiling.key), None)
        used = row.reserved + row.settled if row is not None else 0
        rest = max(0, ceiling.limit - used)
        unit = _UNITS[ceiling.unit]
        known = left[unit]
        left[unit] = rest if known is None else min(known, rest)
    return left
