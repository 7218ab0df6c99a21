"""Author code in a file, run by the real worker against a scripted node."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from holdfast.testing.broker import Broker

Start = Callable[..., Broker]
HEAD = "from holdfast import *\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker on the body of a module; every worker is ended with the test."""
    with ExitStack() as stack:

        def make(source: str, target: str = "author.py:A", **given: Any) -> Broker:
            (tmp_path / "author.py").write_text(HEAD + textwrap.dedent(source))
            return stack.enter_context(Broker(tmp_path, target, **given))

        yield make


@pytest.fixture
def run(start: Start) -> Start:
    """As ``start``, and serve it to its end."""

    def make(source: str, *args: Any, **given: Any) -> Broker:
        return start(source, *args, **given).run()

    return make
