"""Mistakes that a type checker must find. Each line that ends in the comment ``E`` is one; never run."""

from __future__ import annotations

from holdfast import Context, DeniedError, agent, step, tool, workflow


@agent(name=5)  # E
class Wrong:
    @workflow
    def run(self, ctx: Context) -> str:
        self.total("a", 2)  # E
        number: int = ctx.call(self.name)  # E
        ctx.llm.classify("x", categories=5)  # E
        ctx.llm.generate("x", max_token=5)  # E
        ctx.call(5)  # E
        ctx.call(self.name, retries="many")  # E
        ctx.approve("x", on_expiry="maybe")  # E
        ctx.files.write("x", 5)  # E
        ctx.sleep("1")  # E
        ctx.nothing_like_it()  # E
        ctx.budget.usd_left = 5.0  # E
        raise DeniedError("x", rule=number)  # E

    @step(retries=1)
    def total(self, a: int, b: int) -> int:
        return a + b

    def name(self) -> str:
        return "x"

    @tool(effect="maybe")  # E
    def pay(self) -> None: ...
