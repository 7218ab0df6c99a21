"""Programs that the author's code starts cannot reach into the worker, whose channel is the run's identity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

AGENT = '''
import ctypes, os, subprocess, sys
from holdfast import agent, workflow

ATTACKS = """
import os, sys
worker = os.getppid()
found = []
for name, attack in {
    "memory": lambda: open(f"/proc/{worker}/mem", "rb").close(),
    "descriptors": lambda: os.readlink(f"/proc/{worker}/fd/0"),
    "environment": lambda: open(f"/proc/{worker}/environ", "rb").close(),
    "mappings": lambda: open(f"/proc/{worker}/maps", "rb").read(1),
}.items():
    try:
        attack()
    except OSError:
        continue
    found.append(name)
print(" ".join(found))
"""

@agent
class Curious:
    @workflow
    def run(self, ctx):
        closed = ctx.call(self.attack)
        ctx.call(self.let_in)
        return {"closed": closed, "open": ctx.call(self.attack)}

    def attack(self):
        done = subprocess.run([sys.executable, "-c", ATTACKS], capture_output=True, text=True, check=True)
        return done.stdout.split()

    def let_in(self):
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
'''


def test_the_worker_is_closed_to_other_processes_of_its_sandbox(tmp_path: Path) -> None:
    (tmp_path / "curious.py").write_text(AGENT)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "run", "curious.py:Curious", "--json"],
        cwd=tmp_path,
        env=kept | {"HOLDFAST_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = json.loads(done.stdout.splitlines()[-1])["output"]
    assert output["closed"] == []
    # The same attacks work on a worker that is not private, so they attack something.
    assert set(output["open"]) == {"memory", "descriptors", "environment", "mappings"}
