"""Local dispatch: the store is the queue, a datagram socket in the home says when to look.

A nudge that is lost costs one interval: the store is looked at anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from holdfast.journal.base import Store, StreamState

_ASK = b"?"
"""Starts a question for metrics; the name of the asker's socket follows."""
_MAX_ANSWER = 1 << 18


class Nudges(asyncio.DatagramProtocol):
    """Receives nudges for the nodes of a home."""

    def __init__(self, event: asyncio.Event, metrics: Callable[[], bytes]) -> None:
        self._event = event
        self._metrics = metrics
        self._path: Path | None = None
        self._transport: asyncio.BaseTransport | None = None

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Called by the loop."""
        if not data.startswith(_ASK) or self._path is None:
            self._event.set()
            return
        name = data[len(_ASK) :].decode(errors="replace")
        if re.fullmatch(r"[0-9a-f]+\.ask", name):
            _send(self._path.parent, [name], self._metrics())

    @classmethod
    async def listen(cls, home: Path, node: str, event: asyncio.Event, metrics: Callable[[], bytes]) -> Nudges:
        """Listen on a socket of this node's own in the home. ``metrics``: what :func:`ask` is told."""
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
        nudges = cls(event, metrics)
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
    _send(home / "nodes", _listening(home), b"!")


def ask(home: Path, seconds: float = 2.0) -> list[bytes]:
    """The metrics of every node of a home that answers within ``seconds``. Never fails: nobody may be there."""
    names, folder = _listening(home), home / "nodes"
    if not names:
        return []
    own = folder / f"{secrets.token_hex(8)}.ask"
    found: list[bytes] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        descriptor = os.open(folder, os.O_PATH)
        try:
            sock.bind(f"/proc/self/fd/{descriptor}/{own.name}")
            deadline = time.monotonic() + seconds
            asked = _send(folder, names, _ASK + own.name.encode())
            while len(found) < asked and (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                found.append(sock.recv(_MAX_ANSWER))
        finally:
            os.close(descriptor)
            own.unlink(missing_ok=True)
    return found


def _listening(home: Path) -> list[str]:
    try:
        return [name for name in os.listdir(home / "nodes") if name.endswith(".sock")]
    except OSError:
        return []


def _send(folder: Path, names: list[str], data: bytes) -> int:
    """Send a datagram to sockets of a folder; gives how many took it."""
    sent = 0
    try:
        descriptor = os.open(folder, os.O_PATH)
    except OSError:
        return 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            for name in names:
                try:
                    sock.sendto(data, f"/proc/self/fd/{descriptor}/{name}")
                    sent += 1
                except ConnectionRefusedError:
                    # Its node died without a word; nobody will listen there again.
                    with contextlib.suppress(OSError):
                        (folder / name).unlink()
                except OSError:
                    continue
    finally:
        os.close(descriptor)
    return sent


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
