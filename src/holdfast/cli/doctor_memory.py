"""What ``holdfast doctor`` says of memory: how many agents this host holds, and what its nodes admit just now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from holdfast import config
from holdfast.errors import HoldfastError
from holdfast.journal.base import StreamKind
from holdfast.node.admission import Ceilings, node_memory, per_host, recorded_peaks
from holdfast.node.dispatch.local import ask

_LOOK_BACK = 1000
"""Runs among which agents are looked for."""


def capacity(settings: config.Settings, home: Path) -> dict[str, Any]:
    """Agents per host = (memory - overhead) / ceiling, for the declared limit and for each agent that ran here; and
    what the living nodes of this home answer. Bytes."""
    memory, source = node_memory(settings)
    overhead, declared = settings.node.overhead, settings.sandbox.memory
    ceilings = Ceilings(declared)
    if home.is_dir():
        _learn(settings, home, ceilings)
    return {
        "memory_bytes": memory,
        "source": source,
        "overhead_bytes": overhead,
        "declared_bytes": declared,
        "per_host": per_host(memory, overhead, declared),
        "agents": [
            {**msgspec.structs.asdict(one), "per_host": per_host(memory, overhead, one.ceiling)}
            for one in ceilings.all()
        ],
        "nodes": [msgspec.json.decode(answer) for answer in ask(home)],
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    declared = shown(found["declared_bytes"])
    yield f"      {found['per_host']} agents per host at the declared {declared}"
    for agent in found["agents"]:
        peaks = f"{agent['peaks']} peaks" if agent["peaks"] != 1 else "1 peak"
        name = f"{agent['tenant']}/{agent['agent']}"
        yield f"      {agent['per_host']} of {name} at {shown(agent['ceiling'])} ({peaks} measured)"
    for node in found["nodes"]:
        waiting = sum(node["waiting_runs"].values())
        paused = "; paused, memory is short" if node["paused"] else ""
        held = f"{node['admitted_runs']} runs hold {shown(node['admitted_bytes'])}"
        ahead = f", {node['ready_boundaries']} boundaries are ready for more" if node["serves"] else ""
        yield f"      node {node['node']}: {held}, {waiting} wait{paused}{ahead}"


def shown(size: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _learn(settings: config.Settings, home: Path, ceilings: Ceilings) -> None:
    from holdfast.journal.open import open_store

    try:
        store = open_store(settings.store.url, home)
    except HoldfastError:
        return  # The check of the home says so already.
    try:
        streams = store.streams(kind=StreamKind.RUN, limit=_LOOK_BACK)
        for agent in sorted({(one.header.tenant, one.header.agent) for one in streams}):
            ceilings.learn(agent, recorded_peaks(store, agent))
    finally:
        store.close()
