"""A node that dies at a chosen write of its journal: what a crash test starts.

``python -m holdfast.testing.crash HOME RUN COUNT before|after`` drives a run to its end, approves whatever it asks for,
and kills itself with SIGKILL right before, or right after, its COUNT-th commit. Without a crash it ends with status 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from holdfast import config
from holdfast.node import operate, show
from holdfast.node.node import Node
from holdfast.node.views import Principal

PERSON = Principal(name="alice", auth="token")
"""Who approves."""


class Fuse:
    """Burns down one commit at a time; then the process is gone."""

    def __init__(self, count: int) -> None:
        self.left = count

    def burn(self, _: Any) -> None:
        """A commit happened."""
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def drive(home: Path, run: str, count: int, when: str) -> None:
    """Drive a run with a fuse at its commits."""
    fuse = Fuse(count)
    before, after = (fuse.burn, None) if when == "before" else (None, fuse.burn)
    node = Node(config.load(home), home, root=run, before_commit=before, after_commit=after)
    await node.start()
    try:
        await node.drive(run, 60_000_000)
        while waiting := [one for one in show.approvals(node.store) if one.run_id == run]:
            for one in waiting:
                operate.answer(node.store, node.clock, home, one.id, True, "", PERSON)
            await node.drive(run, 60_000_000)
    finally:
        await node.close()


def main(argv: list[str]) -> None:
    """See the module."""
    home, run, count, when = argv
    asyncio.run(drive(Path(home), run, int(count), when))


if __name__ == "__main__":
    main(sys.argv[1:])
