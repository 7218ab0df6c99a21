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

from holdfast.errors import IsolationError
from holdfast.sandbox import cgroup, procs, runtime, uids
from holdfast.sandbox.base import Label
from holdfast.sandbox.procs import Process

FOLDER = "boundaries"
MARKER = "HOLDFAST_BOUNDARY"
"""Variable that names the boundary to whoever must find its processes while, or where, no namespace holds them: in the
launching programs' environment, and at level ``process`` in the program's own."""
WORKSPACES = "workspaces"
"""Below Holdfast's home: one folder for each boundary without a file system of its own, removed with it."""
HOST_WORKSPACES = Path("/var/lib/holdfast/workspaces")
"""The same for boundaries with a uid of their own, which cannot reach into a home."""
PLAIN = ("process", "landlock")
"""Levels without a pid namespace: the program is the outer process, and what it started is looked for."""
LINGER_SECONDS = 0.05
"""How long the outer process may take to notice that its namespace was killed, before it is ended too."""
REPORT_SECONDS = 20.0
"""The same where it has something left to do: to report how the program ended, or to clear a container away."""


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
    uid: int = 0
    """Uid that belongs to this boundary alone; 0 when it has none."""


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


def register(home: Path, entry: Entry) -> None:
    """Put an entry on disk for a start.

    Raises:
        IsolationError: it cannot be written; nobody could end what is not known.
    """
    try:
        write(home, entry)
    except OSError as error:
        raise IsolationError(f"the boundary cannot be registered in {home}: {error.strerror}") from None


def forget(home: Path, id: str) -> None:
    """Remove an entry and its mark."""
    for name in (f"{id}.json", f"{id}.killed"):
        (home / FOLDER / name).unlink(missing_ok=True)


def was_killed(home: Path, id: str) -> bool:
    """Whether somebody ended this boundary through the registry."""
    return (home / FOLDER / f"{id}.killed").exists()


def _mark_killed(home: Path, id: str) -> None:
    """A second name of the entry: several times quicker to make than a new file."""
    entry, mark = (f"{home / FOLDER}/{id}.{kind}" for kind in ("json", "killed"))
    try:
        os.link(entry, mark)
    except (FileNotFoundError, FileExistsError):
        return
    except OSError:
        # A file system without second names.
        with contextlib.suppress(OSError):
            Path(mark).touch(mode=0o600)


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
    with procs.urgent():
        return _end([entry for entry in entries(home) if here(entry) and predicate(entry.label)], home, seconds)


def reap(home: Path, *, seconds: float = 5.0) -> list[Ended]:
    """End and clean up what dead nodes left on this home, and only that."""
    left = [entry for entry in entries(home) if not here(entry) or not procs.alive(entry.node)]
    mine = [entry for entry in left if here(entry)]
    with procs.urgent():
        ended = _end(mine, home, seconds)
    alive = {one.id for one in ended if not one.gone}
    for entry in left:
        if entry.id in alive or (entry not in mine and entry.boot == procs.boot_id()):
            continue  # still dying, or of another pid namespace of this very boot: not ours to judge
        if entry in mine:
            end_stragglers(entry)
        for path in entry.cgroups:
            cgroup.remove(Path(path))
        if entry.level in runtime.LEVELS:
            runtime.remove(entry.level, entry.id)
        if entry.workspace:
            _remove_tree(home, Path(entry.workspace))
        forget(home, entry.id)
    cgroup.Cgroups().sweep()
    if os.geteuid() == 0:
        _sweep()
    return ended


def _sweep() -> None:
    """Remove what nodes left that died before they could put a boundary in the registry."""
    for path in uids.abandoned(runtime.BUNDLES):
        for level in runtime.LEVELS:
            runtime.remove(level, path.name)
    for path in uids.abandoned(HOST_WORKSPACES):
        _remove_tree(path.parent, path)
    uids.sweep()


def here(entry: Entry) -> bool:
    """Whether the entry's pids mean something to this process."""
    return entry.boot == procs.boot_id() and entry.pid_namespace == procs.pid_namespace()


