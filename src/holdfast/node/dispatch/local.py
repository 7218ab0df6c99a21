"""Local dispatch: the store is the queue, a datagram socket in the home says when to look.

A nudge that is lost costs one interval: the store is looked at anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from holdfast.journal.base import Store, StreamState


class Nudges(asyncio.DatagramProtocol):
    """Receives nudges for the nodes of a home."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._path: Path | None = None
        self._transport: asyncio.BaseTransport | None = None

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Called by the loop."""
        self._event.set()

    @classmethod
    async def listen(cls, home: Path, node: str, event: asyncio.Event) -> Nudges:
        """Listen on a socket of this node's own in the home."""
        folder = home / "nodes"
        folder.mkdir(mode=0o700, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        path = folder / f"{os.getpid()}-{node[-8:]}.sock"
        # sun_path holds 107 bytes; a deep home is reached through its descriptor.
        descriptor = os.open(folder, os.O_PATH)
        try:
            sock.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        finally:
            os.close(descriptor)
        nudges = cls(event)
        nudges._path = path
        nudges._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: nudges, sock=sock)
        return nudges

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def nudge(home: Path) -> None:
    """Tell every node of a home to look at the store now. Never fails: nobody may be there."""
    folder = home / "nodes"
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".sock")]
        descriptor = os.open(folder, os.O_PATH)
    except OSError:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            for name in names:
                try:
                    sock.sendto(b"!", f"/proc/self/fd/{descriptor}/{name}")
                except ConnectionRefusedError:
                    # Its node died without a word; nobody will listen there again.
                    with contextlib.suppress(OSError):
                        (folder / name).unlink()
                except OSError:
                    continue
    finally:
        os.close(descriptor)


def queues(
    store: Store, *, node: str, gone: Sequence[str], driven: Collection[str], root: str, limit: int
) -> dict[str, deque[StreamState]]:
    """What waits for a node, by tenant, at most ``limit`` of each: first what it or a dead node has begun, then what
    nobody owns, oldest wish first. ``root``: of this family of runs only."""
    found: dict[str, deque[StreamState]] = {}
    for owner in (node, *gone):
        for name in [name for name in store.owned(owner) if name not in driven][: 4 * limit]:
            if (state := store.stream(name)) is not None and root in ("", state.header.root):
                found.setdefault(state.header.tenant, deque()).append(state)
    if root:
        ready = store.ready(limit=limit, root=root)
    else:
        ready = [state for tenant in store.ready_tenants() for state in store.ready(limit=limit, tenant=tenant)]
    for state in ready:
        found.setdefault(state.header.tenant, deque()).append(state)
    return found
