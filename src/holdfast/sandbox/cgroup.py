"""One control group for each boundary: memory, swap, pids and cpu limits, and what was used.

Groups are made below ``holdfast/`` in the group that this process is in: version 2 where its controllers are
delegated, the version 1 hierarchies otherwise. Which controllers hold is said in :attr:`Group.held`; nothing is
promised beyond it. Files: kernel documentation, ``admin-guide/cgroup-v2`` and ``admin-guide/cgroup-v1``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import procs
from holdfast.sandbox.base import Limits

_PERIOD_US = 100_000
_FOLDER = "holdfast"


class Group:
    """A boundary's group: one directory (version 2) or one for each controller (version 1)."""

    def __init__(self, version: int, dirs: dict[str, Path], held: dict[str, str]) -> None:
        self.version = version
        self.dirs = dirs
        self.held = held
        """Name of a limit to ``cgroup1`` or ``cgroup2``."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its directories, each once."""
        return tuple(dict.fromkeys(self.dirs.values()))

    def oom_kills(self) -> int:
        """How many of its processes the kernel ended for lack of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _fields(self.dirs.get("memory"), name).get("oom_kill", 0)

    def memory(self) -> tuple[int, int]:
        """Current and peak bytes; zeros when unknown."""
        folder = self.dirs.get("memory")
        if folder is None:
            return 0, 0
        if self.version == 2:
            return _number(folder / "memory.current"), _number(folder / "memory.peak")
        return _number(folder / "memory.usage_in_bytes"), _number(folder / "memory.max_usage_in_bytes")

    def pids(self) -> tuple[int, ...]:
        """Pids of all processes in it."""
        return members(self.paths)

    def kill(self) -> None:
        """SIGKILL to every process in it."""
        kill_all(self.paths)

    def remove(self) -> None:
        """Remove it; every process in it must have ended (an exit that is still under way is waited for)."""
        for path in self.paths:
            remove(path)


def members(paths: tuple[Path, ...]) -> tuple[int, ...]:
    """Pids of all processes in the groups of these directories."""
    found: dict[int, None] = {}
    for path in paths:
        try:
            found.update(dict.fromkeys(map(int, (path / "cgroup.procs").read_text().split())))
        except OSError:
            continue
    return tuple(found)


def threads(paths: tuple[Path, ...]) -> tuple[int, ...]:
    """Ids of all threads in the groups of these directories, as far as the first that can be read tells."""
    for path in paths:
        for name in ("tasks", "cgroup.threads"):  # of version 1, and of version 2
            # A kill asks this of each boundary while all of them die, so it is read with nothing in between.
            with contextlib.suppress(OSError):
                fd = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    data = os.read(fd, 1 << 16)
                finally:
                    os.close(fd)
                return tuple(map(int, data.split()))
    return ()


def kill_all(paths: tuple[Path, ...]) -> None:
    """SIGKILL to all processes in the groups of these directories, by ``cgroup.kill`` where there is one."""
    for path in paths:
        try:
            (path / "cgroup.kill").write_text("1")
            continue
        except OSError:
            pass
        # A fork may escape one pass, but its parent is dead by then: a few passes end what keeps forking.
        for _ in range(64):
            pids = members((path,))
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def remove(path: Path, seconds: float = 2.0) -> None:
    """Remove one group's directory, and the folder of groups above it when it was the last."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.rmdir()
            break
        except FileNotFoundError:
            break
        except OSError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.001)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


