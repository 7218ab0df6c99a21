"""Candidate policies over real recorded runs: with the bundle in force every verdict is the recorded one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.cli.policy_replay import report
from holdfast.node import replay as replaying
from holdfast.node.views import Principal
from holdfast.policy.bundle import Bundle, load
from holdfast.testing.model_server import ModelServer, Reply

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

ANN = Principal(name="ann", auth="token", roles=("controller",))
AGENT = """
    from holdfast import DeniedError, agent, workflow

    @agent(name="clerk")
    class Clerk:
        @workflow
        def run(self, ctx):
            found = []
            for amount in ctx.input.amounts:
                found.append(self.tried(ctx, lambda: ctx.call(self.check, amount)))
                found.append(self.tried(ctx, lambda: ctx.llm.generate(f"book {amount}", max_tokens=50)))
                found.append(self.tried(ctx, lambda: ctx.tool("pay", amount=amount, card="4111 1111 1111 1111")))
            if ctx.input.get("child"):
                found.append(ctx.spawn(Clerk, {"amounts": [1]}).result())
            return found

        def check(self, amount):
            return amount > 0

        def tried(self, ctx, call):
            try:
                return call()
            except DeniedError as error:
                return ["denied", error.rule]
"""
SETTINGS = """
    [node]
    grace = "50ms"
    [connectors.pay]
    call = "bank.py:pay"
    effect = "idempotent"
"""
BANK = """
    def pay(amount, card):
        return {"paid": amount, "card": card}
"""
LIMITS = """
    - {id: spend, category: budget_usd, with: {limit: 0.002, floor_tokens: 10}}
    - {id: pay-limit, category: tool_call_limit, with: {limit: 2}}
    - {id: large, category: kill_switch, gates: [tool], when: action.args.amount > 500, with: {reason: too much}}
    - {id: watch, category: tool_call_limit, with: {limit: 1}, mode: shadow}
"""
RECORD = """
    - {id: twice, category: kill_switch, gates: [tool], when: 'history.count("tool", "pay") >= 2', with: {reason: no}}
    - {id: sum, category: kill_switch, gates: [tool], when: 'history.sum("tool", "pay", "amount") > 5'}
    - {id: rate, category: rate_limit, gates: [step], with: {limit: 50, period: 1s, burst: 1}}
    - {id: one-at-a-time, category: concurrency_limit, gates: [tool], with: {limit: 1}}
"""
PEOPLE = """
    - id: ask
      category: require_approval
      gates: [tool]
      when: action.args.amount > 10
      with: {approvers: ["role:controller"]}
    - {id: cost, category: budget_usd, with: {limit: 1, window: tree}}
    - {id: hide, category: pan_guard, gates: [tool], on_breach: redact, with: {phases: [after]}}
