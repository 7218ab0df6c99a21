"""What a node knows of a run beyond its own counters, seen by a rule that allows and denies on it, on real runs."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.node.mandate import Mandate
from holdfast.node.views import Principal

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
    from holdfast import DeniedError, agent, workflow


    def tried(act):
        try:
            return act()
        except DeniedError as error:
            return "denied: " + str(error)


    @agent(name="clerk")
    class Clerk:
        @workflow
        def pay(self, ctx):
            return tried(lambda: ctx.tool("pay", amount=ctx.input.get("amount") or 1))

        @workflow
        def passes_on(self, ctx):
            def start():
                child = ctx.spawn(Clerk, {}, workflow="pay", authority=ctx.input.get("authority"))
                return child.result()

            return tried(start)

        @workflow
        def spawns(self, ctx):
            return [tried(lambda: ctx.spawn(Clerk, {}, workflow="pay").result()) for _ in range(3)]

        @workflow
        def cites(self, ctx):
            ctx.tool("search", query="holdfast")
            return {"text": "It holds.", "sources": [ctx.input.source]}

        @workflow
        def waits(self, ctx):
            first = tried(lambda: ctx.tool("pay", amount=1))
            ctx.wait_signal("go")
            return [first, tried(lambda: ctx.tool("pay", amount=2))]
"""
BANK = """
    def pay(amount):
        if amount < 0:
            raise ValueError("no")
        return "paid"

    def search(query):
        return {"hits": [{"url": "https://docs.example/a", "text": "It holds."}]}
"""
SETTINGS = """
    [connectors.pay]
    call = "bank.py:pay"
    [connectors.search]
    call = "bank.py:search"
    effect = "pure"
    [principals.alice]
    token_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
    acts_for = ["?*a", "carl"]
    [principals.anna]
    may = ["tool:pay"]
    [principals.berta]
    may = ["tool:read_*"]
"""

SUMMED = """
    - id: much
      category: tool_allowlist
      gates: [tool]
      with: {deny: ["*"]}
      when: history.sum("tool", "pay", "amount", over="agent") > 100.0
"""


