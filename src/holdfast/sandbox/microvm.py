"""Level ``microvm``: a kernel of its own, in QEMU's ``microvm`` machine, which itself stands in a namespace boundary.

QEMU is the program of a boundary of level namespace: limits, uid, registry and the end are that level's, and whoever
broke out of the guest into QEMU would stand in an empty namespace. The guest (:mod:`holdfast.sandbox.guest_image`) has
no network device; its channels are virtio ports whose host end is the very socket that other levels hand in. It runs
in software (TCG), many times slower than the processor itself, as the record says: KVM's device is the host's, and no
boundary's own uid may open it.
QEMU's options: ``qemu-system(1)``; the machine: QEMU's ``docs/system/i386/microvm.rst``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import secrets
import shutil
import socket
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox import bwrap, diagnose, guest_image, seccomp, uids
from holdfast.sandbox.base import Availability, Boundary, Channel, Exit, Held, Label, Limits, Mount, Reason, Spec
from holdfast.sandbox.boundary import Started
from holdfast.sandbox.namespace import NamespaceLevel
from holdfast.sandbox.views import Preparer

BOOT_SECONDS = 300.0
"""How long a guest may take until its program starts. In software, on a busy machine, it is tens of seconds."""
GUEST = 192 << 20
"""Bytes that a guest's kernel and first image need beside the program."""
MACHINE = 320 << 20
"""Bytes that QEMU needs beside the guest's memory."""
THREADS = 64
"""Processes and threads of QEMU's own."""
UID = 1000
"""The program's uid in the guest."""
_PLACE = Path("/vm")
_SLOW = "the guest runs in software (TCG), without KVM: many times slower than other levels"
_RLIMITS = {"pids": "RLIMIT_NPROC", "files": "RLIMIT_NOFILE", "file_size": "RLIMIT_FSIZE"}


class MicrovmLevel:
    """Starts microVMs."""

    name = "microvm"

    def __init__(self, uid_range: tuple[int, int] = uids.DEFAULT_RANGE) -> None:
        self._outer = NamespaceLevel(uid_range)
        self._preparer = Preparer()

    async def probe(self) -> Availability:
        """Boot ``/bin/true`` in a guest within a hard limit; says why not, and the cure."""
        return await diagnose.probe(self)

    async def start(self, spec: Spec) -> Boundary:
        """Start a guest and the program in it.

        Raises:
            IsolationError: the level cannot be had here; the message says what to do.
        """
        try:
            return await self._start(spec)
        finally:
            for channel in spec.channels:
                channel.inner.close()

    async def _start(self, spec: Spec) -> Guest:
        if not spec.argv:
            raise IsolationError("a boundary needs a program to run: argv is empty")
        program = find_qemu()
        with contextlib.ExitStack() as failed:
            image = await asyncio.to_thread(guest_image.image)
            run = guest_image.cache_folder() / f"run-{os.getpid()}-{secrets.token_hex(8)}"
            failed.callback(run.unlink, missing_ok=True)
            await asyncio.to_thread(self._write_run, run, spec, image)
            control, inner = socket.socketpair()
            failed.callback(control.close)
            control.setblocking(False)
            ports = [(f"channel{number}", channel.inner) for number, channel in enumerate(spec.channels)]
            ports.append(("control", inner))
            out: Output | None = None
            if spec.stdout is not None:
                out = Output(spec.stdout)
                failed.callback(out.close)
                ports.append(("stdout", out.inner))
            disks = [("run", run), *((f"image{n}", path) for n, (path, _) in enumerate(image.folders))]
            sources = {"kernel": image.kernel, "initrd": image.initrd, **dict(disks)}
            limits = spec.limits
            memory = (limits.memory or 1 << 30) + GUEST
            argv = command(program, memory, [name for name, _ in disks], ports)
            outer = msgspec.structs.replace(
                spec,
                argv=tuple(argv),
                stdout=None,
                mounts=tuple(Mount(source=path, target=_PLACE / name) for name, path in sources.items()),
                env={},
                channels=tuple(Channel(variable=f"PORT_{name}", inner=end) for name, end in ports),
                limits=msgspec.structs.replace(
                    limits, memory=memory + MACHINE, pids=THREADS, files=None, file_size=None, disk=16 << 20
                ),
            )
            boundary = await self._outer.start(outer)
            guest = Guest(boundary, control, run, _held(boundary.held, limits), out)
            failed.pop_all()
        try:
            await guest.booted()
        except BaseException:
            await guest.close()
            raise
        return guest

    def _write_run(self, path: Path, spec: Spec, image: guest_image.Image) -> None:
        inside = {target for _, target in image.folders}
        own = tuple(mount for mount in spec.mounts if str(mount.target) not in inside)
        prepared = self._preparer.prepare(msgspec.structs.replace(spec, mounts=own), False)
        limits = spec.limits
        todo = {
            "argv": [_program(spec), *spec.argv[1:]],
            "env": bwrap.environment(spec.env),
            "uid": UID,
            "images": [target for _, target in image.folders],
            "channels": [channel.variable for channel in spec.channels],
            "stdout": spec.stdout is not None,
            "disk": limits.disk,
            "rlimits": {
                which: value for name, which in _RLIMITS.items() if (value := getattr(limits, name)) is not None
            },
            "seccomp": [one.hex() for one in seccomp.programs(spec.home / "cache")[:2]],
        }
        guest_image.write_run(path, todo, own, frozenset((*prepared.hide_files, *prepared.hide_folders)))


