"""Streams: pieces as they come, credit for what was taken, the whole in a replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, Failure, Later, Streamed, model

Run = Callable[..., Broker]

SYNC = """
    @agent
    class A:
        @workflow
        def run(self, ctx):
            stream = ctx.llm.stream("count", max_tokens=9)
            pieces = list(stream)
            return [len(pieces), stream.text]
"""
ASYNC = """
    @agent
    class A:
        @workflow
        async def run(self, ctx):
            stream = ctx.llm.stream("count", max_tokens=9)
            pieces = [piece async for piece in stream]
            return [len(pieces), stream.text]
"""


@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
def test_pieces_arrive_and_credit_keeps_the_window(run: Run, text: str) -> None:
    pieces = [f"{number} " for number in range(700)]
    broker = run(text, answers={"llm.generate": Streamed(*pieces)})
    assert broker.output == [700, "".join(pieces)]
    assert broker.of(wire.Llm)[0].stream
    credits = broker.of(wire.Credit)
    assert [credit.count for credit in credits] == [wire.WINDOW // 2] * 5
    again = run(text, recorded=broker.recorded)
    assert again.output == [1, "".join(pieces)]


def test_a_resumed_stream_brings_only_the_rest(start: Run) -> None:
    broker = start(SYNC, answers={"llm.generate": Later()})
    call = broker.until(wire.Llm)
    assert isinstance(call, wire.Llm)
    broker.send(wire.Chunk(call.id, "one "))
    broker.answer(call.id, model("one two"))
    assert broker.run().output == [2, "one two"]


def test_leaving_a_stream_early_cancels_it_and_its_late_answer_is_dropped(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                with ctx.llm.stream("a") as stream:
                    first = next(stream)
                for second in ctx.llm.stream("b"):
                    break
                return [first, second, ctx.ask("more")]
    """

    def begin(broker: Broker, id_: str, message: wire.Llm) -> Later:
        broker.send(wire.Chunk(message.id, "x"))
        return Later()

    def end(broker: Broker, id_: str, message: wire.Ask) -> str:
        first, second = broker.of(wire.Llm)
        broker.send(wire.Chunk(first.id, "late"))
        broker.answer(first.id, model("x and more"))
        broker.answer(second.id, Failure("llm_failed", "nobody hears this"))
        return "end"

    broker = run(text, answers={"llm.generate": begin, "ask": end})
    assert broker.output == ["x", "x", "end"]
    assert [cancel.id for cancel in broker.of(wire.Cancel)] == [call.id for call in broker.of(wire.Llm)]


def test_a_stream_that_was_whole_already_is_not_cancelled(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                with ctx.llm.stream("a") as stream:
                    next(stream)
                    ctx.ask("wait")
                return "out"
    """
    broker = run(text, answers={"llm.generate": Streamed("x", "y"), "ask": None})
    assert broker.output == "out"
    assert not broker.of(wire.Cancel)


def test_a_stream_that_fails_raises_where_it_is_read(start: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                got = []
                try:
                    for piece in ctx.llm.stream([{"role": "user", "content": "a"}]):
                        got.append(piece)
                except LLMError as error:
                    got.append(str(error))
                return got
    """
    broker = start(text, answers={"llm.chat": Later()})
    call = broker.until(wire.Llm)
    assert isinstance(call, wire.Llm)
    broker.send(wire.Chunk(call.id, "half"))
    broker.answer(call.id, Failure("llm_failed", "cut off"))
    assert broker.run().output == ["half", "cut off"]
