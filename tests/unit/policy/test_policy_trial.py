from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.cli.policy import app
from holdfast.errors import PolicyFileError
from holdfast.policy import trial
from holdfast.policy.bundle import builtin, load

RULES = """version: 1
policies:
  - id: wire-approval
    category: require_approval
    when: action.name == "wire_transfer" && action.args.amount > 10000.5
    with: {approvers: ["role:controller"], quorum: 2}
  - {id: checked, category: sequence_rule, when: action.name == "wire_transfer", with: {require: ["tool:check"]}}
  - {id: often, category: kill_switch, gates: [tool], when: 'history.count("tool", "wire_*", within="1h") > 2'}
  - {id: odd, category: cost_anomaly, with: {min_calls: 3}}
  - {id: hours, category: schedule_window, gates: [step], with: {start: "08:00", end: "18:00"}}
  - {id: money, category: budget_usd, with: {limit: 1}}
  - {id: never, category: kill_switch, gates: [memory]}
"""
TESTS = """version: 1
policies: [rules.yaml]
facts: {agent: finance, run: r-1}
tests:
  - name: a large wire asks
    action: {kind: tool, name: wire_transfer, args: {amount: 20000.75}}
    history: [{gate: tool, name: check, ago: 5m}]
    expect: {outcome: require_approval, rule: wire-approval, reason: "2 of role:controller"}
  - name: a small one goes
    action: {kind: tool, name: wire_transfer, args: {amount: 5}}
    history: [{gate: tool, name: check, ago: 5m}]
    expect: allow
  - name: not without a check
    action: {kind: tool, name: wire_transfer, args: {amount: 5}}
    history: [{gate: tool, name: check, state: failed}]
    expect: {outcome: deny, rule: checked}
  - name: two controllers said yes
    action: {kind: tool, name: wire_transfer, args: {amount: 20000}}
    facts:
      grants: [{principal: eve, auth: x, roles: [controller]}, {principal: bob, auth: x, roles: [controller]}]
    history: [{gate: tool, name: check}]
    expect: allow
  - name: too often
    action: {kind: tool, name: look}
    history: [{gate: tool, name: wire_a}, {gate: tool, name: wire_b}, {gate: tool, name: wire_c, state: open}]
    expect: terminate
  - name: an odd cost
    action: {kind: llm, provider: p, model: m}
    history:
      - {gate: llm, name: p/m, cost: 0.02}
      - {gate: llm, name: p/m, cost: 0.02}
      - {gate: llm, name: p/m, cost: 0.02}
    ended: {cost: 0.5}
    expect: {outcome: warn, rule: odd}
  - name: what a stream brings
    action: {kind: llm, provider: p, model: m}
    text: anything
    expect: allow
  - name: at night
    at: 2026-03-02T20:00:00+00:00
    action: {kind: step, name: s}
    expect: deny
  - name: by day
    action: {kind: step, name: s}
    expect: allow
  - name: what it reserves
    action: {kind: llm, provider: p, model: m, input_tokens: 10, max_tokens: 100}
    facts: {price: {input: 1000, output: 20000000}}
    expect: {outcome: allow, reserves: [budget_usd/], max_tokens: 49}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(tests: str, rules: str = RULES) -> Path:
        (tmp_path / "rules.yaml").write_text(rules)
        path = tmp_path / "tests.yaml"
        path.write_text(tests)
        return path

    return write


def test_tests_of_policies_pass_and_name_the_rules_that_none_reaches(write: Any) -> None:
    report = trial.run([trial.suite(write(TESTS))], builtin())
    assert [(result.test.name, result.wrong) for result in report.failed] == []
    assert len(report.results) == 10
    assert report.silent == ("never",)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (("> 10000.5", "> 30000"), {"a large wire asks"}),
        (("> 10000.5", "> 1"), {"a small one goes"}),
        (("tool:check", "tool:other"), {"a small one goes", "two controllers said yes"}),
        (("quorum: 2", "quorum: 3"), {"a large wire asks", "two controllers said yes"}),
        (("> 2'", "> 3'"), {"too often"}),
        (("min_calls: 3", "min_calls: 4"), {"an odd cost"}),
        (('end: "18:00"', 'end: "21:00"'), {"at night"}),
        (('start: "08:00"', 'start: "11:00"'), {"by day"}),
        (("limit: 1}", "limit: 2}"), {"what it reserves"}),
    ],
)
def test_a_changed_rule_fails_its_tests(change: tuple[str, str], failing: set[str], write: Any) -> None:
    assert RULES.count(change[0]) == 1
    report = trial.run([trial.suite(write(TESTS, RULES.replace(*change)))], builtin())
    assert failing <= {result.test.name for result in report.failed}


@pytest.mark.parametrize(
    ("expect", "wrong"),
    [
        ("deny", "require_approval by wire-approval"),
        ("{outcome: require_approval, rule: other}", "by wire-approval, not by other"),
        ("{outcome: require_approval, reason: nonsense}", "no reason says 'nonsense'"),
        ("{outcome: require_approval, reserves: [x/]}", "it reserves nothing"),
        ("{outcome: require_approval, max_tokens: 5}", "the output limit is 0"),
    ],
)
def test_what_is_not_as_expected_is_said(expect: str, wrong: str, write: Any) -> None:
    text = f"""version: 1