class Guest:
    """A running guest. Implements :class:`holdfast.sandbox.base.Boundary`."""

    def __init__(self, boundary: Started, control: socket.socket, run: Path, held: Held, output: Output | None) -> None:
        self.held = held
        self.pid = boundary.pid
        self._boundary = boundary
        self._control = control
        self._run = run
        self._output = output
        self._said = b""
        self._ended: asyncio.Task[Exit] | None = None

    async def booted(self) -> None:
        """Wait until the guest's first process starts the program.

        Raises:
            IsolationError: it does not, within :data:`BOOT_SECONDS`.
        """
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                self._said = await asyncio.get_running_loop().sock_recv(self._control, 1)
        except TimeoutError:
            raise IsolationError(
                f"the guest did not boot within {BOOT_SECONDS:.0f} s; is the machine overloaded?"
            ) from None
        except ConnectionError:
            self._said = b""
        if self._said != b"R":
            ended = await self._boundary.wait()
            raise IsolationError(
                f"the guest ended while it booted ({ended.reason}, status {ended.status}); run: holdfast sandbox probe"
            )

    async def wait(self) -> Exit:
        """Wait for the end; always gives the same answer."""
        if self._ended is None:
            self._ended = asyncio.ensure_future(self._wait())
        return await asyncio.shield(self._ended)

    async def _wait(self) -> Exit:
        machine = await self._boundary.wait()
        if self._output is not None:
            self._output.copy()
        said = b""
        with contextlib.suppress(OSError):
            while chunk := self._control.recv(4096):
                said += chunk
        told = re.fullmatch(rb"(M?)(\d+)\n", said)
        if machine.reason is not Reason.EXITED or told is None:
            return (
                machine if machine.reason is not Reason.EXITED else Exit(reason=Reason.CRASHED, status=machine.status)
            )
        status = int(told[2])
        if status > 128:
            reason = Reason.OUT_OF_MEMORY if told[1] else Reason.CRASHED
            return Exit(reason=reason, status=128 - status)
        return Exit(reason=Reason.OUT_OF_MEMORY if told[1] and status else Reason.EXITED, status=status)

    def kill(self, reason: Reason = Reason.KILLED) -> None:
        """End the machine, now."""
        self._boundary.kill(reason)

    async def close(self) -> None:
        """Kill, wait, and give back all it held."""
        self.kill()
        await self.wait()
        await self._boundary.close()
        self._control.close()
        if self._output is not None:
            self._output.close()
        self._run.unlink(missing_ok=True)

    def claim(self, label: Label) -> None:
        """See :class:`holdfast.sandbox.base.Boundary`."""
        self._boundary.claim(label)

    def memory(self) -> tuple[int, int]:
        """Current and peak bytes of the machine, guest and QEMU together."""
        return self._boundary.memory()

    def pids(self) -> tuple[int, ...]:
        """Host pids of the machine: what runs in the guest has none."""
        return self._boundary.pids()

    def workspace(self) -> int:
        """Never to be had.

        Raises:
            IsolationError: always; the guest keeps its files to itself.
        """
        raise IsolationError("a microVM keeps the workspace to itself: hand files out with ctx.files.write")


