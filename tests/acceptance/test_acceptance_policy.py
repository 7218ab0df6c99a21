"""Each of the first categories in a real run. A verdict stands in the journal with rule, reason, bundle and facts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.action import Outcome
from holdfast.journal.event import Event
from holdfast.node.views import Principal

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

BOB = Principal(name="bob", auth="token", roles=("treasury",))
CAROL = Principal(name="carol", auth="token", roles=("treasury",))
AGENT = """
    import time
    from holdfast import DeniedError, agent, workflow

    @agent(name="governed")
    class Governed:
        @workflow
        def tools(self, ctx):
            found = []
            for name in ctx.input.names:
                found.append(self.tried(ctx, lambda: ctx.tool(name, amount=ctx.input.get("amount", 1))))
            return found

        @workflow
        def models(self, ctx):
            return [self.tried(ctx, lambda: ctx.llm.generate("hello", model=model)) for model in ctx.input.models]

        @workflow
        def steps(self, ctx):
            for number in range(ctx.input.count):
                ctx.call(self.one, number)
            return "done"

        @workflow
        def side_by_side(self, ctx):
            return ctx.gather(*[lambda: ctx.tool("look", amount=1) for _ in range(4)])

        @workflow
        def waits(self, ctx):
            ctx.wait_signal("never")

        @workflow
        def hangs(self, ctx):
            ctx.call(self.sleep)

        @workflow
        def spawns(self, ctx):
            return ctx.spawn(Child, {}, budget_usd=0.0005).result()

        def sleep(self):
            time.sleep(3600)

        def one(self, number):
            return number

        def tried(self, ctx, call):
            try:
                return call()
            except DeniedError as error:
                return ["denied", error.rule]

    @agent(name="governed-child")
    class Child:
        @workflow
        def main(self, ctx):
            asked = 0
            try:
                for _ in range(20):
                    ctx.llm.generate("hello", max_tokens=20)
                    asked += 1
            except DeniedError as error:
                return [asked, error.rule]
"""
BANK = """
    import threading

    lock = threading.Lock()
    at_once = most = 0
    both = threading.Barrier(2)

    def look(amount):
        global at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            both.wait(30)
        finally:
            with lock:
                at_once -= 1
        return most

    def pay(amount):
        return {"paid": amount}

    def report_read(amount):
        return "read"
"""
SETTINGS = """
    [node]
    grace = "50ms"
    [connectors.look]
    call = "bank.py:look"
    effect = "idempotent"
    [connectors.pay]
    call = "bank.py:pay"
    [connectors.report_read]
    call = "bank.py:report_read"
    effect = "pure"
    [llm.prices."dear-1"]
    input = 30.0
    output = 150.0
