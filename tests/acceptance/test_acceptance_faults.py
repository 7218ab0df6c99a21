"""Parts of the gate fail under a real run: what they guard does not happen, and the record says why."""

from __future__ import annotations

import shutil
import sqlite3
from typing import Any

import pytest

from holdfast.errors import HoldfastError
from holdfast.policy import flow
from holdfast.policy.categories.carddata import PanGuard

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
    from holdfast import DeniedError, agent, workflow

    @agent(name="payer")
    class Payer:
        @workflow
        def main(self, ctx):
            done = []
            for note in ("first", "second"):
                try:
                    done.append(ctx.tool("pay", note=note))
                except DeniedError as error:
                    done.append(str(error))
            return done
"""
BANK = """
    from pathlib import Path

    def pay(note):
        with Path("paid.txt").open("a") as file:
            file.write(note + "\\n")
        return "paid"
"""
SETTINGS = """
    [connectors.pay]
    call = "bank.py:pay"
    labels = []
"""


@pytest.fixture
def bank(lab: Any) -> Any:
    lab.write("payer.py", AGENT)
    lab.write("bank.py", BANK)
    lab.settings(SETTINGS)
    return lab


def paid(bank: Any) -> list[str]:
    path = bank.folder / "paid.txt"
    return path.read_text().split() if path.exists() else []


def test_a_scanner_that_dies_lets_nothing_pass(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(PanGuard, "look", look)
    view = bank.run("payer.py:Payer", {}, policies="- {id: cards, category: pan_guard, gates: [tool]}")
    assert paid(bank) == []
    assert view.output == ["the rule failed (TimeoutError), so it denies"] * 2
    verdicts = [event.data["verdict"] for event in bank.events(view.run_id, "verdict")]
    assert [verdict["reason"] for verdict in verdicts] == view.output


def test_what_cannot_be_looked_into_binds_the_run(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = flow.seen

    def broken(value: Any) -> Any:
        if value == "paid":
            raise TimeoutError
        return seen(value)

    monkeypatch.setattr(flow, "seen", broken)
    view = bank.run("payer.py:Payer", {}, policies="- {id: orders, category: untrusted_taint}")
    assert paid(bank) == ["first"]
    assert "untrusted" in view.output[1]
    [outcome] = [event for event in bank.events(view.run_id, "outcome") if event.data["status"] == "ok"]
    assert outcome.data["labels"] == ["pan", "phi", "private", "secret", "untrusted"]


@pytest.mark.parametrize("data", [b"", b'{"v":1,"policies":['], ids=["empty", "half"])
def test_a_pinned_bundle_that_is_damaged_runs_nothing(bank: Any, data: bytes) -> None:
    run = bank.submit("payer.py:Payer", {}, policies="- {id: cards, category: pan_guard, gates: [tool]}")
    [created] = bank.events(run, "run.created")
    with sqlite3.connect(bank.home / "holdfast.db") as database:
        database.execute("UPDATE blobs SET data = ? WHERE digest = ?", (data, created.data["bundle"]))
    with pytest.raises(HoldfastError, match=r"changed|blob|bundle"):
        bank.drive(run)
    assert paid(bank) == []
    assert bank.kinds(run)[-1] != "run.completed"