class Output:
    """What the program writes, copied from its port to a descriptor of the node's."""

    def __init__(self, target: int) -> None:
        self._outer, self.inner = socket.socketpair()
        self._outer.setblocking(False)
        self._target = os.dup(target)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._outer.fileno(), self.copy)

    def copy(self) -> None:
        """Copy what there is."""
        with contextlib.suppress(OSError):
            while data := self._outer.recv(1 << 16):
                os.write(self._target, data)
            self._loop.remove_reader(self._outer.fileno())

    def close(self) -> None:
        """Stop copying. Idempotent."""
        if self._target >= 0:
            self._loop.remove_reader(self._outer.fileno())
            self._outer.close()
            os.close(self._target)
            self._target = -1


def find_qemu() -> str:
    """QEMU's program for this machine.

    Raises:
        IsolationError: it is not installed, or not made for this machine.
    """
    if platform.machine() != "x86_64":
        raise IsolationError("level microvm needs x86-64, whose QEMU has the machine; choose level namespace or gvisor")
    program = shutil.which("qemu-system-x86_64", path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        raise IsolationError(
            "level microvm needs QEMU and a kernel to boot; apt install qemu-system-x86 linux-image-cloud-amd64"
        )
    return program


def command(program: str, memory: int, disks: list[str], ports: list[tuple[str, socket.socket]]) -> list[str]:
    """QEMU's command line. Nothing of a PC is there: no display, network, USB, firmware menu, or monitor."""
    # In software nothing tells the guest how fast its clock counts: it counts as the host's does.
    clock = f"tsc_early_khz={host_khz()} tsc=reliable"
    out = [program, "-machine", "microvm,acpi=on", "-accel", "tcg,tb-size=64", "-cpu", "max", "-smp", "1"]
    out += ["-m", f"{-(-memory >> 20)}M", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]
    out += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    out += ["-kernel", f"{_PLACE}/kernel", "-initrd", f"{_PLACE}/initrd"]
    out += ["-append", f"quiet panic=-1 reboot=t random.trust_cpu=on mitigations=off {clock}"]
    for name in disks:
        out += ["-drive", f"id={name},file={_PLACE}/{name},format=raw,readonly=on,if=none,file.locking=off"]
        out += ["-device", f"virtio-blk-device,drive={name},serial={name}"]
    out += ["-device", "virtio-serial-device"]
    for name, end in ports:
        out += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        out += ["-device", f"virtserialport,chardev={name},name={name}"]
    return out


def host_khz() -> int:
    """How fast this processor's time stamp counter counts, roughly."""
    found = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return int(float(found[1]) * 1000) if found else 2_000_000


def _program(spec: Spec) -> str:
    name = spec.argv[0]
    return name if "/" in name else f"/usr/bin/{name}"


def _held(outer: Held, limits: Limits) -> Held:
    holds = {"memory": "guest"}
    holds |= {name: "rlimit" for name in _RLIMITS if getattr(limits, name) is not None}
    if limits.disk is not None:
        holds["disk"] = "tmpfs"
    holds |= {name: outer.limits[name] for name in ("swap", "cpu") if name in outer.limits}
    notes = (*(note for note in outer.notes if "uid" in note), "the workspace lies in the guest's memory", _SLOW)
    return Held(
        level=MicrovmLevel.name, uid=outer.uid, own_uid=outer.own_uid, network="none", limits=holds, notes=notes
    )