"""


@pytest.fixture
def recorded(lab: Any, model_server: Callable[..., ModelServer]) -> Any:
    """A home with runs that were decided under different bundles."""
    model_server(lambda request: Reply(text="booked"))
    lab.write("clerk.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS + lab.model)
    lab.run("clerk.py:Clerk", {"amounts": [1, 2]})
    lab.run("clerk.py:Clerk", {"amounts": [1, 2, 3, 900]}, policies=LIMITS)
    lab.run("clerk.py:Clerk", {"amounts": [1, 2, 7, 8]}, policies=RECORD)
    lab.run("clerk.py:Clerk", {"amounts": [2], "child": True}, policies=PEOPLE)
    for approve in (True, False):
        waits = lab.run("clerk.py:Clerk", {"amounts": [20]}, policies=PEOPLE)
        with lab.service() as service:
            service.answer(waits.pending[0].id, approve, principal=ANN)
        assert lab.drive(waits.run_id).status == "completed"
    return lab


def test_the_bundle_in_force_gives_every_recorded_verdict_again(recorded: Any) -> None:
    with recorded.service() as service:
        store: Any = service.store
        streams = replaying.recorded_runs(store)
        verdicts = [
            said["verdict"]
            for stream in streams
            for event in store.events(stream.header.stream)
            for said in (event.data, event.data.get("after", {}))
            if said.get("verdict", {}).get("bundle")
        ]
        assert [verdict for verdict in verdicts if verdict.get("redactions")]
        digests = {verdict["bundle"] for verdict in verdicts}
        assert len(digests) == 4
        assert {verdict["outcome"] for verdict in verdicts} >= {0, 4, 5, 6}
        pinned = 0
        for digest in digests:
            bundle = Bundle.from_bytes(store.blob(digest))
            found = replaying.replay("sqlite", recorded.home, store, bundle, streams, jobs=1)
            assert len(found) == len(streams)
            assert not [delta.unknown for delta in found if delta.unknown]
            assert sum(delta.differ for delta in found) == 0
            mine = [delta for delta in found if delta.pinned]
            assert all(delta.same == delta.decisions == delta.pinned and not delta.changed for delta in mine)
            pinned += sum(delta.pinned for delta in mine)
        assert pinned == len(verdicts)


def test_several_processes_and_the_command_say_the_same(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = LIMITS.replace("limit: 2}", "limit: 1}")
    rules = recorded.write("candidate.yaml", "version: 1\npolicies:\n" + strict)
    told = recorded.json("policy", "replay", str(rules))
    assert told["runs"] == 7
    assert (told["dropped_approvals"], told["reviewer_minutes"]) == (2, -10)
    stopped = [run for run in told["changed"] if run["stops_at"]]
    assert told["new_denials"] == len(stopped) > 0
    assert {run["changes"][-1]["rule"] for run in stopped} == {"pay-limit"}
    assert told["saved_usd"] > 0
    with recorded.service() as service:
        before = len(service.store.log("default", limit=10_000))
        monkeypatch.setattr(replaying, "ALONE", 0)
        monkeypatch.setattr(replaying, "CHUNK", 2)
        streams = replaying.recorded_runs(service.store)
        one, two = (
            replaying.replay("sqlite", recorded.home, service.store, load([rules]), streams, jobs=jobs)
            for jobs in (1, 2)
        )
        assert one == two
        assert report(told["bundle"], one) == told
        assert len(service.store.log("default", limit=10_000)) == before


def test_recorded_actions_are_explained_and_covered(recorded: Any) -> None:
    runs = [row["run_id"] for row in recorded.json("runs", "list")["runs"]]
    events = [(run, event) for run in runs for event in recorded.events(run)]
    denied = next((run, e) for run, e in events if e.kind == "verdict" and e.data["verdict"]["rule"] == "pay-limit")
    step = denied[1].data["action"]["id"]
    told = recorded.json("policy", "explain", "--run", denied[0], "--step", step)
    assert (told["verdict"]["outcome"], told["verdict"]["rule"]) == ("deny", "pay-limit")
    assert {rule["rule"] for rule in told["rules"]} == {"spend", "pay-limit", "large", "watch"}
    back = next((run, e) for run, e in events if "after" in e.data)
    told = recorded.json("policy", "explain", "--run", back[0], "--step", back[1].data["id"])
    assert (told["verdict"]["outcome"], told["verdict"]["rule"]) == ("redact", "hide")
    covered = recorded.json("policy", "coverage")
    assert covered["runs"] == len(runs)
    assert covered["actions"] == covered["gated"] > 20
    assert covered["bypasses"] == {}


def test_what_is_learnt_from_runs_lets_them_go_as_they_went(recorded: Any) -> None:
    told = recorded.json("policy", "learn", "--output", "learnt.yaml")
    assert (told["runs"], told["agents"]) == (7, ["clerk"])
    assert {policy["category"] for policy in told["policies"]} >= {"tool_allowlist", "model_allowlist", "budget_usd"}
    assert any("may call pay" in note for note in told["notes"])
    assert recorded.json("policy", "lint", "learnt.yaml")["problems"] == []
    replayed = recorded.json("policy", "replay", "learnt.yaml")
    assert (replayed["new_denials"], replayed["new_approvals"], replayed["redactions"]) == (0, 0, -3)
    assert recorded.cli("policy", "learn", "--output", "learnt.yaml").returncode == 2
