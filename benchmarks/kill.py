"""The time to halt: from the commit of a kill to the end of the last process of 1, 50 and 100 boundaries.

Each boundary holds a worker and a daemon that forked twice. Their processes, and all others in their pid namespaces,
are found from outside, in ``/proc``, and watched by descriptors of their own (``pidfd_open(2)``): nothing that Holdfast
says about the kill is believed. Beside it stands the floor: as many sandboxes of plain ``bwrap --unshare-all`` with
``python3`` and a daemon, whose first processes are signalled by descriptors that were open before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import HERE

TARGETS = {1: 100.0, 50: 100.0, 100: 300.0}
"""Boundaries that are killed together, and within how many milliseconds the last process must be gone (p99)."""
AGENTS = HERE / "agents" / "daemons.py"
PLAIN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(3600)
"""


def processes(runs: set[str]) -> dict[int, str]:
    """Processes of runs, by the variable that each process of a boundary inherits."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                if variable.startswith(b"HOLDFAST_RUN_ID=") and variable[16:].decode() in runs:
                    found[int(entry.name)] = variable[16:].decode()
    return found


def neighbours(pids: set[int]) -> set[int]:
    """Every process in a pid namespace that one of these is in: also what does not carry the variable."""
    here = os.stat("/proc/self/ns/pid").st_ino
    inodes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                inodes[int(entry.name)] = (entry / "ns" / "pid").stat().st_ino
    theirs = {inodes[pid] for pid in pids if pid in inodes} - {here}
    return {pid for pid, inode in inodes.items() if inode in theirs}


class Watch:
    """When processes end: a thread that waits for all of them."""

    def __init__(self, pids: set[int]) -> None:
        self.last = 0.0
        self._handles = [os.pidfd_open(pid) for pid in pids]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        for handle in self._handles:
            poll.register(handle, select.POLLIN)
        left = len(self._handles)
        while left:
            for handle, _ in poll.poll(30_000) or sys.exit("processes outlived the kill by 30 s"):
                self.last = time.monotonic()
                poll.unregister(handle)
                os.close(handle)
                left -= 1

    def ended(self) -> float:
        """The time of the last one's end."""
        self._thread.join()
        return self.last


def one_round(service: Any, count: int, bystander: str) -> dict[str, Any]:
    """Start boundaries, kill their agent, time the end of their last process."""
    from holdfast.node.service import SYSTEM

    runs = {service.submit(f"{AGENTS}:Daemon", b"{}") for _ in range(count)}
    deadline = time.monotonic() + 300
    while len(found := processes(runs)) < 2 * count or any(
        sum(event.kind == "intent" for event in service.store.events(run)) < 2 for run in runs
    ):
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(found)} processes of {count} boundaries after 300 s")
        time.sleep(0.1)
    everything = neighbours(set(found))
    assert set(found) <= everything
    watch = Watch(everything)
    committed: list[float] = []
    transact = service.store.transact

    def timed(batch: Any) -> Any:
        done = transact(batch)
        committed.append(time.monotonic())
        return done

    service.store.transact = timed
    try:
        kill = service.kill("agent", "bench-daemon", "benchmark", principal=SYSTEM)
    finally:
        service.store.transact = transact
    last = watch.ended()
    while any(service.run(run).status != "killed" for run in runs):
        if time.monotonic() > deadline:
            raise SystemExit("a run of the killed agent is not killed")
        time.sleep(0.05)
    assert processes({bystander}), "the bystander was ended too"
    service.lift(kill.id, principal=SYSTEM)
    return {"processes": len(everything), "last_ms": round((last - committed[0]) * 1000, 2), "said_ms": kill.ms}


def floor(count: int) -> float:
    """Milliseconds from the first signal to the last end, for plain sandboxes."""
    command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--die-with-parent", "--unshare-all"]
    outers = [subprocess.Popen([*command, sys.executable, "-c", PLAIN], stdout=subprocess.PIPE) for _ in range(count)]
    for outer in outers:
        assert outer.stdout is not None
        assert outer.stdout.readline()
    firsts = [int(Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()[0]) for one in outers]
    handles = [os.pidfd_open(pid) for pid in firsts]
    watch = Watch(neighbours(set(firsts)))
    began = time.monotonic()
    for handle in handles:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    last = watch.ended()
    for outer, handle in zip(outers, handles, strict=True):
        os.close(handle)
        outer.wait()
        assert outer.stdout is not None
        outer.stdout.close()
    return (last - began) * 1000


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    counts = {1: 3, 10: 2} if options.quick else {1: 20, 50: 10, 100: 5}
    from holdfast.config import load
    from holdfast.node.service import SYSTEM, Service

    result: dict[str, Any] = {"machine": common.machine(), "targets_ms": TARGETS, "sizes": {}}
    rows: list[tuple[str, str, str, str]] = []
    with common.folder("kill") as where:
        home = common.configure(where, concurrency=max(counts) + 1)
        with Service.open(load(home, cwd=where, environ={}), home) as service, common.serving(home):
            bystander = service.submit(f"{AGENTS}:Bystander", b"{}")
            while not processes({bystander}):
                time.sleep(0.05)
            for count, rounds in counts.items():
                found = []
                plain = []
                for _ in range(rounds):
                    found.append(one_round(service, count, bystander))
                    plain.append(floor(count))
                rows += summary(result, count, found, plain)
            service.kill("run", bystander, "the benchmark is over", principal=SYSTEM)
    common.report("kill: from the commit to the last process gone", result, rows, options.json)


def summary(
    result: dict[str, Any], count: int, found: list[dict[str, Any]], plain: list[float]
) -> list[tuple[str, str, str, str]]:
    """Keep the figures of one number of boundaries; gives the table's rows."""
    times = [one["last_ms"] for one in found]
    middle, worst, least = median(times), common.percentile(times, 99), median(plain)
    result["sizes"][str(count)] = {
        "rounds": found,
        "p50_ms": round(middle, 1),
        "p99_ms": round(worst, 1),
        "plain_bwrap_ms": [round(one, 1) for one in plain],
        "ratio": round(middle / least, 2),
    }
    target = TARGETS.get(count, 100.0)
    what = f"{count} boundaries, {found[0]['processes']} processes"
    return [
        (f"{what}: median of {len(times)} kills", f"{middle:.1f} ms", "", ""),
        (f"{what}: p99", f"{worst:.1f} ms", f"< {target:g} ms", common.verdict(worst < target)),
        (f"{count} of plain bwrap and python3, all signalled at once", f"{least:.1f} ms", "", f"{middle / least:.2f}x"),
    ]


if __name__ == "__main__":
    main()
