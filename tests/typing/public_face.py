"""What type checkers make of the public face. Checked by mypy in strict mode; never run."""

from __future__ import annotations

import dataclasses
import datetime
import random
import uuid
from typing import Any, assert_type

import msgspec

from holdfast import (
    Approval,
    AsyncContext,
    ChildRun,
    Context,
    DeniedError,
    HoldfastError,
    StepError,
    StepTimeout,
    agent,
    decision,
    step,
    tool,
    workflow,
)


@dataclasses.dataclass
class Invoice:
    amount: int


class Box(msgspec.Struct):
    lines: list[Invoice]


def outside(a: int, b: str = "") -> float:
    return a + len(b)


@agent(name="typed")
class Typed:
    @workflow  # noqa: RET503
    def run(self, ctx: Context) -> str:
        assert_type(ctx.call(self.choose), str)
        assert_type(ctx.call(self.total, 1, 2.5), float)
        assert_type(ctx.call(self.total, 1, 2.5, retries=2, backoff=0.5, timeout=datetime.timedelta(minutes=1)), float)
        assert_type(ctx.call(self.invoice), Invoice)
        assert_type(ctx.call(self.fetch, "x"), bytes)
        assert_type(ctx.call(outside, 1, b="x"), float)
        assert_type(self.total(1, 2), float)
        assert_type(self.pay(3), bool)
        assert_type(ctx.tool("connector", amount=1), Any)
        assert_type(ctx.llm.generate("x", max_tokens=5, temperature=0.1), str)
        assert_type(ctx.llm.chat([{"role": "user", "content": "x"}]), str)
        assert_type(ctx.llm.classify("x", categories=["a", "b"]), str)
        assert_type(ctx.llm.extract("x", Invoice), Invoice)
        assert_type(ctx.llm.extract("x", Box), Box)
        assert_type(ctx.llm.extract("x", {"type": "object"}), Any)
        for piece in ctx.llm.stream("x"):
            assert_type(piece, str)
        approval = ctx.approve({"pay": 1}, approvers=["role:boss"], quorum=2, ttl=60, on_expiry="escalate")
        assert_type(approval, Approval)
        assert_type(approval.approved, bool)
        assert_type(approval.by, tuple[str, ...])
        assert_type(ctx.ask("x", ttl=5), Any)
        assert_type(ctx.signal("run", "name", 1), bool)
        assert_type(ctx.wait_signal("name"), Any)
        assert_type(ctx.now(), datetime.datetime)
        assert_type(ctx.random(), float)
        assert_type(ctx.random.choice(["a"]), str)
        chance: random.Random = ctx.random
        assert_type(chance.randint(1, 2), int)
        assert_type(ctx.uuid(), uuid.UUID)
        assert_type(ctx.patched("x", 2), int)
        assert_type(ctx.gather(lambda: ctx.call(self.choose)), list[Any])
        child = ctx.spawn(Typed, {"a": 1}, budget_usd=0.5)
        assert_type(child, ChildRun)
        assert_type(child.run_id, str)
        assert_type(ctx.spawn_many(Typed, range(3), max_parallel=2), list[Any])
        assert_type(ctx.budget.usd_left, float | None)
        assert_type(ctx.budget.tokens_left, int | None)
        assert_type(ctx.http.get("https://api.example/x").status_code, int)
        assert_type(ctx.http.post("https://api.example/x", json={"a": 1}).text, str)
        assert_type(ctx.files.read("x"), bytes)
        assert_type(ctx.files.read_text("x"), str)
        assert_type(ctx.files.list(), list[str])
        assert_type(ctx.memory.keys("x"), list[str])
        assert_type(ctx.compensate(), int)
        assert_type(ctx.idempotency_key, str)
        ctx.sleep(3)
        ctx.log.info("x", a=1)
        ctx.log("x")
        ctx.memory.set("x", 1)
        ctx.files.write("x", b"")
        try:
            ctx.call(self.choose)
        except StepTimeout as error:
            assert_type(error.code, str)
        except DeniedError as error:
            assert_type(error.rule, str)
        except (StepError, HoldfastError):
            return ctx.run_id
        ctx.continue_as_new({"again": True})  # never returns, so nothing is missing after it

    @decision
    def choose(self) -> str:
        return "a"

    @step(retries=3, backoff=datetime.timedelta(seconds=1))
    def total(self, a: int, b: float) -> float:
        return a + b

    def invoice(self, ctx: Context) -> Invoice:
        return Invoice(ctx.input.amount)

    async def fetch(self, url: str) -> bytes:
        return url.encode()

    @tool(effect="compensable", undo="refund", timeout=5)
    def pay(self, amount: int) -> bool:
        return amount > 0

    def refund(self, amount: int) -> None: ...


@agent
class AsyncTyped:
    @workflow(name="main")
    async def run(self, ctx: AsyncContext) -> None:
        assert_type(await ctx.call(self.choose), str)
        assert_type(await ctx.call(self.plain, 1), int)
        assert_type(await ctx.llm.classify("x", ["a"]), str)
        assert_type(await ctx.llm.extract("x", Invoice), Invoice)
        async for piece in ctx.llm.stream("x"):
            assert_type(piece, str)
        assert_type(await ctx.approve("x"), Approval)
        assert_type(await ctx.gather(ctx.call(self.choose), lambda: ctx.sleep(1)), list[Any])
        child = await ctx.spawn(Typed)
        assert_type(await child.result(), Any)
        assert_type(ctx.now(), datetime.datetime)
        assert_type((await ctx.http.get("https://api.example/x")).content, bytes)
        assert_type(await ctx.files.read("x"), bytes)

    @decision(name="pick")
    async def choose(self, ctx: AsyncContext) -> str:
        return await ctx.llm.classify("x", categories=["a"])

    def plain(self, n: int) -> int:
        return n


assert_type(Typed().total(1, 2.0), float)
assert_type(Typed, type[Typed])
