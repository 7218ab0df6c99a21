"""A started boundary: watched through pidfds, ended by SIGKILL, cleaned up once.

What differs between levels is what must be signalled; that comes from the registry's entry, so the node and
``holdfast kill`` end a boundary by the same code.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, collector, procs, registry, runtime
from holdfast.sandbox.base import Exit, Held, Label, Reason
from holdfast.sandbox.cgroup import Group
from holdfast.sandbox.registry import Entry
from holdfast.sandbox.spawn import Child

_SIGKILL = 9


class Started:
    """Implements :class:`holdfast.sandbox.base.Boundary`. Belongs to the event loop that it was started in."""

    def __init__(
        self,
        *,
        home: Path,
        entry: Entry,
        process: Child,
        held: Held,
        group: Group | None,
        give_back: Callable[[], None],
    ) -> None:
        self.held = held
        self.pid = process.pid
        self._home = home
        self._entry = entry
        self._process = process
        self._group = group
        self._give_back = give_back
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._asked: Reason | None = None
        self._closing: asyncio.Task[None] | None = None
        self._status: int | None = None
        self._init_fd = -1
        self._outer_fd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._outer_fd, self._outer_ended)

    @property
    def id(self) -> str:
        """Name of the boundary in the registry."""
        return self._entry.id

    def adopt_init(self, init_fd: int, entry: Entry) -> None:
        """The first process inside is known: its end is the end of all inside. Takes the pidfd over."""
        self._entry = entry
        self._init_fd = init_fd
        self._loop.add_reader(init_fd, self._init_ended)

    async def wait(self) -> Exit:
        """Wait for the end; always gives the same answer."""
        return await asyncio.shield(self._ended)

    def kill(self, reason: Reason = Reason.KILLED) -> None:
        """End every process inside, now. Idempotent; does not wait."""
        if self._ended.done():
            return
        if self._asked is None and self._status is None:
            self._asked = reason
        if self._init_fd >= 0:
            # The outer process reaps it and ends by itself; `_init_ended` sees to it when it does not.
            procs.send_kill(self._init_fd)
        else:
            registry.strike(self._entry)

    async def close(self) -> None:
        """Kill, wait, and give back all it held."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def claim(self, label: Label) -> None:
        """Make a boundary that was started ahead of its run that run's."""
        entry = msgspec.structs.replace(self._entry, label=label)
        registry.register(self._home, entry)
        self._entry = entry
        # Asked after the new label stands there: who killed by the old one left a mark, who comes later reads the new.
        if registry.was_killed(self._home, entry.id) or self._asked is not None or self._status is not None:
            raise IsolationError("the boundary was killed before its run could have it")

    def memory(self) -> tuple[int, int]:
        """Current and peak bytes; zeros when unknown."""
        if self._group is not None and "memory" in self._group.dirs:
            return self._group.memory()
        # What its processes share is counted for each of them: rather too much than too little.
        sizes = [procs.resident(pid) for pid in self.pids()]
        return sum(current for current, _ in sizes), sum(peak for _, peak in sizes)

    def pids(self) -> tuple[int, ...]:
        """Host pids of all processes inside, as far as they can be seen."""
        if self._ended.done():
            return ()
        if self._entry.init is not None:
            return tuple(procs.tree(self._entry.init.pid)) if procs.alive(self._entry.init) else ()
        if self._entry.level in registry.PLAIN:
            return tuple(procs.tree(self.pid)) if procs.alive(self._entry.outer) else ()
        return ()

    def workspace(self) -> int:
        """A descriptor of the workspace, for :func:`holdfast.sandbox.collector.collect`; the caller closes it.

        Opened while the boundary runs, it keeps the files until it is closed, also after all inside has ended.
        """
        home, entry = bwrap.WORKSPACE, self._entry
        first = entry.init or entry.outer
        if entry.level == "gvisor":
            raise IsolationError("gVisor keeps the workspace to itself: hand files out through the channel")
        if entry.level in registry.PLAIN:
            home = entry.workspace if entry.level == "process" else f"{entry.workspace}/home"
        path = Path(home) if entry.level == "process" else Path(f"/proc/{first.pid}/root{home}")
        fd = collector.open_workspace(path)
        if procs.alive(first):
            return fd
        os.close(fd)
        raise IsolationError("the workspace is not there any more: open it before the boundary ends")

    async def _close(self) -> None:
        self.kill()
        await asyncio.shield(self._ended)
        await asyncio.to_thread(self._clean)

    def _clean(self) -> None:
        if self._entry.init is None:
            registry.end_stragglers(self._entry)
        if self._group is not None:
            self._group.kill()
            self._group.remove()
        self._give_back()
        registry.forget(self._home, self._entry.id)
        for fd in (self._outer_fd, self._init_fd):
            if fd >= 0:
                os.close(fd)
        self._outer_fd = self._init_fd = -1

    def _outer_ended(self) -> None:
        self._loop.remove_reader(self._outer_fd)
        self._status = self._process.poll()
        if self._init_fd >= 0 and not procs.gone(self._init_fd):
            procs.send_kill(self._init_fd)
        self._finish()

    def _init_ended(self) -> None:
        if self._init_fd < 0:
            return
        self._loop.remove_reader(self._init_fd)
        if self._status is None:
            # On a busy machine it may be long in coming; its word on how the program ended is worth waiting for.
            quick = self._asked is not None and self._entry.level not in runtime.LEVELS
            self._loop.call_later(registry.LINGER_SECONDS if quick else registry.REPORT_SECONDS, self._end_outer)
        self._finish()

    def _end_outer(self) -> None:
        if self._status is None and self._outer_fd >= 0:
            procs.send_kill(self._outer_fd)

    def _finish(self) -> None:
        inside_gone = self._init_fd < 0 or procs.gone(self._init_fd)
        if self._status is not None and inside_gone and not self._ended.done():
            # The loop lets go of the descriptor before it is closed: its number may soon be another file's.
            if self._init_fd >= 0:
                self._loop.remove_reader(self._init_fd)
            self._ended.set_result(self._exit(self._status))

    def _exit(self, status: int) -> Exit:
        if 128 < status <= 128 + signal.NSIG and self._entry.level not in registry.PLAIN:
            status = 128 - status  # bubblewrap and containers report a signal as shells do
        if self._asked is not None:
            return Exit(reason=self._asked, status=-_SIGKILL)
        if status and self._group is not None and self._group.oom_kills():
            return Exit(reason=Reason.OUT_OF_MEMORY, status=status)
        if status == -_SIGKILL and registry.was_killed(self._home, self._entry.id):
            return Exit(reason=Reason.KILLED, status=status)
        return Exit(reason=Reason.CRASHED if status < 0 else Reason.EXITED, status=status)
