"""Commands: the JSON that scripts rely on, exit statuses, and the words of errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast import errors
from holdfast.action import Kill
from holdfast.cli import exits
from holdfast.node import views


def last(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


STATUSES = {
    "completed": 0, "failed": 1, "suspended": 3, "denied": 4, "terminated": 5, "killed": 6, "in_doubt": 7, "refused": 6,
    "pending": 3, "running": 3,
}  # fmt: skip


def test_every_status_has_an_exit_status_and_a_meaning() -> None:
    assert set(exits.STATUSES) == set(STATUSES)
    assert set(STATUSES.values()) <= set(exits.MEANING)


@pytest.mark.parametrize(("status", "code"), STATUSES.items())
def test_run_and_resume_leave_with_the_runs_status_and_show_with_0(shell: Any, status: str, code: int) -> None:
    shell.service.view = msgspec.structs.replace(shell.service.view, status=status)
    for command in (["run", "a.py:A"], ["runs", "resume", "run-1"]):
        result = shell(*command, "--json")
        assert (result.status, last(result.out)["status"]) == (code, status)
    assert shell("runs", "show", "run-1").status == 0


def test_a_refused_run_says_why_by_its_status(shell: Any) -> None:
    for code, status in {"killed": 6, "denied": 4, "isolation": 8, "": 6}.items():
        shell.service.view = msgspec.structs.replace(shell.service.view, status="refused", error_code=code)
        assert shell("run", "a.py:A").status == status


def test_the_runs_object_has_the_promised_keys_and_no_others(shell: Any) -> None:
    pending = views.Pending(kind="approval", id="ap-1", step="pay.1", expires_at=1_500_000)
    shell.service.view = msgspec.structs.replace(shell.service.view, status="suspended", pending=(pending,))
    result = shell("run", "a.py:A", "--input", '{"x": 1}', "--json")
    assert result.err == ""
    assert last(result.out) == {
        "run_id": "run-1",
        "status": "suspended",
        "output": {"ok": True},
        "error": None,
        "isolation": "namespace",
        "cost_usd": 0.001234,
        "steps": 2,
        "pending": [{"kind": "approval", "id": "ap-1", "step": "pay.1", "expires_at": "1970-01-01T00:00:01.500000Z"}],
    }


def test_run_passes_on_what_it_was_told(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"b": 1, "a": [2]}')
    result = shell("run", "a.py:A", "--input", "@in.json", "--workflow", "w", "--tenant", "t", "--policy", "p.yaml",
                   "--policy", "q.yaml", "--isolation", "process")  # fmt: skip
    assert result.status == 0
    name, (target, data, options) = shell.service.asked[0]
    assert (name, target, data) == ("submit", "a.py:A", b'{"a":[2],"b":1}')
    assert options["policy_files"] == (Path("p.yaml"), Path("q.yaml"))
    assert (options["workflow"], options["tenant"], options["isolation"]) == ("w", "t", "process")
    uid = os.getuid()
    assert options["principal"] == views.Principal(name=f"uid:{uid}", auth=f"peer-uid:{uid}")
    assert shell.service.asked[1] == ("drive", ("run-1", {"wait_timers_us": 60_000_000}))


def test_detach_only_submits(shell: Any) -> None:
    assert shell("run", "a.py:A", "--detach", "--json").status == 0
    assert [name for name, _ in shell.service.asked] == ["submit", "run"]


def test_a_waiting_run_says_what_to_do_next(shell: Any) -> None:
    for kind, words in {
        "approval": "holdfast approvals approve it-1 && holdfast runs resume run-1",
        "answer": "holdfast approvals answer it-1 TEXT",
        "signal": "holdfast runs resume run-1",
    }.items():
        pending = (views.Pending(kind=kind, id="it-1", step="s.1"),)
        shell.service.view = msgspec.structs.replace(shell.service.view, status="suspended", pending=pending)
        assert words in shell("runs", "show", "run-1").out
    shell.service.view = msgspec.structs.replace(shell.service.view, status="in_doubt")
    assert "holdfast runs resolve run-1 --done JSON | --retry | --fail" in shell("runs", "show", "run-1").out


def test_a_denied_run_names_the_policy_and_the_reason(shell: Any) -> None:
    shell.service.view = msgspec.structs.replace(
        shell.service.view, status="denied", rule="no-wires", error="wire_transfer is not allowed\nhere"
    )
    out = shell("runs", "show", "run-1").out
    assert "policy: no-wires" in out
    assert "reason: wire_transfer is not allowed here" in out


def test_runs_list(shell: Any) -> None:
    shell.service.rows = [
        views.RunRow(run_id=f"run-{n}", status="completed", agent="a", workflow="w", tenant="t", created_at=n)
        for n in (3, 2, 1)
    ]
    found = last(shell("runs", "list", "--json", "--limit", "2").out)
    assert set(found) == {"runs"}
    assert [row["run_id"] for row in found["runs"]] == ["run-3", "run-2"]
    assert set(found["runs"][0]) == {"run_id", "status", "agent", "workflow", "tenant", "created_at"}
    assert shell("runs", "list").out.splitlines()[0].split("\t")[:2] == ["run-3", "completed"]


def test_runs_tail_prints_an_event_a_line(shell: Any) -> None:
    assert last(shell("runs", "tail", "run-1", "--json").out)["kind"] == "run.created"
    assert "run.created" in shell("runs", "tail", "run-1", "--follow").out


def test_approvals(shell: Any) -> None:
    shell.service.open = [
        views.ApprovalView(
            id="ap-1", run_id="run-1", step="pay.1", what={"amount": 5}, digest="d", expires_at=None, quorum=2, given=1
        )
    ]
    found = last(shell("approvals", "list", "--json").out)["approvals"]
    assert found == [
        {"id": "ap-1", "run_id": "run-1", "step": "pay.1", "what": {"amount": 5}, "digest": "d", "expires_at": None,
         "quorum": 2, "given": 1}
    ]  # fmt: skip
    assert "1 of 2" in shell("approvals", "list").out


@pytest.mark.parametrize(
    ("words", "value", "said"),
    [
        (["approve", "ap-1", "--reason", "checked"], True, "approved"),
        (["deny", "ap-1", "--reason", "no"], False, "denied"),
        (["answer", "ap-1", "123"], "123", "answered"),
        (["answer", "ap-1", "--data", '{"n": 1}'], {"n": 1}, "answered"),
    ],
)
def test_an_answer_is_passed_on_with_who_gave_it(shell: Any, words: list[str], value: Any, said: str) -> None:
    result = shell("approvals", *words, "--json")
    assert last(result.out)["answer"] == said
    name, (id_, given, options) = shell.service.asked[-1]
    assert (name, id_, given) == ("answer", "ap-1", value)
    assert type(given) is type(value)
    assert options["principal"].auth == f"peer-uid:{os.getuid()}"


def test_an_answer_is_given_once(shell: Any) -> None:
    for words in ([], ["x", "--data", "1"]):
        result = shell("approvals", "answer", "ap-1", *words)
        assert result.status == 2
        assert "give the answer once" in result.err


@pytest.fixture
def people(tmp_path: Path) -> dict[str, str]:
    tokens = {"alice": "s3cret-a", "bob": "s3cret-b"}
    lines = [f'[principals."uid:{os.getuid()}"]', 'roles = ["operator"]']
    for name, token in tokens.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines += [f"[principals.{name}]", 'roles = ["controller"]', f'token_sha256 = "{digest}"']
    (tmp_path / "holdfast.toml").write_text("\n".join(lines))
    return tokens


def test_people_prove_who_they_are(shell: Any, people: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, token in people.items():
        monkeypatch.setenv("HOLDFAST_PRINCIPAL_TOKEN", token)
        assert shell("approvals", "approve", "ap-1", "--as", name).status == 0
        asker = shell.service.asked[-1][1][-1]["principal"]
        assert asker == views.Principal(name=name, auth="token", roles=("controller",))
    monkeypatch.delenv("HOLDFAST_PRINCIPAL_TOKEN")
    assert shell("approvals", "approve", "ap-1").status == 0
    assert shell.service.asked[-1][1][-1]["principal"].roles == ("operator",)


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("alice", "s3cret-b", "is not the token of alice"),
        ("alice", "", "set HOLDFAST_PRINCIPAL_TOKEN"),
        ("eve", "s3cret-a", "[principals.eve]"),
        (f"uid:{os.getuid()}", "s3cret-a", "not a principal with a token"),
    ],
)
def test_nobody_acts_as_another(
    shell: Any, people: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, token: str, words: str
) -> None:
    monkeypatch.setenv("HOLDFAST_PRINCIPAL_TOKEN", token)
    result = shell("approvals", "approve", "ap-1", "--as", name)
    assert result.status == 2
    assert words in result.err
    assert "s3cret" not in result.err
    assert shell.service.asked == []


@pytest.mark.parametrize("scope", ["tenant", "agent", "session", "run", "workflow", "fleet"])
def test_kill_names_its_scope(shell: Any, scope: str) -> None:
    name = {"workflow": "recon.run", "fleet": ""}.get(scope, "x")
    result = shell("kill", scope, *([name] if name else []), "--reason", "stop", "--compensate", "--json")
    assert last(result.out) == {"id": "k-1", "ended": 3, "ms": 12.346}
    asked, (given_scope, given_name, options) = shell.service.asked[-1]
    assert (asked, given_scope, given_name) == ("kill", scope, name)
    assert (options["reason"], options["compensate"]) == ("stop", True)
    assert "holdfast kill lift k-1" in shell("kill", scope, *([name] if name else []), "--reason", "stop").out


def test_a_kill_needs_a_reason_and_a_workflow_its_agent(shell: Any) -> None:
    assert shell("kill", "fleet", "--reason", " ").status == 2
    result = shell("kill", "workflow", "run", "--reason", "x")
    assert (result.status, "agent.workflow" in result.err) == (2, True)
    assert shell("kill", "fleet").status == 2
    assert shell.service.asked == []


def test_kill_list_lift_and_drill(shell: Any) -> None:
    shell.service.standing = [Kill(id="k-1", scope="agent", name="a", tenant="", reason="r", by="uid:0", at=0)]
    assert last(shell("kill", "list", "--json").out) == {
        "kills": [
            {"id": "k-1", "scope": "agent", "name": "a", "reason": "r", "by": "uid:0",
             "at": "1970-01-01T00:00:00.000000Z"}
        ]
    }  # fmt: skip
    assert "k-1" in shell("kill", "list").out
    assert last(shell("kill", "lift", "k-1", "--json").out) == {"id": "k-1", "lifted": True}
    assert last(shell("kill", "drill", "--json").out)["ms"] == 40.5
    assert "40.5 ms" in shell("kill", "drill").out


def test_tenants(shell: Any) -> None:
    assert shell("tenant", "create", "acme", "--region", "eu-west").status == 0
    assert shell.service.asked[-1][1][:2] == ("acme", "eu-west")
    assert last(shell("tenant", "list", "--json").out)["tenants"][0]["region"] == "eu-west"
    assert last(shell("tenant", "show", "acme", "--json").out)["name"] == "acme"
    assert shell("tenant", "show", "nobody").status == 2


def test_signal_and_resolve(shell: Any) -> None:
    assert shell("runs", "signal", "run-1", "paid", "--data", "[1]").status == 0
    assert shell.service.asked[-1][1][:3] == ("run-1", "paid", b"[1]")
    for words, how in ((["--retry"], "retry"), (["--fail"], "fail"), (["--done", '"x"'], "done")):
        assert shell("runs", "resolve", "run-1", *words).status == 0
        assert shell.service.asked[-1][1][1] == how
    for words in ([], ["--retry", "--fail"]):
        assert shell("runs", "resolve", "run-1", *words).status == 2


def test_serve_says_when_it_is_ready(shell: Any) -> None:
    assert last(shell("serve", "--json").out) == {"serving": True}
    assert "serving" in shell("serve").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "a.py:A", "--input", "{"], "--input is not JSON"),
        (["run", "a.py:A", "--input", "@none.json"], "@none.json cannot be read: No such file"),
        (["run", "a.py:A", "--isolation", "jail"], "jail is not an isolation level; use one of process"),
        (["run"], "Missing argument 'target'"),
        (["run", "a.py:A", "--colour", "red"], "No such option: --colour"),
        (["runs", "lsit"], "No such command 'lsit'"),
        (["runs", "list", "--limit", "0"], "Invalid value for '--limit'"),
        (["runs", "show", "run-77"], "there is no run run-77"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(shell: Any, words: list[str], said: str) -> None:
    result = shell(*words)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert said in result.err


def holdfast_errors() -> list[type[errors.HoldfastError]]:
    found: list[type[errors.HoldfastError]] = []
    todo = [errors.HoldfastError]
    while todo:
        kind = todo.pop()
        if kind.__module__ == "holdfast.errors":
            found.append(kind)
        todo += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", holdfast_errors())
def test_every_error_of_ours_is_one_line_with_its_status(shell: Any, kind: type[errors.HoldfastError]) -> None:
    shell.service.error = kind("it broke;\n mend it")
    result = shell("runs", "list", "--json")
    assert result.status == kind.exit_status
    assert result.err == "error: it broke; mend it\n"
    assert last(result.out) == {"error": "it broke;\n mend it", "code": kind.code}


def test_an_unexpected_error_is_one_line_that_tells_where_the_place_is(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.service.error = ValueError("card 4111111111111111")
    result = shell("runs", "list")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "holdfast.log" in result.err
    logged = (tmp_path / "home" / "holdfast.log").read_text()
    assert "builtins.ValueError" in logged
    assert "4111" not in logged + result.err
    monkeypatch.setenv("HOLDFAST_DEBUG", "1")
    assert "Traceback" in shell("runs", "list").err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_unusable_disk_is_status_10(shell: Any, number: int) -> None:
    shell.service.error = OSError(number, os.strerror(number), "/srv/home")
    result = shell("runs", "list")
    assert result.status == 10
    assert "/srv/home" in result.err
    assert ";" in result.err


def test_an_interrupt_leaves_the_run_resumable(shell: Any) -> None:
    shell.service.error = KeyboardInterrupt()
    result = shell("runs", "resume", "run-1")
    assert result.status == 130
    assert "holdfast runs resume run-1" in result.err


def test_a_misspelt_setting_stops_every_command(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("[llm]\nmodle = 'x'\n")
    result = shell("run", "a.py:A")
    assert result.status == 2
    assert "holdfast.toml:2" in result.err
    assert shell.service.asked == []


def test_doctor_shows_each_value_and_its_origin(shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "holdfast.toml").write_text('[store]\nurl = "postgresql://me:hush@db/x"\n[node]\ngrace = "5s"\n')
    monkeypatch.setenv("HOLDFAST_LLM_MODEL", "large")
    result = shell("doctor", "--json")
    found = {item["key"]: item for item in last(result.out)["settings"]}
    assert found["llm.model"] == {"key": "llm.model", "value": "large", "origin": "HOLDFAST_LLM_MODEL"}
    assert found["node.grace"]["value"] == "5s"
    assert found["node.grace"]["origin"] == "holdfast.toml:4"
    assert found["sandbox.memory"] == {"key": "sandbox.memory", "value": "1GiB", "origin": "default"}
    assert "hush" not in result.out
    assert "hush" not in shell("doctor").out


def test_doctor_fails_on_a_misspelt_variable(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_STROE_URL", "x")
    result = shell("doctor", "--json")
    assert result.status == 1
    failed = [item for item in last(result.out)["checks"] if not item["ok"]]
    assert [item["name"] for item in failed if "HOLDFAST_STROE_URL" in item["detail"]] == ["variables"]


def test_help_and_version(shell: Any) -> None:
    assert "approvals" in shell("--help").out
    version = shell("--version")
    assert (version.status, version.out.startswith("holdfast ")) == (0, True)
