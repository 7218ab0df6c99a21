"""What an author can write: a workflow for each feature (see test_acceptance_features)."""

import os
import time

from holdfast import DeniedError, StepError, StepTimeout, agent, errors, step, tool, workflow


@agent(name="child")
class Child:
    @workflow
    def main(self, ctx):
        if ctx.input.n == 13:
            raise ValueError("unlucky")
        return ctx.call(self.twice, ctx.input.n)

    def twice(self, n):
        return 2 * n


@agent(name="features")
class Features:
    @workflow
    def gathers(self, ctx):
        first = ctx.gather(*[lambda n=n: self.branch(ctx, n) for n in range(3)])
        ctx.wait_signal("go")
        drawn = [ctx.random(), str(ctx.uuid()), ctx.now().isoformat()]
        second = ctx.gather((self.score, 7), (self.score, 8))
        return {"first": first, "second": second, "drawn": drawn}

    def branch(self, ctx, n):
        return [ctx.call(self.score, n), ctx.call(self.score, n + 10), ctx.random(), str(ctx.uuid())]

    def score(self, n):
        return n * n

    @workflow
    def family(self, ctx):
        many = ctx.spawn_many(Child, [{"n": 1}, {"n": 13}, {"n": 3}], max_parallel=2, return_exceptions=True)
        one = ctx.spawn(Child, {"n": 21})
        try:
            ctx.spawn(Child, {"n": 13}).result()
            failed = ""
        except StepError as error:
            failed = str(error)
        return {
            "many": [type(m).__name__ if isinstance(m, Exception) else m for m in many],
            "one": one.result(),
            "failed": failed,
            "id": one.run_id,
        }

    @workflow
    def signals(self, ctx):
        early = ctx.wait_signal("early")
        late = ctx.wait_signal("late")
        try:
            ctx.wait_signal("never", timeout=0.05)
        except StepTimeout:
            never = "timeout"
        return [early, late, never]

    @workflow
    def tells(self, ctx):
        return [ctx.signal(ctx.input.run, "late", {"n": 2}), ctx.signal(ctx.input.ended, "late")]

    @workflow
    def asks(self, ctx):
        answer = ctx.ask("Which account?", ttl=3600)
        try:
            ctx.ask("Anyone?", ttl=0.05)
        except StepTimeout as error:
            return [answer, type(error).__name__]

    @workflow
    def sleeps(self, ctx):
        began = ctx.now()
        ctx.sleep(ctx.input.seconds)
        return (ctx.now() - began).total_seconds()

    @workflow
    def approves(self, ctx):
        asked = ctx.approve({"amount": ctx.input.amount}, approvers=["role:controller"], quorum=2, raise_on_deny=False)
        return [asked.approved, sorted(asked.by), asked.state]

    @workflow
    def expires(self, ctx):
        denied = ctx.approve("a", ttl=0.05, raise_on_deny=False)
        approved = ctx.approve("b", ttl=0.05, on_expiry="approve")
        escalated = ctx.approve(
            "c",
            ttl=ctx.input.get("ttl", 0.3),
            approvers="user:nobody",
            on_expiry="escalate",
            escalate_to="role:controller",
            raise_on_deny=False,
        )
        return [denied.state, approved.state, escalated.state, list(escalated.by)]

    @workflow
    def retries(self, ctx):
        return ctx.call(self.shaky, retries=3, backoff=0.01)

    def shaky(self, ctx):
        ctx.call(self.counted)
        if ctx.attempt < 3:
            raise ConnectionError(f"attempt {ctx.attempt}")
        return [ctx.attempt, len(ctx.idempotency_key)]

    def counted(self):
        return os.getpid()

    @workflow
    def gives_up(self, ctx):
        ctx.call(self.always, retries=1, backoff=0.01)

    def always(self):
        raise ConnectionError("no")

    @workflow
    def overruns(self, ctx):
        return [os.getpid() > 0, ctx.call(self.slow, retries=9, backoff=0.01, timeout=1.5)]

    def slow(self, ctx):
        if ctx.attempt == 1:
            while True:
                time.sleep(60)
        return ctx.attempt

    @workflow
    def anew(self, ctx):
        n = ctx.input.n
        ctx.call(self.score, n)
        ctx.files.write(f"{n}.txt", str(n))
        if n == 1:
            ctx.wait_signal("go")
        if n < 3:
            ctx.continue_as_new({"n": n + 1})
        return [n, ctx.files.list(), ctx.wait_signal("kept")]

    @workflow
    def patches(self, ctx):
        version = ctx.patched("new-way")
        ctx.wait_signal("go")
        return [version, ctx.patched("new-way")]

    @workflow
    def remembers(self, ctx):
        seen = ctx.memory.get("seen", 0) + 1
        ctx.memory.set("seen", seen)
        ctx.memory.set("other", {"a": [1]})
        if seen == 3:
            ctx.memory.delete("other")
        return [seen, ctx.memory.keys(), ctx.memory.get("other")]

    @workflow
    def files(self, ctx):
        ctx.files.write("a/b.bin", bytes(range(256)) * 4096)
        ctx.files.write("text", "grüße")
        ctx.wait_signal("go")
        ctx.files.write("text", "anders")
        ctx.files.delete("a/b.bin") if ctx.input.get("delete") else None
        return [ctx.files.list(), ctx.files.read_text("text"), len(ctx.files.read("a/b.bin"))]

    @workflow
    def balance(self, ctx):
        before = [ctx.budget.usd_left, ctx.budget.tokens_left]
        ctx.llm.generate("hello", max_tokens=100)
        return [before, [ctx.budget.usd_left, ctx.budget.tokens_left]]

    @workflow
    def compensates(self, ctx):
        for n in (1, 2):
            ctx.tool("book", amount=n)
        ctx.call(self.reserve, 3)
        return [ctx.compensate(), ctx.compensate()]

    @tool(effect="compensable", undo="release")
    def reserve(self, seats):
        return {"seats": seats}

    def release(self, ctx, seats, result):
        ctx.log.info(f"released {seats} of {result['seats']}")

    @workflow
    def diverges(self, ctx):
        # What Holdfast does not record must not decide what comes next: this is the mistake.
        name = f"step_{os.urandom(4).hex()}"
        ctx.call(step(name=name)(lambda: 1))
        ctx.wait_signal("go")
        return name

    @workflow
    def pays(self, ctx):
        try:
            return ctx.tool("pay", amount=7, timeout=30)
        except StepError as error:
            return str(error)

    @workflow
    def large(self, ctx):
        found = []
        makes = (lambda: "x" * (9 << 20), lambda: {1, 2, "c"}, lambda: object(), lambda: float("nan"), lambda: b"x")
        for make in makes:
            try:
                ctx.call(step(name="make")(make))
                found.append("ok")
            except errors.PayloadError as error:
                found.append(str(error)[:200])
        return found

    @workflow
    def streams(self, ctx):
        pieces = list(ctx.llm.stream("stream"))
        ctx.log.info(f"{len(pieces)} pieces")
        ctx.wait_signal("go")
        return "".join(pieces)

    @workflow
    def models(self, ctx):
        found = {}
        for how in ("retry", "limit", "broken", "hang", "bad"):
            try:
                found[how] = ctx.llm.generate(how, retries=2, backoff=0.01, timeout=20 if how != "hang" else 0.5)
            except errors.LLMError as error:
                found[how] = type(error).__name__
            except errors.StepTimeout as error:
                found[how] = type(error).__name__
        found["class"] = ctx.llm.classify("class", ["a", "b"])
        found["object"] = ctx.llm.extract(
            "object", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        )
        return found

    @workflow
    def asks_model(self, ctx):
        return ctx.llm.generate("hello")

    @workflow
    def spends(self, ctx):
        for _ in range(50):
            ctx.llm.generate("hello", max_tokens=100)

    @workflow
    def once(self, ctx):
        if ctx.input.how == "raises":
            return ctx.call(self.wire, "raises")
        if ctx.input.how == "connector":
            return ctx.call(self.around, timeout=1.5, retries=3, backoff=0.01)
        return ctx.call(self.wire, "hangs", timeout=1.5)

    def around(self, ctx):
        return ctx.tool("hangs")

    @tool(retries=5, backoff=0.01)
    def wire(self, how):
        if how == "raises":
            raise ConnectionError("after it was sent, perhaps")
        time.sleep(3600)

    @workflow
    def long(self, ctx):
        return [ctx.call(self.counted) > 0, ctx.call(self.until_stopped)]

    def until_stopped(self, ctx):
        if ctx.attempt == 1:
            time.sleep(3600)
        return ctx.attempt

    @workflow
    def pinned(self, ctx):
        ctx.wait_signal("go")
        return "old"

    @workflow
    def forked(self, ctx):
        ctx.files.write("note", "shared")
        drawn = ctx.random()
        child = ctx.spawn(Child, {"n": 4}).result()
        late = ctx.spawn(Child, {"n": 5})
        ctx.tool("book", amount=1)
        outer = ctx.call(self.nests)
        return [drawn, child, late.result(), outer, ctx.files.list(), ctx.call(self.draws)]

    def nests(self, ctx):
        return [ctx.call(self.draws), ctx.call(self.draws)]

    def draws(self):
        return os.urandom(8).hex()

    @workflow
    def denied(self, ctx):
        if ctx.input.get("catch"):
            try:
                ctx.tool("pay", amount=1)
            except DeniedError as error:
                return [error.rule, str(error)]
        ctx.tool("pay", amount=1)
        return None
