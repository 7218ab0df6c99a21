"""Each thing that ``ctx`` offers: what goes over the wire, what comes back, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, Failure, Raw, model

Run = Callable[..., Broker]

ALL = """
    import datetime

    @agent(name="all")
    class A:
        @workflow(name="main")
        {DEF} run(self, ctx):
            got = {}
            got["ids"] = [ctx.run_id, ctx.tenant, ctx.attempt, ctx.idempotency_key]
            got["input"] = [ctx.input.transaction, ctx.input["transaction"], ctx.input.deep.list[0].items,
                            hasattr(ctx.input, "none"), dict(ctx.input.deep) == {"list": [{"items": 3}]}]
            got["connector"] = {AWAIT} ctx.tool("wire_transfer", amount=5, to="x", retries=1, timeout=2)
            got["mapping"] = {AWAIT} ctx.tool("ledger", {"timeout": 1, "b": 2}, b=3)
            got["own"] = {AWAIT} ctx.tool(self.pay, amount=4)
            approval = {AWAIT} ctx.approve({"pay": 5}, approvers=["role:controller"], quorum=2, ttl=60,
                                           on_expiry="escalate", escalate_to="user:boss")
            got["approval"] = [approval.approved, bool(approval), list(approval.by), approval.state]
            refused = {AWAIT} ctx.approve("no", raise_on_deny=False)
            got["refused"] = [refused.approved, refused.reason]
            try:
                {AWAIT} ctx.approve("no")
            except DeniedError as error:
                got["denied"] = str(error)
            got["answer"] = {AWAIT} ctx.ask({"which": "one"}, ttl=datetime.timedelta(hours=1))
            {AWAIT} ctx.signal("run-2", "go", {"n": 1})
            got["signal"] = {AWAIT} ctx.wait_signal("ready", timeout=1.5)
            {AWAIT} ctx.sleep(datetime.timedelta(days=2))
            now = ctx.now()
            got["now"] = [now.isoformat(), now.utcoffset().total_seconds()]
            got["random"] = [ctx.random() == ctx.random(), 1 <= ctx.random.randint(1, 6) <= 6, 0 <= ctx.random() < 1]
            got["uuid"] = str(ctx.uuid())
            got["patch"] = ctx.patched("v", 3)
            got["budget"] = [ctx.budget.usd_left, ctx.budget.tokens_left]
            ctx.log.info("paid %s", 5, invoice=7)
            ctx.log("plain", odd={1, 2}, worse=object)
            ctx.log.error("100%", "done")
            {AWAIT} ctx.memory.set("a/b", [1])
            got["memory"] = [{AWAIT} ctx.memory.get("a/b"), {AWAIT} ctx.memory.get("none", 5)]
            got["keys"] = {AWAIT} ctx.memory.keys("a/")
            {AWAIT} ctx.memory.delete("a/b")
            {AWAIT} ctx.files.write("out/report.txt", "héllo")
            {AWAIT} ctx.files.write("raw", b"\\x00\\xff")
            got["files"] = [{AWAIT} ctx.files.read_text("out/report.txt"), list({AWAIT} ctx.files.read("raw")),
                            {AWAIT} ctx.files.list("out/")]
            {AWAIT} ctx.files.delete("raw")
            child = {AWAIT} ctx.spawn(A, {"n": 1}, workflow="main", budget_usd=0.25)
            got["child"] = [child.run_id, {AWAIT} child.result()]
            got["children"] = {AWAIT} ctx.spawn_many("author.py:A", range(5), max_parallel=2)
            got["undone"] = {AWAIT} ctx.compensate()
            return got

        @tool(effect="compensable", undo="refund", retries=1)
        def pay(self, ctx, amount):
            return {"paid": amount, "key": ctx.idempotency_key}

        def refund(self, amount, result):
            return [amount, result]
