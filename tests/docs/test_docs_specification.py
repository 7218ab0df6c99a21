"""SPECIFICATION.md promises nothing that no test or benchmark holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SPECIFICATION.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
]


def test_there_are_promises() -> None:
    assert len(ROWS) > 10
    assert all(len(row) == 2 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_each_promise_names_what_holds_it(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[1])
    assert named, row[0]
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), path
        if function:
            assert re.search(rf"def {re.escape(function)}\b", (ROOT / path).read_text("utf-8")), name