@pytest.fixture
def bank(lab: Any) -> Any:
    lab.write("clerk.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS)
    return lab


def start(bank: Any, workflow: str, policies: str, input_: Any = None, **options: Any) -> Any:
    view = bank.run("clerk.py:Clerk", input_ or {}, workflow=workflow, policies=policies, **options)
    assert view.status == "completed", view
    return view.output


def test_tags_are_what_the_run_was_started_with(bank: Any) -> None:
    rule = "- {id: tags, category: chargeback_tags, gates: [tool], with: {required: [cost-centre]}}"
    assert "cost-centre" in start(bank, "pay", rule)
    assert start(bank, "pay", rule, mandate=Mandate(tags={"cost-centre": "4711"})) == "paid"


def test_an_agent_whose_code_was_pinned_here_has_a_local_identity(bank: Any) -> None:
    rule = "- {{id: who, category: agent_identity_required, gates: [tool], with: {{methods: [{0}], subjects: [{1}]}}}}"
    assert start(bank, "pay", rule.format("local", "clerk")) == "paid"
    assert "not accepted (sub)" in start(bank, "pay", rule.format("local", "teller"))
    assert "verified local" in start(bank, "pay", rule.format("mtls", "clerk"))
    other = Mandate(identity="mtls", claims={"sub": "clerk"})
    assert start(bank, "pay", rule.format("mtls", "clerk"), mandate=other) == "paid"


def test_an_agent_does_no_more_than_the_person_may(bank: Any) -> None:
    rule = "- {id: both, category: on_behalf_of, gates: [tool]}"
    assert "not known for whom" in start(bank, "pay", rule)
    assert start(bank, "pay", rule, mandate=Mandate(on_behalf_of="anna")) == "paid"
    assert "berta may not" in start(bank, "pay", rule, mandate=Mandate(on_behalf_of="berta"))
    assert "not known what carl may" in start(bank, "pay", rule, mandate=Mandate(on_behalf_of="carl"))
    held = Mandate(on_behalf_of="anna", authority=("tool:look",))
    assert "whoever it acts for" in start(bank, "pay", rule, mandate=held)


def test_nobody_starts_runs_for_people_whom_they_do_not_act_for(bank: Any) -> None:
    mandate = Mandate(on_behalf_of="dora")
    with pytest.raises(UsageError, match="mallory may not start runs for dora"):
        bank.run("clerk.py:Clerk", {}, mandate=mandate, principal=Principal(name="mallory", auth="token"))
    refused = bank.cli("run", "clerk.py:Clerk", "--workflow", "pay", "--on-behalf-of", "anna")
    assert refused.returncode == 2
    assert "may not start runs for anna" in refused.stderr


def test_who_forks_a_run_does_not_come_by_the_right_to_act_for_somebody(bank: Any) -> None:
    rule = "- {id: both, category: on_behalf_of, gates: [tool]}"
    run = bank.submit("clerk.py:Clerk", {}, workflow="pay", policies=rule, mandate=Mandate(on_behalf_of="anna"))
    assert bank.drive(run).output == "paid"
    for name, said in (("alice", "paid"), ("mallory", "denied: it is not known for whom the agent acts")):
        with bank.service() as service:
            copy = service.fork(run, "pay.1", principal=Principal(name=name, auth="token"))
        assert bank.drive(copy).output == said


def test_tags_and_authority_from_the_command_line(bank: Any) -> None:
    rules = bank.write(
        "rules.yaml",
        """
        version: 1
        policies:
          - {id: tags, category: chargeback_tags, gates: [tool], with: {required: [cost-centre]}}
    """,
    )
    command = ("run", "clerk.py:Clerk", "--workflow", "pay", "--policy", str(rules))
    assert "denied" in bank.json(*command)["output"]
    done = bank.json(*command, "--tag", "cost-centre=4711", "--may", "tool:pay")
    assert done["output"] == "paid"
    [created] = bank.events(done["run_id"], "run.created")
    assert created.data["mandate"]["authority"] == ["tool:pay"]
    assert bank.cli(*command, "--tag", "oops").returncode == 2


def test_roles_are_those_of_who_asked(bank: Any) -> None:
    rule = """
        - id: controllers
          category: tool_allowlist
          with: {deny: ["*"]}
          when: '!("controller" in facts.roles)'
    """
    assert start(bank, "pay", rule) == "paid"
    assert "denied" in start(bank, "pay", rule, principal=Principal(name="bo", auth="token"))


def test_a_run_passes_on_no_more_than_it_may(bank: Any) -> None:
    rule = """
        - {id: less, category: delegation_attenuation}
        - {id: both, category: on_behalf_of, gates: [tool]}
    """
    held = Mandate(on_behalf_of="anna", authority=("tool:pay", "tool:look"))
    assert start(bank, "passes_on", rule, {"authority": ["tool:pay"]}, mandate=held) == "paid"
    assert "its parent has not" in start(bank, "passes_on", rule, {"authority": ["tool:*"]}, mandate=held)
    assert "whoever it acts for" in start(bank, "passes_on", rule, {"authority": ["tool:look"]}, mandate=held)
    assert start(bank, "passes_on", rule, mandate=held) == "paid"


def test_children_are_counted(bank: Any) -> None:
    said = start(bank, "spawns", "- {id: two, category: spawn_limit, with: {per_run: 2}}")
    assert said[:2] == ["paid", "paid"]
    assert "started 2 others of 2" in said[2]


def test_whoever_is_suspended_stops_at_once_also_in_runs_under_way(bank: Any) -> None:
    rule = "- {id: off, category: user_suspension, gates: [tool], on_breach: deny}"
    run = bank.submit("clerk.py:Clerk", {}, workflow="waits", policies=rule)
    assert bank.drive(run).status == "suspended"
    bank.settings(SETTINGS.replace("acts_for", "suspended = true\n    acts_for"))
    with bank.service() as service:
        service.signal(run, "go", b"null", principal=bank.person)
    said = bank.drive(run).output
    assert said[0] == "paid"
    assert "alice is suspended" in said[1]
    bank.settings(SETTINGS + '\n[principals."agent:clerk"]\nsuspended = true\n')
    assert "clerk is suspended" in start(bank, "pay", rule)


def test_a_tenants_record_answers_over_all_its_runs(bank: Any) -> None:
    rule = """
        - id: twice
          category: tool_allowlist
          gates: [tool]
          with: {deny: ["*"]}
          when: history.count("tool", "pay", within="1h", over="tenant") >= 2
    """
    assert [start(bank, "pay", rule) for _ in range(2)] == ["paid", "paid"]
    assert start(bank, "pay", rule).startswith("denied")
    assert "no answer" in start(bank, "pay", SUMMED), "what nobody added up before is not known"


def test_an_agents_record_adds_up_over_all_its_runs(bank: Any) -> None:
    assert start(bank, "pay", SUMMED, {"amount": 90}) == "paid"
    assert start(bank, "pay", SUMMED, {"amount": 20}) == "paid"
    assert start(bank, "pay", SUMMED, {"amount": 1}).startswith("denied")


def test_an_agents_failures_are_seen_by_its_next_run(bank: Any) -> None:
    rule = "- {id: open, category: circuit_breaker, with: {failures: 2, cool_down: 1h, over: agent}}"
    for _ in range(2):
        view = bank.run("clerk.py:Clerk", {"amount": -1}, workflow="pay", policies=rule)
        assert view.status == "failed"
    assert start(bank, "pay", rule).startswith("denied")


def test_citations_are_held_to_what_the_run_has_read(bank: Any) -> None:
    rule = "- {id: cites, category: output_contract, with: {citations: sources, min_citations: 1}}"
    assert start(bank, "cites", rule, {"source": "https://docs.example/a"})["sources"]
    view = bank.run("clerk.py:Clerk", {"source": "https://made.up/"}, workflow="cites", policies=rule)
    assert view.status == "denied"
    bank.verify()
