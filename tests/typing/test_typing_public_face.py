"""The public face keeps its types under mypy's strict mode, and mistakes are found where they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[int]]:
    """File name to the lines with errors; how mypy names an error differs between its versions."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--show-error-codes", "--no-error-summary", "--no-pretty"),
            *("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path_factory.mktemp("mypy"))),
            *(str(HERE / name) for name in ("public_face.py", "misuse.py")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, set[int]] = {"public_face.py": set(), "misuse.py": set()}
    for line in done.stdout.splitlines():
        if match := re.match(r".*?([a-z_]+\.py):(\d+): error: ", line):
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


def test_the_public_face_is_typed(said: dict[str, set[int]]) -> None:
    assert said["public_face.py"] == set()
    assert set(said) == {"public_face.py", "misuse.py"}


def test_mistakes_are_found(said: dict[str, set[int]]) -> None:
    lines = (HERE / "misuse.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("  # E")}
    assert len(expected) > 10
    assert said["misuse.py"] == expected
