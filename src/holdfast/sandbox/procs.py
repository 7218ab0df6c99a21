"""Processes of the host, named so that a reused pid is never taken for another: pid and start time.

Start times come from ``/proc/PID/stat`` (field 22, clock ticks since boot); signals go through pidfds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'
"""Shell script: enter the cgroups whose ``cgroup.procs`` are named up to ``--``, then become the command after it."""


_KILLER, _FIRST, _KILLED = 3, 2, 1
"""Real-time priorities of who kills, of the first processes of pid namespaces, and of what runs under those."""


class Process(msgspec.Struct, frozen=True):
    """One process of this boot, for as long as it lives."""

    pid: int
    start: int
    """Clock ticks since boot."""


@functools.cache
def boot_id() -> str:
    """The kernel's boot id: pids mean something only within it. Empty when there is no ``/proc``."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@functools.cache
def pid_namespace() -> int:
    """Inode of this process's pid namespace: pids mean something only within it. 0: unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def start_time(pid: int) -> int | None:
    """Start time of a pid in clock ticks; None when there is no such process."""
    try:
        # A kill asks this of each boundary before it ends any, so it is read with nothing in between.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        stat = os.read(fd, 1024)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return int(stat.rpartition(b")")[2].split()[19])


def identify(pid: int) -> Process | None:
    """The process that a pid names now."""
    start = start_time(pid)
    return None if start is None else Process(pid, start)


def alive(process: Process) -> bool:
    """Whether the process still runs. A zombie counts as gone."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == process.start and fields[0] not in (b"Z", b"X")


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Let nothing take the processor from this thread meanwhile, where this process may ask for that (root may).

    What is being killed runs once more, to end: every signal sent would wake something that competes with the sender.
    """
    before = None
    with contextlib.suppress(OSError):
        policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_KILLER))
        before = policy, parameters
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, *before)


def hasten(ids: Iterable[int], *, first: bool = False) -> None:
    """Let tasks that are being killed end before anything else runs, where this process may ask for that.

    An end is work for the processor (memory, mounts and namespaces are taken down), and on a busy machine it waits for
    its turn like any other. ``first``: they are first processes of pid namespaces, whose end is what signals the rest:
    nothing of the rest may hold them up. All of it ranks below :func:`urgent`.
    """
    priority = os.sched_param(_FIRST if first else _KILLED)
    for id in ids:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(id, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, priority)


def open_pidfd(process: Process) -> int | None:
    """A pidfd of exactly this process; None when it is gone. The caller closes it."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if start_time(process.pid) == process.start:
        return fd
    os.close(fd)
    return None


def send_kill(pidfd: int) -> None:
    """SIGKILL through a pidfd; a process that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def gone(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def wait_gone(pidfds: Iterable[int], seconds: float) -> bool:
    """Wait until all have ended, at most so long; whether they have."""
    waiting = set(pidfds)
    poller = select.poll()
    for fd in waiting:
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        for fd, _ in poller.poll(left * 1000):
            poller.unregister(fd)
            waiting.discard(fd)
    return True


def resident(pid: int) -> tuple[int, int]:
    """Bytes of memory that a process has in use now and had at most; zeros when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return sizes.get("VmRSS", 0), sizes.get("VmHWM", 0)


def children(pid: int) -> list[int]:
    """Pids of a process's children, of all its threads."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    except OSError:
        return found
    return found


def tree(pid: int) -> list[int]:
    """A process and all below it, parents first. What was reparented away is not seen."""
    found, index = [pid], 0
    while index < len(found):
        found += children(found[index])
        index += 1
    return found


def uids_of(pid: int | str) -> set[int]:
    """Uids (real, effective, saved, file system) of a process; none when it is gone.

    The owner of ``/proc/PID`` would not do: a process can make that root.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return set()
    at = status.find(b"\nUid:")
    return set(map(int, status[at + 5 : status.find(b"\n", at + 1)].split()))


def used_uids() -> set[int]:
    """Every uid that some process runs as. Reads all of ``/proc``."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            found |= uids_of(name)
    return found
