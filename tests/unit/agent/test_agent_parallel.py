"""gather, threads, loops and idleness: ids that do not depend on timing, and Idle said exactly when it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, Later

Run = Callable[..., Broker]

GATHER = {
    "sync": """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                outer = ctx.gather(*[lambda n=n: self.branch(ctx, n) for n in range(6)])
                again = ctx.gather(self.decide, (self.add, 3, 4), lambda: self.inner(ctx))
                return [outer, again]
            def branch(self, ctx, n):
                first = ctx.call(self.add, n, 1)
                second = ctx.call(self.add, first, 10)
                return [second, ctx.call(self.add, 0, 0)]
            def inner(self, ctx):
                return ctx.gather(lambda: ctx.call(self.add, 1, 1), lambda: ctx.call(self.aadd, 2, 2))
            @decision
            def decide(self):
                return "yes"
            def add(self, a, b):
                return a + b
            async def aadd(self, ctx, a, b):
                return await ctx.call(self.add, a, b)
    """,
    "async": """
        @agent
        class A:
            @workflow
            async def run(self, ctx):
                outer = await ctx.gather(*[self.branch(ctx, n) for n in range(6)])
                again = await ctx.gather(self.decide, (self.add, 3, 4), lambda: self.inner(ctx))
                return [outer, again]
            async def branch(self, ctx, n):
                first = await ctx.call(self.add, n, 1)
                second = await ctx.call(self.aplus, first, 10)
                return [second, await ctx.call(self.add, 0, 0)]
            async def inner(self, ctx):
                return await ctx.gather(ctx.call(self.add, 1, 1), ctx.call(self.aadd, 2, 2))
            @decision
            def decide(self):
                return "yes"
            def add(self, a, b):
                return a + b
            async def aplus(self, a, b):
                return a + b
            async def aadd(self, ctx, a, b):
                return await ctx.call(self.add, a, b)
    """,
}
RESULT = [[[n + 11, 0] for n in range(6)], ["yes", 7, [2, 4]]]


@pytest.mark.parametrize("kind", GATHER)
def test_ids_of_branches_do_not_depend_on_who_is_answered_first(start: Run, kind: str) -> None:
    def serve(pick: Callable[[list[wire.Call]], wire.Call]) -> Broker:
        broker = start(GATHER[kind])
        held: list[wire.Call] = []
        while broker.done is None and broker.failed is None:
            # Whether a call is held back for long or not only changes the order, which must not matter.
            if held and broker.quiet(0.02):
                call = pick(held)
                held.remove(call)
                broker.serve(call)
                continue
            message = broker.receive()
            if isinstance(message, wire.Call):
                held.append(message)
            else:
                broker.serve(message)
        return broker

    first = serve(lambda held: held[0])
    last = serve(lambda held: held[-1])
    assert first.output == last.output == RESULT
    assert set(first.ids.values()) == set(last.ids.values())
    assert first.recorded == last.recorded
    assert "gather.1.5/add.2" in first.recorded or "gather.1.5/aplus.1" in first.recorded
    assert "gather.2.2/gather.1.1/aadd.1/add.1" in first.recorded
    replay = start(GATHER[kind], recorded=first.recorded).run()
    assert replay.output == RESULT
    assert not replay.of(wire.Close)


FAILING = """
    @agent
    class A:
        @workflow
        {DEF} run(self, ctx):
            try:
                {AWAIT} ctx.gather((self.fails, "b"), (self.ends, 1), (self.fails, "a"))
            except StepError as error:
                first = str(error)
            both = {AWAIT} ctx.gather((self.fails, "c"), (self.ends, 2), return_exceptions=True)
            return [first, [str(x) for x in both]]
        def fails(self, why):
            raise ValueError(why)
        def ends(self, n):
            return n
"""


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_all_branches_end_and_the_first_failure_in_order_is_raised(run: Run, asynchronous: bool) -> None:
    text = FAILING.replace("{DEF}", "async def" if asynchronous else "def")
    broker = run(text.replace("{AWAIT} ", "await " if asynchronous else ""))
    assert broker.output == [
        "gather.1.0/fails.1: ValueError: b",
        ["gather.2.0/fails.1: ValueError: c", "2"],
    ]
    assert "gather.1.2/fails.1" in broker.recorded


def test_self_is_guarded_in_branches_of_a_step_and_free_in_the_workflow(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                def mine(): self.a = 1
                ctx.gather(mine, mine)
                return [self.a, ctx.call(self.step)]
            def step(self, ctx):
                def mine(): self.a = 2
                said = ctx.gather(mine, mine, return_exceptions=True)
                async def theirs(): self.a = 3
                try:
                    import asyncio
                    asyncio.run(theirs())
                except UsageError as error:
                    said.append(error)
                return ["sets self.a" in str(x) for x in said]
    """
    assert run(text).output == [1, [True, True, True]]


IDLE = {
    "sync": """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                return ctx.gather(lambda: ctx.ask("one"), lambda: self.work(ctx), lambda: ctx.sleep(60))
            def work(self, ctx):
                ctx.call(self.one)
                return ctx.wait_signal("go")
            def one(self):
                return 1
    """,
    "async": """
        @agent
        class A:
            @workflow
            async def run(self, ctx):
                return await ctx.gather(ctx.ask("one"), self.work(ctx), ctx.sleep(60))
            async def work(self, ctx):
                await ctx.call(self.one)
                return await ctx.wait_signal("go")
            def one(self):
                return 1
    """,
}


