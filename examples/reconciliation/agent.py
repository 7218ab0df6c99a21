"""Reconciles bank lines with the ledger, one run a counterparty; and two agents that have to be stopped."""

import time

from holdfast import agent, decision, workflow

CATEGORIES = ["approved", "flagged", "requires-review"]


@agent(name="financial-reconciliation")
class ReconciliationAgent:
    """Books what matches, flags what was paid short, pays back what was paid too much."""

    @workflow
    def run(self, ctx):
        totals = {"counterparty": ctx.input.counterparty, "booked": 0, "flagged": 0, "refunded_cents": 0}
        for line in ctx.input.lines:
            result = ctx.call(self.validate, line)
            done = ctx.call(self.execute, line, result)
            totals[done["as"]] += 1
            totals["refunded_cents"] += done["refunded_cents"]
        return totals

    @decision
    def validate(self, ctx, line):
        """Let the model judge the line."""
        return ctx.llm.classify(
            f"Bank line {line['id']} from {line['counterparty']}: paid {line['paid_cents']} cents, "
            f"invoice {line['reference']} says {line['invoiced_cents']} cents. "
            "approved: equal. flagged: paid less. requires-review: paid more.",
            categories=CATEGORIES,
        )

    def execute(self, ctx, line, result):
        """Act on the judgement. Each call of a tool passes the gate first."""
        if result == "flagged":
            return {"as": "flagged", "refunded_cents": 0}
        excess = line["paid_cents"] - line["invoiced_cents"] if result == "requires-review" else 0
        if excess > 0:
            ctx.tool(
                "wire_transfer",
                iban=line["iban"],
                country=line["country"],
                amount_cents=excess,
                purpose=f"overpaid {line['reference']}",
            )
        ctx.tool("post_entry", line=line["id"], reference=line["reference"], amount_cents=line["invoiced_cents"])
        return {"as": "booked", "refunded_cents": excess}


@agent(name="dunning-writer")
class DunningWriter:
    """Never content with its letter: only a ceiling on its cost ends it."""

    @workflow
    def run(self, ctx):
        letter = "Dear customer, your payment is late."
        while True:
            letter = ctx.llm.generate(f"Make this letter friendlier:\n{letter}", max_tokens=200)


@agent(name="balance-watch")
class BalanceWatch:
    """Watches for ever: only a kill ends it."""

    @workflow
    def run(self, ctx):
        while True:
            ctx.call(self.look)

    def look(self):
        """One look at the balance."""
        time.sleep(0.25)
        return "unchanged"
