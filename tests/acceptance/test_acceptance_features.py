"""What an author can write, through a real sandbox and a real journal, and over restarts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.journal.base import InboxItem
from holdfast.node.views import Principal
from holdfast.sandbox import registry

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

BOB = Principal(name="bob", auth="token", roles=("controller",))
CAROL = Principal(name="carol", auth="token", roles=("clerk",))

AGENT = """
    import os
    import time
    from holdfast import DeniedError, StepError, StepTimeout, agent, decision, step, tool, workflow
    from holdfast import errors

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
                "one": one.result(), "failed": failed, "id": one.run_id,
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
            asked = ctx.approve(
                {"amount": ctx.input.amount}, approvers=["role:controller"], quorum=2, raise_on_deny=False
            )
            return [asked.approved, sorted(asked.by), asked.state]

        @workflow
        def expires(self, ctx):
            denied = ctx.approve("a", ttl=0.05, raise_on_deny=False)
            approved = ctx.approve("b", ttl=0.05, on_expiry="approve")
            escalated = ctx.approve(
                "c", ttl=ctx.input.get("ttl", 0.3), approvers="user:nobody", on_expiry="escalate",
                escalate_to="role:controller", raise_on_deny=False,
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
            if os.path.exists("/code/features.py") and ctx.patched("probe") and os.urandom(8) != ctx.memory.get("x"):
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
"""
BANK = """
    import os
    import time
    from pathlib import Path

    BOOKS = Path(__file__).with_name("books.log")

    def write(*words):
        with BOOKS.open("a") as file:
            file.write(" ".join(map(str, words)) + "\\n")

    def book(amount, idempotency_key):
        write("book", amount)
        return {"entry": amount * 10}

    def unbook(amount, idempotency_key):
        write("unbook", amount)

    def hangs():
        write("hangs")
        time.sleep(3600)

    def pay(amount, idempotency_key):
        write("pay", amount, idempotency_key)
        if len(BOOKS.read_text().splitlines()) == 1:
            os._exit(1)
        return {"paid": amount}
"""
SETTINGS = """
    [node]
    grace = "50ms"
    [connectors.book]
    call = "bank.py:book"
    effect = "compensable"
    undo = "unbook"
    [connectors.unbook]
    call = "bank.py:unbook"
    effect = "idempotent"
    [connectors.pay]
    call = "bank.py:pay"
    [connectors.hangs]
    call = "bank.py:hangs"
"""


class Desk:
    """The lab, with the agent of this file."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab, name)

    def start(self, workflow: str, input_: Any = None, **options: Any) -> Any:
        return self.lab.run("features.py:Features", input_, workflow=workflow, **options)

    def signal(self, run: str, name: str, data: bytes = b"null") -> Any:
        with self.lab.service() as service:
            service.signal(run, name, data, principal=self.lab.person)
        return self.lab.drive(run)

    def answer(self, id_: str, value: Any, who: Principal) -> None:
        with self.lab.service() as service:
            service.answer(id_, value, principal=who)

    def steps(self, run: str) -> list[str]:
        return [event.data["action"]["id"] for event in self.lab.events(run, "intent")]


@pytest.fixture
def desk(lab: Any) -> Desk:
    lab.write("features.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS + lab.model)
    return Desk(lab)


def test_gathered_ids_and_samples_are_the_same_after_a_resume(desk: Desk) -> None:
    begun = desk.start("gathers")
    assert begun.status == "suspended"
    ids = desk.steps(begun.run_id)
    assert sorted(ids) == sorted(f"gather.1.{n}/score.{m}" for n in range(3) for m in (1, 2))
    ended = desk.signal(begun.run_id, "go")
    assert ended.status == "completed"
    assert [branch[:2] for branch in ended.output["first"]] == [[0, 100], [1, 121], [4, 144]]
    assert len({branch[3] for branch in ended.output["first"]}) == 3
    assert ended.output["second"] == [49, 64]
    after = desk.steps(begun.run_id)
    assert after[: len(ids)] == ids
    assert sorted(after[len(ids) :]) == ["gather.2.0/score.1", "gather.2.1/score.1"]
    assert len(desk.events(begun.run_id, "run.started")) == 2
    desk.verify()


def test_children_are_runs_of_their_own_and_their_failures_are_the_callers(desk: Desk) -> None:
    view = desk.start("family")
    assert view.status == "completed", view
    assert view.output["many"] == [2, "StepError", 6]
    assert view.output["one"] == 42
    assert "unlucky" in view.output["failed"]
    assert "failed" in view.output["failed"]
    child = desk.view(view.output["id"])
    assert (child.agent, child.status, child.output) == ("child", "completed", 42)
    (created,) = desk.events(child.run_id, "run.created")
    assert (created.data["parent"], created.data["root"], created.data["depth"]) == (view.run_id, view.run_id, 1)
    desk.verify()


def test_signals_before_and_after_they_are_waited_for(desk: Desk) -> None:
    run = desk.submit("features.py:Features", workflow="signals")
    with desk.service() as service:
        service.signal(run, "early", b'{"n":1}', principal=desk.person)
    assert desk.drive(run).pending[0].kind == "signal"
    ended = desk.start("remembers").run_id
    told = desk.start("tells", {"run": run, "ended": ended})
    assert told.output == [True, False]
    assert desk.drive(run).output == [{"n": 1}, {"n": 2}, "timeout"]
    desk.verify()


def test_questions_and_answers(desk: Desk) -> None:
    view = desk.start("asks")
    (pending,) = view.pending
    assert (view.status, pending.kind) == ("suspended", "answer")
    (listed,) = desk.json("approvals", "list")["approvals"]
    assert (listed["id"], listed["what"]) == (pending.id, "Which account?")
    desk.json("approvals", "answer", pending.id, "--data", '{"account": 7}')
    view = desk.json("runs", "resume", view.run_id)
    assert view["output"] == [{"account": 7}, "StepTimeout"]
    desk.verify()


def test_timers_go_on_over_restarts(desk: Desk) -> None:
    run = desk.submit("features.py:Features", {"seconds": 3}, workflow="sleeps")
    with desk.serving() as node:
        desk.reached(run, "wait")
        node.kill()
        node.wait()
    with desk.serving():
        assert desk.ended(run, "completed").output >= 3
    assert desk.start("sleeps", {"seconds": 3600}).pending[0].kind == "timer"
    desk.verify()


def test_a_quorum_is_of_distinct_people_of_the_role(desk: Desk) -> None:
    people = {"alice": "controller", "bob": "controller", "carol": "clerk"}
    principals = "".join(
        f'[principals.{name}]\nroles = ["{role}"]\ntoken_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name, role in people.items()
    )
    desk.settings(SETTINGS.replace("    ", "") + principals)
    view = desk.start("approves", {"amount": 7})
    (pending,) = view.pending
    assert pending.kind == "approval"

    def approve(name: str, status: int = 0, token: str = "") -> Any:
        return desk.cli(
            "approvals", "approve", pending.id, "--as", name, HOLDFAST_PRINCIPAL_TOKEN=token or name
        ).returncode

    assert approve("carol") == 2
    assert approve("alice", token="wrong") == 2
    assert approve("alice") == 0
    assert approve("alice") == 0
    assert desk.drive(view.run_id).status == "suspended"
    (listed,) = desk.json("approvals", "list")["approvals"]
    assert (listed["given"], listed["quorum"]) == (1, 2)
    assert approve("bob") == 0
    assert desk.drive(view.run_id).output == [True, ["alice", "alice", "bob"], "approved"]
    desk.verify()


def test_one_refusal_denies(desk: Desk) -> None:
    view = desk.start("approves", {"amount": 7})
    desk.answer(view.pending[0].id, True, desk.person)
    desk.answer(view.pending[0].id, False, BOB)
    ended = desk.drive(view.run_id)
    assert (ended.output[0], ended.output[2]) == (False, "denied")


def test_what_nobody_answers_expires_as_asked(desk: Desk) -> None:
    view = desk.start("expires")
    assert view.status == "completed", view
    assert view.output == ["expired", "approved", "expired", []]
    desk.verify()


def test_an_expired_request_is_escalated(desk: Desk) -> None:
    with desk.serving():
        run = desk.submit("features.py:Features", {"ttl": 6}, workflow="expires")

        def escalated() -> bool:
            return any(event.data["kind"] == "escalated" for event in desk.events(run, "inbox"))

        desk.until(escalated, "it is escalated")
        with desk.service() as service:
            (asked,) = service.approvals()
            assert asked.approvers == ("role:controller",)
            with pytest.raises(UsageError, match="not among the approvers"):
                service.answer(asked.id, True, principal=CAROL)
            service.answer(asked.id, True, principal=BOB)
        assert desk.ended(run, "completed").output[2:] == ["approved", ["bob"]]
    desk.verify()


def test_an_approval_is_bound_to_what_was_shown(desk: Desk) -> None:
    view = desk.start("approves", {"amount": 7})
    with desk.service() as service:
        (shown,) = service.approvals()
        assert shown.what == {"amount": 7}
        data = {"approval": shown.id, "digest": "0" * 64, "reason": "", "approved": True, "roles": ["controller"]}
        for who in ("mallory", "trudy"):
            service.store.deliver(
                InboxItem(
                    tenant="default", stream=view.run_id, kind="approval", data=data, principal=who, auth="token", at=1
                )
            )
    assert desk.drive(view.run_id).status == "suspended"
    refused = [event.data for event in desk.events(view.run_id, "inbox")]
    assert [(item["accepted"], item["why"]) for item in refused] == [(False, "it was given to other arguments")] * 2
    desk.verify()


def test_attempts_back_off_and_keep_what_they_achieved(desk: Desk) -> None:
    view = desk.start("retries")
    assert view.output == [3, 32]
    assert [e.data["attempt"] for e in desk.events(view.run_id, "attempt.failed")] == [1, 2]
    assert desk.steps(view.run_id).count("shaky.1/counted.1") == 1, "what an attempt achieved is served to the next"
    lost = desk.start("gives_up")
    assert (lost.status, lost.error_code) == ("failed", "step_failed")
    assert "ConnectionError: no" in lost.error
    desk.verify()


def test_a_step_that_overruns_loses_its_process_and_not_its_run(desk: Desk) -> None:
    view = desk.start("overruns")
    # On a machine that stands still, a later attempt may overrun as well.
    failed = desk.events(view.run_id, "attempt.failed")
    assert view.output == [True, len(failed) + 1]
    assert {event.data["code"] for event in failed} == {"timeout"}
    assert len(desk.events(view.run_id, "run.started")) == len(failed) + 1 >= 2
    desk.verify()


def test_continuing_as_new_leaves_history_and_keeps_counters_files_and_signals(desk: Desk) -> None:
    view = desk.start("anew", {"n": 1})
    with desk.service() as service:
        service.signal(view.run_id, "kept", b'"since the first"', principal=desk.person)
    ended = desk.signal(view.run_id, "go")
    assert ended.status == "completed", ended
    assert ended.output == [3, ["1.txt", "2.txt", "3.txt"], "since the first"]
    assert ended.steps == 3
    assert desk.steps(view.run_id).count("score.1") == 3, "each begins with an empty history"
    assert desk.kinds(view.run_id).count("run.continued") == 2
    desk.verify()


def test_a_run_keeps_the_version_that_it_began_with(desk: Desk) -> None:
    old = desk.start("signals")
    view = desk.start("patches")
    assert desk.signal(view.run_id, "go").output == [1, 1]
    assert old.status == "suspended"


def test_memory_outlasts_runs_and_is_the_agents_own(desk: Desk) -> None:
    assert desk.start("remembers").output == [1, ["other", "seen"], {"a": [1]}]
    assert desk.start("remembers").output == [2, ["other", "seen"], {"a": [1]}]
    assert desk.start("remembers").output == [3, ["seen"], None]
    with desk.service() as service:
        service.create_tenant("acme", "eu-west", principal=desk.person)
    assert desk.start("remembers", tenant="acme").output[0] == 1
    desk.verify()


def test_files_outlast_incarnations(desk: Desk) -> None:
    view = desk.start("files")
    assert desk.signal(view.run_id, "go").output == [["a/b.bin", "text"], "anders", 1 << 20]
    gone = desk.start("files", {"delete": True})
    ended = desk.signal(gone.run_id, "go")
    assert ended.status == "failed"
    assert "there is no file 'a/b.bin'" in ended.error
    desk.verify()


def test_what_is_left_of_the_budgets(desk: Desk, model_server: Callable[..., Any]) -> None:
    model_server([{"text": "ok", "usage": {"input": 100, "output": 50}}])
    policies = """
    - id: dollars
      category: budget_usd
      with: {limit: 0.01, window: run}
    - id: tokens
      category: budget_tokens
      with: {limit: 1000, window: run}
    """
    view = desk.start("balance", policies=policies)
    assert view.output == [[0.01, 1000], [pytest.approx(0.01 - 0.0006), 850]]
    assert view.cost_nano == 600_000
    desk.verify()


def test_a_run_undoes_its_effects_latest_first(desk: Desk) -> None:
    view = desk.start("compensates")
    assert view.output == [3, 0]
    assert (desk.folder / "books.log").read_text().split("\n")[:-1] == ["book 1", "book 2", "unbook 2", "unbook 1"]
    steps = desk.steps(view.run_id)
    assert steps[-3:] == ["release.1", "unbook.1", "unbook.2"]
    desk.verify()


def test_code_that_diverges_is_kept_and_named(desk: Desk) -> None:
    view = desk.start("diverges")
    assert view.status == "suspended"
    diverged = desk.signal(view.run_id, "go")
    assert diverged.status == "suspended"
    recorded, asked = desk.steps(view.run_id)[0], diverged.error.split()[4]
    assert asked.startswith("step_")
    assert asked != recorded
    assert recorded in diverged.error
    assert "runs resolve" in diverged.error
    assert [pending.kind for pending in diverged.pending] == ["resolve"]
    shown = desk.json("runs", "resolve", view.run_id, "--fail")
    assert shown["resolved"] == "fail"
    ended = desk.json("runs", "resume", view.run_id, status=1)
    assert ended["status"] == "failed"
    assert recorded in ended["error"]
    desk.verify()


@pytest.mark.parametrize("how", ["done", "retry", "fail"])
def test_an_irreversible_call_without_an_answer_is_in_doubt(desk: Desk, how: str) -> None:
    view = desk.start("pays")
    assert view.status == "in_doubt"
    key = desk.events(view.run_id, "intent")[0].data["key"]
    assert key in view.error
    assert (desk.folder / "books.log").read_text() == f"pay 7 {key}\n"
    assert desk.drive(view.run_id).status == "in_doubt"
    with desk.service() as service:
        service.resolve(view.run_id, how, b'{"paid":7}', principal=desk.person)
    ended = desk.drive(view.run_id)
    assert ended.status == "completed", ended
    books = (desk.folder / "books.log").read_text().splitlines()
    assert books == [f"pay 7 {key}"] * (2 if how == "retry" else 1), "the key is the same"
    if how == "fail":
        assert "resolved as failed by alice" in ended.output
    else:
        assert ended.output == {"paid": 7}
    desk.verify()


def test_what_cannot_be_recorded_is_refused_with_its_place(desk: Desk) -> None:
    view = desk.start("large")
    assert view.status == "completed", view
    large, mixed, other, number, raw = view.output
    assert "bytes of JSON; at most" in large
    assert "ctx.files" in large
    assert mixed == "ok" or "$" in mixed
    assert "holds a builtins.object at $" in other
    assert "holds nan at $" in number
    assert "holds bytes at $" in raw
    desk.verify()


def test_streams_are_served_again_from_the_record(desk: Desk, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "one two three four five"}])
    view = desk.start("streams")
    assert view.status == "suspended", view
    assert desk.signal(view.run_id, "go").output == "one two three four five"
    (said,) = desk.events(view.run_id, "log")
    with desk.service() as service:
        pieces = service.store.payload("default", said.payloads["message"]).split()[0]
    assert int(pieces) > 1
    assert len(server.requests) == 1
    desk.verify()