"""

ANSWERS: dict[str, Any] = {
    "wire_transfer": {"ok": True},
    "ledger": [],
    "approve.2": {"approved": False, "by": ["bob"], "reason": "too much", "state": "denied"},
    "approve.3": {"approved": False, "by": [], "reason": "", "state": "expired"},
    "ask": "blue",
    "wait_signal.ready": {"n": 2},
    "balance": {"usd_nano": 250_000_000, "tokens": 7},
    "memory.get.1": [1],
    "memory.get.2": None,
    "memory.keys": ["a/b"],
    "file.read.1": Raw("héllo".encode()),
    "file.read.2": Raw(b"\x00\xff"),
    "file.list": ["out/report.txt"],
    "join": lambda broker, id_, message: {"of": message.run},
    "compensate": [
        {"kind": "tool", "name": "refund", "args": {"amount": 4}, "result": {"paid": 4}},
        {"kind": "connector", "name": "unledger", "args": {"b": 3}, "result": None},
    ],
    "unledger": None,
}

EXPECTED = {
    "ids": ["run-1", "default", 1, ""],
    "input": ["pay", "pay", 3, False, True],
    "connector": {"ok": True},
    "mapping": [],
    "own": {"paid": 4, "key": "key-pay.1"},
    "approval": [True, True, ["alice"], "approved"],
    "refused": [False, "too much"],
    "denied": "approval was expired",
    "answer": "blue",
    "signal": {"n": 2},
    "now": ["2023-11-14T22:13:20+00:00", 0.0],
    "random": [False, True, True],
    "uuid": "0b0cf3a1-9a51-4a2e-8f3e-2b8a8d7a6c11",
    "patch": 3,
    "budget": [0.25, 7],
    "memory": [[1], 5],
    "keys": ["a/b"],
    "files": ["héllo", [0, 255], ["out/report.txt"]],
    "child": ["child-spawn.1", {"of": "child-spawn.1"}],
    "children": [{"of": f"child-spawn.{n}"} for n in range(2, 7)],
    "undone": 2,
}


def source(asynchronous: bool) -> str:
    return ALL.replace("{DEF}", "async def" if asynchronous else "def").replace(
        "{AWAIT} ", "await " if asynchronous else ""
    )


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_everything_over_the_wire_and_back_and_again_in_a_replay(run: Run, asynchronous: bool) -> None:
    given = {"transaction": "pay", "deep": {"list": [{"items": 3}]}}
    broker = run(source(asynchronous), input=given, answers=ANSWERS)
    assert broker.output == EXPECTED
    again = run(source(asynchronous), input=given, recorded=broker.recorded)
    assert again.output == EXPECTED
    assert [m for m in again.messages if not isinstance(m, wire.Close | wire.Ready)] == [
        m for m in broker.messages if not isinstance(m, wire.Close | wire.Ready)
    ]

    tool, ledger, unledger = broker.of(wire.Tool)
    assert broker.values["wire_transfer.1"] == {"amount": 5, "to": "x"}
    assert (tool.retry.attempts, tool.timeout_us) == (2, 2_000_000)
    assert (ledger.retry.attempts, ledger.timeout_us) == (1, 60_000_000)
    assert broker.values["ledger.1"] == {"timeout": 1, "b": 3}
    assert unledger.name == "unledger"
    pay, refund = broker.of(wire.Call)
    assert (pay.kind, pay.effect, pay.undo, pay.retry.attempts) == ("tool", "compensable", "refund", 2)
    assert broker.values["refund.1"] == {"amount": 4, "result": {"paid": 4}}
    assert refund.kind == "step"
    first, second, _ = broker.of(wire.Approve)
    assert (first.approvers, first.quorum, first.ttl_us) == (("role:controller",), 2, 60_000_000)
    assert (first.on_expiry, first.escalate_to) == ("escalate", ("user:boss",))
    assert (second.ttl_us, second.on_expiry) == (86_400_000_000, "deny")
    assert broker.of(wire.Ask)[0].ttl_us == 3_600_000_000
    assert broker.of(wire.WaitSignal)[0].timeout_us == 1_500_000
    assert broker.of(wire.Sleep)[0].duration_us == 2 * 86_400_000_000
    spawns = broker.of(wire.Spawn)
    assert {spawn.target for spawn in spawns} == {"author.py:A"}
    assert (spawns[0].workflow, spawns[0].budget_nano) == ("main", 250_000_000)
    assert broker.loaded == wire.Loaded("all", "main", {"pay": ("compensable", "refund")})
    assert [(log.level, log.message) for log in broker.logs] == [
        ("info", "paid 5"),
        ("info", "plain"),
        ("error", "100% done"),
    ]
    assert broker.logs[0].fields.data == b'{"invoice":7}'


REFUSED = [
    ('ctx.approve("x", quorum=0)', "quorum is 0"),
    ('ctx.approve("x", approvers=["bob"])', 'write "role:NAME" or "user:NAME"'),
    ('ctx.approve("x", on_expiry="escalate")', "escalate_to"),
    ('ctx.approve("x", ttl=0)', "ttl is 0"),
    ("ctx.sleep(-1)", "seconds from 0 up"),
    ("ctx.sleep(40_000_000)", "longer than a year"),
    ('ctx.sleep("1")', "timedelta"),
    ('ctx.wait_signal("")', "1 to 512 characters"),
    ('ctx.tool("")', "the name of a tool"),
    ('ctx.tool("t", [1])', "arguments by name"),
    ('ctx.tool("t", timeout=0)', "leave it out"),
    ('ctx.files.write("/etc/passwd", b"")', "relative path"),
    ('ctx.files.read("a/../b")', "relative path"),
    ('ctx.files.write("a", 5)', "give bytes or text"),
    ('ctx.files.write("a", bytes(33 << 20))', "Write it in parts"),
    ('ctx.memory.set("a", None)', "ctx.memory.delete"),
    ("ctx.memory.set(5, 1)", "1 to 512 characters"),
    ('ctx.memory.set("a", {1: 2})', "text keys"),
    ('ctx.spawn("nothing")', "module:Class"),
    ("ctx.spawn(int)", "is not an agent"),
    ("ctx.spawn(A, budget_usd=-1)", "dollars from 0 up"),
    ('ctx.spawn(A, workflow="other")', "it has: run"),
    ("ctx.spawn_many(A, [1], max_parallel=0)", "max_parallel is 0"),
    ('ctx.patched("p", 0)', "whole number from 1 up"),
    ('ctx.gather(ctx.call(len, "abc"))', "branch 0 of gather is int"),
    ("ctx.input.transactoin", "the input has no 'transactoin'; it has 'transaction'"),
    ('ctx.input["transactoin"]', "the input has no 'transactoin'; it has 'transaction'"),
    ("setattr(ctx.input, 'a', 1)", "variable of your own"),
    ('ctx.llm.classify("x", [])', "list of different texts"),
    ('ctx.llm.classify("x", "abc")', "list of different texts"),
    ('ctx.llm.classify("x", ["a", "a"])', "list of different texts"),
    ('ctx.llm.generate("x", max_tokens=0)', "max_tokens of ctx.llm.generate is 0"),
    ('ctx.llm.chat("x")', "use generate"),
    ('ctx.llm.chat([{"role": "robot", "content": "x"}])', "use user, assistant or system"),
    ('ctx.llm.chat([{"role": "system", "content": "x"}])', "no message of a user"),
    ("ctx.llm.chat([5])", "a message of ctx.llm.chat is int"),
    ('ctx.llm.extract("x", int.__add__)', "give a JSON Schema"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lines = "\n".join(f"    lambda ctx: {code}," for code, _ in REFUSED)
    text = f"""
