"""The tutorial and the README are run as they stand, block after block, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 90
"""Seconds for one block, far more than it takes: a bound against hanging, no measure."""


class Block(NamedTuple):
    """A fenced block: what its first line says, and its text."""

    language: str
    options: dict[str, str]
    text: str


def blocks(path: Path) -> list[Block]:
    found = []
    for info, text in re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        language, *options = info.split()
        found.append(Block(language, dict(option.partition("=")[::2] for option in options), text))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["docs/tutorial.md", "README.md"])
def test_every_block_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    environ = {
        key: value for key, value in os.environ.items() if not key.startswith(("HOLDFAST_", "ANTHROPIC_", "OPENAI_"))
    }
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', '')}"
    ran = 0
    for block in blocks(ROOT / name):
        if "file" in block.options:
            (tmp_path / block.options["file"]).write_text(block.text)
        elif block.language == "bash" and "install" not in block.options:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=TIMEOUT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == int(block.options.get("exit", 0)), f"{block.text}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            ran += 1
    assert ran > 0
