"""Level ``process``: an ordinary process of the node's own user. No boundary at all, and its record says so.

For machines where nothing better can be had and the code is trusted: it sees the host's files (a mount is where its
source is) and network. What still holds: an environment of its own, a fresh workspace, limits, and an end that takes
everything it can find: the cgroup where there is one, the process group, the tree, and whoever carries the boundary's
mark in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, procs, registry
from holdfast.sandbox.base import Availability, Held, Limits, Spec
from holdfast.sandbox.boundary import Started
from holdfast.sandbox.cgroup import Cgroups, Group

NOTES = (
    "level process is no boundary: the program sees the host's files and network as the node's own user",
    "a process that leaves the group and drops its environment is found only through a cgroup",
)
_LAUNCH = """while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift
eval "$1"; shift
[ "$PPID" = "$1" ] || exit 125
shift; exec "$@\""""
"""Enter the cgroups named up to ``--``, set limits, end when the node is gone already, become the program."""


class ProcessLevel:
    """Starts plain processes."""

    name = "process"

    def __init__(self) -> None:
        self._cgroups: Cgroups | None = None

    async def probe(self) -> Availability:
        """A process can always be had."""
        started = time.monotonic()
        ended = await asyncio.create_subprocess_exec("/bin/sh", "-c", ":")
        status = await asyncio.wait_for(ended.wait(), 30)
        return Availability(level=self.name, available=status == 0, seconds=time.monotonic() - started)

    async def start(self, spec: Spec) -> Started:
        """Start a process.

        Raises:
            IsolationError: it cannot be started as the specification says.
        """
        try:
            return self._start(spec)
        finally:
            for channel in spec.channels:
                channel.inner.close()

    def _start(self, spec: Spec) -> Started:
        if not spec.argv:
            raise IsolationError("a boundary needs a program to run: argv is empty")
        id = secrets.token_hex(8)
        with contextlib.ExitStack() as failed:
            workspace = spec.home / registry.WORKSPACES / id
            _make_private(workspace)
            failed.callback(shutil.rmtree, workspace, ignore_errors=True)
            if self._cgroups is None:
                self._cgroups = Cgroups()
            group = self._cgroups.create(id, spec.limits)
            if group is not None:
                failed.callback(group.remove)
            process = _launch(spec, id, workspace, group)
            node, outer = procs.identify(os.getpid()), procs.identify(process.pid)
            entry = registry.Entry(
                id=id,
                level=self.name,
                label=spec.label,
                node=node or procs.Process(os.getpid(), 0),
                outer=outer or procs.Process(process.pid, 0),
                boot=procs.boot_id(),
                pid_namespace=procs.pid_namespace(),
                cgroups=tuple(map(str, group.paths)) if group is not None else (),
                workspace=str(workspace),
            )
            registry.write(spec.home, entry)
            failed.pop_all()
            return Started(
                home=spec.home,
                entry=entry,
                process=process,
                held=_held(self.name, spec.limits, group),
                group=group,
                give_back=lambda: shutil.rmtree(workspace, ignore_errors=True),
            )


def _launch(spec: Spec, id: str, workspace: Path, group: Group | None) -> subprocess.Popen[bytes]:
    env = bwrap.environment({"HOME": str(workspace), registry.MARKER: id} | spec.env)
    env |= {channel.variable: str(channel.inner.fileno()) for channel in spec.channels}
    entries = () if group is None else tuple(str(path / "cgroup.procs") for path in group.paths)
    command = ["/bin/sh", "-c", _LAUNCH, "sh", *entries, "--", _ulimits(spec.limits, group), str(os.getpid())]
    # Sent when the thread that started it ends: with the node, nothing of it goes on.
    if (setpriv := shutil.which("setpriv", path="/usr/sbin:/usr/bin:/sbin:/bin")) is not None:
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    try:
        return subprocess.Popen(
            [*command, *spec.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if spec.stdout is None else spec.stdout,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(channel.inner.fileno() for channel in spec.channels),
            env=env,
            cwd=workspace,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise IsolationError(f"the program cannot be started: {error}") from None


def _ulimits(limits: Limits, group: Group | None) -> str:
    held = {} if group is None else group.held
    sets = ["ulimit -c 0"]
    if limits.files is not None:
        sets.append(f"ulimit -n {limits.files}")
    if limits.file_size is not None:
        sets.append(f"ulimit -f {-(-limits.file_size // 512)}")
    if limits.memory is not None and "memory" not in held:
        sets.append(f"ulimit -v {limits.memory // 1024}")
    return "; ".join(f"{line} 2>/dev/null || :" for line in sets)


def _held(name: str, limits: Limits, group: Group | None) -> Held:
    holds = {} if group is None else dict(group.held)
    if limits.memory is not None:
        holds.setdefault("memory", "rlimit")
    for which, value in (("files", limits.files), ("file_size", limits.file_size)):
        if value is not None:
            holds[which] = "rlimit"
    wanted = ("swap", "pids", "cpu", "disk")
    missing = [which for which in wanted if getattr(limits, which) is not None and which not in holds]
    notes = [*NOTES]
    if missing:
        notes.append(f"nothing holds the limit on {' and '.join(missing)}")
    return Held(level=name, uid=os.getuid(), own_uid=False, network="host", limits=holds, notes=tuple(notes))


def _make_private(workspace: Path) -> None:
    try:
        workspace.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        workspace.mkdir(mode=0o700)
    except OSError as error:
        raise IsolationError(f"no workspace can be made in {workspace.parent}: {error.strerror}") from None
