"""Level ``namespace`` (the default): bubblewrap with every namespace, a dropped uid, a system call filter and limits.

A start is: put the launcher into its cgroup, drop to the boundary's own uid (when the node is root), let bubblewrap
build the view, and wait at a gate inside. The gate opens only after the registry knows the namespace's first
process and that process is bound to its parent's life, so a node that dies at any moment leaves nothing running and
nothing unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, diagnose, procs, registry, seccomp, uids
from holdfast.sandbox.base import Availability, Held, Limits, Spec
from holdfast.sandbox.boundary import Started
from holdfast.sandbox.cgroup import Cgroups, Group
from holdfast.sandbox.gate import Descriptors, Gate
from holdfast.sandbox.views import Prepared, Preparer

READY_SECONDS = 30.0
"""How long a start may take until the gate inside is reached."""
_OWN_PROCESSES = 2
"""Outer process and init of the namespace."""


class NamespaceLevel:
    """Starts boundaries with bubblewrap. One per node: it keeps what starts have in common."""

    name = "namespace"

    def __init__(self, uid_range: tuple[int, int] = uids.DEFAULT_RANGE) -> None:
        self._uid_range = uid_range
        self._cgroups: Cgroups | None = None
        self._preparer = Preparer()
        self._fresh_proc = True
        self._disable_userns = True

    async def probe(self) -> Availability:
        """Boot ``/bin/true`` inside, within 30 s; says why not, and the cure."""
        return await diagnose.probe(self)

    async def start(self, spec: Spec) -> Started:
        """Start a boundary.

        Raises:
            IsolationError: the level cannot be had here; the message says what to do.
        """
        try:
            while True:
                try:
                    return await self._start(spec)
                except diagnose.Weaker as found:
                    if not self._weaken(found):
                        raise IsolationError(diagnose.explain(found.said)) from None
        finally:
            for channel in spec.channels:
                channel.inner.close()

    def _weaken(self, found: diagnose.Weaker) -> bool:
        """Go on without what containers withhold; False when that was already left out."""
        before = (self._fresh_proc, self._disable_userns)
        self._fresh_proc &= found.what != "proc"
        self._disable_userns &= found.what != "userns"
        return before != (self._fresh_proc, self._disable_userns)

    async def _start(self, spec: Spec) -> Started:
        if not spec.argv:
            raise IsolationError("a boundary needs a program to run: argv is empty")
        tools = diagnose.tools()
        root = os.geteuid() == 0
        id = secrets.token_hex(8)
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as starting:
            prepared = await asyncio.to_thread(self._preparer.prepare, spec, root)
            starting.callback(prepared.entered)
            lease = uids.lease(self._uid_range) if root else None
            if lease is not None:
                failed.callback(lease.release)
            if self._cgroups is None:
                self._cgroups = Cgroups()
            group = self._cgroups.create(id, spec.limits, own=_OWN_PROCESSES)
            if group is not None:
                failed.callback(group.remove)
            uid = os.getuid() if lease is None else lease.uid
            gid = os.getgid() if lease is None else lease.uid
            held = self._held(spec.limits, group, uid, lease is not None)
            gate = Gate(starting)
            fds = Descriptors(starting)
            args = bwrap.arguments(
                bwrap.Plan(
                    views=prepared.views,
                    hide_files=prepared.hide_files,
                    hide_folders=prepared.hide_folders,
                    empty=prepared.empty,
                    env=spec.env | {channel.variable: str(channel.inner.fileno()) for channel in spec.channels},
                    limits=spec.limits,
                    **dict(zip(("passwd", "group", "hosts"), map(fds.memory, bwrap.people(uid, gid)), strict=True)),
                    seccomp=tuple(map(fds.memory, seccomp.programs(spec.home / "cache")[:2])),
                    info=fds.keep(gate.info),
                    fresh_proc=self._fresh_proc,
                    disable_userns=self._disable_userns,
                )
            )
            command = _outer(tools, lease, prepared, group)
            command += [tools.bwrap, "--args", str(fds.memory(bwrap.joined(args))), "--"]
            command += ["/bin/sh", "-c", _gate_script(spec.limits, held), "sh", *spec.argv]
            process = _launch(command, spec, gate, fds, {"PATH": tools.path, registry.MARKER: id})
            gate.close_inner()
            outer, node = procs.identify(process.pid), procs.identify(os.getpid())
            entry = registry.Entry(
                id=id,
                level=self.name,
                label=spec.label,
                node=node or procs.Process(os.getpid(), 0),
                outer=outer or procs.Process(process.pid, 0),
                boot=procs.boot_id(),
                pid_namespace=procs.pid_namespace(),
                cgroups=tuple(map(str, group.paths)) if group is not None else (),
            )
            boundary = Started(
                home=spec.home,
                entry=entry,
                process=process,
                held=held,
                group=group,
                give_back=lease.release if lease is not None else _nothing,
            )
            failed.pop_all()
            try:
                registry.register(spec.home, entry)
                await self._open(gate, boundary, spec, entry)
            except BaseException:
                await boundary.close()
                raise
            return boundary

    async def _open(self, gate: Gate, boundary: Started, spec: Spec, entry: registry.Entry) -> None:
        """Wait at the gate, make the boundary known, open."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                if not await gate.reached():
                    raise diagnose.failure(gate.said())
                child = gate.child()
                init = procs.identify(child)
                fd = None if init is None else procs.open_pidfd(init)
                if init is None or fd is None:
                    raise IsolationError(
                        "the boundary ended while it started; try again, then run: holdfast sandbox probe"
                    )
                entry = msgspec.structs.replace(entry, init=init)
                boundary.adopt_init(fd, entry)
                registry.register(spec.home, entry)
                # Init binds itself to its parent's life before it takes the filter: until then a node that died
                # would leave the boundary running.
                while not _filtered(child):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.0005)
        except TimeoutError:
            raise IsolationError(
                f"bubblewrap did not start the program within {READY_SECONDS:.0f} s; is the machine overloaded?"
            ) from None
        gate.open()

    def _held(self, limits: Limits, group: Group | None, uid: int, own: bool) -> Held:
        holds = {} if group is None else dict(group.held)
        notes = []
        if not own:
            notes.append("the node is not root: the uid is the node's own, shared by all its boundaries")
        if limits.memory is not None and holds.setdefault("memory", "rlimit") == "rlimit":
            notes.append("no memory cgroup can be had: memory is limited for each process, not for all together")
        if limits.pids is not None and holds.setdefault("pids", "rlimit") == "rlimit" and not own:
            notes.append("no pids cgroup can be had: processes are counted by uid within the boundary")
        if limits.disk is not None:
            holds["disk"] = "tmpfs"
            notes.append("the workspace lies in memory: its files count against the memory limit")
        for name, value in (("files", limits.files), ("file_size", limits.file_size)):
            if value is not None:
                holds[name] = "rlimit"
        wanted = {name: getattr(limits, name) for name in ("swap", "cpu")}
        missing = [name for name, value in wanted.items() if value is not None and name not in holds]
        if missing:
            notes.append(f"no cgroup holds the limit on {' and '.join(missing)}")
        if not self._fresh_proc:
            notes.append("this container allows no /proc of its own: there is none inside")
        if not self._disable_userns:
            notes.append("user namespaces inside are refused by the system call filter alone")
        return Held(level=self.name, uid=uid, own_uid=own, network="none", limits=holds, notes=tuple(notes))


