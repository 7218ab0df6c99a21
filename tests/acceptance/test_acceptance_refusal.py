"""A level that cannot be had here refuses the run with exit status 8; nothing runs at a weaker one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

AGENT = """
from holdfast import agent, workflow


@agent(name="small")
class Small:
    @workflow
    def run(self, ctx):
        return 1
"""
CLOSED = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
"""In a user namespace of its own: none below it can be made, and no other uid is there."""


def closed() -> list[str]:
    """A command prefix for a place like a container that may make no namespaces."""
    prefix = ["unshare", "--user", "--map-root-user", "/bin/sh", "-c", CLOSED, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no user namespace can be made here to close")
    return prefix


def test_a_run_is_refused_with_status_8_where_its_level_cannot_be_had(lab: Any) -> None:
    lab.write("agents.py", AGENT)
    command = [sys.executable, "-m", "holdfast", "run", "agents.py:Small", "--input", "{}", "--json"]
    done = subprocess.run(
        [*closed(), *command, "--isolation", "namespace"],
        cwd=lab.folder,
        env=lab._env({}),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 8, (done.returncode, done.stdout, done.stderr)
    shown = json.loads(done.stdout.splitlines()[-1])
    assert (shown["status"], shown["output"], shown["steps"]) == ("failed", None, 0)
    assert shown["error"]
    assert "run.started" not in lab.kinds(shown["run_id"])
    assert "Traceback" not in done.stderr
