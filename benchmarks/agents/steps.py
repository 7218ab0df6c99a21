"""What the benchmarks run inside the boundary: steps, and clocks around them."""

import time

from holdfast import agent, workflow


def book(transaction):
    """A step: what it does costs next to nothing, so that what is measured is the step itself."""
    return {
        "id": transaction["id"],
        "category": "approved",
        "score": 0.93,
        "reasons": ["known creditor", "usual amount"],
    }


@agent(name="bench-serial")
class Serial:
    """Blocks of steps one after the other; between two blocks the benchmark has its turn."""

    @workflow
    def run(self, ctx):
        transaction = dict(ctx.input["transaction"])
        blocks = []
        for _ in range(ctx.input["blocks"]):
            took = []
            for _ in range(ctx.input["steps"]):
                began = time.perf_counter_ns()
                ctx.call(book, transaction)
                took.append(time.perf_counter_ns() - began)
            blocks.append(took)
            ctx.tool("turn")
        return blocks


@agent(name="bench-parallel")
class Parallel:
    """Steps as fast as they go, once every run has begun."""

    @workflow
    def run(self, ctx):
        transaction = dict(ctx.input["transaction"])
        for _ in range(5):
            ctx.call(book, transaction)
        ctx.tool("turn")
        began = time.monotonic()
        for _ in range(ctx.input["steps"]):
            ctx.call(book, transaction)
        return [began, time.monotonic()]


@agent(name="bench-one")
class One:
    """One step."""

    @workflow
    def run(self, ctx):
        return ctx.call(book, {"id": "1"})


@agent(name="bench-asks")
class Asks:
    """Waits for a person."""

    @workflow
    def run(self, ctx):
        return ctx.approve("go on?")