from holdfast import *
TRIED = [
{lines}
]

@agent
class A:
    @workflow
    def run(self, ctx):
        said = []
        for tried in TRIED:
            try:
                said.append(repr(tried(ctx)))
            except (UsageError, PayloadError) as error:
                said.append(str(error))
        return said
"""
    root = tmp_path_factory.mktemp("refused")
    (root / "author.py").write_text(text)
    with Broker(root, "author.py:A", input={"transaction": 1}) as broker:
        said = broker.run().output
        assert not broker.of(wire.Approve) + broker.of(wire.Sleep) + broker.of(wire.Spawn) + broker.of(wire.Llm)
    return {code: text for (code, _), text in zip(REFUSED, said, strict=True)}


@pytest.mark.parametrize(("code", "words"), REFUSED)
def test_what_makes_no_sense_is_refused_before_it_leaves(refusals: dict[str, str], code: str, words: str) -> None:
    assert words in refusals[code]


MODELS = """
    import dataclasses, typing
    import msgspec, pydantic

    @dataclasses.dataclass
    class Line:
        amount: int

    class Box(msgspec.Struct):
        lines: list[Line]

    class Invoice(pydantic.BaseModel):
        number: str

    class Row(typing.TypedDict):
        a: int

    @agent
    class A:
        @workflow
        def run(self, ctx):
            llm = ctx.llm
            got = [
                llm.generate("hi", system="be kind", model="m", max_tokens=5, temperature=0, stop="END",
                             retries=4, timeout=3),
                llm.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], system="t"),
                llm.classify({"b": 1, "a": [2]}, categories=("x", "y")),
                llm.extract("text", {"type": "object"}),
            ]
            box = llm.extract("text", Box)
            got += [type(box).__name__, type(box.lines[0]).__name__, box.lines[0].amount]
            got += [llm.extract("text", Line).amount, llm.extract("text", Invoice).number]
            got += [llm.extract("text", Row)["a"]]
            try:
                llm.extract("text", Line)
            except PayloadError as error:
                got.append(str(error))
            try:
                llm.generate("hi")
            except LLMError as error:
                got.append(str(error))
            return got
