"""When memory counts as short."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.node.pressure import under_pressure


@pytest.mark.parametrize(
    ("psi", "available", "short"),
    [
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=1", 50, False),
        ("some avg10=9.99 avg60=0.00 avg300=0.00 total=1", 50, False),
        ("some avg10=10.00 avg60=0.00 avg300=0.00 total=1", 50, True),
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
    assert under_pressure(pressure, meminfo) is short
