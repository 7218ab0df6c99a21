"""What the benchmarks share: a home of their own, the command line, statistics, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "out"
POLICIES = HERE / "policies.yaml"
AGENTS = HERE / "agents" / "steps.py"
HOLDFAST = (sys.executable, "-m", "holdfast")

PAYLOAD: dict[str, Any] = {
    "id": "txn-2024-000418",
    "booked_at": "2024-03-18T09:41:07Z",
    "amount": 1284.5,
    "currency": "EUR",
    "debtor": {"name": "Northwind Instruments GmbH", "iban": "DE02120300000000202051", "country": "DE"},
    "creditor": {"name": "Hafen & Lager Logistik AG", "iban": "CH9300762011623852957", "country": "CH"},
    "reference": "Invoice 2024-0311 / order 77-1093, delivery of 14 March, less 2 % discount",
    "lines": [{"sku": f"NW-{n:04}", "quantity": n, "unit_price": 17.25 + n} for n in range(1, 6)],
}
"""What every step carries, here and in the peers: about 600 bytes of JSON in, about 100 out."""


def result_of(payload: dict[str, Any]) -> dict[str, Any]:
    """What every step returns, here and in the peers."""
    return {"id": payload["id"], "category": "approved", "score": 0.93, "reasons": ["known creditor", "usual amount"]}


@contextlib.contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder for one benchmark, on the disk where the repository is; removed at the end."""
    OUT.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=OUT))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command on ``home``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return {**kept, "HOLDFAST_HOME": str(home), **more}


def holdfast(home: Path, *args: str, check: bool = True) -> dict[str, Any]:
    """Run a command of Holdfast's in ``home``'s parent; gives its JSON."""
    done = subprocess.run(
        [*HOLDFAST, *args, "--json"], cwd=home.parent, env=environment(home), capture_output=True, text=True
    )
    if check and done.returncode != 0:
        raise SystemExit(f"holdfast {' '.join(args)} failed ({done.returncode}): {done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@contextlib.contextmanager
def serving(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A serving node on ``home``."""
    with (home.parent / "serve.log").open("w") as log:
        node = subprocess.Popen(
            [*HOLDFAST, "serve"], cwd=home.parent, env=environment(home), stdout=log, stderr=log, text=True
        )
        try:
            yield node
        finally:
            node.terminate()
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()


class Turns:
    """A socket on which the connector ``turn`` lets the benchmark act in the middle of a run.

    ``parties`` callers wait for each other; then ``act`` is called, and all go on.
    """

    def __init__(self, path: Path, act: Callable[[], None], parties: int = 1) -> None:
        self._act = act
        self._parties = parties
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(256)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Turns:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A listener that is closed does not wake who accepts on it everywhere; a shutdown does.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while True:
            callers = []
            try:
                for _ in range(self._parties):
                    callers.append(self._socket.accept()[0])
            except OSError:
                return
            try:
                self._act()
            except BaseException as error:  # noqa: BLE001 - raised in the benchmark's own thread
                self.error = error
            for caller in callers:
                caller.sendall(b"!")
            for caller in callers:
                caller.close()


def configure(
    where: Path, *, store: str = "sqlite", turn: Path | None = None, concurrency: int = 64, pool: int = 0
) -> Path:
    """Write ``holdfast.toml`` and give the home beside it. ``pool``: boundaries that are kept ready for each agent."""
    # What is admitted together must fit into the machine's memory by what it may use, not by what it does.
    boundary = f'[sandbox]\nmemory = "128MiB"\npool = {pool}'
    lines = [f'[store]\nurl = "{store}"', f"[node]\nconcurrency = {concurrency}", boundary]
    if turn is not None:
        (where / "turn.py").write_text(
            "import socket\n\n\ndef turn():\n"
            "    with socket.socket(socket.AF_UNIX) as line:\n"
            f"        line.connect({str(turn)!r})\n"
            "        line.recv(1)\n"
        )
        lines.append('[connectors.turn]\ncall = "turn.py:turn"\neffect = "pure"\ntimeout = "10m"')
    (where / "holdfast.toml").write_text("\n".join(lines) + "\n")
    return where / "home"


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(p / 100 * len(ordered) + 0.5) - 1))]


def middle_ratio(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> float:
    """Median over interleaved blocks of the ratio of their medians: what a noisy machine changes least."""
    return median(median(a) / median(b) for a, b in zip(above, below, strict=True))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "priority": "normal" if os.sched_getscheduler(0) == os.SCHED_OTHER else "real-time",
        "load_before": [round(x, 2) for x in os.getloadavg()],
    }


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Rows as aligned text."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs")
    return parser


def keep(name: str, result: dict[str, Any]) -> None:
    """Keep figures in ``out``, for the plots."""
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def report(title: str, result: dict[str, Any], rows: Sequence[Sequence[object]], as_json: bool) -> None:
    """Print a benchmark's table, and keep its figures in ``out``."""
    keep(title.partition(":")[0], result)
    print(f"\n{title}   (load {result['machine']['load_before'][0]} on {result['machine']['cores']} cores)")
    print(table(rows, ("what", "measured", "target", "")))
    if as_json:
        print(json.dumps(result, sort_keys=True), flush=True)


def verdict(ok: bool) -> str:
    """A mark for the last column."""
    return "met" if ok else "MISSED"
