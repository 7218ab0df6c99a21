from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.policy.lint import Severity, lint

HEAD = "version: 1\npolicies:\n"


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str, name: str = "p.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def test_a_good_file_has_no_findings(write) -> None:
    text = (
        HEAD
        + """\
  - {id: a, category: tool_allowlist, with: {allow: [x, y], deny: [z]}}
  - {id: b, category: require_approval, when: action.kind == "tool" && action.name == "x"}
  - {id: c, category: require_approval, gates: [llm, tool], when: action.kind == "llm" || action.kind == "step"}
  - {id: d, category: step_limit, with: {limit: 5}, scope: {agent: "f*"}, when: facts.agent == "finance"}
  - {id: e, category: tool_allowlist, with: {allow: ["y*", x]}}
"""
    )
    assert lint([write(text)]) == []


@pytest.mark.parametrize(
    ("body", "line", "key", "severity", "part"),
    [
        ("  - {id: a, category: nope}", 3, "policies[0].category", "error", "no category nope"),
        ("  - {id: a, category: kill_switch, mode: shadow}", 3, "mode", "warning", "stops nothing"),
        ("  - {id: a, category: kill_switch, mode: off}", 3, "mode", "note", "never asked"),
        ("  - {id: a, category: kill_switch, when: 1 > 2}", 3, "when", "warning", "looks at nothing"),
        (
            '  - {id: a, category: require_approval, when: action.kind == "llm"}',
            3,
            "when",
            "warning",
            "no action has the kind llm",
        ),
        (
            "  - {id: a, category: kill_switch, scope: {agent: \"f*\"}, when: facts.agent == 'ops'}",
            3,
            "when",
            "warning",
            "it never applies",
        ),
        ("  - {id: a, category: tool_allowlist, with: {allow: []}}", 3, "with.allow", "warning", "is empty"),
        (
            "  - {id: a, category: tool_allowlist, with: {allow: [x, y], deny: ['*']}}",
            3,
            "with.deny",
            "warning",
            "nothing gets through",
        ),
        (
            "  - {id: a, category: tool_allowlist, with: {allow: [x, y], deny: [x]}}",
            3,
            "with.allow",
            "warning",
            "x is denied as well",
        ),
        (
            "  - {id: a, category: step_limit, with: {limit: 5}}\n  - {id: b, category: step_limit, with: {limit: 5}}",
            4,
            "id",
            "warning",
            "the same as a",
        ),
        (
            "  - {id: a, category: step_limit, with: {limit: 5}}\n  - {id: a, category: step_limit, with: {limit: 6}}",
            4,
            "id",
            "error",
            "is taken by",
        ),
        (
            "  - {id: a, category: tool_allowlist, with: {allow: [x]}}\n"
            "  - {id: b, category: tool_allowlist, with: {allow: ['y*']}}",
            4,
            "with.allow",
            "warning",
            "nothing in common",
        ),
        (
            "  - {id: a, category: kill_switch, scope: {agent: financee}}",
            3,
            "scope.agent",
            "warning",
            "did you mean finance?",
        ),
        (
            "  - {id: a, category: tool_allowlist, with: {allow: [wire]}}",
            3,
            "with.allow",
            "warning",
            "there is no tool wire",
        ),
        (
            "  - {id: a, category: tool_call_limit, with: {tool: 'zz*', limit: 1}}",
            3,
            "with.tool",
            "warning",
            "there is no tool zz*",
        ),
    ],
)
def test_findings(write, body: str, line: int, key: str, severity: str, part: str) -> None:
    path = write(HEAD + body + "\n")
    known = {"agent": ["finance", "ops", "f"], "tool": ["x", "y", "y2"]}
    (finding,) = lint([path], known=known)
    assert (finding.file, finding.line, finding.key) == (str(path), line, key)
    assert finding.severity == severity
    assert part in finding.message
    assert str(finding).startswith(f"{path}:{line}: {severity}: {key}: ")


def test_names_are_only_checked_where_they_are_known(write) -> None:
    path = write(HEAD + "  - {id: a, category: kill_switch, scope: {agent: x, tenant: t}}\n")
    assert lint([path]) == []
    assert lint([path], known={"agent": ["x"]}) == []


def test_files_that_cannot_be_read(write, tmp_path: Path) -> None:
    broken, missing = write("a: [\n", "broken.yaml"), tmp_path / "missing.yaml"
    good = write(HEAD + "  - {id: a, category: kill_switch, mode: off}\n", "good.yaml")
    findings = lint([broken, missing, good])
    assert [Path(item.file).name for item in findings] == ["broken.yaml", "missing.yaml", "good.yaml"]
    assert [item.severity for item in findings] == [Severity.ERROR, Severity.ERROR, Severity.NOTE]
    assert findings[0].line == 2
    assert "does not exist" in findings[1].message


def test_an_empty_list_switches_the_built_in_bundle_off(write) -> None:
    (finding,) = lint([write("version: 1\npolicies: []\n")])
    assert finding.severity is Severity.WARNING
    assert "built-in" in finding.message


def test_rules_that_are_off_are_not_duplicates(write) -> None:
    text = HEAD + "".join(
        f"  - {{id: {name}, category: kill_switch, scope: {{agent: x}}, mode: {mode}}}\n"
        for name, mode in (("a", "enforce"), ("b", "off"))
    )
    assert [item.severity for item in lint([write(text)])] == [Severity.NOTE]
