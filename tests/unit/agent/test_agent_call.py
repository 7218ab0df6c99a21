"""``ctx.call``: what it takes, passes, returns, retries and refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, Failure

Run = Callable[..., Broker]

CALLS = """
    import dataclasses, functools
    import typing
    import msgspec
    import pydantic

    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 0

    class Box(msgspec.Struct):
        points: list[Point]

    class Model(pydantic.BaseModel):
        name: str

    class Row(typing.TypedDict):
        a: int

    def plain(a, b=2, *rest, key=None):
        return [a, b, list(rest), key]

    def with_context(value, ctx):
        return [value, ctx.attempt, ctx.idempotency_key]

    def by_annotation(context: Context, value):
        return [type(context).__name__, value]

    def keyword_only(*, ctx):
        return ctx.run_id

    def wrapped(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)
        return inner

    @wrapped
    def decorated(ctx, value):
        return [ctx.tenant, value]

    class Callable_:
        def __call__(self, x):
            return x + 1

    @agent
    class A:
        @workflow
        def run(self, ctx):
            got = {
                "plain": ctx.call(plain, 1, 3, 4, 5, key="k"),
                "context": ctx.call(with_context, "v"),
                "annotated": ctx.call(by_annotation, 7),
                "keyword": ctx.call(keyword_only),
                "wrapped": ctx.call(decorated, 9),
                "partial": ctx.call(functools.partial(plain, 1), 5),
                "object": ctx.call(Callable_(), 4),
                "builtin": ctx.call(len, [1, 2, 3]),
                "method": ctx.call(self.method, 1, b=2),
                "explicit": ctx.call(self.method, ctx, 3, b=4),
                "static": ctx.call(self.fixed, 5),
                "named": ctx.call(step(name="a-name")(lambda: 6)),
                "coroutine": ctx.call(self.asynchronous, 8),
            }
            point = ctx.call(self.point, 3)
            box = ctx.call(self.box)
            model = ctx.call(self.model)
            got["typed"] = [type(point).__name__, point.x, type(box.points[0]).__name__, model.name]
            got["row"] = ctx.call(self.row)
            got["pair"] = repr(ctx.call(self.pair))
            got["tuple"] = repr(ctx.call(self.untyped))
            return got

        def method(self, ctx, a, b):
            return [type(ctx).__name__, a, b]

        @staticmethod
        def fixed(a):
            return a

        async def asynchronous(self, ctx, a):
            return [type(ctx).__name__, await ctx.call(self.point, a)]

        def point(self, x) -> Point:
            return Point(x)

        def box(self) -> "Box":
            return Box([Point(1)])

        def model(self) -> Model:
            return Model(name="n")

        def row(self) -> Row:
            return {"a": 1}

        def pair(self) -> tuple[int, str]:
            return (1, "b")

        def untyped(self):
            return (1, "b")
"""

EXPECTED = {
    "plain": [1, 3, [4, 5], "k"],
    "context": ["v", 1, "key-with_context.1"],
    "annotated": ["Context", 7],
    "keyword": "run-1",
    "wrapped": ["default", 9],
    "partial": [1, 5, [], None],
    "object": 5,
    "builtin": 3,
    "method": ["Context", 1, 2],
    "explicit": ["Context", 3, 4],
    "static": 5,
    "named": 6,
    "coroutine": ["AsyncContext", {"x": 8, "y": 0}],
    "typed": ["Point", 3, "Point", "n"],
    "row": {"a": 1},
    "pair": "(1, 'b')",
    "tuple": "[1, 'b']",
}


def test_all_kinds_of_callables_and_the_same_again_when_replayed(run: Run) -> None:
    first = run(CALLS)
    assert first.output == EXPECTED
    assert first.values["plain.1"] == {"a": 1, "b": 3, "rest": [4, 5], "key": "k"}
    assert first.values["method.1"] == {"a": 1, "b": 2}
    assert first.values["method.2"] == {"a": 3, "b": 4}
    assert "a-name.1" in first.values
    again = run(CALLS, recorded=first.recorded)
    assert again.output == EXPECTED
    assert not again.of(wire.Close)
    outer = [id_ for id_ in first.ids.values() if "/" not in id_]
    assert list(again.ids.values()) == outer


ATTEMPTS = """
    @agent
    class A:
        tries = 0

        @workflow
        def run(self, ctx):
            first = ctx.call(self.flaky, retries=2, backoff=0.5, timeout=9)
            try:
                ctx.call(self.broken)
            except StepError as error:
                return [first, type(error).__name__, str(error), repr(error.__cause__)]

        def flaky(self, ctx):
            A.tries += 1
            if A.tries < 3:
                raise ValueError(f"try {ctx.attempt}")
            return ctx.attempt

        @step(retries=1, backoff=2)
        def broken(self):
            raise ValueError("bad")
"""


def test_attempts_are_the_nodes_to_give(run: Run) -> None:
    broker = run(ATTEMPTS)
    assert broker.output == [3, "StepError", "broken.1: ValueError: bad", "ValueError('bad')"]
    flaky, broken = broker.of(wire.Call)
    assert (flaky.retry.attempts, flaky.retry.backoff_us, flaky.timeout_us) == (3, 500_000, 9_000_000)
    assert (broken.retry.attempts, broken.retry.backoff_us, broken.timeout_us) == (2, 2_000_000, 0)
    closes = broker.of(wire.Close)
    assert [close.error for close in closes] == ["ValueError", "ValueError", "", "ValueError", "ValueError"]
    assert [close.message for close in closes[:2]] == ["try 1", "try 2"]
    again = run(ATTEMPTS, recorded=broker.recorded)
    assert again.output == [3, "StepError", "broken.1: ValueError: bad", "None"]


def test_a_denial_keeps_its_rule_through_every_step(run: Run) -> None:
    source = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                return ctx.call(self.outer)
            def outer(self, ctx):
                return ctx.call(self.inner)
            def inner(self):
                return 1
    """
    broker = run(source, answers={"inner": Failure("denied", "not today", "rule-7")})
    assert broker.failed is not None
    assert (broker.failed.error, broker.failed.code, broker.failed.rule) == ("DeniedError", "denied", "rule-7")
    assert broker.of(wire.Close)[0].code == "denied"
    assert "author.py:7 in A.run" in broker.failed.trace


