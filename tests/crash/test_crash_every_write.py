"""kill -9 at every write of the journal, before and after the commit: nothing is lost, nothing happens twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash_checks import ALL, check, furnish, settle, submit

from holdfast import config
from holdfast.node.service import Service
from holdfast.node.views import RunView
from holdfast.testing.crash import PERSON

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

SAMPLE = (1, 4, 16, 18, 21, 24, 29, 33)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def crash(place: Path, home: Path, run: str, count: int, when: str) -> bool:
    """Drive until the node kills itself at a commit; False when the run ended before."""
    command = [sys.executable, "-m", "holdfast.testing.crash", str(home), run, str(count), when]
    done = subprocess.run(command, cwd=place, capture_output=True, timeout=300, check=False)
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return False


def finish(place: Path, home: Path, run: str) -> tuple[RunView, int]:
    """Drive to the end, answering like a person would; gives the view and how often a doubt was settled."""
    doubts = 0
    with Service.open(config.load(home, cwd=place), home) as service:
        for _ in range(12):
            view = service.drive(run)
            if view.status == "in_doubt":
                doubts += 1
                settle(place, service, run)
            elif view.status == "suspended":
                (pending,) = view.pending
                assert pending.kind == "approval", pending
                service.answer(pending.id, True, principal=PERSON)
            else:
                return view, doubts
    raise AssertionError(f"{run} does not end: {view}")


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write(place: Path, when: str) -> None:
    counts = range(1, 200) if ALL else SAMPLE
    home = place / "home"
    for count in counts:
        for name in ("home", "books.log"):
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        run = submit(place, home)
        if not crash(place, home, run, count, when):
            check(place, home, [finish(place, home, run)[0]], 0)
            return
        view, doubts = finish(place, home, run)
        assert doubts <= 1
        check(place, home, [view], 1)