def test_models_fail_are_retried_and_time_out(desk: Desk, model_server: Callable[..., Any]) -> None:
    server = model_server(
        [
            {"match": "retry", "error": 529, "times": 2},
            {"match": "retry", "text": "third time"},
            {"match": "limit", "error": 429, "retry_after": "0", "times": 1},
            {"match": "limit", "text": "after a while"},
            {"match": "broken", "fault": "malformed"},
            {"match": "hang", "fault": "hang"},
            {"match": "bad", "error": 400, "message": "no such model"},
            {"match": "class", "category": "b"},
            {"match": "object", "json": {"n": 3}},
        ]
    )
    view = desk.start("models")
    assert view.status == "completed", view
    assert view.output == {
        "retry": "third time",
        "limit": "after a while",
        "broken": "LLMError",
        "hang": "StepTimeout",
        "bad": "LLMError",
        "class": "b",
        "object": {"n": 3},
    }
    asked = [request.last for request in server.requests]
    assert (asked.count("retry"), asked.count("limit"), asked.count("bad")) == (3, 2, 1)
    desk.verify()


def test_without_a_key_the_error_says_which_to_set(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    view = desk.start("asks_model")
    assert view.status == "failed"
    assert "ANTHROPIC_API_KEY" in view.error
    assert "\n" not in view.error


def test_denied_and_terminated_leave_with_their_statuses(desk: Desk, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "ok", "usage": {"input": 10, "output": 100}}])
    deny = """
    - id: no-payments
      category: tool_allowlist
      with: {allow: []}
    """
    caught = desk.start("denied", {"catch": True}, policies=deny)
    assert caught.output == ["no-payments", "tool pay is not on the list of allowed tools"]
    desk.write("deny.yaml", "version: 1\npolicies:\n- {id: no, category: tool_allowlist, with: {allow: []}}\n")
    denied = desk.json("run", "features.py:Features", "--workflow", "denied", "--policy", "deny.yaml", status=4)
    assert (denied["status"], denied["output"]) == ("denied", None)
    assert "not on the list" in denied["error"]
    desk.write(
        "spend.yaml",
        "version: 1\npolicies:\n- {id: cap, category: budget_usd, with: {limit: 0.004}, on_breach: terminate}\n",
    )
    ended = desk.json("run", "features.py:Features", "--workflow", "spends", "--policy", "spend.yaml", status=5)
    assert ended["status"] == "terminated"
    assert ended["cost_usd"] <= 0.004
    assert 1 <= len(server.requests) <= 5
    assert not (desk.folder / "books.log").exists()
    desk.verify()


