"""What waiting runs cost those that start: a home with 100,000 of them against an empty one, in turn."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.start import first_step_ms, settle

TARGET = 1.2
BATCH = 200


def fill(service: Any, count: int) -> None:
    """Put suspended runs into the journal as a node leaves them: created, begun, waiting; half of them for a timer."""
    from holdfast.action import Action
    from holdfast.journal.base import Append, Appended, Draft, Header, Patch, StreamKind
    from holdfast.node.submit import run_id

    model = service.submit(f"{common.AGENTS}:One", b"{}")
    store = service.store
    state = store.stream(model)
    created = store.events(model)[0]
    header: Header = state.header
    now = store.now()
    year = 365 * 86_400_000_000

    def draft(kind: str, data: dict[str, Any], payloads: dict[str, bytes] | None = None) -> Draft:
        return Draft(
            kind=kind,
            data=data,
            payloads=payloads or {},
            at=now,
            clock_error=-1,
            principal=created.principal,
            auth=created.auth,
        )

    for start in range(0, count, BATCH):
        batch = []
        for number in range(start, min(start + BATCH, count)):
            name = run_id()
            due = now + year + number if number % 2 else None
            action = Action(kind="approval", name="approve", id="approve.1")
            wait = {
                "action": action,
                "parent": "",
                "place": 0,
                "wait": "timer" if due else "signal",
                "wake_at": due,
                "name": "go",
                "key": "",
                "undo": "",
            }
            batch.append(
                Append(
                    stream=name,
                    epoch=0,
                    node="benchmark",
                    create=Header(
                        stream=name,
                        tenant=header.tenant,
                        region=header.region,
                        kind=StreamKind.RUN,
                        agent=header.agent,
                        workflow=header.workflow,
                        root=name,
                        principal=header.principal,
                        auth=header.auth,
                        deployment=header.deployment,
                        created_at=now,
                    ),
                    drafts=(
                        draft("run.created", created.data, {"input": b"{}"}),
                        draft("run.started", {"incarnation": 1, "held": {}, "python": "3.11"}),
                        draft("wait", wait),
                        draft("run.suspended", {"waiting": ["approve.1"]}),
                    ),
                    patch=Patch(status="suspended", ready_at=due, set_ready=True, release=True),
                )
            )
        for outcome in store.transact(batch):
            assert isinstance(outcome, Appended), outcome


def measure(where: Path, count: int, rounds: int) -> dict[str, Any]:
    """Starts in both homes, in turn."""
    from holdfast.config import load
    from holdfast.node.service import Service

    homes = []
    for name in ("empty", "full"):
        (where / name).mkdir()
        homes.append(common.configure(where / name))
    samples: list[list[float]] = [[], []]
    services = [Service.open(load(home, cwd=home.parent, environ={}), home) for home in homes]
    try:
        began = time.perf_counter()
        fill(services[1], count)
        filled = time.perf_counter() - began
        with common.serving(homes[0]), common.serving(homes[1]):
            for round_ in range(-2, rounds):
                for service, found in zip(services, samples, strict=True):
                    took = first_step_ms(service, f"{common.AGENTS}:One")
                    settle(service)
                    if round_ >= 0:
                        found.append(took)
            asking = services[1].submit(f"{common.AGENTS}:Asks", b"{}")
            while services[1].run(asking).status != "suspended":
                time.sleep(0.1)
        listed = []
        for _ in range(rounds):
            began = time.perf_counter()
            open_ones = services[1].approvals()
            listed.append((time.perf_counter() - began) * 1000)
            assert [one.run_id for one in open_ones] == [asking]
    finally:
        for service in services:
            service.close()
    ratio = median(full / empty for empty, full in zip(*samples, strict=True))
    return {
        "waiting": count,
        "filled_in_s": round(filled, 1),
        "empty_ms": round(median(samples[0]), 1),
        "full_ms": round(median(samples[1]), 1),
        "ratio": round(ratio, 3),
        "list_ms": round(median(listed), 1),
        "n": rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    count, rounds = (10_000, 5) if options.quick else (100_000, 25)
    result: dict[str, Any] = {"machine": common.machine(), "target": TARGET}
    with common.folder("waiting") as where:
        result |= measure(where, count, rounds)
    rows = [
        ("start in an empty home", f"{result['empty_ms']} ms", "", ""),
        (f"start beside {count} waiting runs", f"{result['full_ms']} ms", "", ""),
        ("ratio", f"{result['ratio']}×", f"≤ {TARGET}×", common.verdict(result["ratio"] <= TARGET)),
        ("list of the one approval that is open", f"{result['list_ms']} ms", "", ""),
    ]
    common.report("waiting: what runs that wait cost", result, rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
