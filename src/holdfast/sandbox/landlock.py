"""Level ``landlock``: a Landlock domain and system call filters on an ordinary process; needs no namespace.

For machines and containers where namespaces are closed. The program sees the host's file system, but can open only
what was mounted for it, system programs and its workspace; it can make no socket, and what remains open (the names
and modes of files, the host's name) is listed in ``tests/security/open_at_landlock.txt``. Mounts are where their
sources are. With root the boundary has a uid of its own, and where root may make mounts, a workspace of limited size.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, confine, diagnose, procs, registry, seccomp, uids
from holdfast.sandbox.base import Availability, Held, Limits, Mount, Spec
from holdfast.sandbox.boundary import Started
from holdfast.sandbox.cgroup import Cgroups, Group
from holdfast.sandbox.gate import Descriptors, Gate
from holdfast.sandbox.stage import reachable
from holdfast.sandbox.views import Prepared, Preparer, check_program

READY_SECONDS = 30.0
"""How long a start may take until the gate is reached."""
_READ = confine.EXECUTE | confine.READ_FILE | confine.READ_DIR
_WRITE = ~(confine.MAKE_CHAR | confine.MAKE_BLOCK | confine.IOCTL_DEV) & ((1 << 16) - 1)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", *bwrap.ETC)
_FACTS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/sys/devices/system/cpu")
"""Of the kernel's files: what programs ask the size of the machine."""


class LandlockLevel:
    """Starts confined processes. One per node: it keeps what starts have in common."""

    name = "landlock"

    def __init__(self, uid_range: tuple[int, int] = uids.DEFAULT_RANGE) -> None:
        self._uid_range = uid_range
        self._cgroups: Cgroups | None = None
        self._preparer = Preparer()
        self._mounts = True

    async def probe(self) -> Availability:
        """Boot ``/bin/true`` inside, within 30 s; says why not, and the cure."""
        return await diagnose.probe(self)

    async def start(self, spec: Spec) -> Started:
        """Start a boundary.

        Raises:
            IsolationError: the level cannot be had here; the message says what to do.
        """
        try:
            try:
                return await self._start(spec)
            except diagnose.Weaker:
                self._mounts = False
                return await self._start(spec)
        finally:
            for channel in spec.channels:
                channel.inner.close()

    async def _start(self, spec: Spec) -> Started:
        check_program(spec)
        version = _version()
        root = os.geteuid() == 0
        id = secrets.token_hex(8)
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as starting:
            prepared = await asyncio.to_thread(self._preparer.prepare, in_place(spec), root, staged=False)
            lease = uids.lease(self._uid_range) if root else None
            if lease is not None:
                failed.callback(lease.release)
            workspace = _workspace(spec.home, id, lease)
            failed.callback(shutil.rmtree, workspace, ignore_errors=True)
            if self._cgroups is None:
                self._cgroups = Cgroups()
            group = self._cgroups.create(id, spec.limits)
            if group is not None:
                failed.callback(group.remove)
            furnish = root and self._mounts
            held = _held(spec.limits, group, lease, version, furnish)
            gate = Gate(starting)
            fds = Descriptors(starting)
            wanted = plan(spec, prepared, workspace, lease, group, furnish)
            process = _launch(fds.memory(json.dumps(wanted).encode()), spec, gate, fds, id)
            gate.close_inner()
            entry = registry.Entry(
                id=id,
                level=self.name,
                label=spec.label,
                node=procs.identify(os.getpid()) or procs.Process(os.getpid(), 0),
                outer=procs.identify(process.pid) or procs.Process(process.pid, 0),
                boot=procs.boot_id(),
                pid_namespace=procs.pid_namespace(),
                cgroups=tuple(map(str, group.paths)) if group is not None else (),
                workspace=str(workspace),
                uid=0 if lease is None else lease.uid,
            )

            def give_back() -> None:
                shutil.rmtree(workspace, ignore_errors=True)
                if lease is not None:
                    lease.release()

            boundary = Started(
                home=spec.home, entry=entry, process=process, held=held, group=group, give_back=give_back
            )
            failed.pop_all()
            try:
                registry.register(spec.home, entry)
                await _open(gate)
            except BaseException:
                await boundary.close()
                raise
            return boundary


def in_place(spec: Spec) -> Spec:
    """The same, with each mount of an author's where its source is: there are no mounts at this level."""
    mounts = (_in_place(mount) if mount.mask else mount for mount in spec.mounts)
    return msgspec.structs.replace(spec, mounts=tuple(mounts))


def plan(
    spec: Spec, prepared: Prepared, workspace: Path, lease: uids.Lease | None, group: Group | None, furnish: bool
) -> dict[str, Any]:
    """What :mod:`holdfast.sandbox.confine` is told."""
    channels = {channel.variable: str(channel.inner.fileno()) for channel in spec.channels}
    home, temporary = str(workspace / "home"), str(workspace / "tmp")
    own = {"HOME": home, "TMPDIR": temporary, registry.MARKER: workspace.name}
    hidden = [(view.source, view.target) for view in prepared.views if not reachable(view.source)] if furnish else []
    return {
        "argv": spec.argv,
        "env": bwrap.environment(own | spec.env) | channels,
        "node": os.getpid(),
        "uid": None if lease is None else lease.uid,
        "cgroups": [] if group is None else [str(path / "cgroup.procs") for path in group.paths],
        "rlimits": _rlimits(spec.limits, group, lease),
        "furnish": furnish,
        "disk": spec.limits.disk,
        "hidden": sorted({*((source, source) for source, _ in hidden), *hidden}),
        "covers": sorted({_closed(path) for pair in hidden for path in pair if not reachable(path)}),
        "workspace": str(workspace),
        "home": home,
        "temporary": temporary,
        "rules": [*_system(), *_rules(prepared), [home, _WRITE], [temporary, _WRITE]],
        "seccomp": [base64.b64encode(one).decode() for one in seccomp.programs(spec.home / "cache")],
    }


