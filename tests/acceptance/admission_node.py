"""A serving node that writes down in which order it admits runs: ``python admission_node.py FILE``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast import config
from holdfast.journal.base import StreamState
from holdfast.node import node
from holdfast.node.admission import Admission
from holdfast.node.service import Service

order = Path(sys.argv[1])


class Noting(Admission):
    """Admission that writes a line for each run: its name and tenant, and how many are admitted with it."""

    def next(self, queues: Mapping[str, Sequence[StreamState]]) -> str | None:
        run = super().next(queues)
        if run is not None:
            tenant = next(name for name, queue in queues.items() if queue and queue[0].header.stream == run)
            with order.open("a") as file:
                file.write(f"{run} {tenant} {self.metrics()['admitted_runs']}\n")
        return run


# What else happens on this machine must not pause it: the first node-full waits for one another.
node.under_pressure = bool  # type: ignore[attr-defined]
node.Admission = Noting  # type: ignore[misc,attr-defined]
home = config.home_folder()
with Service.open(config.load(home), home) as service:
    service.serve(ready=lambda: print("serving", flush=True))
