"""The demo's chapters. Each does one thing with the command line and tells what the journal says of it."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from holdfast.cli import output
from holdfast.cli.demo_shell import TOKEN, DemoError, Node, Shell, until

AGENT = "agent.py:ReconciliationAgent"
AT_ONCE = 3
"""Command lines that run side by side."""
OPEN = ("pending", "running")


class Story:
    """Tells the chapters in order and keeps the figures."""

    def __init__(self, shell: Shell, *, quiet: bool) -> None:
        self._shell = shell
        self._quiet = quiet
        self._node: Node | None = None
        self._parties: list[dict[str, Any]] = []
        self._runs: list[str] = []
        self._views: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        """Every chapter. Gives the figures.

        Raises:
            DemoError: something else happened than was to be shown.
        """
        try:
            self.reconcile()
            self.results()
            self.approve()
            self.ceiling()
            self.kill()
        finally:
            if self._node is not None:
                self._node.stop()
        self.verify()
        return self.facts

    def tell(self, text: str, style: str = "") -> None:
        """Print a line, unless the demo only prints its figures."""
        if not self._quiet:
            output.say(text, style)

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self.tell("")
        self.tell(title, "bold cyan")

    def reconcile(self) -> None:
        """All counterparties side by side; the node is killed in the middle."""
        self._parties = parties(self._shell.folder / "data" / "statement.csv")
        (self._shell.folder / "party.json").write_text(json.dumps(self._parties[0], ensure_ascii=False), "utf-8")
        lines = sum(len(party["lines"]) for party in self._parties)
        self.chapter(f"1. {lines} bank lines of {len(self._parties)} counterparties: one governed, sandboxed run each")
        self._node = self._shell.serve()
        first = self._node.pid
        with ThreadPoolExecutor(AT_ONCE) as pool, self._progress(len(self._parties)) as show:
            submitted = [pool.submit(self._submit, party) for party in self._parties]
            until("the first runs to end", lambda: self._middle(show))
            self._node.kill()
            counts = self._count(show)
            self.tell(f"   kill -9 of the node, pid {first}: {said(counts)}", "yellow")
            for future in submitted:
                future.result()
            self._node = self._shell.serve()
            self.tell(f"   a new node, pid {self._node.pid}, takes over")
            until("every run to end or wait", lambda: self._settled(show))
        self.facts["killed_while_open"] = sum(counts[status] for status in OPEN)

    def results(self) -> None:
        """What the journal says of each run."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for view in pool.map(lambda run: self._shell("runs", "show", run).data, list(self._runs)):
                self._views[view["run_id"]] = view
        for run in [view["run_id"] for view in self._views.values() if view["status"] == "in_doubt"]:
            # The node died between a transfer's intent and its answer. This bank honours the idempotency key.
            self.tell(f"   {run} is in doubt: a transfer was sent and not answered; the bank knows its key, so:")
            self._shell("runs", "resolve", run, "--retry", show=True)
            self._views[run] = self._shell("runs", "resume", run, expect=(0, 3, 4)).data
        counts = Counter(view["status"] for view in self._views.values())
        if counts["completed"] + counts["denied"] + counts["suspended"] != len(self._parties):
            raise DemoError(f"some runs ended otherwise: {said(counts)}")
        outputs = [view["output"] for view in self._views.values() if view["status"] == "completed"]
        cost = sum(view["cost_usd"] for view in self._views.values())
        steps = sum(view["steps"] for view in self._views.values())
        booked, flagged = (sum(item[key] for item in outputs) for key in ("booked", "flagged"))
        refunded = sum(item["refunded_cents"] for item in outputs)
        self.tell(f"   everything resumed: {said(counts)}", "green")
        self.tell(
            f"   {booked} lines booked, {flagged} flagged as short, {euros(refunded)} paid back; "
            f"{steps} steps, ${cost:.4f}, isolation {self._isolation()}"
        )
        denied = [view for view in self._views.values() if view["status"] == "denied"]
        if not denied:
            raise DemoError("no run was denied by the embargo")
        reasons = [self._shell("policy", "explain", "--run", view["run_id"]).data["verdict"] for view in denied]
        for view, verdict in zip(denied, reasons, strict=True):
            self.tell(f"   denied  {view['run_id']} by policy {verdict['rule']}: {verdict['reason']}", "red")
        self.facts |= {
            "runs": len(self._views), "completed": counts["completed"], "denied": counts["denied"],
            "suspended": counts["suspended"], "booked": booked, "flagged": flagged, "refunded_cents": refunded,
            "steps": steps, "cost_usd": round(cost, 6), "denied_by": sorted({verdict["rule"] for verdict in reasons}),
            "isolation": self._isolation(),
        }  # fmt: skip

    def approve(self) -> None:
        """A controller lets the large refund go."""
        self.chapter("2. One run waits for a controller; no process is left of it")
        found = self._shell("approvals", "list", show=True).data["approvals"]
        if len(found) != 1:
            raise DemoError(f"{len(found)} approvals wait; one was expected")
        item = found[0]
        self.tell(f"   {item['id']} at {item['step']}: {output.compact(item['what'], 160)}")
        words = ("approvals", "approve", item["id"], "--as", "carla", "--reason", "invoice checked")
        self._shell(*words, show=True, HOLDFAST_PRINCIPAL_TOKEN=TOKEN)
        view = self._shell("runs", "resume", item["run_id"], show=True).data
        self.tell(f"   {view['run_id']} {view['status']}: {output.compact(view['output'])}", "green")
        self.facts["approved"] = view["status"]

    def ceiling(self) -> None:
        """A loop meets its budget."""
        self.chapter("3. An agent that never stops by itself has a ceiling of $0.01")
        view = self._shell("run", "agent.py:DunningWriter", expect=(5,), show=True).data
        self.tell(f"   {view['status']} at ${view['cost_usd']:.6f}: {view['error']}", "red")
        self.facts |= {"ceiling_status": view["status"], "ceiling_cost_usd": view["cost_usd"]}

    def kill(self) -> None:
        """An agent is killed and stays so."""
        self.chapter("4. An agent is killed")
        watch = ("run", "agent.py:BalanceWatch")
        run = self._shell(*watch, "--detach", show=True).data["run_id"]
        until("the agent to be at work", lambda: self._shell("runs", "show", run).data["steps"] >= 1)
        result = self._shell("kill", "agent", "balance-watch", "--reason", "not needed today", show=True).data
        self.tell(f"   {result['ended']} boundary ended, {result['ms']:.1f} ms after the kill was recorded", "red")
        refused = self._shell(*watch, expect=(6,), show=True)
        self.tell(f"   a new run is {refused.data.get('status', 'refused')} (exit status {refused.status})", "red")
        self._shell("kill", "lift", result["id"], show=True)
        view = until("the killed run to end", lambda: self._ended(run))
        self.facts |= {"kill_ms": result["ms"], "kill_ended": result["ended"], "killed_status": view["status"]}

    def verify(self) -> None:
        """The record holds; a copy in which one byte was changed does not."""
        self.chapter("5. The record")
        report = self._shell("audit", "verify", show=True).data
        counts = report["counts"]
        self.tell(
            f"   verified: {counts['events']} events of {counts['runs']} runs, {counts['payloads']} payloads, "
            f"{counts['decisions']} verdicts decided again",
            "green",
        )
        copy = self._shell.folder / "copy"
        shutil.copytree(self._shell.home, copy, ignore=shutil.ignore_patterns("*.sock", "boundaries", "work"))
        where = flip(copy / "holdfast.db")
        self.tell(f"   in a copy, one byte of {where} is changed")
        broken = self._shell("audit", "verify", expect=(9,), HOLDFAST_HOME=str(copy))
        self.tell("  $ HOLDFAST_HOME=copy holdfast audit verify", "dim")
        finding = broken.data["findings"][0]
        self.tell(f"   {finding['where']}: {finding['message']} (exit status {broken.status})", "red")
        self.facts |= {
            "events": counts["events"], "verified": report["ok"], "changed": where, "found": finding["where"],
        }  # fmt: skip

    def _submit(self, party: dict[str, Any]) -> None:
        run = self._shell("run", AGENT, "--input", json.dumps(party), "--detach").data["run_id"]
        self._runs.append(run)

    def _middle(self, show: Any) -> bool:
        counts = self._count(show)
        return counts["completed"] >= 3 and any(counts[status] for status in OPEN)

    def _settled(self, show: Any) -> bool:
        return not any(self._count(show)[status] for status in OPEN)

    def _count(self, show: Any) -> Counter[str]:
        rows = self._shell("runs", "list", "--limit", "1000").data["runs"]
        counts = Counter(row["status"] for row in rows)
        show(counts)
        return counts

    def _ended(self, run: str) -> dict[str, Any] | None:
        view = self._shell("runs", "show", run).data
        return view if view["status"] not in OPEN else None

    def _isolation(self) -> str:
        return ", ".join(sorted({str(view["isolation"]) for view in self._views.values()}))

    @contextmanager
    def _progress(self, total: int) -> Iterator[Any]:
        """A bar on a terminal; nothing in a pipe."""
        if self._quiet or not output.is_terminal():
            yield lambda counts: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        lock = threading.Lock()
        with Progress(*columns, console=output.console(), transient=True) as bar:
            task = bar.add_task("starting", total=total)

            def show(counts: Counter[str]) -> None:
                ended = sum(number for status, number in counts.items() if status not in OPEN)
                with lock:
                    bar.update(task, completed=ended, description=said(counts))

            yield show


