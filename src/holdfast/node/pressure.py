"""Memory pressure of the host: what makes a node let waiting processes go sooner, and start nothing new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.sandbox.cgroup import own_memory

PSI = Path("/proc/pressure/memory")
MEMINFO = Path("/proc/meminfo")
STALLED = 10.0
"""Percent of the last ten seconds in which some task waited for memory (PSI, ``some avg10``)."""
ROOMY = 0.25
"""Share of the machine's memory above which such stalls are a boundary's own, at its own limit, and not the host's."""
SCARCE = 0.1
"""Share of the memory that is still available, below which it is scarce."""


def under_pressure(
    psi: Path = PSI, meminfo: Path = MEMINFO, group: Callable[[], tuple[int, int] | None] = own_memory
) -> bool:
    """Whether memory is short: tasks stall for it, or little is left, of the host's or of this node's own control
    group's. What cannot be read says nothing."""
    available = _available(meminfo)
    if available < SCARCE or (available < ROOMY and _stalled(psi) >= STALLED):
        return True
    held = group()
    return held is not None and 1 - held[1] / held[0] < SCARCE


def machine_memory(meminfo: Path = MEMINFO) -> int:
    """Bytes of memory that this machine has; zero when unknown."""
    try:
        return _sizes(meminfo)["MemTotal"] * 1024
    except (OSError, ValueError, IndexError, KeyError):
        return 0


def _available(meminfo: Path) -> float:
    try:
        sizes = _sizes(meminfo)
        return sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
        return 1.0


def _sizes(meminfo: Path) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if ":" in line}


def _stalled(psi: Path) -> float:
    try:
        some = next(line for line in psi.read_text().splitlines() if line.startswith("some"))
        return float(some.split("avg10=")[1].split()[0])
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0
