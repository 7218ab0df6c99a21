"""The command line as a person uses it: real processes, a real sandbox, a scripted model on loopback."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast.testing.model_server import ModelServer

TIMEOUT = 110
"""Seconds: a bound against hanging, no measure."""

pytestmark = pytest.mark.timeout(600)

EXAMPLE = """
from waxell_sdk import agent, workflow, decision

@agent(name="financial-reconciliation")
class ReconciliationAgent:
    @workflow
    def run(self, ctx):
        result = ctx.call(self.validate)
        return ctx.call(self.execute, result)

    @decision
    def validate(self, ctx):
        return ctx.llm.classify(
            ctx.input.transaction,
            categories=["approved", "flagged", "requires-review"]
        )

    def execute(self, ctx, result):
        import os
        import subprocess
        seen = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    seen[pid] = file.read().decode("utf-8", "replace")
            except OSError:
                pass
        # The worker's own process keeps its files in /proc to itself; a program that it starts does not.
        seen["child"] = subprocess.run(["/usr/bin/env"], capture_output=True, text=True).stdout
        return {"result": result, "uid": os.getuid(), "net": os.readlink("/proc/self/ns/net"), "environ": seen}

class NoAgent:
    pass

@agent
class NoWorkflow:
    pass
"""


class Result(NamedTuple):
    """What a command line left behind."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