def _in_place(mount: Mount) -> Mount:
    source = Path(os.path.realpath(mount.source))
    return msgspec.structs.replace(mount, source=source, target=source)


def _system() -> list[list[Any]]:
    rules = [[path, _READ] for path in (*_SYSTEM, *_FACTS) if os.path.exists(path)]
    return [*rules, *([path, confine.READ_FILE | confine.WRITE_FILE] for path in _DEVICES)]


def _rules(prepared: Prepared) -> list[list[Any]]:
    hidden = {*prepared.hide_files, *prepared.hide_folders}
    rules: list[list[Any]] = []
    for view in prepared.views:
        rules += _except(view.source, _WRITE if view.writable else _READ, hidden)
        if os.path.exists(f"{view.source}/__init__.py"):
            # Python finds a package by listing the folder that it is in.
            rules.append([os.path.dirname(view.source), confine.READ_DIR])
    return rules


def _except(path: str, rights: int, hidden: set[str]) -> list[list[Any]]:
    """Rules for all below a path but what is hidden. A right holds for a whole tree, so the way to what is hidden is
    granted entry by entry; names stay visible, new files in those folders are not."""
    if path in hidden:
        return []
    if not any(one.startswith(path + os.sep) for one in hidden):
        return [[path, rights]]
    rules: list[list[Any]] = [[path, confine.READ_DIR]]
    for entry in os.scandir(path):
        if not entry.is_symlink():
            rules += _except(entry.path, rights, hidden)
    return rules


def _closed(path: str) -> str:
    """The outermost folder above a path that not everybody may walk through."""
    for above in reversed(Path(path).parents[:-1]):
        if not os.stat(above).st_mode & 0o001:
            return str(above)
    return str(Path(path).parent)


def _version() -> int:
    version = confine.abi()
    if not version:
        raise IsolationError(
            "this kernel has no Landlock: boot Linux 5.13 or newer with landlock in its lsm= list (CONFIG_LSM), or "
            "allow the landlock_* system calls in this container's seccomp profile"
        )
    return version


def _workspace(home: Path, id: str, lease: uids.Lease | None) -> Path:
    path = (home / registry.WORKSPACES if lease is None else registry.HOST_WORKSPACES) / id
    try:
        path.parent.mkdir(mode=0o700 if lease is None else 0o711, parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        if lease is not None:
            os.chown(path, lease.uid, lease.uid)
    except OSError as error:
        raise IsolationError(f"no workspace can be made in {path.parent}: {error.strerror}") from None
    return path


def _rlimits(limits: Limits, group: Group | None, lease: uids.Lease | None) -> list[tuple[int, int]]:
    held = {} if group is None else group.held
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_AS, limits.memory if "memory" not in held else None),
        (resource.RLIMIT_NPROC, limits.pids if "pids" not in held and lease is not None else None),
    ]
    return [(number, value) for number, value in wanted if value is not None]


def _held(limits: Limits, group: Group | None, lease: uids.Lease | None, version: int, furnish: bool) -> Held:
    holds = {} if group is None else dict(group.held)
    notes = ["files are kept closed by Landlock, not by namespaces: their names can be seen, not opened"]
    if lease is None:
        notes.append("the node is not root: the uid is the node's own, shared by all its boundaries")
        if version < 6:
            notes.append(
                f"Landlock of this kernel (version {version}) does not keep signals in: the node can be signalled"
            )
    if limits.memory is not None and holds.setdefault("memory", "rlimit") == "rlimit":
        notes.append("no memory cgroup can be had: memory is limited for each process, not for all together")
    if limits.pids is not None and lease is not None:
        holds.setdefault("pids", "rlimit")
    if limits.disk is not None and furnish:
        holds["disk"] = "tmpfs"
        notes.append("the workspace lies in memory: its files count against the memory limit")
    for name, value in (("files", limits.files), ("file_size", limits.file_size)):
        if value is not None:
            holds[name] = "rlimit"
    missing = [
        name for name in ("swap", "pids", "cpu", "disk") if getattr(limits, name) is not None and name not in holds
    ]
    if missing:
        notes.append(f"nothing holds the limit on {' and '.join(missing)}")
    if group is None and lease is None:
        notes.append("a process that leaves the group and drops its environment is found only through a cgroup")
    uid = os.getuid() if lease is None else lease.uid
    return Held(
        level=LandlockLevel.name, uid=uid, own_uid=lease is not None, network="none", limits=holds, notes=tuple(notes)
    )


def _launch(plan_fd: int, spec: Spec, gate: Gate, fds: Descriptors, id: str) -> subprocess.Popen[bytes]:
    script = os.path.abspath(confine.__file__)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(plan_fd)],
            stdin=gate.inner,
            stdout=subprocess.DEVNULL if spec.stdout is None else spec.stdout,
            stderr=gate.said_inner,
            pass_fds=(*fds.numbers, *(channel.inner.fileno() for channel in spec.channels)),
            env={registry.MARKER: id, "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise IsolationError(f"the boundary's launcher cannot be run: {error}") from None


async def _open(gate: Gate) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            if not await gate.reached():
                said = gate.said()
                if confine.NO_MOUNTS in said:
                    raise diagnose.Weaker("mounts", said)
                raise IsolationError(f"the program could not be confined: {said or 'the launcher said nothing'}")
    except TimeoutError:
        raise IsolationError(
            f"the program was not confined within {READY_SECONDS:.0f} s; is the machine overloaded?"
        ) from None
    gate.open()