def parties(path: Path) -> list[dict[str, Any]]:
    """The statement, a dictionary for each counterparty, those with the most lines first."""
    found: dict[str, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            amounts = {key: int(row[key]) for key in ("paid_cents", "invoiced_cents")}
            found.setdefault(row["counterparty"], []).append({**row, **amounts})
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [{"counterparty": name, "lines": lines} for name, lines in ordered]


def flip(database: Path) -> str:
    """Change one byte of an event in the middle of a log; gives the event's place."""
    with closing(sqlite3.connect(database)) as db, db:
        row = db.execute(
            "SELECT stream, seq, body FROM events WHERE kind = 'outcome' ORDER BY idx LIMIT 1 "
            "OFFSET (SELECT count(*) / 2 FROM events WHERE kind = 'outcome')"
        ).fetchone()
        if row is None:
            raise DemoError("the copy holds no outcome")
        stream, seq, body = row
        changed = bytearray(body)
        at = body.index(b'"at":') + len(b'"at":')
        changed[at + 3] = ord("1") if changed[at + 3] != ord("1") else ord("2")
        db.execute("UPDATE events SET body = ? WHERE stream = ? AND seq = ?", (bytes(changed), stream, seq))
    return f"{stream} event {seq}"


def said(counts: Counter[str]) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{number} {status}" for status, number in counts.most_common()) or "nothing yet"


def euros(cents: int) -> str:
    """An amount as text."""
    return f"€{cents // 100:,}.{cents % 100:02d}"
