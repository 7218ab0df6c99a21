"""kill -9 at every write of the journal, before and after the commit: nothing is lost, nothing happens twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.journal.event import Kind
from holdfast.node.service import Service
from holdfast.node.views import RunView
from holdfast.testing.crash import PERSON

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

HERE = Path(__file__).parent
WANTED = {"total": 90, "paid": 45, "noted": "paid", "child": 90, "read": 7, "approved": True, "booked": 45}
IRREVERSIBLE = {"pay"}
SETTINGS = """
[connectors.pay]
call = "crash_bank.py:pay"
[connectors.note]
call = "crash_bank.py:note"
effect = "idempotent"
[connectors.book]
call = "crash_bank.py:book"
effect = "compensable"
undo = "unbook"
[connectors.unbook]
call = "crash_bank.py:unbook"
effect = "idempotent"
[connectors.read]
call = "crash_bank.py:read"
effect = "pure"
"""
ALL = bool(os.environ.get("HOLDFAST_CRASH_ALL"))
SAMPLE = (1, 4, 16, 18, 21, 24, 29, 33)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("crash_agent.py", "crash_bank.py"):
        shutil.copy(HERE / name, tmp_path / name)
    (tmp_path / "holdfast.toml").write_text(SETTINGS)
    return tmp_path


def start(place: Path) -> tuple[Path, str]:
    home = place / "home"
    with Service.open(config.load(home, cwd=place), home) as service:
        run = service.submit(f"{place}/crash_agent.py:Crashed", b"{}", principal=PERSON)
    return home, run


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


def settle(place: Path, service: Service, run: str) -> None:
    """Look into the receiver's books, then say what they say."""
    (pending,) = service.run(run).pending
    record = next(e for e in service.events(run) if e.kind == Kind.INTENT and e.data["action"]["id"] == pending.step)
    assert record.data["action"]["name"] in IRREVERSIBLE, "only an irreversible effect may be in doubt"
    if f"pay {record.data['key']}" in books(place):
        service.resolve(run, "done", b'{"amount":45}', principal=PERSON)
    else:
        service.resolve(run, "retry", b"null", principal=PERSON)


def books(place: Path) -> list[str]:
    path = place / "books.log"
    return path.read_text().splitlines() if path.exists() else []


def check(place: Path, home: Path, run: str, view: RunView, kills: int) -> None:
    assert view.status == "completed", view
    assert view.output == WANTED
    lines = books(place)
    names = Counter(line.split()[0] for line in set(lines))
    assert names == {"pay": 1, "note": 1, "book": 1, "read": 1}, "each effect has one key"
    assert Counter(lines)[next(line for line in lines if line.startswith("pay"))] == 1, (
        "an irreversible one happens once"
    )
    with Service.open(config.load(home, cwd=place), home) as service:
        journal(service.events(run), kills)
        report = verify(service.store, home, run=None, tenant=None)
    assert report.ok, report.findings


def journal(events: list[Any], kills: int) -> None:
    """Completed steps never ran again; calls are at most steps and kills together."""
    done: set[str] = set()
    calls: Counter[str] = Counter()
    for event in events:
        if event.kind == Kind.INTENT:
            step = event.data["action"]["id"]
            assert step not in done, f"{step} was begun again after its outcome"
            calls[step] += 1
        elif event.kind == Kind.OUTCOME and event.data["status"] == "ok":
            done.add(event.data["id"])
    assert sum(calls.values()) <= len(calls) + kills


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write(place: Path, when: str) -> None:
    counts = range(1, 200) if ALL else SAMPLE
    for count in counts:
        for name in ("home", "books.log"):
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        home, run = start(place)
        if not crash(place, home, run, count, when):
            check(place, home, run, finish(place, home, run)[0], 0)
            return
        view, doubts = finish(place, home, run)
        assert doubts <= 1
        check(place, home, run, view, 1)