@pytest.mark.parametrize(
    ("code", "error"),
    [("timeout", "StepTimeout"), ("llm_failed", "LLMError"), ("payload", "PayloadError"), ("new_code", "StepError")],
)
def test_faults_become_errors_by_their_code(run: Run, code: str, error: str) -> None:
    source = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                try:
                    ctx.call(self.one)
                except StepError as error:
                    return [type(error).__name__, str(error)]
            def one(self):
                return 1
    """
    assert run(source, answers={"one": Failure(code, "why")}).output == [error, "why"]


WRONG = """
    @agent
    class A:
        @workflow
        def run(self, ctx):
            self.allowed = 1
            said = {}
            for name in ("lambda_", "none", "number", "generator", "coroutine", "bytes_", "nan", "shadow", "retries",
                         "set_self", "del_self", "wrong_type", "surrogate", "own_thread", "arity"):
                try:
                    said[name] = getattr(self, name)(ctx)
                except Exception as error:
                    said[name] = f"{type(error).__name__}: {error}"
            return said
        def lambda_(self, ctx): ctx.call(lambda: 1)
        def none(self, ctx): ctx.call(None)
        def number(self, ctx): ctx.call(3)
        def generator(self, ctx): ctx.call(self.generates)
        def coroutine(self, ctx): ctx.call(self.forgets)
        def bytes_(self, ctx): ctx.call(self.takes, b"x")
        def nan(self, ctx): ctx.call(self.gives_nan)
        def shadow(self, ctx): ctx.call(self.has_timeout, timeout=3)
        def retries(self, ctx): ctx.call(self.takes, 1, retries=-1)
        def set_self(self, ctx): ctx.call(self.sets)
        def del_self(self, ctx): ctx.call(self.deletes)
        def wrong_type(self, ctx): ctx.call(self.lies)
        def surrogate(self, ctx): ctx.call(self.takes, "\\ud800")
        def own_thread(self, ctx):
            import threading
            said = []
            def work():
                try: ctx.call(self.takes, 1)
                except Exception as error: said.append(str(error))
            thread = threading.Thread(target=work)
            thread.start(); thread.join()
            return said[0]
        def arity(self, ctx): ctx.call(self.takes, 1, 2)
        def generates(self):
            yield 1
        def forgets(self):
            async def inner(): return 1
            coroutine = inner()
            coroutine.close()
            return [coroutine]
        def takes(self, value): return value
        def gives_nan(self): return {"a": [1, float("nan")]}
        def has_timeout(self, timeout): return timeout
        def sets(self): self.found = 1
        def deletes(self): del self.allowed
        def lies(self) -> "Point": return {"x": "no number"}

    import dataclasses
    @dataclasses.dataclass
    class Point:
        x: int
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lambda_", ["UsageError", "lambda has no name", 'step(name="…")']),
        ("none", ["UsageError", "called already"]),
        ("number", ["UsageError", "not int"]),
        ("generator", ["PayloadError", "what generates returned", "generator"]),
        ("coroutine", ["PayloadError", "await"]),
        ("bytes_", ["PayloadError", "takes holds bytes at $.value", "ctx.files"]),
        ("nan", ["PayloadError", "$.a[1]"]),
        ("shadow", ["UsageError", "parameter timeout", "by position"]),
        ("retries", ["UsageError", "retries of takes is -1"]),
        ("set_self", ["self.found", "step sets", "ctx.memory"]),
        ("del_self", ["self.allowed", "step deletes"]),
        ("wrong_type", ["PayloadError", "what lies returned is not the Point"]),
        ("surrogate", ["PayloadError", "surrogates"]),
        ("own_thread", ["ctx.gather"]),
        ("arity", ["StepError", "TypeError", "positional arguments"]),
    ],
)
def test_misuse_is_refused_with_its_cure(wrong: dict[str, str], name: str, words: list[str]) -> None:
    for word in words:
        assert word in wrong[name]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import textwrap

    root = tmp_path_factory.mktemp("wrong")
    (root / "author.py").write_text("from holdfast import *\n" + textwrap.dedent(WRONG))
    with Broker(root, "author.py:A") as broker:
        found: dict[str, str] = broker.run().output
        return found


def test_large_values_travel_in_parts_both_ways(run: Run) -> None:
    source = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                text = ctx.call(self.double, ctx.input.text)
                return [len(text), len(ctx.call(self.double, "never run"))]
            def double(self, text):
                return text + text
    """
    big = "x" * 2_000_000
    broker = run(source, input={"text": big}, recorded={"double.2": b'"' + b"y" * 3_000_000 + b'"'})
    assert broker.output == [4_000_000, 3_000_000]
    assert len(broker.values["double.1"]["text"]) == 2_000_000
    assert len(broker.recorded["double.1"]) == 4_000_002


def test_a_value_above_the_limit_is_refused(run: Run) -> None:
    source = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                return ctx.call(self.big)
            def big(self):
                return "x" * (9 << 20)
    """
    broker = run(source)
    assert broker.failed is not None
    assert broker.failed.code == "payload"
    assert "ctx.files" in broker.failed.message