def test_a_fork_shares_its_history_and_goes_on_by_itself(desk: Desk) -> None:
    origin = desk.start("forked")
    assert origin.status == "completed", origin
    forked = desk.json("runs", "fork", origin.run_id, "--step", "nests.1/draws.2")
    assert (forked["status"], forked["run_id"] != origin.run_id) == ("completed", True)
    old, new = origin.output, forked["output"]
    assert new[:3] == old[:3], "samples and children are shared"
    assert new[3][0] == old[3][0], "and so is what came before the step, within the one around it too"
    assert new[3][1] != old[3][1], "the step itself runs anew"
    assert (new[4], new[5] != old[5]) == (["note"], True)
    assert (desk.folder / "books.log").read_text() == "book 1\n", "no effect happens again"
    (created,) = desk.events(forked["run_id"], "run.created")
    assert (created.data["forked_from"], created.data["at"]) == (origin.run_id, "nests.1/draws.2")
    made = [e.data["action"]["id"] for e in desk.events(forked["run_id"], "intent") if "copied" not in e.data]
    assert made == ["nests.1", "nests.1/draws.2", "draws.1"]
    with desk.service() as service:
        service.kill("run", forked["run_id"], "too late", principal=desk.person, compensate=True)
        whole = service.fork(origin.run_id)
        with pytest.raises(UsageError, match=r"has no step nests\.7"):
            service.fork(origin.run_id, "nests.7")
    assert desk.drive(whole).output == old
    desk.verify()


