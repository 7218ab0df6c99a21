"""The cost of governance: a governed durable step against a bare INSERT, and against the durable steps of others.

Serial: one run, in its sandbox, does blocks of steps. After each block, while it waits, the benchmark inserts as many
rows of the same size into a database of the same settings in the same folder, and has each peer do as many steps. So
whatever else the machine does meets all of them alike.

Side by side: 64 runs wait until all have begun, then each does its steps.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks import common
from benchmarks.common import HERE, PAYLOAD

RUNS = 64
PEERS = Path(os.environ.get("HOLDFAST_BENCH_PYTHON", HERE.parent / ".venv-bench" / "bin" / "python"))
"""The interpreter that has DBOS and LangGraph."""
TARGETS = {"raw": 3.0, "peers": 4.0, "steps_a_second": 3000.0, "peers_side_by_side": 10.0}


class Floor(Protocol):
    """The least that a durable step could cost: one INSERT."""

    def insert(self) -> None:
        """Insert one row, durably."""


class SqliteFloor:
    """The stdlib's sqlite3, with the pragmas of the journal."""

    def __init__(self, path: Path, data: bytes) -> None:
        from holdfast.journal.sqlite import PRAGMAS

        self._data = data
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE raw (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    def insert(self) -> None:
        """Insert one row, durably."""
        self._connection.execute("INSERT INTO raw (data) VALUES (?)", (self._data,))


class PostgresFloor:
    """psycopg with autocommit and a prepared statement."""

    def __init__(self, url: str, data: bytes) -> None:
        import psycopg

        self._data = data
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE TABLE raw (id bigserial PRIMARY KEY, data bytea NOT NULL)")

    def insert(self) -> None:
        """Insert one row, durably."""
        self._connection.execute("INSERT INTO raw (data) VALUES (%s)", (self._data,), prepare=True)


class Peer:
    """Another engine, in a process of its own."""

    def __init__(self, name: str, script: str, url: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [PEERS, str(HERE / "peers" / script), url, json.dumps(PAYLOAD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line[0] in '["0123456789':
                return json.loads(line)
        raise SystemExit(f"{self.name} ended; run its script by hand to see why")

    def ask(self, command: str) -> Any:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def peers(where: Path, engine: str, url: str, names: tuple[str, ...]) -> list[Peer]:
    """The peers on a store of the same kind."""
    found = []
    for name in names:
        path = f"sqlite:///{where / name}.db" if engine == "sqlite" else url.rpartition("/")[0] + f"/{name}"
        found.append(Peer({"dbos": "DBOS", "langgraph": "LangGraph"}[name], f"{name}_peer.py", path))
    return found


def bytes_of_a_step(home: Path, store: str, run: str) -> int:
    """Bytes that one step commits: its events (the outcome before, its own intent) and its sealed payloads."""
    from holdfast.journal.open import open_store

    with_store = open_store(store, home)
    try:
        events = [event for event in with_store.events(run) if event.kind in ("intent", "outcome")]
        names = {event.data.get("id") or event.data["action"].get("id") for event in events}
        steps = [name for name in names if name.startswith("book.")]
        total = 0
        for event in events:
            name = event.data.get("id") or event.data["action"].get("id")
            if name in steps:
                from holdfast.journal.event import encode

                total += len(encode(event))
                if event.payloads:
                    row = with_store._query(
                        "SELECT sum(length(ciphertext)) FROM payloads WHERE tenant = ? AND idx = ?",
                        (event.tenant, event.index),
                    )
                    total += int(row[0][0])
        return total // len(steps)
    finally:
        with_store.close()


def verified(home: Path) -> int:
    """Events that ``holdfast audit verify`` finds whole; the benchmark ends when it finds anything else."""
    done = common.holdfast(home, "audit", "verify")
    assert done["ok"] is True, done
    return int(done["counts"]["events"])


def serial(where: Path, engine: str, store: str, blocks: int, steps: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The serial step, interleaved with everything that it is compared with."""
    line = where / "turn"
    home = common.configure(where, store=store, turn=line)
    given = {"transaction": PAYLOAD, "blocks": 1, "steps": steps}

    def governed(blocks: int) -> dict[str, Any]:
        given["blocks"] = blocks
        done = common.holdfast(
            home, "run", f"{common.AGENTS}:Serial", "--policy", str(common.POLICIES), "--input", json.dumps(given)
        )
        assert (done["status"], done["isolation"]) == ("completed", "namespace"), done
        return done

    with common.Turns(line, lambda: None):
        size = bytes_of_a_step(home, store, governed(1)["run_id"])
    line.unlink()
    data = os.urandom(size)
    floor: Floor = SqliteFloor(where / "raw.db", data) if engine == "sqlite" else PostgresFloor(store, data)
    others = peers(where, engine, store, names)
    raw: list[list[int]] = []
    theirs: dict[str, list[list[int]]] = {peer.name: [] for peer in others}

    def act() -> None:
        took = []
        for _ in range(steps):
            began = time.perf_counter_ns()
            floor.insert()
            took.append(time.perf_counter_ns() - began)
        raw.append(took)
        for peer in others:
            theirs[peer.name].append(peer.ask(f"serial {steps}"))

    try:
        with common.Turns(line, act):
            ours = governed(blocks)["output"]
    finally:
        for peer in others:
            peer.close()
    line.unlink()

    def us(samples: list[list[int]]) -> dict[str, float]:
        flat = [x / 1000 for block in samples for x in block]
        return {
            "p10_us": round(common.percentile(flat, 10), 1),
            "p50_us": round(median(flat), 1),
            "p99_us": round(common.percentile(flat, 99), 1),
            "n": len(flat),
        }

    ratios = {name: round(common.middle_ratio(samples, ours), 2) for name, samples in theirs.items()}
    return {
        "bytes_a_step": size,
        "governed": us(ours),
        "raw": us(raw),
        "peers": {name: us(samples) for name, samples in theirs.items()},
        "ratio_raw": round(common.middle_ratio(ours, raw), 2),
        "ratio_peers": ratios,
        "ratio_best_peer": min(ratios.values(), default=None),
        "events_verified": verified(home),
    }


def cpu_s(pid: int) -> float:
    """Processor time of a process so far: what its speed comes down to on a machine that is busy otherwise."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def side_by_side(where: Path, engine: str, store: str, steps: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Steps a second of 64 runs, process starts apart, and of the peers."""
    line = where / "turn"
    home = common.configure(where, store=store, turn=line, concurrency=RUNS)
    given = json.dumps({"transaction": PAYLOAD, "steps": steps}).encode()
    from holdfast.config import load as load_settings
    from holdfast.node.service import Service

    settings = load_settings(home, cwd=where, environ={})
    with Service.open(settings, home) as service:
        runs = [
            service.submit(f"{common.AGENTS}:Parallel", given, policy_files=(common.POLICIES,)) for _ in range(RUNS)
        ]
        used: list[float] = []
        with common.serving(home) as node, common.Turns(line, lambda: used.append(cpu_s(node.pid)), parties=RUNS):
            while any(service.run(run).status in ("pending", "running", "suspended") for run in runs):
                if node.poll() is not None:
                    raise SystemExit(f"the node ended with {node.returncode}: {(where / 'serve.log').read_text()}")
                time.sleep(0.5)
            used.append(cpu_s(node.pid))
        done = [service.run(run) for run in runs]
    assert all(view.status == "completed" for view in done), [(v.status, v.error) for v in done]
    spans = [view.output for view in done]
    span = max(end for _, end in spans) - min(start for start, _ in spans)
    result: dict[str, Any] = {
        "steps_a_second": round(RUNS * steps / span),
        "node_cpu_us_a_step": round((used[1] - used[0]) * 1e6 / (RUNS * steps)),
        "runs": RUNS,
        "steps": RUNS * steps,
    }
    theirs = {}
    for peer in peers(where, engine, store, names):
        try:
            theirs[peer.name] = round(peer.ask(f"parallel {RUNS} {max(4, steps // 10)}"))
        finally:
            peer.close()
    result["peers"] = theirs
    result["ratio_best_peer"] = round(result["steps_a_second"] / max(theirs.values()), 1) if theirs else None
    result["events_verified"] = verified(home)
    return result


@contextmanager
def postgres(where: Path) -> Iterator[str]:
    """A PostgreSQL cluster of the benchmark's own, durable as it comes (fsync on); gives its address."""
    binaries = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql, or run with --engine sqlite")
    data = where / "postgres"
    # The server refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data.mkdir()
    if as_user:
        shutil.chown(data, "postgres")
        for parent in (where, *where.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
            if parent == HERE:
                break
    subprocess.run(
        [*as_user, binaries / "initdb", "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On loopback, for not every peer can name a Unix socket.
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={data} -c max_connections=200"
    control = [*as_user, binaries / "pg_ctl", "-D", data, "-w", "-l", data / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    try:
        import psycopg

        with psycopg.connect(f"postgresql://bench@127.0.0.1:{port}/postgres", autocommit=True) as admin:
            assert admin.execute("SHOW fsync").fetchone() == ("on",)
            for name in ("holdfast", "dbos", "langgraph"):
                admin.execute(f"CREATE DATABASE {name}")
        yield f"postgresql://bench@127.0.0.1:{port}/holdfast"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL, cwd="/")


def measure(engine: str, scale: float, names: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, Any]:
    """All of it on one kind of store."""
    result: dict[str, Any] = {}
    for part in parts:
        with ExitStack() as stack:
            where = stack.enter_context(common.folder(f"governance-{engine}"))
            store = "sqlite" if engine == "sqlite" else stack.enter_context(postgres(where))
            if part == "serial":
                result[part] = serial(where, engine, store, max(3, round(60 * scale)), 25, names)
            else:
                result[part] = side_by_side(where, engine, store, max(20, round(200 * scale)), names)
    return result


def rows(engine: str, result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table's rows for one kind of store."""
    lines: list[tuple[object, ...]] = []
    one, many = result.get("serial"), result.get("parallel")
    if one:
        lines += [
            (f"{engine}: governed step, p50", f"{one['governed']['p50_us']:.0f} µs", "", ""),
            (f"{engine}: bare INSERT of {one['bytes_a_step']} bytes, p50", f"{one['raw']['p50_us']:.0f} µs", "", ""),
            (
                f"{engine}: governed / bare",
                f"{one['ratio_raw']}×",
                f"≤ {TARGETS['raw']:g}×",
                common.verdict(one["ratio_raw"] <= TARGETS["raw"]),
            ),
        ]
        for name, ratio in one["ratio_peers"].items():
            p50 = one["peers"][name]["p50_us"]
            lines.append(
                (f"{engine}: {name} ({p50:.0f} µs) / governed", f"{ratio}×", "≥ 4×", common.verdict(ratio >= 4))
            )
    if many:
        speed = many["steps_a_second"]
        target = TARGETS["steps_a_second"]
        lines.append(
            (f"{engine}: {RUNS} runs, steps a second", speed, f"≥ {target:g}", common.verdict(speed >= target))
        )
        lines.append((f"{engine}: the node's processor time for each", f"{many['node_cpu_us_a_step']} µs", "", ""))
        for name, theirs in many["peers"].items():
            ratio = round(speed / theirs, 1)
            lines.append(
                (f"{engine}: against {name} ({theirs} a second)", f"{ratio}×", "≥ 10×", common.verdict(ratio >= 10))
            )
    return lines


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--engine", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--part", choices=("serial", "parallel", "both"), default="both")
    parser.add_argument("--no-peers", action="store_true", help="only against the bare INSERT")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(), "targets": TARGETS}
    names = () if options.no_peers else ("dbos", "langgraph")
    if names and not PEERS.exists():
        raise SystemExit(f"{PEERS} is missing: `make bench` makes it, or use --no-peers")
    parts = ("serial", "parallel") if options.part == "both" else (options.part,)
    lines: list[tuple[object, ...]] = []
    for engine in ("sqlite", "postgres") if options.engine == "both" else (options.engine,):
        result[engine] = measure(engine, 0.1 if options.quick else 1, names, parts)
        lines += rows(engine, result[engine])
        common.keep("governance", result)
    common.report("governance: the cost of a governed step", result, lines, options.json)


if __name__ == "__main__":
    sys.exit(main())
