"""A serving node that stops, or dies, right after a chosen event is durable: what tests of fencing and resuming start.

``python -m holdfast.testing.halt HOME SIGNAL KIND NAME COUNT`` serves a home, says ``serving``, and sends itself the
signal (STOP, KILL) in the commit's own thread, before anybody hears of the COUNT-th event of that kind whose action has
that name (empty: any).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from holdfast import config
from holdfast.journal.base import Appended, Result
from holdfast.journal.event import Event
from holdfast.node.node import Node


class Halt:
    """Counts events; at the last one the process gets its signal."""

    def __init__(self, number: signal.Signals, kind: str, name: str, count: int) -> None:
        self._number = number
        self._kind = kind
        self._name = name
        self._left = count

    def after(self, results: Sequence[Result]) -> None:
        """A commit is durable."""
        for result in results:
            if isinstance(result, Appended):
                for event in result.events:
                    self._count(event)

    def _count(self, event: Event) -> None:
        if event.kind != self._kind or (self._name and _name(event) != self._name):
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def _name(event: Event) -> str:
    action = event.data.get("action")
    return str(action.get("name", "") if isinstance(action, dict) else getattr(action, "name", ""))


async def serve(home: Path, halt: Halt) -> None:
    """Serve until SIGTERM."""
    node = Node(config.load(home), home, after_commit=halt.after)
    until = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, until.set)
    await node.start()
    try:
        print("serving", flush=True)
        await node.serve(until)
    finally:
        await node.close()


def main(argv: Sequence[str]) -> None:
    """See the module."""
    home, number, kind, name, count = argv
    asyncio.run(serve(Path(home), Halt(signal.Signals[f"SIG{number}"], kind, name, int(count))))


if __name__ == "__main__":
    main(sys.argv[1:])
