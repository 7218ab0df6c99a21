"""The gate of a boundary: nothing inside runs before the node has made it known, or after the node is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket

from holdfast.sandbox import bwrap


class Gate:
    """What the node and the launching process say to each other until the program runs.

    The gate's socket is the program's stdin until it opens: the shell inside says that it is there and waits for a
    word. Closed without the word (the node died, the start failed), the shell ends and with it the boundary.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._outer, self._inner = socket.socketpair()
        self._outer.setblocking(False)
        # Not a pipe: if the node died, bubblewrap would end at writing to it, and leave its child waiting for ever.
        self.info = os.memfd_create("holdfast-info")
        self._said, self.said_inner = os.pipe()
        os.set_blocking(self._said, False)
        self._open_inner = [self.said_inner]
        stack.callback(self._close)

    @property
    def inner(self) -> int:
        """The launched program's stdin."""
        return self._inner.fileno()

    def close_inner(self) -> None:
        """The child has its copies."""
        self._inner.close()
        while self._open_inner:
            os.close(self._open_inner.pop())

    async def reached(self) -> bool:
        """Whether the shell inside is there; False when everything ended before."""
        try:
            return bool(await asyncio.get_running_loop().sock_recv(self._outer, 1))
        except ConnectionError:
            return False

    async def first(self) -> bytes:
        """What is said first: a line's end by the shell inside, words by a launcher that failed; empty: nothing."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._outer, 4096)
        except ConnectionError:
            return b""

    def child(self) -> int:
        """Pid of the namespace's first process; bubblewrap has written it long before the gate is reached."""
        return int(json.loads(os.pread(self.info, 4096, 0))["child-pid"])

    def open(self) -> None:
        """Let the program run."""
        self._outer.send(b"go\n")

    def said(self) -> str:
        """What the launching programs wrote to stderr."""
        try:
            return os.read(self._said, 65536).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    def _close(self) -> None:
        self.close_inner()
        self._outer.close()
        os.close(self.info)
        os.close(self._said)


class Descriptors:
    """Descriptors that bubblewrap reads; closed here when the start is over."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.numbers: list[int] = []

    def memory(self, data: bytes) -> int:
        """A descriptor that reads as these bytes."""
        fd = bwrap.memory_file("holdfast", data)
        self._stack.callback(os.close, fd)
        return self.keep(fd)

    def keep(self, fd: int) -> int:
        """Let the launched program inherit a descriptor that is closed elsewhere."""
        self.numbers.append(fd)
        return fd