class _Target:
    """A boundary that is being ended: pidfds of what is to be signalled, and of the outer process.

    Where there is a namespace its first process alone is signalled: the outer one reaps it and ends by itself. Killed
    at once, it would leave a zombie to a pid 1 of the host's or container's that may not reap.
    """

    def __init__(self, entry: Entry, found: list[int] | None = None) -> None:
        """``found``: pids by uid and mark where there is no first process, when they were searched for already."""
        self.entry = entry
        self.paths = tuple(map(Path, entry.cgroups))
        self.outer: int | None = None
        init = None if entry.init is None else procs.open_pidfd(entry.init)
        if init is not None:
            self.fds = [init]
        elif entry.init is not None:
            self._find_outer()
            self.fds = [] if self.outer is None else [self.outer]
        else:
            # Still starting, or a level without a namespace. The launcher alone must not be ended: bubblewrap's child
            # waits for a word of its parent's before it binds itself to the parent's life.
            self._find_outer()
            self.fds = stragglers(entry) if found is None else _open(entry, found)

    def _find_outer(self) -> None:
        if self.outer is None:
            self.outer = procs.open_pidfd(self.entry.outer)

    def strike(self) -> None:
        """SIGKILL to all of it; does not wait."""
        if self.entry.level in PLAIN:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self.outer is not None:
                    os.killpg(self.entry.outer.pid, signal.SIGKILL)
        if self.entry.init is None or self.entry.level == "gvisor":
            # gVisor's first process is its kernel; what runs on it, and its file server, are processes of the host.
            cgroup.kill_all(self.paths)
        for fd in self.fds:
            procs.send_kill(fd)

    def hasten(self) -> None:
        """After every :meth:`strike`: nothing else is to hold the end of it up."""
        if self.entry.init is not None:
            procs.hasten([self.entry.init.pid], first=True)
            procs.hasten(cgroup.threads(self.paths))

    def gone(self, deadline: float) -> bool:
        """Wait until nothing is left, at most until ``deadline`` (monotonic)."""
        self._find_outer()
        if not procs.wait_gone(self.fds, deadline - time.monotonic()):
            return False
        if self.entry.init is not None and self.fds != [self.outer] and self.entry.level != "gvisor":
            # With the first process of a pid namespace all of it has ended: the kernel sees to that before it lets
            # go of the first one. The outer process only reports it, and ends by itself.
            return True
        if self.outer is not None and not procs.wait_gone([self.outer], LINGER_SECONDS):
            procs.send_kill(self.outer)
            if not procs.wait_gone([self.outer], deadline - time.monotonic()):
                return False
        while cgroup.members(self.paths):
            if time.monotonic() > deadline:
                return False
            cgroup.kill_all(self.paths)
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Let go of the pidfds."""
        for fd in {*self.fds, *([] if self.outer is None else [self.outer])}:
            os.close(fd)


def strike(entry: Entry) -> None:
    """End every process of a boundary, now; does not wait."""
    with procs.urgent():
        _end_group(entry)
        target = _Target(entry)
        try:
            target.strike()
        finally:
            target.close()


def _end(entries: list[Entry], home: Path, seconds: float) -> list[Ended]:
    started = time.monotonic()
    targets: list[_Target] = []
    try:
        with procs.urgent():
            without = [entry for entry in entries if entry.init is None]
            for entry in without:
                # Before its end, which its node may see at once and then asks for the reason.
                _mark_killed(home, entry.id)
                _end_group(entry)
            found = search(without) if without else {}
            for entry in entries:
                targets.append(_Target(entry, found.get(entry.id)))
                _mark_killed(home, entry.id)
            # All signals in one go: what dies competes for the processor with whoever prepares the next signal.
            for target in targets:
                target.strike()
            for target in targets:
                target.hasten()
        ended = []
        for target in targets:
            gone = target.gone(started + seconds)
            spent = time.monotonic() - started
            ended.append(Ended(id=target.entry.id, label=target.entry.label, seconds=spent, gone=gone))
        _linger(targets)
        return ended
    finally:
        for target in targets:
            target.close()


def _end_group(entry: Entry) -> None:
    """Where no namespace ends all of it, its control group comes before any search: what forks without end lets nobody
    read its environment for as long as it does not get the processor."""
    if entry.init is None:
        cgroup.kill_all(tuple(map(Path, entry.cgroups)))


def _linger(targets: list[_Target]) -> None:
    """Give outer processes the time to notice that their namespaces are gone; end those that do not.

    A container's clears away what its runtime made; whoever started it, or reaps, sees to its end.
    """
    mine = (target for target in targets if target.entry.level not in runtime.LEVELS)
    outer = [target.outer for target in mine if target.outer is not None]
    if outer and not procs.wait_gone(outer, LINGER_SECONDS):
        for fd in outer:
            procs.send_kill(fd)


def stragglers(entry: Entry) -> list[int]:
    """Pidfds of what belongs to a boundary by its cgroup, its tree, its uid, and its mark. Reads all of ``/proc``."""
    return _open(entry, search([entry])[entry.id])


def search(entries: list[Entry]) -> dict[str, list[int]]:
    """Id of a boundary to pids of what carries its uid or its mark: one reading of ``/proc`` for all of them."""
    found: dict[str, list[int]] = {entry.id: [] for entry in entries}
    uids_ = {entry.uid: entry.id for entry in entries if entry.uid}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        owner = next((uids_[uid] for uid in procs.uids_of(name) if uid in uids_), None) if uids_ else None
        if owner is None:
            with contextlib.suppress(OSError):
                environ = b"\0" + Path(f"/proc/{name}/environ").read_bytes()
                owner = environ.partition(f"\0{MARKER}=".encode())[2].partition(b"\0")[0].decode(errors="replace")
        if owner in found:
            found[owner].append(int(name))
    return found


def _open(entry: Entry, pids: list[int]) -> list[int]:
    """Pidfds of these processes, of the boundary's cgroup and of its tree."""
    every = dict.fromkeys([*pids, *cgroup.members(tuple(map(Path, entry.cgroups)))])
    if procs.alive(entry.outer):
        every.update(dict.fromkeys(procs.tree(entry.outer.pid)))
    found = []
    for pid in every:
        one = procs.identify(pid)
        fd = None if one is None or pid == os.getpid() else procs.open_pidfd(one)
        if fd is not None:
            found.append(fd)
    return found


def end_stragglers(entry: Entry) -> None:
    """End what carries a boundary's mark or is in its cgroup, until nothing is found."""
    for _ in range(64):
        with procs.urgent():
            _end_group(entry)
            fds = stragglers(entry)
            for fd in fds:
                procs.send_kill(fd)
        if not fds:
            return
        procs.wait_gone(fds, 1.0)
        for fd in fds:
            os.close(fd)


def _remove_tree(home: Path, path: Path) -> None:
    """Remove a workspace, which is one folder directly below where they are made; anything else is left alone."""
    import shutil

    if path.parent in (home / WORKSPACES, HOST_WORKSPACES) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