def _launch(
    command: list[str], spec: Spec, gate: Gate, fds: Descriptors, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Run the launching programs. In this very thread: bubblewrap dies with the thread that started it."""
    try:
        return subprocess.Popen(
            command,
            stdin=gate.inner,
            stdout=subprocess.DEVNULL if spec.stdout is None else spec.stdout,
            stderr=gate.said_inner,
            pass_fds=(*fds.numbers, *(channel.inner.fileno() for channel in spec.channels)),
            env=env,
            cwd="/",
        )
    except (OSError, ValueError) as error:
        raise IsolationError(f"the boundary's launcher cannot be run: {error}") from None


def _outer(tools: diagnose.Tools, lease: uids.Lease | None, prepared: Prepared, group: Group | None) -> list[str]:
    """What comes before bubblewrap: the cgroup, the mount namespace, the uid. Each replaces the one before (one
    pid)."""
    command = []
    if group is not None:
        command += ["/bin/sh", "-c", procs.ENTER, "sh", *(str(path / "cgroup.procs") for path in group.paths), "--"]
    if lease is not None:
        uid = str(lease.uid)
        if prepared.stage is not None:
            # One program for both: each that is started on the way costs a start some milliseconds.
            namespace = f"--mount=/proc/{os.getpid()}/fd/{prepared.stage.fd}"
            command += [tools.nsenter, namespace, "--setuid", uid, "--setgid", uid, "--"]
        else:
            command += [tools.setpriv, "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all"]
            command += ["--no-new-privs", "--"]
    return command


def _gate_script(limits: Limits, held: Held) -> str:
    """Set what rlimits hold, say that we are there, wait for the word, become the program."""
    sets = ["ulimit -c 0"]
    if limits.files is not None:
        sets.append(f"ulimit -n {limits.files}")
    if limits.file_size is not None:
        sets.append(f"ulimit -f {-(-limits.file_size // 512)}")
    if held.limits.get("memory") == "rlimit" and limits.memory is not None:
        sets.append(f"ulimit -v {limits.memory // 1024}")
    if held.limits.get("pids") == "rlimit" and limits.pids is not None:
        # dash calls it -p, bash -u.
        sets.append(f"{{ ulimit -u {limits.pids} || ulimit -p {limits.pids}; }}")
    lines = [f"{line} 2>/dev/null || :" for line in sets]
    return "; ".join([*lines, 'echo >&0; read -r go && exec "$@" </dev/null 2>&1'])


def _filtered(pid: int) -> bool:
    try:
        return b"\nSeccomp:\t2" in Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        raise IsolationError(
            "the boundary ended while it started; try again, then run: holdfast sandbox probe"
        ) from None


def _nothing() -> None:
    """Nothing was taken."""
