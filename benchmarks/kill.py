"""The time to halt: from the commit of a kill to the end of the last process of 50 boundaries.

Each boundary holds a worker and a daemon that forked twice. The processes are found from outside, in ``/proc``, and
watched by descriptors of their own (``pidfd_open(2)``): nothing that Holdfast says about the kill is believed.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import HERE

BOUNDARIES = 50
TARGET = 100.0
AGENTS = HERE / "agents" / "daemons.py"


def processes(runs: set[str]) -> dict[int, str]:
    """Processes of runs, by the variable that each process of a boundary inherits."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"HOLDFAST_RUN_ID=") and variable[16:].decode() in runs:
                found[int(entry.name)] = variable[16:].decode()
    return found


def gone_at(pids: list[int]) -> tuple[threading.Thread, list[float]]:
    """Watch processes; the list fills with the time of each one's end."""
    times: list[float] = []
    handles = [os.pidfd_open(pid) for pid in pids]

    def watch() -> None:
        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        left = len(handles)
        while left:
            for handle, _ in poll.poll(30_000) or sys.exit("processes outlived the kill by 30 s"):
                times.append(time.monotonic())
                poll.unregister(handle)
                os.close(handle)
                left -= 1

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, times


def one_round(service: Any, count: int, bystander: str) -> dict[str, Any]:
    """Start boundaries, kill their agent, time the end of their last process."""
    runs = {service.submit(f"{AGENTS}:Daemon", b"{}") for _ in range(count)}
    deadline = time.monotonic() + 300
    while len(found := processes(runs)) < 2 * count or any(
        sum(event.kind == "intent" for event in service.store.events(run)) < 2 for run in runs
    ):
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(found)} processes of {count} boundaries after 300 s")
        time.sleep(0.1)
    thread, times = gone_at(list(found))
    committed: list[float] = []
    transact = service.store.transact

    def timed(batch: Any) -> Any:
        done = transact(batch)
        committed.append(time.monotonic())
        return done

    from holdfast.node.service import SYSTEM

    service.store.transact = timed
    try:
        kill = service.kill("agent", "bench-daemon", "benchmark", principal=SYSTEM)
    finally:
        service.store.transact = transact
    thread.join()
    while any(service.run(run).status != "killed" for run in runs):
        if time.monotonic() > deadline:
            raise SystemExit("a run of the killed agent is not killed")
        time.sleep(0.05)
    assert processes({bystander}), "the bystander was ended too"
    service.lift(kill.id, principal=SYSTEM)
    return {"processes": len(found), "last_ms": round((max(times) - committed[0]) * 1000, 2), "said_ms": kill.ms}


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    count, rounds = (10, 2) if options.quick else (BOUNDARIES, 10)
    from holdfast.config import load
    from holdfast.node.service import SYSTEM, Service

    result: dict[str, Any] = {"machine": common.machine(), "target_ms": TARGET}
    found = []
    with common.folder("kill") as where:
        home = common.configure(where, concurrency=count + 1)
        with Service.open(load(home, cwd=where, environ={}), home) as service, common.serving(home):
            bystander = service.submit(f"{AGENTS}:Bystander", b"{}")
            while not processes({bystander}):
                time.sleep(0.05)
            found = [one_round(service, count, bystander) for _ in range(rounds)]
            service.kill("run", bystander, "the benchmark is over", principal=SYSTEM)
    times = [one["last_ms"] for one in found]
    result |= {
        "rounds": found,
        "p50_ms": round(median(times), 1),
        "p99_ms": round(common.percentile(times, 99), 1),
        "boundaries": count,
    }
    rows = [
        (
            f"{count} boundaries, {found[0]['processes']} processes, median of {rounds} kills",
            f"{result['p50_ms']} ms",
            "",
            "",
        ),
        ("p99", f"{result['p99_ms']} ms", f"< {TARGET:g} ms", common.verdict(result["p99_ms"] < TARGET)),
    ]
    common.report("kill: from the commit to the last process gone", result, rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