class Cgroups:
    """What this process can make groups in. ``root`` and ``proc`` stand for the file systems, for tests."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.version = 0
        self._bases: dict[str, Path] = {}
        self.reason = "no cgroup hierarchy that this process may write to"
        try:
            mounts, own = _mounts(proc), _own(proc)
        except OSError:
            return
        self._find_v2(mounts, own) or self._find_v1(mounts, own)

    def create(self, name: str, limits: Limits, *, own: int = 0) -> Group | None:
        """Make a group that holds these limits; None when there is no controller to hold any of them.

        ``own`` processes of the boundary's machinery do not count against the program.

        Raises:
            IsolationError: a controller refused a limit.
        """
        if limits.pids is not None:
            limits = msgspec.structs.replace(limits, pids=limits.pids + own)
        wanted = {
            "memory": limits.memory is not None or limits.swap is not None,
            "pids": limits.pids is not None,
            "cpu": limits.cpu is not None,
        }
        # Memory is always joined: it is how the node learns what a boundary used and that it ran out.
        wanted["memory"] = True
        dirs = {which: base / _FOLDER / f"{_owner()}.{name}" for which, base in self._bases.items() if wanted[which]}
        if not dirs:
            return None
        group = Group(self.version, dirs, {})
        try:
            for path in group.paths:
                _make(path)
            if self.version == 2:
                _limit_v2(group, limits)
            else:
                _limit_v1(group, limits)
        except OSError as error:
            group.remove()
            raise IsolationError(
                f"the kernel refused a limit of this boundary ({error.filename}: {error.strerror}); lower it or "
                "delegate the controller to Holdfast's cgroup"
            ) from None
        return group

    def sweep(self) -> None:
        """End and remove the groups of nodes that died before they could put a boundary in the registry."""
        for folder in {base / _FOLDER for base in self._bases.values()}:
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in names:
                if _orphaned(name):
                    kill_all((folder / name,))
                    remove(folder / name)

    def _find_v2(self, mounts: list[tuple[Path, str, str]], own: dict[str, str]) -> bool:
        mount = next((path for path, kind, _ in mounts if kind == "cgroup2"), None)
        if mount is None or "" not in own:
            return False
        base = mount / own[""].lstrip("/")
        try:
            there = set((base / "cgroup.controllers").read_text().split()) & {"memory", "pids", "cpu"}
            if not there or not os.access(base, os.W_OK):
                return False
            _delegate(base, there)
            on = set((base / "cgroup.subtree_control").read_text().split()) & there
        except OSError as error:
            self.reason = f"cgroup v2 is not delegated here ({error.strerror})"
            return False
        self.version, self._bases = 2, dict.fromkeys(on, base)
        return bool(on)

    def _find_v1(self, mounts: list[tuple[Path, str, str]], own: dict[str, str]) -> bool:
        for path, kind, options in mounts:
            for which in ("memory", "pids", "cpu"):
                if kind == "cgroup" and which in options.split(",") and which in own:
                    # In a cgroup namespace or a container the path below the mount may not be the one named.
                    for base in (path / own[which].lstrip("/"), path):
                        if base.is_dir() and os.access(base, os.W_OK):
                            self._bases[which] = base
                            break
        self.version = 1 if self._bases else 0
        return bool(self._bases)


def _owner() -> str:
    """Who makes a group, as the start of its name: pid namespace, pid, start time."""
    return f"{procs.pid_namespace()}.{os.getpid()}.{procs.start_time(os.getpid()) or 0}"


def _orphaned(name: str) -> bool:
    """Whether the maker of a group is known to be gone."""
    parts = name.split(".")
    if len(parts) != 4 or not all(part.isdigit() for part in parts[:3]):
        return False
    namespace, pid, start = map(int, parts[:3])
    return namespace == procs.pid_namespace() and start > 0 and not procs.alive(procs.Process(pid, start))


def _delegate(base: Path, wanted: set[str]) -> None:
    """Turn controllers on for child groups; processes may then be in leaves only, so this one moves into a leaf.

    It does so only when nobody else is in the group: moving a stranger's processes is not ours to do.
    """
    missing = wanted - set((base / "cgroup.subtree_control").read_text().split())
    if not missing:
        return
    switch = " ".join(f"+{name}" for name in sorted(missing))
    try:
        (base / "cgroup.subtree_control").write_text(switch)
        return
    except OSError:
        if members((base,)) != (os.getpid(),):
            raise
    leaf = base / f"{_FOLDER}-node"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    (base / "cgroup.subtree_control").write_text(switch)


def _make(path: Path) -> None:
    for _ in range(100):
        path.parent.mkdir(exist_ok=True)
        parent = path.parent / "cgroup.subtree_control"
        try:
            if parent.exists():
                above = (path.parent.parent / "cgroup.subtree_control").read_text().split()
                parent.write_text(" ".join(f"+{name}" for name in above if name in ("memory", "pids", "cpu")))
            path.mkdir()
            return
        except FileNotFoundError:
            continue  # another boundary's end removed the empty folder in between
    path.mkdir()


def _limit_v2(group: Group, limits: Limits) -> None:
    if (memory := group.dirs.get("memory")) is not None:
        if limits.memory is not None:
            (memory / "memory.max").write_text(str(limits.memory))
            group.held["memory"] = "cgroup2"
            with contextlib.suppress(OSError):
                (memory / "memory.oom.group").write_text("1")
        if limits.swap is not None and (memory / "memory.swap.max").exists():
            (memory / "memory.swap.max").write_text(str(limits.swap))
            group.held["swap"] = "cgroup2"
    if (pids := group.dirs.get("pids")) is not None and limits.pids is not None:
        (pids / "pids.max").write_text(str(limits.pids))
        group.held["pids"] = "cgroup2"
    if (cpu := group.dirs.get("cpu")) is not None and limits.cpu is not None:
        (cpu / "cpu.max").write_text(f"{int(limits.cpu * _PERIOD_US)} {_PERIOD_US}")
        group.held["cpu"] = "cgroup2"


def _limit_v1(group: Group, limits: Limits) -> None:
    if (memory := group.dirs.get("memory")) is not None and limits.memory is not None:
        (memory / "memory.limit_in_bytes").write_text(str(limits.memory))
        group.held["memory"] = "cgroup1"
        both = memory / "memory.memsw.limit_in_bytes"
        if limits.swap is not None and both.exists():
            both.write_text(str(limits.memory + limits.swap))
            group.held["swap"] = "cgroup1"
    if (pids := group.dirs.get("pids")) is not None and limits.pids is not None:
        (pids / "pids.max").write_text(str(limits.pids))
        group.held["pids"] = "cgroup1"
    if (cpu := group.dirs.get("cpu")) is not None and limits.cpu is not None:
        (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (cpu / "cpu.cfs_quota_us").write_text(str(max(1000, int(limits.cpu * _PERIOD_US))))
        group.held["cpu"] = "cgroup1"


def _mounts(proc: Path) -> list[tuple[Path, str, str]]:
    """Mount point, type and super options of every cgroup mount (``/proc/self/mountinfo``)."""
    found = []
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            found.append((Path(before.split()[4]), kind, options))
    return found


def _own(proc: Path) -> dict[str, str]:
    """Controller to this process's group; the empty name is version 2 (``/proc/self/cgroup``)."""
    own = {}
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = path
    return own


def own_memory(proc: Path = Path("/proc")) -> tuple[int, int] | None:
    """Limit and use, in bytes, of the tightest memory group that this process is in; None when none can be read.

    File caches that the kernel can drop do not count as used. A limit beyond the machine's memory is no limit.
    """
    try:
        mounted, own = _mounts(proc), _own(proc)
    except OSError:
        return None
    found = []
    for path, kind, options in mounted:
        which = "" if kind == "cgroup2" else "memory"
        if which not in own or (which and which not in options.split(",")):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if which else ("memory.max", "memory.current")
        below = path / own[which].lstrip("/")
        for folder in (below, *(above for above in below.parents if above.is_relative_to(path))):
            if limit := _number(folder / names[0]):
                stat = _fields(folder, "memory.stat")
                names_of_caches = [("total_" if which else "") + name for name in ("inactive_file", "active_file")]
                caches = sum(stat.get(name, 0) for name in names_of_caches)
                found.append((limit, max(_number(folder / names[1]) - caches, 0)))
    return min(found, default=None)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _fields(folder: Path | None, name: str) -> dict[str, int]:
    if folder is None:
        return {}
    try:
        pairs = [line.split() for line in (folder / name).read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