class Shell:
    """Runs ``holdfast`` in a folder of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def __call__(self, *words: str, prefix: tuple[str, ...] = (), **environ: str) -> Result:
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "holdfast", *words],
            cwd=self.folder, env={**self.environ, **environ}, capture_output=True, text=True, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer([{"match": "flag", "category": "flagged"}, {"category": "approved"}]) as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path, model: ModelServer) -> Shell:
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    (tmp_path / "recon.py").write_text(EXAMPLE)
    environ = {**kept, "ANTHROPIC_API_KEY": "sk-very-secret", "ANTHROPIC_BASE_URL": model.url, "NODE_ONLY": "node-only"}
    return Shell(tmp_path, {**environ, "HOLDFAST_LLM_MODEL": "claude-haiku-4-5"})


def test_the_designs_example_runs_governed_isolated_and_recorded(shell: Shell) -> None:
    words = ("run", "recon.py:ReconciliationAgent", "--input", '{"transaction": "wire 10 to ACME"}', "--json")
    done = shell(*words)
    assert (done.status, done.err) == (0, "")
    view = done.data
    assert set(view) == {"run_id", "status", "output", "error", "isolation", "cost_usd", "steps", "pending"}
    assert (view["status"], view["isolation"], view["error"], view["pending"]) == ("completed", "namespace", None, [])
    output = view["output"]
    assert output["result"] == "approved"
    assert output["uid"] != 0
    assert output["net"] != os.readlink("/proc/self/ns/net")
    assert view["run_id"] in output["environ"]["child"]
    assert "sk-very-secret" not in done.out
    assert "node-only" not in done.out
    assert view["cost_usd"] > 0
    run = view["run_id"]
    shown = shell("runs", "show", run, "--json").data
    again = shell("runs", "resume", run, "--json").data
    assert shown == again == view
    listed = shell("runs", "list", "--json").data["runs"]
    assert [(row["run_id"], row["status"], row["agent"]) for row in listed] == [
        (run, "completed", "financial-reconciliation")
    ]
    assert shell("audit", "verify", run).status == 0
    verified = shell("audit", "verify", "--json").data
    assert verified["ok"]
    assert verified["counts"]["decisions"] >= 3


TARGET, GIVEN = "recon.py:ReconciliationAgent", ("--input", '{"transaction": "x"}')
FILES = {
    "typo.yaml": "version: 1\npolicies:\n  - {id: a, categry: step_limit, with: {limit: 5}}\n",
    "unknown.yaml": "version: 1\npolicies:\n  - {id: a, category: step_limits}\n",
    "broken.py": "def f(:\n",
}
REFUSED: list[tuple[tuple[str, ...], dict[str, str], int, tuple[str, ...]]] = [
    (("run", "none.py:A", *GIVEN), {}, 2, ("none.py",)),
    (("run", "broken.py:A", *GIVEN), {}, 2, ("broken.py:1",)),
    (("run", "recon.py:Missing", *GIVEN), {}, 2, ("Missing", "ReconciliationAgent")),
    (("run", "recon.py:NoAgent", *GIVEN), {}, 2, ("NoAgent", "@agent")),
    (("run", "recon.py:NoWorkflow", *GIVEN), {}, 2, ("NoWorkflow", "@workflow")),
    (("run", "recon.py", *GIVEN), {}, 2, ("recon.py",)),
    (("run", TARGET, "--input", '{"transaction": '), {}, 2, ("--input", "not JSON")),
    (("run", TARGET, "--workflow", "other", *GIVEN), {}, 2, ("other", "run")),
    (("run", TARGET, "--tenant", "nobody", *GIVEN), {}, 2, ("nobody", "holdfast tenant")),
    (("run", TARGET, "--policy", "typo.yaml", *GIVEN), {}, 2, ("typo.yaml:3", "categry", "category")),
    (("run", TARGET, "--policy", "unknown.yaml", *GIVEN), {}, 2, ("unknown.yaml:3", "step_limits", "step_limit")),
    (("run", TARGET, "--policy", "none.yaml", *GIVEN), {}, 2, ("none.yaml",)),
    (("runs", "show", "run-nothing"), {}, 2, ("run-nothing", "holdfast runs list")),
    (("approvals", "approve", "nothing"), {}, 2, ("nothing", "holdfast approvals list")),
    (("kill", "lift", "nothing"), {}, 2, ("nothing", "holdfast kill list")),
    (("tenant", "create", "a/b", "--region", "us-east"), {}, 2, ("a/b",)),
    (("run", TARGET, *GIVEN), {"HOLDFAST_HOME": "/proc/holdfast"}, 10, ("/proc/holdfast", "HOLDFAST_HOME")),
    (("run", TARGET, *GIVEN), {"HOLDFAST_STORE_URL": "mysql://x"}, 2, ("[store] url",)),
    (("run", TARGET, *GIVEN), {"HOLDFAST_STORE_URL": "postgresql://u:pw@127.0.0.1:1/x"}, 10, ("database",)),
]
"""Command line, environment, exit status, and words of the one line that it leads to."""


@pytest.mark.parametrize(("words", "environ", "status", "said"), REFUSED)
def test_a_refused_input_is_one_line_with_the_cure(
    shell: Shell, words: tuple[str, ...], environ: dict[str, str], status: int, said: tuple[str, ...]
) -> None:
    for name, text in FILES.items():
        (shell.folder / name).write_text(text)
    done = shell(*words, **environ)
    assert (done.status, done.out) == (status, ""), done
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith("error: ")
    assert "pw@" not in done.err
    for word in said:
        assert word in done.err


def test_a_missing_key_fails_the_run_and_says_which_to_set(shell: Shell) -> None:
    shell.environ = {key: value for key, value in shell.environ.items() if not key.startswith("ANTHROPIC_")}
    done = shell("run", "recon.py:ReconciliationAgent", "--input", '{"transaction": "x"}', "--json")
    assert (done.status, done.data["status"]) == (1, "failed")
    assert "ANTHROPIC_API_KEY" in done.data["error"]


def test_a_journal_of_a_newer_version_is_left_alone(shell: Shell, tmp_path: Path) -> None:
    assert shell("tenant", "list").status == 0
    path = tmp_path / ".holdfast" / "holdfast.db"
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    db.close()
    for words in (("tenant", "list"), ("run", "recon.py:ReconciliationAgent", "--input", '{"transaction": "x"}')):
        done = shell(*words)
        assert done.status == 10
        assert len(done.err.splitlines()) == 1
        assert "newer" in done.err


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk is mounted in a mount namespace of its own")
def test_a_full_disk_and_a_read_only_home_are_one_line_and_status_10(shell: Shell, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = 'mount -t tmpfs -o {} tmpfs "$0" && shift 0 && exec "$@"'
    for options in ("size=64k", "size=10m,ro"):
        prefix = ("unshare", "-m", "sh", "-c", inside.format(options), str(disk))
        done = shell(
            "run", "recon.py:ReconciliationAgent", "--input", '{"transaction": "x"}',
            prefix=prefix, HOLDFAST_HOME=str(disk / "home"),
        )  # fmt: skip
        assert done.status == 10, done
        assert len(done.err.splitlines()) == 1, done.err
        assert done.err.startswith("error: ")
        assert ";" in done.err or "." in done.err


def test_a_run_waits_for_a_person_and_goes_on(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(
        "from holdfast import agent, workflow\n@agent(name='asker')\nclass Asker:\n    @workflow\n"
        "    def run(self, ctx):\n        return ctx.ask('which account?')\n"
    )
    done = shell("run", "ask.py:Asker", "--json")
    assert (done.status, done.data["status"]) == (3, "suspended")
    (pending,) = done.data["pending"]
    found = shell("approvals", "list", "--json").data["approvals"]
    assert [(item["id"], item["run_id"]) for item in found] == [(pending["id"], done.data["run_id"])]
    assert set(found[0]) == {"id", "run_id", "step", "what", "digest", "expires_at", "quorum", "given"}
    assert shell("approvals", "answer", pending["id"], "savings").status == 0
    resumed = shell("runs", "resume", done.data["run_id"], "--json")
    assert (resumed.status, resumed.data["output"]) == (0, "savings")


def test_a_kill_refuses_until_it_is_lifted(shell: Shell) -> None:
    words = ("run", "recon.py:ReconciliationAgent", "--input", '{"transaction": "x"}', "--json")
    killed = shell("kill", "agent", "financial-reconciliation", "--reason", "wrong rates", "--json")
    assert set(killed.data) == {"id", "ended", "ms"}
    refused = shell(*words)
    assert (refused.status, refused.data["status"]) == (6, "refused")
    assert "wrong rates" in refused.data["error"]
    (standing,) = shell("kill", "list", "--json").data["kills"]
    assert set(standing) == {"id", "scope", "name", "reason", "by", "at"}
    assert shell("kill", "lift", standing["id"]).status == 0
    assert shell(*words).status == 0
