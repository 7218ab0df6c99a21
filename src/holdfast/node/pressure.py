"""Memory pressure of the host: what makes a node let waiting processes go sooner."""

from __future__ import annotations

from pathlib import Path

PSI = Path("/proc/pressure/memory")
MEMINFO = Path("/proc/meminfo")
STALLED = 10.0
"""Percent of the last ten seconds in which some task waited for memory (PSI, ``some avg10``)."""
SCARCE = 0.1
"""Share of the memory that is still available, below which it is scarce."""


def under_pressure(psi: Path = PSI, meminfo: Path = MEMINFO) -> bool:
    """Whether memory is short: tasks stall for it, or little of it is left. What cannot be read says nothing."""
    try:
        some = next(line for line in psi.read_text().splitlines() if line.startswith("some"))
        if float(some.split("avg10=")[1].split()[0]) >= STALLED:
            return True
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    try:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if ":" in line}
        return sizes["MemAvailable"] < SCARCE * sizes["MemTotal"]
    except (OSError, ValueError, IndexError, KeyError):
        return False
