"""When memory counts as short."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.node.pressure import machine_memory, under_pressure


@pytest.mark.parametrize(
    ("psi", "available", "short"),
    [
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=1", 50, False),
        ("some avg10=9.99 avg60=0.00 avg300=0.00 total=1", 50, False),
        ("some avg10=10.00 avg60=0.00 avg300=0.00 total=1", 24, True),
        ("some avg10=90.00 avg60=0.00 avg300=0.00 total=1", 25, False),
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=1", 9, True),
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=1", 10, False),
        ("unreadable", 50, False),
        (None, 9, True),
        (None, None, False),
    ],
)
def test_short_memory(tmp_path: Path, psi: str | None, available: int | None, short: bool) -> None:
    pressure, meminfo = tmp_path / "memory", tmp_path / "meminfo"
    if psi is not None:
        pressure.write_text(psi + "\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
    if available is not None:
        meminfo.write_text(f"MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n")
    assert under_pressure(pressure, meminfo, lambda: None) is short


@pytest.mark.parametrize(("used", "short"), [(899, False), (901, True)])
def test_the_nodes_own_group_counts_too(tmp_path: Path, used: int, short: bool) -> None:
    missing = tmp_path / "missing"
    assert under_pressure(missing, missing, lambda: (1000, used)) is short


def test_the_machines_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 1 kB\n")
    assert machine_memory(meminfo) == 102_400
    assert machine_memory(tmp_path / "missing") == 0
