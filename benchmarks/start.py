"""How long things take to start: the command line, a run on a living node, a run from the shell.

Each run is of a deployment that the home has never seen, in a boundary made for it: nothing is warm but the node.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common

TARGETS = {"help_ms": 300.0, "first_step_ms": 250.0, "run_ms": 1000.0}


def command_ms(args: list[str], where: Path, home: Path) -> float:
    """Shell to exit."""
    began = time.perf_counter()
    done = subprocess.run(
        [*common.HOLDFAST, *args], cwd=where, env=common.environment(home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return (time.perf_counter() - began) * 1000


def fresh(where: Path, number: int) -> str:
    """A target whose content no deployment has."""
    folder = where / f"agent-{number}"
    folder.mkdir()
    (folder / "steps.py").write_text(common.AGENTS.read_text() + f"\n# {number} {time.time_ns()}\n")
    return f"{folder / 'steps.py'}:One"


def first_step_ms(service: Any, target: str) -> float:
    """From the submit to the commit of the first step's outcome."""
    began = time.perf_counter()
    run = service.submit(target, b"{}")
    deadline = began + 60
    while not any(event.kind == "outcome" for event in service.store.events(run)):
        if time.perf_counter() > deadline:
            raise SystemExit(f"no step of {run} within 60 s: {service.run(run)}")
        time.sleep(0.001)
    return (time.perf_counter() - began) * 1000


def settle(service: Any) -> None:
    """Wait until no run is under way."""
    while any(row.status in ("pending", "running") for row in service.runs(20)):
        time.sleep(0.01)


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    rounds = 4 if options.quick else 15
    from holdfast.config import load
    from holdfast.node.service import Service

    result: dict[str, Any] = {"machine": common.machine(), "targets": TARGETS}
    samples: dict[str, list[float]] = {"help_ms": [], "first_step_ms": [], "run_ms": []}
    with common.folder("start") as where:
        (where / "alone").mkdir()
        alone = common.configure(where / "alone")
        (where / "served").mkdir()
        served = common.configure(where / "served")
        with Service.open(load(served, cwd=served.parent, environ={}), served) as service, common.serving(served):
            first_step_ms(service, fresh(where, 0))
            settle(service)
            for number in range(1, rounds + 1):
                samples["help_ms"].append(command_ms(["--help"], alone.parent, alone))
                samples["run_ms"].append(
                    command_ms(["run", fresh(where, 1000 + number), "--json"], alone.parent, alone)
                )
                samples["first_step_ms"].append(first_step_ms(service, fresh(where, number)))
                settle(service)
    names = {
        "help_ms": "holdfast --help",
        "first_step_ms": "submit to first step committed, living node",
        "run_ms": "holdfast run of one step, shell to exit",
    }
    rows = []
    for key, values in samples.items():
        result[key] = {"p50": round(median(values), 1), "max": round(max(values), 1), "n": len(values)}
        rows.append(
            (
                names[key],
                f"{median(values):.0f} ms",
                f"< {TARGETS[key]:g} ms",
                common.verdict(median(values) < TARGETS[key]),
            )
        )
    common.report("start: from nothing to the first step", result, rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