def test_a_fork_undoes_nothing_of_its_origin_and_is_refused_under_a_kill(desk: Desk) -> None:
    origin = desk.start("forked")
    with desk.service() as service:
        copy = service.fork(origin.run_id, "draws.1")
        killed = service.kill("run", copy, "not this one", principal=desk.person, compensate=True)
        assert service.run(copy).rule == f"kill:{killed.id}"
    assert (desk.folder / "books.log").read_text() == "book 1\n"
    with desk.service() as service:
        service.kill("agent", "features", "all", principal=desk.person)
        refused = service.fork(origin.run_id, "draws.1")
        assert service.run(refused).status == "refused"
        with pytest.raises(UsageError, match="has no history"):
            service.fork(refused)
    desk.verify()


@pytest.mark.parametrize("how", ["hangs", "connector"])
def test_an_irreversible_tool_that_overruns_is_in_doubt_and_not_tried_again(desk: Desk, how: str) -> None:
    view = desk.start("once", {"how": how})
    assert view.status == "in_doubt", view
    (pending,) = view.pending
    assert pending.step == {"hangs": "wire.1", "connector": "around.1/hangs.1"}[how]
    assert desk.steps(view.run_id).count(pending.step) == 1
    with desk.service() as service:
        service.resolve(view.run_id, "done", b'"sent"', principal=desk.person)
    assert desk.drive(view.run_id).output == "sent"
    assert desk.steps(view.run_id).count(pending.step) == 1
    desk.verify()


