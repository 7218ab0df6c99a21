"""Rules that ask the run's own record: calls under way included, over a resume and a new beginning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.node.service import Service
from holdfast.node.views import Principal

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
from holdfast import DeniedError, agent, workflow

@agent(name="historian")
class Historian:
    @workflow
    def main(self, ctx):
        done = [self.pay(ctx, 1), self.pay(ctx, 2)]
        ctx.approve("go on?")
        return done + [self.pay(ctx, 3), self.pay(ctx, 4)]

    @workflow
    def side_by_side(self, ctx):
        return sorted(ctx.gather(*[lambda n=n: self.pay(ctx, n) for n in range(1, 6)]))

    @workflow
    def anew(self, ctx):
        if ctx.input.get("again"):
            return [self.pay(ctx, 3), self.pay(ctx, 4)]
        self.pay(ctx, 1), self.pay(ctx, 2)
        ctx.continue_as_new({"again": True})

    def pay(self, ctx, amount):
        try:
            return ctx.tool("pay", amount=amount)
        except DeniedError as error:
            return error.rule
"""
BANK = """
def pay(amount):
    return "paid"
"""
SETTINGS = """
[connectors.pay]
call = "bank.py:pay"
effect = "idempotent"
"""
COUNT = """
version: 1
policies:
  - id: at-most-three
    category: tool_allowlist
    when: history.count("tool", "pay", within="1h") >= 3
    with: {deny: [pay]}
"""
SUM = """
version: 1
policies:
  - id: at-most-six
    category: tool_allowlist
    when: history.sum("tool", "pay", "amount") + action.args.amount > 6
    with: {deny: [pay]}
"""
WIDER = """
version: 1
policies:
  - id: over-all-runs
    category: tool_allowlist
    when: history.count("tool", "pay", over="tenant") >= 3
    with: {deny: [pay]}
"""
PERSON = Principal(name="alice", auth="token")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    (tmp_path / "historian.py").write_text(AGENT)
    (tmp_path / "bank.py").write_text(BANK)
    (tmp_path / "holdfast.toml").write_text(SETTINGS)
    for name, text in (("count", COUNT), ("sum", SUM), ("wider", WIDER)):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    return Service.open(config.load(home), home)


def outcome(service: Service, policy: str, workflow: str) -> object:
    with service:
        run = service.submit(
            "historian.py:Historian", b"{}", workflow=workflow, policy_files=(Path(f"{policy}.yaml"),), principal=PERSON
        )
        view = service.drive(run)
        while view.pending:
            service.answer(view.pending[0].id, True, principal=PERSON)
            view = service.drive(run)
        report = verify(service.store, service._home, run=None, tenant=None)
        assert report.ok, report.findings
        return view.output


@pytest.mark.parametrize(
    ("policy", "workflow", "wanted"),
    [
        ("count", "main", ["paid", "paid", "paid", "at-most-three"]),
        ("count", "side_by_side", ["at-most-three", "at-most-three", "paid", "paid", "paid"]),
        ("count", "anew", ["paid", "at-most-three"]),
        ("sum", "main", ["paid", "paid", "paid", "at-most-six"]),
        ("wider", "anew", ["paid", "over-all-runs"]),
    ],
)
def test_the_record_is_asked(service: Service, policy: str, workflow: str, wanted: list[str]) -> None:
    assert outcome(service, policy, workflow) == wanted