@pytest.mark.parametrize("kind", IDLE)
def test_idle_is_said_when_every_branch_waits_and_not_before(start: Run, kind: str) -> None:
    park = Later(park=True)
    broker = start(IDLE[kind], answers={"ask": park, "sleep": park, "wait_signal.go": park, "one": Later()})
    broker.until(wire.Call)
    while len(broker.of(wire.Ask)) + len(broker.of(wire.Sleep)) < 2:
        broker.step()
    call = broker.of(wire.Call)[0]
    # The call is not parked: whatever was said by now cannot be Idle. Let it go on.
    broker.send(wire.Go(call.id, 1, "k"))
    broker._paths[call.id] = "x"
    idle = broker.until(wire.Idle)
    waiting = {broker.of(kind)[0].id for kind in (wire.Ask, wire.Sleep, wire.WaitSignal)}
    assert isinstance(idle, wire.Idle)
    assert set(idle.waiting) == waiting
    assert len(broker.of(wire.Idle)) == 1
    assert broker.messages.index(idle) > broker.messages.index(broker.of(wire.WaitSignal)[0])
    # One branch goes on and ends: the two others are all that is left.
    broker.answer(broker.of(wire.WaitSignal)[0].id, 5)
    again = broker.until(wire.Idle)
    assert isinstance(again, wire.Idle)
    assert set(again.waiting) == waiting - {broker.of(wire.WaitSignal)[0].id}
    broker.answer(broker.of(wire.Ask)[0].id, "yes")
    broker.answer(broker.of(wire.Sleep)[0].id, None)
    assert broker.run().output == ["yes", 5, None]


def test_a_lone_wait_is_idle_also_inside_steps_and_a_policys_approval_of_a_step(start: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                ctx.call(self.outer)
                return ctx.call(self.gated)
            def outer(self, ctx):
                return ctx.call(self.inner)
            async def inner(self, ctx):
                return await ctx.approve("pay")
            def gated(self):
                return "done"
    """
    park = Later(park=True)
    broker = start(text, answers={"approve": park, "gated": park})
    idle = broker.until(wire.Idle)
    assert isinstance(idle, wire.Idle)
    approve = broker.of(wire.Approve)[0]
    assert idle.waiting == (approve.id,)
    broker.answer(approve.id, {"approved": True})
    gated = broker.until(wire.Idle)
    assert isinstance(gated, wire.Idle)
    call = broker.of(wire.Call)[-1]
    assert gated.waiting == (call.id,)
    broker.answers["gated"] = None
    broker._paths[call.id] = "gated.1"
    broker.send(wire.Go(call.id, 1, "k"))
    assert broker.run().output == "done"


def test_a_task_of_the_authors_own_keeps_the_process(start: Run) -> None:
    text = """
        import asyncio
        @agent
        class A:
            @workflow
            async def run(self, ctx):
                first = asyncio.create_task(ctx.call(self.aask))
                return [await first, await ctx.ask("second")]
            async def aask(self, ctx):
                return await ctx.ask("first")
    """
    broker = start(text, answers={"ask": Later(park=True)})
    first = broker.until(wire.Ask)
    assert isinstance(first, wire.Ask)
    broker.answer(first.id, 1)
    broker.until(wire.Idle)
    # The task's wait said nothing of the workflow, which waited for the task; its own wait does.
    assert [idle.waiting for idle in broker.of(wire.Idle)] == [(broker.of(wire.Ask)[1].id,)]
    broker.answer(broker.of(wire.Ask)[1].id, 2)
    assert broker.run().output == [1, 2]


def test_more_branches_than_threads(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                return sum(ctx.gather(*[(self.one, n) for n in range(150)]))
            def one(self, ctx, n):
                return sum(ctx.gather((self.two, n), (self.two, n)))
            def two(self, n):
                return n
    """
    assert run(text).output == 2 * sum(range(150))


def test_cancelled_work_is_let_go(start: Run) -> None:
    text = """
        import asyncio
        @agent
        class A:
            @workflow
            async def run(self, ctx):
                first = asyncio.create_task(ctx.ask("never"))
                second = asyncio.create_task(ctx.call(self.body))
                third = asyncio.create_task(ctx.call(self.held))
                await ctx.ask("ready")
                for task in (first, second, third):
                    task.cancel()
                got = await asyncio.gather(first, second, third, return_exceptions=True)
                return [type(x).__name__ for x in got] + [await ctx.ask("after")]
            async def body(self, ctx):
                await ctx.ask("inner")
            async def held(self):
                return 1
    """
    asked: dict[str, int] = {}

    def answer(broker: Broker, id_: str, message: wire.Ask) -> Any:
        question = broker.values[id_]
        asked[question] = message.id
        if question in ("never", "inner", "ready"):
            return Later()
        if question == "after":
            # Answers that come too late, and a Go for a body that nobody wants: none of them harms.
            broker.answer(asked["never"], 1)
            broker.answer(asked["inner"], 1)
            held = broker.of(wire.Call)[1]
            broker._calls[held.id] = held
            broker._paths[held.id] = "held.1"
            broker._go(held.id)
        return question

    broker = start(text, answers={"ask": answer, "held": Later()})
    broker.until(wire.Ask, 3)
    broker.answer(asked["ready"], None)
    broker.run()
    assert broker.output == ["CancelledError"] * 3 + ["after"]
    body, held = broker.of(wire.Call)
    assert {cancel.id for cancel in broker.of(wire.Cancel)} == {asked["never"], asked["inner"], held.id}
    errors = {close.id: close.error for close in broker.of(wire.Close)}
    assert errors == {body.id: "CancelledError", held.id: "CancelledError"}
