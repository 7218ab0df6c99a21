"""A serving node that stops, or dies, around the commit of a chosen event: what tests of fencing and crashes start.

``python -m holdfast.testing.halt HOME SIGNAL KIND NAME COUNT [before|after]`` serves a home, says ``serving``, and
sends itself the signal (STOP, KILL) in the thread that commits the COUNT-th event of that kind (``any``) whose action
has that name (empty: any): right before it is durable, or right after (the default), before anybody hears of it.

With ``dial`` as KIND the signal comes at the COUNT-th send, right before the lease is checked. ``unchecked`` as the
last word leaves that check out: the twin that shows what the check alone holds back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast import config
from holdfast.journal.base import Append, Appended, Draft, Result
from holdfast.journal.event import Event
from holdfast.node.node import Node


class Halt:
    """Counts events; at the last one the process gets its signal."""

    def __init__(self, number: signal.Signals, kind: str, name: str, count: int) -> None:
        self._number = number
        self._kind = kind
        self._name = name
        self._left = count

    def before(self, appends: Sequence[Append]) -> None:
        """A commit is about to begin."""
        for append in appends:
            for draft in append.drafts:
                self._count(draft)

    def after(self, results: Sequence[Result]) -> None:
        """A commit is durable."""
        for result in results:
            if isinstance(result, Appended):
                for event in result.events:
                    self._count(event)

    def _count(self, event: Event | Draft) -> None:
        if self._kind not in ("any", event.kind) or (self._name and _name(event) != self._name):
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


class HaltedAtDial(Node):
    """A node that gets its signal at a send: what is left between it and the receiver is the check of the lease."""

    halt: tuple[signal.Signals, int] = (signal.SIGSTOP, 1)
    checked = True

    def before_dial(self, deadline: float) -> None:
        """See :class:`holdfast.node.services.Services`."""
        number, left = self.halt
        self.halt = number, left - 1
        if left == 1:
            os.kill(os.getpid(), number)
        if self.checked:
            super().before_dial(deadline)


def _name(event: Event | Draft) -> str:
    action = event.data.get("action")
    return str(action.get("name", "") if isinstance(action, dict) else getattr(action, "name", ""))


def node_of(home: Path, number: signal.Signals, kind: str, name: str, count: int, when: str) -> Node:
    """The node that will be halted."""
    if kind == "dial":
        node = HaltedAtDial(config.load(home), home)
        node.halt, node.checked = (number, count), when != "unchecked"
        return node
    halt = Halt(number, kind, name, count)
    before, after = (halt.before, None) if when == "before" else (None, halt.after)
    return Node(config.load(home), home, before_commit=before, after_commit=after)


async def serve(make: Callable[[], Node]) -> None:
    """Serve until SIGTERM."""
    node = make()
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
    home, number, kind, name, count, when = (*argv, "after")[:6]
    signalled = signal.Signals[f"SIG{number}"]
    asyncio.run(serve(lambda: node_of(Path(home), signalled, kind, name, int(count), when)))


if __name__ == "__main__":
    main(sys.argv[1:])