"""


def test_the_models_operations(run: Run) -> None:
    answers = {
        "llm.generate.1": model("hello"),
        "llm.chat": model("you"),
        "llm.classify": model(value="y"),
        "llm.extract.1": model(value={"free": 1}),
        "llm.extract.2": model(value={"lines": [{"amount": 3}]}),
        "llm.extract.3": model(value={"amount": 4}),
        "llm.extract.4": model(value={"number": "7"}),
        "llm.extract.5": model(value={"a": 8}),
        "llm.extract.6": model(value={"amount": "many"}),
        "llm.generate.2": Failure("llm_failed", "no key; set ANTHROPIC_API_KEY"),
    }
    broker = run(MODELS, answers=answers)
    assert broker.output == [
        "hello", "you", "y", {"free": 1}, "Box", "Line", 3, 4, "7", 8,
        "the model's answer is not the Line that it should be: Expected `int`, got `str` - at `$.amount`",
        "no key; set ANTHROPIC_API_KEY",
    ]  # fmt: skip
    asked = broker.values
    assert asked["llm.generate.1"] == {
        "messages": [{"role": "user", "content": "hi"}],
        "system": "be kind",
        "model": "m",
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["END"],
    }
    calls = broker.of(wire.Llm)
    assert (calls[0].retry.attempts, calls[0].timeout_us) == (5, 3_000_000)
    assert (calls[1].retry.attempts, calls[1].timeout_us) == (3, 120_000_000)
    assert asked["llm.chat.1"] == {"messages": [{"role": "user", "content": "u"}], "system": "t\n\ns"}
    assert asked["llm.classify.1"]["messages"] == [{"role": "user", "content": '{"a":[2],"b":1}'}]
    assert asked["llm.extract.1"]["schema"] == {"type": "object"}
    box = asked["llm.extract.2"]["schema"]
    assert box["type"] == "object"
    assert box["properties"]["lines"]["items"] == {"$ref": "#/$defs/Line"}
    assert list(box["$defs"]) == ["Line"]
    assert asked["llm.extract.3"]["schema"]["properties"] == {"amount": {"type": "integer"}}
    assert "$defs" not in asked["llm.extract.3"]["schema"]
    assert asked["llm.extract.4"]["schema"]["properties"]["number"]["type"] == "string"


def test_a_category_that_is_not_in_the_list_is_never_returned(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                return ctx.llm.classify("x", ["a", "b"])
    """
    broker = run(text, answers={"llm.classify": model(value="c")})
    assert broker.failed is not None
    assert broker.failed.code == "llm_failed"


def test_continue_as_new_ends_the_code_here(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                try:
                    ctx.continue_as_new({"n": ctx.input.n + 1})
                finally:
                    print("never")
    """
    broker = run(text, input={"n": 1})
    assert broker.continued == ({"n": 2},)
    assert broker.finish() == 75
    assert not broker.logs


def test_the_mode_that_only_undoes(run: Run) -> None:
    broker = run(source(False), answers=ANSWERS, settings={"mode": "compensate"}, input={"transaction": "", "deep": {}})
    assert broker.output == 2
    assert list(broker.ids.values()) == ["compensate.1", "refund.1", "unledger.1"]
