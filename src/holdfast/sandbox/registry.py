"""What runs in boundaries now, on disk, so that any process may end it: ``$HOLDFAST_HOME/boundaries/ID.json``.

An entry names processes by pid and start time within one boot and one pid namespace; nothing is ever signalled that
is not exactly what the entry named. Entries need not survive a power cut (neither do processes), so they are not
flushed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from holdfast.sandbox import cgroup, procs
from holdfast.sandbox.base import Label
from holdfast.sandbox.procs import Process

FOLDER = "boundaries"
MARKER = "HOLDFAST_BOUNDARY"
"""At level ``process``: variable that names the boundary, by which its processes are found."""


LINGER_SECONDS = 0.05
"""How long the outer process may take to notice that its namespace is gone, before it is ended too."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One boundary."""

    id: str
    level: str
    label: Label
    node: Process
    """Who started it and will clean up after it."""
    outer: Process
    init: Process | None = None
    """First process of its pid namespace: its end is the end of all inside."""
    boot: str = ""
    pid_namespace: int = 0
    cgroups: tuple[str, ...] = ()
    workspace: str = ""
    """Folder on the host to remove afterwards; empty when there is none."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a boundary that was to be ended."""

    id: str
    label: Label
    seconds: float
    """From the signal to the last process gone."""
    gone: bool
    """False: something was still alive when the time was up."""


_decoder = msgspec.json.Decoder(Entry)


def write(home: Path, entry: Entry) -> Path:
    """Put an entry on disk, at once or not at all; gives its path."""
    folder = home / FOLDER
    path = folder / f"{entry.id}.json"
    partial = folder / f".{entry.id}.tmp"
    data = msgspec.json.encode(entry)
    try:
        partial.write_bytes(data)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_bytes(data)
    partial.replace(path)
    return path


def forget(home: Path, id: str) -> None:
    """Remove an entry and its mark."""
    for name in (f"{id}.json", f"{id}.killed"):
        (home / FOLDER / name).unlink(missing_ok=True)


def was_killed(home: Path, id: str) -> bool:
    """Whether somebody ended this boundary through the registry."""
    return (home / FOLDER / f"{id}.killed").exists()


def entries(home: Path) -> list[Entry]:
    """All entries. A file that does not decode is left out: it names no process for certain."""
    found = []
    try:
        names = sorted(os.listdir(home / FOLDER))
    except OSError:
        return []
    for name in names:
        if name.endswith(".json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(_decoder.decode((home / FOLDER / name).read_bytes()))
    return found


def end_matching(home: Path, predicate: Callable[[Label], bool], *, seconds: float = 5.0) -> list[Ended]:
    """End every boundary whose label matches, from any process, and wait for it at most so long.

    All are signalled before any is waited for. The node that owns them gives back what they held.
    """
    return _end([entry for entry in entries(home) if here(entry) and predicate(entry.label)], home, seconds)


def reap(home: Path, *, seconds: float = 5.0) -> list[Ended]:
    """End and clean up what dead nodes left on this home, and only that."""
    left = [entry for entry in entries(home) if not here(entry) or not procs.alive(entry.node)]
    mine = [entry for entry in left if here(entry)]
    ended = _end(mine, home, seconds)
    alive = {one.id for one in ended if not one.gone}
    for entry in left:
        if entry.id in alive or (entry not in mine and entry.boot == procs.boot_id()):
            continue  # still dying, or of another pid namespace of this very boot: not ours to judge
        for path in entry.cgroups:
            cgroup.remove(Path(path))
        if entry.workspace:
            _remove_tree(home, Path(entry.workspace))
        forget(home, entry.id)
    return ended


def here(entry: Entry) -> bool:
    """Whether the entry's pids mean something to this process."""
    return entry.boot == procs.boot_id() and entry.pid_namespace == procs.pid_namespace()


def _end(targets: list[Entry], home: Path, seconds: float) -> list[Ended]:
    started = time.monotonic()
    watched: list[tuple[Entry, list[int]]] = []
    try:
        for entry in targets:
            with contextlib.suppress(OSError):
                (home / FOLDER / f"{entry.id}.killed").touch(mode=0o600)
            watched.append((entry, strike(entry)))
        return [
            Ended(
                id=entry.id,
                label=entry.label,
                gone=_gone(entry, fds, started + seconds),
                seconds=time.monotonic() - started,
            )
            for entry, fds in watched
        ]
    finally:
        for _, fds in watched:
            for fd in fds:
                os.close(fd)


def _gone(entry: Entry, fds: list[int], deadline: float) -> bool:
    """Wait until nothing of a boundary that was struck is left, at most until ``deadline`` (monotonic)."""
    outer = procs.open_pidfd(entry.outer)
    try:
        if not procs.wait_gone(fds, deadline - time.monotonic()):
            return False
        if outer is not None and not procs.wait_gone([outer], LINGER_SECONDS):
            procs.send_kill(outer)
            if not procs.wait_gone([outer], deadline - time.monotonic()):
                return False
    finally:
        if outer is not None:
            os.close(outer)
    paths = tuple(map(Path, entry.cgroups))
    while cgroup.members(paths):
        if time.monotonic() > deadline:
            return False
        cgroup.kill_all(paths)
        time.sleep(0.001)
    return True


def strike(entry: Entry) -> list[int]:
    """SIGKILL to all of a boundary; gives pidfds to wait on, which the caller closes.

    Where there is a namespace, to its first process alone: the outer one reaps it and ends by itself. Killed at once,
    it would leave a zombie to a pid 1 of the host's or container's that may not reap.
    """
    if entry.level != "process":
        target = entry.init if entry.init is not None and procs.alive(entry.init) else entry.outer
        fd = procs.open_pidfd(target)
        fds = [] if fd is None else [fd]
    else:
        fds = stragglers(entry)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if procs.alive(entry.outer):
                os.killpg(entry.outer.pid, signal.SIGKILL)
        cgroup.kill_all(tuple(map(Path, entry.cgroups)))
    for fd in fds:
        procs.send_kill(fd)
    return fds


def stragglers(entry: Entry) -> list[int]:
    """Pidfds of what belongs to a boundary without a pid namespace: its tree, and who carries its mark."""
    mark = f"{MARKER}={entry.id}".encode()
    pids = dict.fromkeys(cgroup.members(tuple(map(Path, entry.cgroups))))
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                pids[int(name)] = None
    if procs.alive(entry.outer):
        pids.update(dict.fromkeys(procs.tree(entry.outer.pid)))
    found = []
    for pid in pids:
        one = procs.identify(pid)
        fd = None if one is None or pid == os.getpid() else procs.open_pidfd(one)
        if fd is not None:
            found.append(fd)
    return found


def _remove_tree(home: Path, path: Path) -> None:
    """Remove a workspace, which is one folder directly below ``home/workspaces``; anything else is left alone."""
    import shutil

    if path.parent == home / "workspaces" and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
