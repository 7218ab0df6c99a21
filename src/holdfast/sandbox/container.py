"""Levels ``container`` and ``gvisor``: an OCI runtime on a bundle that is made for the one start.

A start is: make the bundle, let the runtime build the container, and wait at a gate inside. The first process inside
is then known and moved into the boundary's control group, the registry learns of it, and the gate opens. That process
dies with the runtime's, which dies with the node; what is killed is the process, so nothing depends on a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, diagnose, oci, procs, registry, runtime, uids
from holdfast.sandbox.base import Availability, Held, Limits, Spec
from holdfast.sandbox.boundary import Started
from holdfast.sandbox.bwrap import View
from holdfast.sandbox.cgroup import Cgroups, Group
from holdfast.sandbox.gate import Gate
from holdfast.sandbox.runtime import Runtime
from holdfast.sandbox.spawn import Spawned, spawn
from holdfast.sandbox.stage import Stage
from holdfast.sandbox.views import Preparer, check_program

READY_SECONDS = 60.0
"""How long a start may take until the gate inside is reached."""
_SENTRY_THREADS = 256
_OWN_PROCESSES = 1
"""The first process inside."""


class ContainerLevel:
    """Starts containers. One per node: it keeps what starts have in common."""

    def __init__(self, name: str = "container", uid_range: tuple[int, int] = uids.DEFAULT_RANGE) -> None:
        self.name = name
        self._uid_range = uid_range
        self._cgroups: Cgroups | None = None
        self._preparer = Preparer()

    async def probe(self) -> Availability:
        """Boot ``/bin/true`` inside within a hard time-out; says why not, and the cure."""
        return await diagnose.probe(self)

    async def start(self, spec: Spec) -> Started:
        """Start a boundary.

        Raises:
            IsolationError: the level cannot be had here; the message says what to do.
        """
        try:
            return await self._start(spec)
        finally:
            for channel in spec.channels:
                channel.inner.close()

    async def _start(self, spec: Spec) -> Started:
        check_program(spec)
        how = runtime.find(self.name)
        most = 2 if spec.stdout is None else 1
        if not how.passes and len(spec.channels) > most:
            raise IsolationError(
                f"{how.program} can hand {most} of the channels into a boundary, not {len(spec.channels)}"
            )
        id = secrets.token_hex(8)
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as starting:
            # runc opens what it mounts as root; gVisor's file server has the boundary's own root alone.
            prepared = await asyncio.to_thread(self._preparer.prepare, spec, True, staged=not how.passes)
            starting.callback(prepared.entered)
            leases = [uids.lease(self._uid_range) for _ in range(2)]
            for lease in leases:
                failed.callback(lease.release)
            if self._cgroups is None:
                self._cgroups = Cgroups()
            group = self._cgroups.create(
                id, spec.limits if how.passes else _for_sentry(spec.limits), own=_OWN_PROCESSES
            )
            if group is not None:
                failed.callback(group.remove)
            held = _held(self.name, spec.limits, group, leases[0].uid)
            gate = Gate(starting)
            numbers, script = wiring(how, [channel.variable for channel in spec.channels])
            # A program that cannot be read cannot be reached into either, by whoever runs under the same uid.
            shell = (View(source=runtime.closed_shell(), target="/.gate/sh"),) if how.passes else ()
            folder = runtime.BUNDLES / id
            failed.callback(runtime.remove, self.name, id)
            bundle = oci.Bundle(
                argv=spec.argv,
                env=spec.env | {name: str(number) for name, number in numbers.items()},
                views=(*prepared.views, *shell),
                hide_files=prepared.hide_files,
                hide_folders=prepared.hide_folders,
                empty=prepared.empty,
                uid=leases[0].uid,
                root_uid=leases[1].uid,
                limits=spec.limits,
                hold_memory=held.limits.get("memory") == "rlimit",
                gate=script,
                shell=shell[0].target if shell else "/bin/sh",
                gvisor=not how.passes,
                folders=frozenset(str(one.target) for one in spec.mounts if one.source.is_dir()),
            )
            await _finished(asyncio.create_task(asyncio.to_thread(_write, folder, bundle)))
            command = _command(how, folder, prepared.stage, None if how.passes else group)
            process = _launch(command, how, spec, gate, id)
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
            )

            def give_back() -> None:
                runtime.remove(self.name, id)
                for lease in leases:
                    lease.release()

            boundary = Started(
                home=spec.home, entry=entry, process=process, held=held, group=group, give_back=give_back
            )
            failed.pop_all()
            try:
                registry.register(spec.home, entry)
                await self._open(gate, boundary, spec, entry, group if how.passes else None, folder)
            except BaseException:
                await boundary.close()
                raise
            return boundary

    async def _open(
        self, gate: Gate, boundary: Started, spec: Spec, entry: registry.Entry, group: Group | None, folder: Path
    ) -> None:
        """Wait at the gate, limit the boundary and make it known, open."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                if (said := await gate.first()) != b"\n":
                    raise IsolationError(_explain(self.name, said.decode(errors="replace") or gate.said()))
                init, fd = await _init(folder / "pid")
        except TimeoutError:
            raise IsolationError(
                f"the {self.name} was not ready within {READY_SECONDS:.0f} s; is the machine overloaded?"
            ) from None
        entry = msgspec.structs.replace(entry, init=init)
        boundary.adopt_init(fd, entry)
        registry.register(spec.home, entry)
        if group is not None:
            _join(group, init.pid)
        gate.open()


