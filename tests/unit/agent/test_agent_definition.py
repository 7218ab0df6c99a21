"""The decorators: ordinary Python stays ordinary, and what is missing is said with its cure."""

from __future__ import annotations

import re
from typing import Any

import pytest

import holdfast
from holdfast import UsageError, agent, decision, step, tool, workflow
from holdfast.agent.definition import Definition, Options, choose_workflow, inspect_class, mark_of, options


@agent(name="books")
class Base:
    """An agent."""

    @workflow
    def run(self, ctx: Any) -> int:
        """Start."""
        return self.add(1, 2)

    @step(retries=2, backoff=1.5, timeout=9, name="sum")
    def add(self, a: int, b: int = 0) -> int:
        """Add."""
        return a + b

    @decision
    def choose(self) -> str:
        return "yes"

    @tool
    def post(self) -> None: ...

    @tool(effect="compensable", undo="take_back", name="pay-out")
    def pay(self, amount: int) -> int:
        return amount

    def take_back(self, amount: int, result: int) -> None: ...


def test_decorated_code_is_ordinary_python() -> None:
    one = Base()
    assert (one.add(3), one.choose(), one.run(None)) == (3, "yes", 3)
    assert Base.add.__doc__ == "Add."
    assert Base.__doc__ == "An agent."
    one.found = 1  # type: ignore[attr-defined]
    assert mark_of(one.add) == mark_of(Base.add)
    marked = mark_of(Base.add)
    assert marked is not None
    assert (marked.kind, marked.name, marked.options) == ("step", "sum", Options(2, 1.5, 9))


def test_what_a_class_defines() -> None:
    assert inspect_class(Base) == Definition(
        "books",
        {"run": "run"},
        {"post": ("irreversible", ""), "pay-out": ("compensable", "take_back")},
        {"post": "post", "pay-out": "pay"},
    )


def test_a_subclass_inherits_replaces_and_hides() -> None:
    @agent
    class Child(Base):
        run = None  # type: ignore[assignment]

        @workflow(name="second")
        async def other(self, ctx: Any) -> None: ...

        @tool(effect="pure")
        def post(self) -> None: ...

    found = inspect_class(Child)
    assert found.name == "Child"
    assert found.workflows == {"second": "other"}
    assert found.tools["post"] == ("pure", "")


def test_the_undo_can_be_the_function() -> None:
    @agent
    class A:
        @workflow
        def run(self) -> None: ...

        def back(self) -> None: ...

        @tool(effect="compensable", undo=back)
        def pay(self) -> None: ...

    assert inspect_class(A).tools == {"pay": ("compensable", "back")}


def test_static_methods_and_functions_take_marks() -> None:
    @decision(name="free")
    def free() -> int:
        return 1

    @agent
    class A:
        @workflow
        @staticmethod
        def run() -> int:
            return free()

        @staticmethod
        @tool(effect="pure")
        def inner() -> None: ...

    assert A.run() == 1
    assert inspect_class(A).workflows == {"run": "run"}
    assert inspect_class(A).tools == {"inner": ("pure", "")}


class NoAgent:
    @workflow
    def run(self) -> None: ...


@agent
class NoWorkflow: ...


@agent
class TwoNames:
    @workflow(name="x")
    def one(self) -> None: ...
    @workflow(name="x")
    def two(self) -> None: ...


@agent
class TwoTools:
    @workflow
    def run(self) -> None: ...
    @tool(name="t")
    def one(self) -> None: ...
    @tool(name="t")
    def two(self) -> None: ...


@agent
class NoUndo:
    @workflow
    def run(self) -> None: ...
    @tool(effect="compensable", undo="gone")
    def pay(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (5, "5 is not a class"),
        (NoAgent, r'NoAgent is not an agent\. Write above it:\n    @agent\(name="…"\)\n    class NoAgent:'),
        (NoWorkflow, r"NoWorkflow has no workflow\. .*\n    @workflow\n    def run\(self, ctx\):"),
        (TwoNames, "two workflows named 'x'"),
        (TwoTools, "two tools named 't'"),
        (NoUndo, "tool pay of .*NoUndo names the undo 'gone'"),
    ],
)
def test_what_is_missing_is_said_with_its_cure(cls: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inspect_class(cls)


loose_agent: Any = agent
loose_step: Any = step
loose_tool: Any = tool


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: loose_agent(name="x")(lambda: 1), "belongs on a class"),
        (lambda: agent(name="a/b"), "without '/'"),
        (lambda: agent(name="x" * 201), "up to 200"),
        (lambda: workflow(int), "belongs on a method"),
        (lambda: loose_step(5), "belongs on a method"),
        (lambda: step(retries=True), "retries of @step is True"),
        (lambda: step(retries=-1), "from 0 to 1000"),
        (lambda: decision(backoff=-2), "backoff of @decision is -2"),
        (lambda: tool(timeout=0), "leave it out"),
        (lambda: loose_tool(timeout="5"), "timedelta"),
        (lambda: loose_tool(effect="maybe"), "use one of pure, idempotent, compensable, irreversible"),
        (lambda: tool(effect="pure", undo="x"), 'write effect="compensable"'),
        (lambda: step(name="\n")(len), "printable"),
    ],
)
def test_decorators_refuse_what_makes_no_sense(make: Any, words: str) -> None:
    def use() -> None:
        made = make()
        if made.__qualname__.endswith(".mark"):

            class Marked: ...

            made(Marked if "agent" in made.__qualname__ else test_what_a_class_defines)

    with pytest.raises(UsageError, match=re.escape(words)):
        use()


def test_choosing_a_workflow() -> None:
    one, two = Definition("a", {"x": "x"}, {}, {}), Definition("a", {"x": "x", "y": "y"}, {}, {})
    assert choose_workflow(one) == "x"
    assert choose_workflow(two, "y") == "y"
    with pytest.raises(UsageError, match=r"several workflows \(x, y\); name one with --workflow"):
        choose_workflow(two)
    with pytest.raises(UsageError, match="no workflow 'z'; it has: x, y"):
        choose_workflow(two, "z")


def test_options_that_nobody_gave_are_none() -> None:
    assert options(None, None, None, "x") == Options()


def test_the_public_face() -> None:
    import waxell_sdk

    assert set(waxell_sdk.__all__) == set(holdfast.__all__)
    for name in holdfast.__all__:
        assert getattr(waxell_sdk, name) is getattr(holdfast, name)
        assert name in dir(holdfast)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = getattr(holdfast, "nothing_like_it")  # noqa: B009


def test_the_package_named_agent_is_the_decorator_whatever_is_imported_first() -> None:
    import holdfast.agent.context

    @holdfast.agent(name="x")
    class A: ...

    assert vars(A)["__holdfast_agent__"] == "x"
    assert holdfast.agent is agent
    package: Any = holdfast.agent
    assert package.context.Context is holdfast.Context
