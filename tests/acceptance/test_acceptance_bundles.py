"""The life of a bundle: layers, signatures, changes that reach runs in flight, and a broken glass."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
    from holdfast import agent, workflow

    @agent(name="clerk")
    class Clerk:
        @workflow
        def run(self, ctx):
            ctx.wait_signal("go")
            return [ctx.tool("pay", amount=amount) for amount in ctx.input.amounts]

        @workflow
        def asks(self, ctx):
            return ctx.tool("pay", amount=500)
"""
BANK = """
    def pay(amount):
        return amount
"""
TOKENS = {name: f"secret-{name}" for name in ("ann", "bob", "carol")}
SETTINGS = """
    [node]
    grace = "50ms"
    [policy]
    files = ["rules.yaml"]
    [connectors.pay]
    call = "bank.py:pay"
    effect = "idempotent"
""" + "".join(
    f"""
    [principals.{name}]
    token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"
    """
    for name, token in TOKENS.items()
)
OPEN = """
    - {{id: calls, category: tool_call_limit, with: {{limit: 100}}, in_flight: {how}}}
    - {{id: ask, category: require_approval, gates: [tool], when: action.args.amount > 400}}
"""
SHUT = """
    - {{id: calls, category: tool_call_limit, with: {{limit: 100}}, in_flight: {how}}}
    - {{id: ask, category: require_approval, gates: [tool], when: action.args.amount > 400}}
    - {{id: shut, category: tool_allowlist, with: {{allow: [none]}}, in_flight: {how}}}
"""


def put(lab: Any, text: str, how: str = "pin", name: str = "rules.yaml") -> Path:
    """Replace a policy file by renaming a whole one."""
    whole: Path = lab.write(f"{name}.new", "version: 1\npolicies:\n" + text.format(how=how))
    os.replace(whole, lab.folder / name)
    return lab.folder / name  # type: ignore[no-any-return]