policies: [rules.yaml]
tests:
  - action: {{kind: tool, name: wire_transfer, args: {{amount: 20000}}}}
    history: [{{gate: tool, name: check}}]
    expect: {expect}
"""
    report = trial.run([trial.suite(write(text))], builtin())
    assert wrong in "; ".join(report.failed[0].wrong)


HEAD = "version: 1\ntests:\n  - name: a\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[]\n", 1, "a mapping is needed"),
        ("version: 2\ntests: []\n", 1, "version: 1"),
        ("version: 1\n", 1, "there is no test"),
        ("version: 1\ntests: {}\n", 2, "a list is needed"),
        ("version: 1\ntest: []\n", 2, "did you mean tests"),
        (HEAD + "    expect: deny\n", 3, "action is missing"),
        (HEAD + "    action: {kind: tool}\n    expect: deny\n", 4, "name"),
        (HEAD + "    action: {kind: tool, name: x, arg: 1}\n    expect: deny\n", 4, "did you mean args"),
        (HEAD + "    action: {kind: tool, name: x}\n    expect: denied\n", 5, "did you mean deny"),
        (HEAD + "    action: {kind: tool, name: x}\n    expect: {rule: x}\n", 5, "outcome is missing"),
        (HEAD + "    action: {kind: tool, name: x}\n    facts: {agnt: x}\n    expect: deny\n", 5, "did you mean agent"),
        (HEAD + "    action: {kind: tool, name: x}\n    facts: [x]\n    expect: deny\n", 5, "facts are a mapping"),
        (HEAD + "    action: {kind: tool, name: x}\n    at: noon\n    expect: deny\n", 5, "no time"),
        (
            HEAD + "    action: {kind: tool, name: x}\n    history: [{gate: llm, name: y, ago: 5}]\n    expect: deny\n",
            5,
            "unit",
        ),
        (HEAD + "    action: {kind: tool, name: x}\n    ended: {costs: 5}\n    expect: deny\n", 5, "did you mean cost"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_good_is_refused(text: str, line: int, message: str, write: Any) -> None:
    path = write(text)
    with pytest.raises(PolicyFileError) as caught:
        trial.suite(path)
    assert str(caught.value).startswith(f"{path}:{line}:")
    assert message in str(caught.value)


def test_policies_that_are_in_force_are_tested_where_a_file_names_none(write: Any, tmp_path: Path) -> None:
    text = HEAD + "    action: {kind: memory, name: x}\n    expect: {outcome: terminate, rule: never}\n"
    suites = [trial.suite(write(text))]
    assert trial.run(suites, builtin()).failed
    assert not trial.run(suites, load([tmp_path / "rules.yaml"])).failed


def test_the_command(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    path = write(TESTS)
    done = runner.invoke(app, ["test", str(path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert (found["ok"], found["failed"], len(found["tests"]), found["silent"]) == (True, 0, 10, ["never"])
    path = write(TESTS, RULES.replace("> 10000.5", "> 30000"))
    done = runner.invoke(app, ["test", str(path)])
    assert done.exit_code == 1
    assert "10 tests, 1 failed" in done.output
    assert "a large wire asks" in done.output