def test_an_irreversible_tool_that_raised_is_not_tried_again(desk: Desk) -> None:
    view = desk.start("once", {"how": "raises"})
    assert (view.status, view.error_code) == ("failed", "step_failed")
    assert desk.steps(view.run_id) == ["wire.1"]
    desk.verify()


def test_a_waiting_run_costs_no_process_and_goes_on_with_the_code_that_it_began_with(desk: Desk) -> None:
    with desk.serving():
        run = desk.submit("features.py:Features", workflow="pinned")
        desk.until(lambda: desk.view(run).status == "suspended", "it waits")
        desk.until(lambda: not registry.entries(desk.home), "its process is gone")
        desk.write("features.py", AGENT.replace('return "old"', 'return "new"'))
        fresh = desk.submit("features.py:Features", workflow="pinned")
        for one in (run, fresh):
            with desk.service() as service:
                service.signal(one, "go", b"null", principal=desk.person)
        assert desk.ended(run, "completed").output == "old"
        assert desk.ended(fresh, "completed").output == "new"
    desk.verify()


def test_a_node_that_is_stopped_in_the_middle_leaves_its_runs_to_the_next(desk: Desk) -> None:
    with desk.serving():
        runs = [desk.submit("features.py:Features", workflow="long") for _ in range(2)]
        for run in runs:
            desk.reached(run, "intent", 2)
    with desk.service() as service:
        assert service.store.nodes() == []
    with desk.serving():
        for run in runs:
            assert desk.ended(run, "completed").output == [True, 2]
            assert desk.steps(run) == ["counted.1", "until_stopped.1", "until_stopped.1"]
    desk.verify()