@pytest.fixture
def clerk(lab: Any) -> Any:
    lab.write("clerk.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS)
    return lab


def submit(lab: Any, workflow: str = "run", **options: Any) -> str:
    name: str = lab.submit("clerk.py:Clerk", {"amounts": [1, 2]}, workflow=workflow, **options)
    return name


def go(lab: Any, run: str) -> None:
    with lab.service() as service:
        service.signal(run, "go", b"null", principal=lab.person)


@pytest.mark.parametrize("how", ["pin", "next-step", "immediate"])
def test_each_rule_says_what_a_change_means_for_runs_in_flight(clerk: Any, how: str) -> None:
    put(clerk, OPEN, how)
    with clerk.serving():
        run, asking = submit(clerk), submit(clerk, "asks")
        for name in (run, asking):
            clerk.reached(name, "run.suspended")
        candidate = str(put(clerk, SHUT, how, "next.yaml"))
        told = {one["run_id"]: one for one in clerk.json("policy", "apply", "--dry-run", candidate)["runs"]}
        expected = {"pin": "pinned"}.get(how, how)
        assert [told[name]["effect"] for name in (run, asking)] == [expected, expected]
        put(clerk, SHUT, how)
        clerk.until(lambda: "policies in force" in (clerk.folder / "serve.log").read_text(), "the node reads the file")
        later = submit(clerk)
        go(clerk, later)
        assert clerk.ended(later, "denied").rule == "shut"
        go(clerk, run)
        # What waits for people hears of it at once only where a rule says so.
        if how == "immediate":
            assert clerk.ended(asking, "denied").rule == "shut"
            assert not [event for event in clerk.events(asking, "intent") if event.data["action"]["kind"] == "tool"]
        ended = clerk.ended(run)
        assert (ended.status, ended.rule) == (("completed", "") if how == "pin" else ("denied", "shut"))
        pinned = clerk.events(run, "bundle.pinned")
        assert [event.data["rules"] for event in pinned] == ([] if how == "pin" else [["shut"]])
    clerk.verify()


def test_a_run_that_is_driven_is_reached_too(clerk: Any) -> None:
    clerk.settings(SETTINGS.replace('grace = "50ms"', 'grace = "10m"'))
    put(clerk, OPEN, "immediate")
    with clerk.serving():
        run = submit(clerk, "asks")
        clerk.reached(run, "wait")
        put(clerk, SHUT, "immediate")
        assert clerk.ended(run, "denied").rule == "shut"
    clerk.verify()


def test_a_file_that_is_half_written_changes_nothing_and_is_said(clerk: Any) -> None:
    rules = put(clerk, OPEN, "next-step")
    with clerk.serving():
        run = submit(clerk)
        clerk.reached(run, "run.suspended")
        # What is driven is what makes the node know the policies of its agent.
        rules.write_text(rules.read_text()[:-20])
        go(clerk, run)
        assert clerk.ended(run).status == "completed"
        refused = clerk.cli("run", "clerk.py:Clerk", "--workflow", "run", "--json")
        assert refused.returncode == 2
        assert "rules.yaml" in refused.stdout
        doctor = clerk.cli("doctor")
        assert "rules.yaml" in doctor.stdout + doctor.stderr


def test_layers_and_signatures_on_the_command_line(clerk: Any) -> None:
    rules = put(clerk, OPEN)
    looser = put(clerk, "- {{id: calls, category: tool_call_limit, with: {{limit: 500}}}}", name="looser.yaml")
    refused = clerk.cli("run", "clerk.py:Clerk", "--workflow", "run", "--policy", str(looser), "--json")
    assert refused.returncode == 2
    assert "the layer run may not loosen calls" in refused.stdout
    clerk.settings(SETTINGS.replace("[policy]", '[policy]\n    require_signed = true\n    trusted_keys = ["k.pub"]'))
    assert clerk.json("policy", "key", "k")["public"] == "k.pub"
    assert "is not signed" in clerk.cli("run", "clerk.py:Clerk", "--workflow", "run", "--json").stdout
    clerk.json("policy", "sign", str(rules), "--key", "k")
    assert submit(clerk)
    rules.write_text(rules.read_text() + "# more\n")
    assert "is not what" in clerk.cli("run", "clerk.py:Clerk", "--workflow", "run", "--json").stdout


def glass(lab: Any, *args: str, who: str, status: int = 0) -> Any:
    return lab.json("policy", "glass", *args, "--as", who, HOLDFAST_PRINCIPAL_TOKEN=TOKENS[who], status=status)


def test_two_people_break_the_glass_for_a_while_and_a_third_reviews_it(clerk: Any) -> None:
    put(
        clerk,
        """
    - {{id: shut, category: tool_allowlist, with: {{allow: [none]}}}}
    - {{id: emergency, category: break_glass, with: {{lifts: [shut], max: 1h}}}}
    """,
    )

    def paid() -> Any:
        run = submit(clerk)
        go(clerk, run)
        return clerk.drive(run)

    assert paid().status == "denied"
    why = ("open", "--reason", "the payment run is stuck before the cut-off", "--for", "30m")
    asked = glass(clerk, *why, who="ann")
    assert asked["state"] == "asked"
    assert "another person" in glass(clerk, "open", asked["id"], who="ann", status=2)["error"]
    assert paid().status == "denied"
    assert glass(clerk, "open", asked["id"], who="bob")["state"] == "open"
    lifted = paid()
    assert lifted.status == "completed"
    hits = [hit for event in clerk.events(lifted.run_id, "intent") for hit in event.data["verdict"].get("hits", ())]
    assert any("lifted by glass" in hit["reason"] for hit in hits)
    assert "reviewed" in glass(clerk, *why, who="carol", status=2)["error"]
    assert glass(clerk, "close", asked["id"], who="bob")["state"] == "unreviewed"
    assert paid().status == "denied"
    assert "somebody else" in glass(clerk, "review", asked["id"], "--note", "fine", who="ann", status=2)["error"]
    assert "reviewed" in glass(clerk, *why, who="carol", status=2)["error"]
    assert glass(clerk, "review", asked["id"], "--note", "two payments, checked", who="carol")["state"] == "reviewed"
    assert glass(clerk, *why, who="carol")["state"] == "asked"
    assert [one["state"] for one in clerk.json("policy", "glass", "list")["glasses"]] == ["asked", "reviewed"]
    clerk.verify()
