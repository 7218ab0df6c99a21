"""kill -9 of a serving node at random commits, again and again, while many runs go on side by side."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from crash_checks import ALL, check, doubts, furnish, settle, submit

from holdfast import config
from holdfast.journal.fold import FINAL
from holdfast.node.service import Service
from holdfast.testing.crash import PERSON

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

KILLS, RUNS = (300, 20) if ALL else (6, 6)
SEED = 20260101
PATIENCE = 600.0
"""Seconds without any event after which a test gives up."""


class Fleet:
    """Runs side by side on a home, and the person who answers for them."""

    def __init__(self, place: Path, runs: int) -> None:
        self.place = place
        self.home = place / "home"
        self.runs = [submit(place, self.home) for _ in range(runs)]
        self._answered: set[str] = set()
        self._settled: Counter[str] = Counter()
        self._seen = 0
        self._moved = time.monotonic()

    def attend(self, service: Service) -> bool:
        """Answer what is asked, settle what is in doubt; says whether every run has ended."""
        for asked in service.approvals():
            if asked.id not in self._answered:
                service.answer(asked.id, True, principal=PERSON)
                self._answered.add(asked.id)
        statuses = {row.run_id: row.status for row in service.runs()}
        for run in self.runs:
            if statuses[run] == "in_doubt" and len(doubts(service, run)) > self._settled[run]:
                settle(self.place, service, run)
                self._settled[run] += 1
        seen = sum(tenant.log_size for tenant in service.store.tenants())
        if seen != self._seen:
            self._seen, self._moved = seen, time.monotonic()
        assert time.monotonic() - self._moved < PATIENCE, f"nothing happens any more: {statuses}"
        return all(statuses[run] in FINAL for run in self.runs)

    def serve(self, count: int, when: str) -> bool:
        """Let a node serve until it dies at its COUNT-th event, or all is done; says whether it died."""
        command = [sys.executable, "-m", "holdfast.testing.halt", str(self.home), "KILL", "any", "", str(count), when]
        pause = threading.Event()
        with (self.place / "node.log").open("ab") as log:
            node = subprocess.Popen(command, cwd=self.place, stdout=log, stderr=log, env=os.environ)
        try:
            with Service.open(config.load(self.home, cwd=self.place), self.home) as service:
                while node.poll() is None:
                    if self.attend(service):
                        node.terminate()
                        node.wait(300)
                    pause.wait(0.05)
        finally:
            node.kill()
            node.wait()
        assert node.returncode in (0, -signal.SIGKILL), (self.place / "node.log").read_text()[-3000:]
        return node.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_random_kills_of_many_runs_side_by_side(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    chance = random.Random(SEED)
    kills, wanted, runs = 0, KILLS, RUNS
    if kind == "postgres":
        wanted, runs = KILLS // 3, RUNS // 2
    for turn in range(100):
        place = tmp_path / f"turn-{turn}"
        place.mkdir()
        url = request.getfixturevalue("postgres").create() if kind == "postgres" else "sqlite"
        furnish(place, f'[node]\ngrace = "50ms"\n[store]\nurl = "{url}"\n')
        fleet = Fleet(place, runs)
        here = 0
        while True:
            # Of a late turn's last node nothing is asked but to bring everything to its end.
            count = chance.randint(1, 5 * runs) if kills < wanted else 1 << 30
            if not fleet.serve(count, chance.choice(("before", "after"))):
                break
            here, kills = here + 1, kills + 1
        with Service.open(config.load(fleet.home, cwd=place), fleet.home) as service:
            views = [service.run(run) for run in fleet.runs]
        check(place, fleet.home, views, here)
        shutil.rmtree(place)
        if kills >= wanted:
            return
    raise AssertionError(f"only {kills} kills in 100 turns")
