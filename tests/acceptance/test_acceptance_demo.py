"""The demo, whole, as a person starts it on a machine without a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT = 800
"""Seconds: a bound against hanging, no measure."""


@pytest.mark.timeout(TIMEOUT + 60)
def test_the_demo_shows_what_it_says(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "demo", "--folder", str(folder), "--json"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["killed_while_open"] > 0
    assert (facts["runs"], facts["completed"], facts["denied"], facts["suspended"]) == (17, 14, 2, 1)
    assert facts["denied_by"] == ["embargo"]
    assert facts["isolation"] == "namespace"
    assert facts["approved"] == "completed"
    assert facts["ceiling_status"] == "terminated"
    assert 0 < facts["ceiling_cost_usd"] <= 0.01
    assert (facts["killed_status"], facts["kill_ended"]) == ("killed", 1)
    assert facts["verified"] is True
    assert facts["changed"] in facts["found"]
    # Each line was booked, flagged, refused, or stands in the run that waited when the figures were taken.
    assert 0 < facts["booked"] + facts["flagged"] < 240
    assert facts["cost_usd"] > 0
