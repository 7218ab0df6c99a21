"""Start a worker in its boundary: what it sees, what it may use, and the channel that is its identity."""

from __future__ import annotations

import socket
from pathlib import Path

from holdfast.agent.egress import VARIABLE
from holdfast.journal.base import Header
from holdfast.sandbox.base import Boundary, Channel, Label, Level, Limits, Mount, Spec
from holdfast.sandbox.interpreter import interpreter_mounts, worker_argv
from holdfast.sandbox.levels import IN_PLACE

CODE = Path("/code")
"""Where a deployment's files stand inside."""


async def launch(
    level: Level, header: Header, home: Path, folder: Path, limits: Limits
) -> tuple[Boundary, socket.socket, socket.socket]:
    """Start a run's worker; gives its boundary and the node's ends of its two channels: the broker's and the egress's.

    Raises:
        IsolationError: the level cannot be had here.
    """
    outer, inner = socket.socketpair()
    way, way_inner = socket.socketpair()
    spec = Spec(
        argv=worker_argv("holdfast.agent.worker"),
        label=Label(tenant=header.tenant, agent=header.agent, workflow=header.workflow, run=header.stream),
        home=home,
        mounts=(*interpreter_mounts(), Mount(source=folder, target=CODE)),
        env=_environment(header.stream),
        channels=(
            Channel(variable="HOLDFAST_CHANNEL", inner=inner),
            Channel(variable=VARIABLE, inner=way_inner),
        ),
        limits=limits,
    )
    try:
        return await level.start(spec), outer, way
    except BaseException:
        outer.close()
        way.close()
        raise
    finally:
        inner.close()
        way_inner.close()


def root_inside(level: Level, folder: Path) -> str:
    """Where the worker finds the code: some levels have no view of their own."""
    return str(folder) if level.name in IN_PLACE else str(CODE)


def _environment(run: str) -> dict[str, str]:
    return {
        "HOLDFAST_RUN_ID": run,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The order of a set of strings must be the same in every incarnation, or replay takes another way.
        "PYTHONHASHSEED": "0",
    }