"""


@pytest.fixture
def place(lab: Any) -> Any:
    lab.write("governed.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS + lab.model)
    return lab


def start(lab: Any, workflow: str, input_: Any, policies: str) -> Any:
    return lab.run("governed.py:Governed", input_, workflow=workflow, policies=policies)


def verdicts(lab: Any, run: str, rule: str) -> list[Event]:
    """The events in which a rule had something to say; each holds all that is needed to decide it again."""
    (created,) = lab.events(run, "run.created")
    found = []
    for event in lab.events(run):
        verdict = event.data.get("verdict")
        hits = [hit for hit in (verdict or {}).get("hits", ()) if hit["rule"] == rule]
        if not hits:
            continue
        assert verdict["bundle"] == created.data["bundle"]
        assert len(verdict["bundle"]) == 64
        assert all(hit["reason"] and hit["category"] for hit in hits)
        facts = event.data["facts"]
        assert (facts["run"], facts["agent"], facts["tenant"]) == (run, "governed", "default")
        assert facts["now"] > 0
        found.append(event)
    return found


def hit(event: Event, rule: str) -> dict[str, Any]:
    """What the rule said in an event."""
    return next(hit for hit in event.data["verdict"]["hits"] if hit["rule"] == rule)


def test_tool_allowlist(place: Any) -> None:
    policies = """
    - id: bank-tools
      category: tool_allowlist
      with: {allow: ["report_*"]}
    """
    view = start(place, "tools", {"names": ["report_read", "pay"]}, policies)
    assert view.output == ["read", ["denied", "bank-tools"]]
    (event,) = verdicts(place, view.run_id, "bank-tools")
    assert event.kind == "verdict"
    assert event.data["verdict"]["outcome"] == Outcome.DENY
    assert hit(event, "bank-tools")["reason"] == "tool pay is not on the list of allowed tools"
    assert hit(event, "bank-tools")["facts"] == {"tool": "pay"}
    place.verify()


def test_model_allowlist_and_price_ceiling(place: Any, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "ok"}])
    policies = """
    - id: reviewed
      category: model_allowlist
      with: {allow: ["scripted-*", "anthropic/dear-*", "unpriced-1"]}
    - id: cheap
      category: model_price_ceiling
      with: {output_per_mtok: 15}
    """
    view = start(place, "models", {"models": ["scripted-1", "dear-1", "other-1", "unpriced-1"]}, policies)
    assert view.output == ["ok", ["denied", "cheap"], ["denied", "cheap"], ["denied", "cheap"]]
    assert [request.model for request in server.requests] == ["scripted-1"]
    dear, other, unpriced = verdicts(place, view.run_id, "cheap")
    assert "costs $150 for a million output tokens; the ceiling is $15" in hit(dear, "cheap")["reason"]
    assert hit(other, "reviewed")["reason"] == "model other-1 is not on the list of allowed models"
    assert "unknown price for model unpriced-1" in hit(unpriced, "cheap")["reason"]
    place.verify()


def test_step_limit_is_exact(place: Any) -> None:
    policies = """
    - id: five
      category: step_limit
      with: {limit: 5}
    """
    assert start(place, "steps", {"count": 5}, policies).output == "done"
    view = start(place, "steps", {"count": 6}, policies)
    assert (view.status, view.error_code, view.rule) == ("terminated", "terminated", "five")
    assert view.steps == 5
    (event,) = verdicts(place, view.run_id, "five")
    assert event.data["verdict"]["outcome"] == Outcome.TERMINATE
    assert hit(event, "five")["facts"] == {"limit": 5, "used": 5}
    assert event.data["facts"]["counters"]["steps"] == 5
    place.verify()


def test_tool_call_limit_and_shadow_mode(place: Any) -> None:
    policies = """
    - id: two
      category: tool_call_limit
      with: {limit: 2}
    - id: none-at-all
      category: tool_call_limit
      with: {limit: 0}
      mode: shadow
    - id: off
      category: tool_call_limit
      with: {limit: 0}
      mode: "off"
    """
    view = start(place, "tools", {"names": ["pay", "report_read", "pay"]}, policies)
    assert view.output == [{"paid": 1}, "read", ["denied", "two"]]
    assert [event.kind for event in verdicts(place, view.run_id, "none-at-all")] == ["intent", "intent", "verdict"]
    assert hit(verdicts(place, view.run_id, "none-at-all")[0], "none-at-all")["mode"] == "shadow"
    assert verdicts(place, view.run_id, "off") == []
    place.verify()


def test_loop_detection(place: Any) -> None:
    policies = """
    - id: circles
      category: loop_detection
      with: {max_repeats: 3}
      on_breach: terminate
    """
    view = start(place, "tools", {"names": ["pay"] * 10}, policies)
    assert (view.status, view.rule) == ("terminated", "circles")
    assert len(place.events(view.run_id, "intent")) == 3
    (event,) = verdicts(place, view.run_id, "circles")
    assert hit(event, "circles")["facts"] == {"repeats": 4, "limit": 3}
    assert len(event.data["facts"]["recent"]) == 3
    place.verify()


def test_rate_limit_throttles_and_denies(place: Any) -> None:
    slow = """
    - id: slowly
      category: rate_limit
      gates: [tool]
      with: {limit: 4, period: 1s, burst: 1, per: run}
    """
    view = start(place, "tools", {"names": ["pay", "report_read", "pay"]}, slow)
    assert view.output == [{"paid": 1}, "read", {"paid": 1}]
    throttled = [event.data["action"]["id"] for event in place.events(view.run_id, "verdict")]
    assert len(throttled) == len(set(throttled)), "one event an action, however often it was tried"
    with place.service() as service:
        (row,) = service.store.ledger("rate_limit")
    began = place.events(view.run_id, "intent")[0].at
    assert row.tat - began >= 750_000, "three cells of a quarter of a second, by the database's clock"
    deny = slow.rstrip() + "\n      on_breach: deny\n"
    refused = start(place, "tools", {"names": ["pay", "pay"]}, deny.replace("period: 1s", "period: 1h"))
    assert refused.output == [{"paid": 1}, ["denied", "slowly"]]
    (event,) = [e for e in verdicts(place, refused.run_id, "slowly") if e.kind == "verdict"]
    assert "slowly" in {refusal["policy"] for refusal in event.data["facts"]["refusals"].values()}
    place.verify()


def test_concurrency_limit(place: Any) -> None:
    """Each call waits for one other: with two at once, all four pass two by two, and never three."""
    policies = """
    - id: two-at-once
      category: concurrency_limit
      gates: [tool]
      with: {limit: 2, per: run}
    """
    view = start(place, "side_by_side", {}, policies)
    assert view.status == "completed", view
    assert max(view.output) == 2
    with place.service() as service:
        (row,) = service.store.ledger("concurrency_limit")
    assert row.holders == {}, "every place was given back"
    place.verify()


def test_require_approval_of_a_tool_holds_the_call_until_people_agree(place: Any) -> None:
    policies = """
    - id: large-payments
      category: require_approval
      gates: [tool]
      when: action.name == "pay" && action.args.amount > 100
      with: {approvers: ["role:treasury"], quorum: 2}
    """
    assert start(place, "tools", {"names": ["pay"], "amount": 100}, policies).output == [{"paid": 100}]
    view = start(place, "tools", {"names": ["pay"], "amount": 101}, policies)
    assert view.status == "suspended"
    with place.service() as service:
        (asked,) = service.approvals()
        assert asked.what == {"action": "tool", "name": "pay", "args": {"amount": 101}}
        service.answer(asked.id, True, principal=BOB)
        assert service.drive(view.run_id).status == "suspended"
        service.answer(asked.id, True, principal=CAROL)
    assert place.drive(view.run_id).output == [{"paid": 101}]
    waited, intent = verdicts(place, view.run_id, "large-payments")
    assert (waited.kind, waited.data["verdict"]["outcome"]) == ("wait", Outcome.REQUIRE_APPROVAL)
    assert hit(intent, "large-payments")["facts"] == {"approved_by": ["bob", "carol"], "quorum": 2}
    assert [grant["principal"] for grant in intent.data["facts"]["grants"]] == ["bob", "carol"]
    refused = start(place, "tools", {"names": ["pay"], "amount": 102}, policies)
    with place.service() as service:
        service.answer(service.approvals()[0].id, False, reason="no", principal=BOB)
    ended = place.drive(refused.run_id)
    assert ended.output == [["denied", "approval"]], "the call is denied and the run may go another way"
    place.verify()


def test_four_eyes_leaves_the_requester_out(place: Any) -> None:
    policies = """
    - id: two-others
      category: four_eyes
      when: action.name == "pay"
      with: {quorum: 2}
    """
    view = start(place, "tools", {"names": ["pay"]}, policies)
    with place.service() as service:
        (asked,) = service.approvals()
        with pytest.raises(Exception, match="someone else must approve"):
            service.answer(asked.id, True, principal=place.person)
        service.answer(asked.id, True, principal=BOB)
        service.answer(asked.id, True, principal=CAROL)
    assert place.drive(view.run_id).output == [{"paid": 1}]
    assert hit(verdicts(place, view.run_id, "two-others")[-1], "two-others")["facts"]["approved_by"] == ["bob", "carol"]
    place.verify()


@pytest.mark.parametrize(("category", "workflow"), [("wall_clock_limit", "hangs"), ("idle_limit", "waits")])
def test_time_limits_end_what_does_nothing(place: Any, category: str, workflow: str) -> None:
    policies = f"""
    - id: in-time
      category: {category}
      with: {{limit: 3s}}
    """
    view = start(place, workflow, {}, policies)
    assert (view.status, view.error_code, view.rule) == ("terminated", "terminated", "in-time")
    (end,) = place.events(view.run_id, "run.terminated")
    assert end.at - place.events(view.run_id, "run.started")[0].at >= 3_000_000
    place.verify()


def test_a_kill_switch_in_the_bundle_stops_its_scope(place: Any) -> None:
    policies = """
    - id: experiments
      category: kill_switch
      scope: {agent: "govern*"}
      with: {reason: "no experiments"}
    """
    view = start(place, "steps", {"count": 1}, policies)
    assert (view.status, view.rule) == ("killed", "experiments")
    (event,) = verdicts(place, view.run_id, "experiments")
    assert hit(event, "experiments")["reason"] == "no experiments"
    place.verify()


def test_a_childs_own_ceiling(place: Any, model_server: Callable[..., Any]) -> None:
    model_server([{"text": "ok", "usage": {"input": 5, "output": 10}}])
    view = start(place, "spawns", {}, "- {id: steps, category: step_limit, with: {limit: 100}}")
    with place.service() as service:
        (child,) = [row for row in service.runs() if row.run_id != view.run_id]
    ended = place.view(child.run_id)
    assert (ended.status, ended.rule) == ("terminated", f"spawn.{child.run_id}")
    assert 0 < ended.cost_nano <= 500_000
    assert view.status == "failed"
    assert "terminated" in view.error, "the parent has no such ceiling, and hears of its child's end"
    place.verify()
