"""How many agents a host holds: what each boundary costs the node, and the host, at 100 side by side.

The node is this process: its own memory (proportional set size) before and after it started the boundaries, which all
wait in the middle of a step. What a boundary costs the host is the proportional set size of the processes in it, and
what its control group counts, which misses what boundaries share.
"""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import HERE

COUNT = 100
TARGET_MIB = 1.0
MIB = 1 << 20
AGENTS = HERE / "agents" / "daemons.py"


def pss(pid: int | str) -> int:
    """Bytes of a process, each shared page counted by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"the kernel does not tell the memory of {pid}")


async def measure(home: Path, where: Path, count: int) -> dict[str, Any]:
    """Start so many runs on a node in this process, and look when all of them stand in their step."""
    from holdfast.config import load
    from holdfast.node.node import Node
    from holdfast.node.service import Service

    settings = load(home, cwd=where, environ={})
    with Service.open(settings, home) as service:
        node = Node(settings, home)
        await node.start()
        done = asyncio.Event()
        serving = asyncio.ensure_future(node.serve(done))
        try:
            # The first one pays for what all share.
            first = service.submit(f"{AGENTS}:Bystander", b"{}")
            await _standing(service, {first})
            gc.collect()
            before, began = pss("self"), time.monotonic()
            runs = {service.submit(f"{AGENTS}:Bystander", b"{}") for _ in range(count)}
            await _standing(service, runs)
            took = time.monotonic() - began
            gc.collect()
            after = pss("self")
            boundaries = [driver.boundary for driver in node._drivers.values() if driver.boundary is not None]
            groups = [boundary.memory()[0] for boundary in boundaries]
            inside = [sum(pss(pid) for pid in boundary.pids()) for boundary in boundaries]
        finally:
            done.set()
            await serving
            await node.close()
    return {
        "count": count,
        "node_mib_each": round((after - before) / count / MIB, 3),
        "inside_pss_mib": round(median(inside) / MIB, 2),
        "group_mib": round(median(groups) / MIB, 2),
        "seconds": round(took, 1),
    }


async def _standing(service: Any, runs: set[str]) -> None:
    deadline = time.monotonic() + 300
    waiting = set(runs)
    while waiting:
        waiting = {run for run in waiting if not any(event.kind == "intent" for event in service.store.events(run))}
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(waiting)} of {len(runs)} runs did not begin within 300 s")
        await asyncio.sleep(0.1)


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    count = 10 if options.quick else COUNT
    result: dict[str, Any] = {"machine": common.machine(), "target_mib": TARGET_MIB}
    with common.folder("density") as where:
        home = common.configure(where, concurrency=count + 1)
        result |= asyncio.run(measure(home, where, count))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    each = (result["node_mib_each"] + result["inside_pss_mib"]) * MIB
    overhead = 256 * MIB
    result["agents_per_host"] = int((memory - overhead) / each)
    node = f"the node's own memory for each of {count} boundaries"
    rows = [
        (
            node,
            f"{result['node_mib_each']:.2f} MiB",
            f"<= {TARGET_MIB:g} MiB",
            common.verdict(result["node_mib_each"] <= TARGET_MIB),
        ),
        ("processes of a boundary with a worker (PSS), p50", f"{result['inside_pss_mib']:.1f} MiB", "", ""),
        ("the same as its control group counts it, p50", f"{result['group_mib']:.1f} MiB", "", ""),
        (f"idle agents on this host ({memory / 2**30:.0f} GiB, 256 MiB kept)", result["agents_per_host"], "", ""),
    ]
    common.report("density: what a boundary costs", result, rows, options.json)


if __name__ == "__main__":
    main()