def wiring(how: Runtime, variables: list[str]) -> tuple[dict[str, int], str]:
    """Numbers of the channels inside, and the script of the gate, whose own descriptor the program does not get."""
    if how.passes:
        return {name: 4 + at for at, name in enumerate(variables)}, oci.gate(3, "3>&-")
    # Three descriptors are all that it hands in: channels come as stdin and stdout, the gate as stderr.
    moves = ("", "3<&0", "3<&0 4<&1 >/dev/null")[len(variables)]
    return {name: 3 + at for at, name in enumerate(variables)}, oci.gate(2, moves)


def _command(how: Runtime, folder: Path, stage: Stage | None, group: Group | None) -> list[str]:
    """The runtime's command line up to its options for descriptors."""
    command = [how.setpriv, "--pdeathsig", "KILL", "--", how.program, *how.options, "run", "--bundle", str(folder)]
    command += ["--pid-file", str(folder / "pid")]
    if stage is not None:
        command = [how.nsenter, f"--mount=/proc/{os.getpid()}/fd/{stage.fd}", "--", *command]
    if group is not None:
        entries = [str(path / "cgroup.procs") for path in group.paths]
        command = ["/bin/sh", "-c", procs.ENTER, "sh", *entries, "--", *command]
    return command


def _launch(command: list[str], how: Runtime, spec: Spec, gate: Gate, id: str) -> Spawned:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        out = null if spec.stdout is None else spec.stdout
        channels = [channel.inner.fileno() for channel in spec.channels]
        if how.passes:
            fds = {0: null, 1: out, 2: gate.said_inner, 3: gate.inner}
            fds |= {4 + at: fd for at, fd in enumerate(channels)}
            command = [*command, "--preserve-fds", str(1 + len(channels))]
        else:
            fds = {0: null, 1: out} | dict(enumerate(channels)) | {2: gate.inner}
        return spawn([*command, id], {"PATH": bwrap.PATH, registry.MARKER: id}, fds)
    except (OSError, ValueError) as error:
        raise IsolationError(f"the runtime {how.program} cannot be run: {error}") from None
    finally:
        os.close(null)


async def _finished(task: asyncio.Task[None]) -> None:
    """Wait for a thread's work, also when cancelled: what it still makes would be left behind."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _write(folder: Path, bundle: oci.Bundle) -> None:
    try:
        folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o711)
        os.chown(folder, 0, bundle.uid)  # names whose it is, should this node die before the registry knows
        oci.furnish(folder, bundle)
        (folder / "config.json").write_text(json.dumps(oci.configuration(bundle)))
    except OSError as error:
        raise IsolationError(f"the container's folder cannot be made ({error.filename}: {error.strerror})") from None


async def _init(path: Path) -> tuple[procs.Process, int]:
    """The first process inside, as the runtime names it, and a pidfd of it."""
    while True:
        try:
            pid = int(_text(path))
            break
        except (FileNotFoundError, ValueError):
            await asyncio.sleep(0.001)  # the runtime writes it after the process has started; no event tells of it
    init = procs.identify(pid)
    fd = None if init is None else procs.open_pidfd(init)
    if init is None or fd is None:
        raise IsolationError("the boundary ended while it started; try again, then run: holdfast sandbox probe")
    return init, fd


def _text(path: Path) -> str:
    return path.read_text()


def _join(group: Group, pid: int) -> None:
    try:
        for path in group.paths:
            (path / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise IsolationError(f"the container cannot be put under its limits: {error.strerror}") from None


def _for_sentry(limits: Limits) -> Limits:
    """What the host counts of gVisor: its own threads, and one or two for each process inside."""
    return limits if limits.pids is None else msgspec.structs.replace(limits, pids=2 * limits.pids + _SENTRY_THREADS)


def _held(name: str, limits: Limits, group: Group | None, uid: int) -> Held:
    holds = {} if group is None else dict(group.held)
    notes = []
    if name == "gvisor" and "pids" in holds:
        del holds["pids"]
        notes.append("the host counts gVisor's threads: far more processes than the limit end the whole boundary")
    if limits.memory is not None and holds.setdefault("memory", "rlimit") == "rlimit":
        notes.append("no memory cgroup can be had: memory is limited for each process, not for all together")
    if limits.disk is not None:
        holds["disk"] = "tmpfs"
        notes.append("the workspace lies in memory: its files count against the memory limit")
    for which, value in (("files", limits.files), ("file_size", limits.file_size)):
        if value is not None:
            holds[which] = "rlimit"
    missing = [which for which in ("swap", "pids", "cpu") if getattr(limits, which) is not None and which not in holds]
    if missing:
        notes.append(f"nothing holds the limit on {' and '.join(missing)}")
    if name == "gvisor":
        notes.append("gVisor runs on its ptrace platform here: many times slower where much is read or written")
    return Held(level=name, uid=uid, own_uid=True, network="none", limits=holds, notes=tuple(notes))


def _explain(name: str, said: str) -> str:
    said = " ".join(said.split())
    low = said.lower()
    if "proc" in low and "operation not permitted" in low:
        cure = "this container withholds a fresh /proc: choose level namespace, or run the node on the host"
    elif "user_namespaces" in low or "unshare" in low:
        cure = "user namespaces are closed here; as root: sysctl -w user.max_user_namespaces=15000"
    elif "cgroup" in low:
        cure = "the runtime needs a writable cgroup hierarchy: mount one, or choose level namespace"
    else:
        cure = "run: holdfast sandbox probe"
    return f"the runtime did not start the {name}: {said[-600:] or 'it said nothing'}; {cure}"
