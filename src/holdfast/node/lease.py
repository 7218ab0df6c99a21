"""Who this node is, that it lives, and until when it may send."""

from __future__ import annotations

import os
import secrets
import socket

from holdfast.clock import Clock
from holdfast.gate import Fenced
from holdfast.journal.base import NodeRow, Store
from holdfast.sandbox.procs import Process, alive, boot_id, identify

SERVES = "serve"
"""First word of the name of a node that drives whatever becomes ready; others drive one run in the foreground."""


class Lease:
    """This node's registration. Nothing is sent unless the lease, by CLOCK_BOOTTIME, outlasts the dial."""

    def __init__(self, clock: Clock, lease_us: int, *, serves: bool = True) -> None:
        self._clock = clock
        self.lease_us = lease_us
        self._until = 0
        me = identify(os.getpid())
        assert me is not None
        self._process = me
        word = SERVES if serves else "run"
        self.node = f"{word}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def register(self, store: Store) -> None:
        """Make this node known."""
        began = self._clock.boottime()
        row = NodeRow(
            node=self.node,
            host=socket.gethostname(),
            boot=boot_id(),
            pid=self._process.pid,
            pid_start=self._process.start,
            lease_until=store.now() + self.lease_us,
        )
        store.register(row)
        self._until = began + self.lease_us

    def renew(self, store: Store) -> bool:
        """Extend the lease; False when it was taken away."""
        # Counted from before the question: the answer may have been long on its way.
        began = self._clock.boottime()
        if store.renew(self.node, self.lease_us) is None:
            self._until = 0
            return False
        self._until = began + self.lease_us
        return True

    def before_dial(self, deadline: float) -> None:
        """Called right before bytes leave.

        Raises:
            Fenced: the lease does not outlast ``deadline`` seconds from now.
        """
        if self._clock.boottime() + int(deadline * 1e6) > self._until:
            raise Fenced("this node's lease does not outlast the call; another node may drive the run by now")


def living(store: Store) -> list[NodeRow]:
    """Nodes of this host, and of this boot, whose process is there."""
    return [row for row in store.nodes() if _here(row) and _alive(row)]


def serving(store: Store) -> bool:
    """Whether a node lives on this store and host that drives whatever becomes ready."""
    return any(row.node.startswith(SERVES + "-") for row in living(store))


def dead(store: Store, me: str, dial_us: int) -> list[str]:
    """Nodes whose streams may be taken: gone from this host, or silent for their lease and ``dial_us``, the longest
    dial's deadline, more."""
    now = store.now()
    gone = []
    for row in store.nodes():
        if row.node == me:
            continue
        if _here(row):
            if not _alive(row) or now > row.lease_until + dial_us:
                gone.append(row.node)
        elif now > row.lease_until + dial_us:
            gone.append(row.node)
    return gone


def _here(row: NodeRow) -> bool:
    return row.host == socket.gethostname() and row.boot == boot_id()


def _alive(row: NodeRow) -> bool:
    return alive(Process(pid=row.pid, start=row.pid_start))
