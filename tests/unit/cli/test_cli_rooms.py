"""Commands that stand on a room of their own: policies, the record, boundaries."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import IsolationError
from holdfast.journal.base import Append, Draft, Header, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.open import open_store
from holdfast.sandbox import levels
from holdfast.sandbox.base import Availability

GOOD = "version: 1\npolicies:\n  - {id: tools, category: tool_allowlist, with: {allow: [a]}, mode: shadow}\n"
BAD = """version: 1
policies:
  - id: a
    categry: tool_allowlist
  - id: b
    category: tool_allowlst
    with: {allow: [x]}
"""


def last(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def test_policy_list_names_the_bundle_and_each_rule(shell: Any, tmp_path: Path) -> None:
    built_in = last(shell("policy", "list", "--json").out)
    assert built_in["files"] == []
    assert built_in["policies"]
    (tmp_path / "p.yaml").write_text(GOOD)
    (tmp_path / "holdfast.toml").write_text('[policy]\nfiles = ["p.yaml"]\n')
    found = last(shell("policy", "list", "--json").out)
    assert [(rule["id"], rule["category"], rule["mode"]) for rule in found["policies"]] == [
        ("tools", "tool_allowlist", "shadow")
    ]
    assert found["bundle"] != built_in["bundle"]
    assert "tools\ttool_allowlist\tshadow" in shell("policy", "list").out
    assert [rule["layer"] for rule in found["policies"]] == ["organisation"]
    assert {rule["layer"] for rule in built_in["policies"]} == {"built-in"}


def test_policy_explain_accounts_for_each_rule(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD.replace(", mode: shadow", ""))
    words = ("policy", "explain", "--policy", "p.yaml", "--facts", '{"agent": "recon"}')
    result = shell(*words, "--action", '{"kind": "tool", "name": "b"}', "--json")
    found = last(result.out)
    assert (result.status, found["verdict"]["outcome"], found["verdict"]["rule"]) == (0, "deny", "tools")
    assert (
        last(shell(*words, "--action", '{"kind": "tool", "name": "a"}', "--json").out)["verdict"]["outcome"] == "allow"
    )
    assert "tools\ttool_allowlist\tdeny" in shell(*words, "--action", '{"kind": "tool", "name": "b"}').out
    for bad in (["--action", "{}"], ["--action", '{"kind": "tool", "name": "a"}', "--facts", "[]"], []):
        refused = shell("policy", "explain", *bad)
        assert (refused.status, refused.err.count("\n")) == (2, 1)


def test_policy_schema_is_a_json_schema(shell: Any) -> None:
    found = json.loads(shell("policy", "schema").out)
    assert found["$schema"].startswith("https://json-schema.org/")


def test_policy_lint_tells_every_problem(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    assert shell("policy", "lint", "good.yaml").status == 0
    result = shell("policy", "lint", "bad.yaml", "good.yaml", "none.yaml", "--json")
    assert result.status == 2
    found = last(result.out)
    assert found["ok"] is False
    assert {problem["file"] for problem in found["problems"] if problem["severity"] == "error"} == {
        "bad.yaml",
        "none.yaml",
    }
    text = shell("policy", "lint", "bad.yaml", "none.yaml").out
    assert "bad.yaml:4" in text
    assert "did you mean category" in text
    assert "tool_allowlist" in text
    assert "none.yaml" in text


@pytest.fixture
def journal(shell: Any, tmp_path: Path) -> Path:
    """A home with a run of three events."""
    home = tmp_path / "home"
    store = open_store("sqlite", home)
    tenant = Tenant(name="default", region="us-east", created_at=1)
    store.create_tenant(tenant, Draft(kind=Kind.TENANT_CREATED, data={"name": "default"}, at=1), "n")
    header = Header(stream="run-1", tenant="default", region="us-east", kind=StreamKind.RUN, agent="a", created_at=1)
    drafts = tuple(
        Draft(kind=Kind.LOG, data={"level": "info", "message": f"m{n}", "fields": {}}, at=n) for n in (1, 2, 3)
    )
    store.transact([Append(stream="run-1", epoch=0, node="n", drafts=drafts, create=header)])
    store.close()
    return home


def test_audit_tail_prints_the_latest_events(shell: Any, journal: Path) -> None:
    lines = shell("audit", "tail", "--json", "-n", "2").out.splitlines()
    assert [json.loads(line)["data"]["message"] for line in lines] == ["m2", "m3"]
    assert "run-1 3" in shell("audit", "tail").out
    result = shell("audit", "tail", "--tenant", "nobody")
    assert (result.status, "there is no tenant nobody" in result.err) == (2, True)
    assert shell("audit", "tail", "--run", "run-1", "--kind", "log").out.count("run-1") == 3
    assert shell("audit", "tail", "--kind", "tenant").out.count("tenant.created") == 1
    result = shell("audit", "tail", "--run", "run-9")
    assert (result.status, "there is no run run-9" in result.err) == (2, True)


def test_audit_verify_holds_and_names_what_was_changed(shell: Any, journal: Path) -> None:
    result = shell("audit", "verify", "--json")
    assert (result.status, last(result.out)["ok"], last(result.out)["counts"]["events"]) == (0, True, 4)
    assert "verified: 4 events" in shell("audit", "verify").out
    with sqlite3.connect(journal / "holdfast.db") as db:
        body = db.execute("SELECT body FROM events WHERE stream = 'run-1' AND seq = 2").fetchone()[0]
        db.execute("UPDATE events SET body = ? WHERE stream = 'run-1' AND seq = 2", (body.replace(b"m2", b"m9"),))
    db.close()
    result = shell("audit", "verify", "--json")
    assert result.status == 9
    assert ("run-1", 2) in [(finding["stream"], finding["seq"]) for finding in last(result.out)["findings"]]
    assert "run-1 event 2" in shell("audit", "verify").out


def test_audit_says_when_there_is_nothing_to_verify(shell: Any, journal: Path, tmp_path: Path) -> None:
    assert shell("audit", "verify", "run-77").status == 2
    assert shell("audit", "verify", "--tenant", "nobody").status == 2
    (journal / "holdfast.db").rename(tmp_path / "elsewhere.db")
    result = shell("audit", "verify")
    assert (result.status, "HOLDFAST_HOME" in result.err) == (2, True)
    assert not (journal / "holdfast.db").exists()


class _Level:
    def __init__(self, name: str, available: bool) -> None:
        self._found = Availability(level=name, available=available, reason="no bwrap", cure="install it", seconds=0.01)

    async def probe(self) -> Availability:
        return self._found


@pytest.mark.parametrize("available", [True, False])
def test_sandbox_probe(shell: Any, monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    def level(name: str, *, uid_range: Any = None) -> _Level:
        if name == "gvisor":
            raise IsolationError("gvisor is not here; choose another")
        return _Level(name, available or name == "process")

    monkeypatch.setattr(levels, "level", level)
    result = shell("sandbox", "probe", "--json")
    assert result.status == (0 if available else 8)
    found = {item["level"]: item for item in last(result.out)["levels"]}
    assert found["namespace"]["available"] is available
    assert (found["gvisor"]["reason"], found["gvisor"]["cure"]) == ("gvisor is not here", "choose another")
    assert "install it" in shell("sandbox", "probe").out or available
    checks = {item["name"]: item for item in last(shell("doctor", "--json").out)["checks"]}
    assert checks["boundary"]["ok"] is available
