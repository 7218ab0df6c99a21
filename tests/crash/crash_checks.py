"""What must hold after crashes, whatever the node was doing when it died."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from holdfast import config
from holdfast.audit.verify import verify
from holdfast.journal.event import Kind
from holdfast.node.service import Service
from holdfast.node.views import RunView
from holdfast.testing.crash import PERSON

HERE = Path(__file__).parent
ALL = bool(os.environ.get("HOLDFAST_CRASH_ALL"))
"""Whether to go through everything and not only through a sample."""
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


def furnish(place: Path, settings: str = "") -> Path:
    """Put the agent, its bank and the settings into a folder."""
    for name in ("crash_agent.py", "crash_bank.py"):
        shutil.copy(HERE / name, place / name)
    (place / "holdfast.toml").write_text(settings + SETTINGS)
    return place


def submit(place: Path, home: Path) -> str:
    """A run of the agent."""
    with Service.open(config.load(home, cwd=place), home) as service:
        return service.submit(f"{place}/crash_agent.py:Crashed", b"{}", principal=PERSON)


def doubts(service: Service, run: str) -> list[str]:
    """The steps whose outcome a run could not know, each time that it said so."""
    return [event.data["id"] for event in service.events(run) if event.kind == Kind.RUN_IN_DOUBT]


def settle(place: Path, service: Service, run: str) -> None:
    """Look into the receiver's books, then say of the latest doubt what they say."""
    step = doubts(service, run)[-1]
    record = next(e for e in service.events(run) if e.kind == Kind.INTENT and e.data["action"]["id"] == step)
    assert record.data["action"]["name"] in IRREVERSIBLE, "only an irreversible effect may be in doubt"
    if f"pay {record.data['key']}" in books(place):
        service.resolve(run, "done", b'{"amount":45}', principal=PERSON)
    else:
        service.resolve(run, "retry", b"null", principal=PERSON)


def books(place: Path) -> list[str]:
    """What the receiver of all effects saw, a line for each call: the connector's name and the key."""
    path = place / "books.log"
    return path.read_text().splitlines() if path.exists() else []


def check(place: Path, home: Path, views: list[RunView], kills: int) -> None:
    """Every run has its output, every effect happened under one key, an irreversible one once; the record verifies."""
    lines = books(place)
    names = Counter(line.split()[0] for line in set(lines))
    assert names == dict.fromkeys(("pay", "note", "book", "read"), len(views)), "each effect has one key"
    twice = [line for line, count in Counter(lines).items() if count > 1 and line.split()[0] in IRREVERSIBLE]
    assert not twice, "an irreversible one happens once"
    with Service.open(config.load(home, cwd=place), home) as service:
        for view in views:
            assert view.status == "completed", view
            assert view.output == WANTED
            journal(service.events(view.run_id), kills)
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
