"""The system calls that a boundary may make, as BPF programs for ``bwrap --add-seccomp-fd``.

An allow-list and, above it, a deny-list: what is not on it answers ENOSYS, so a call that a newer kernel brings is
closed until somebody has looked at it. What programs commonly try and must not have answers EPERM, and calls
through another ABI (i386, x32) end the process. Compiling takes libseccomp a while, so the bytes are kept on disk
under a name made of all that they depend on; a start that finds them never imports pyseccomp.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from holdfast.errors import IsolationError
from holdfast.sandbox import syscalls
from holdfast.sandbox.syscalls import ALLOWED, DENIED, SHARED

Programs = tuple[bytes, bytes, bytes]
"""``struct sock_filter`` arrays: what is allowed, what is denied of it, and what is denied where network and IPC are
the host's. A level with namespaces of its own takes the first two."""

ARCHITECTURES = {"x86_64": "X86_64", "aarch64": "AARCH64"}
"""``uname -m`` to libseccomp's name."""

FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
"""Socket families that may be made: the internet ones reach the boundary's own loopback only."""

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (``linux/sched.h``)."""

TIOCSTI = 0x5412
"""Push a byte into a terminal's input (``asm-generic/ioctls.h``)."""
TIOCLINUX = 0x541C
"""Paste into a virtual console."""

_O_CREAT = os.O_CREAT
_O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
CREATES = _O_CREAT | _O_TMPFILE
"""Flags with which an open call looks at its mode."""
_SETID = (stat.S_ISUID, stat.S_ISGID)
MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
"""Call to the argument that holds the mode."""
MAKES = ("mknod", "mknodat")
DEVICE = stat.S_IFCHR
"""The bit of a mode that device files have, block ones too, and no other kind."""
OPENS = {"open": 1, "openat": 2}
"""Call to the argument that holds the flags; the mode is the next. ``openat2`` hides both and answers ENOSYS."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_memory: dict[str, Programs] = {}


def programs(cache: Path | None = None) -> Programs:
    """The programs for this machine: from memory, else from ``cache`` (a folder of the node's own), else compiled.

    Raises:
        IsolationError: libseccomp is missing, or does not know this architecture.
    """
    machine = platform.machine()
    if machine in _memory:
        return _memory[machine]
    path = None if cache is None else cache / f"seccomp-{machine}-{_key()}.bpf"
    found = None if path is None else _read(path)
    if found is None:
        found = compile_for(machine)
        if path is not None:
            _write(path, found)
    _memory[machine] = found
    return found


def compile_for(machine: str) -> Programs:
    """Compile the programs for an architecture, named as ``uname -m`` does.

    Raises:
        IsolationError: libseccomp is missing, or does not know this architecture.
    """
    if machine not in ARCHITECTURES:
        raise IsolationError(
            f"no system call filter is made for {machine}; Holdfast runs on {' and '.join(ARCHITECTURES)}"
        )
    try:
        import pyseccomp as lib
    except (ImportError, RuntimeError, OSError) as error:
        raise IsolationError(f"libseccomp cannot be loaded ({error}); install it: apt install libseccomp2") from None
    return _Allowing(lib, machine).bytes(), _Denying(lib, machine).bytes(), _Sharing(lib, machine).bytes()


class _Rules:
    """One program under construction."""

    def __init__(self, lib: Any, machine: str, default: Any) -> None:
        self.lib = lib
        self.arch = getattr(lib.Arch, ARCHITECTURES[machine])
        self.rules = lib.SyscallFilter(default)
        if lib.system_arch() != self.arch:
            self.rules.add_arch(self.arch)
            self.rules.remove_arch(lib.system_arch())
        self.rules.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)

    def add(self, action: Any, name: str, *args: Any) -> None:
        # A name that this architecture or this libseccomp does not have stays on the default.
        if self.lib.resolve_syscall(self.arch, name) >= 0:
            self.rules.add_rule_exactly(action, name, *args)

    def masked(self, argument: int, mask: int, value: int) -> Any:
        return self.lib.Arg(argument, self.lib.MASKED_EQ, mask, value)

    def equal(self, argument: int, value: int) -> Any:
        return self.lib.Arg(argument, self.lib.EQ, value)

    def bytes(self) -> bytes:
        with tempfile.TemporaryFile() as file:
            self.rules.export_bpf(file)
            file.seek(0)
            return file.read()


class _Allowing(_Rules):
    """What is not named answers ENOSYS."""

    def __init__(self, lib: Any, machine: str) -> None:
        super().__init__(lib, machine, lib.ERRNO(errno.ENOSYS))
        allow = lib.ALLOW
        for name in sorted(ALLOWED | DENIED | set(MODES) | set(OPENS) | {"ioctl", "clone"}):
            self.add(allow, name)
        for family in FAMILIES:
            self.add(allow, "socket", self.equal(0, family))
        self.add(allow, "socketpair", self.equal(0, socket.AF_UNIX))
        for value in PERSONALITIES:
            self.add(allow, "personality", self.equal(0, value))


class _Denying(_Rules):
    """What is named answers EPERM. The kernel lets the stricter of both programs win.

    Two programs, because libseccomp drops conditional rules beside an unconditional one for the same call.
    """

    def __init__(self, lib: Any, machine: str) -> None:
        super().__init__(lib, machine, lib.ALLOW)
        deny = lib.ERRNO(errno.EPERM)
        for name in sorted(DENIED):
            self.add(deny, name)
        # Refused as a kernel without the family would: programs then go on without it.
        unknown = lib.ERRNO(errno.EAFNOSUPPORT)
        for family in set(range(max(FAMILIES))) - set(FAMILIES):
            self.add(unknown, "socket", self.equal(0, family))
        self.add(unknown, "socket", lib.Arg(0, lib.GT, max(FAMILIES)))
        for bit in _bits(NAMESPACE_FLAGS):
            self.add(deny, "clone", self.masked(0, bit, bit))
        for request in (TIOCSTI, TIOCLINUX):
            # The kernel takes 32 bits of the request: comparing all 64 would be evaded by setting a high one.
            self.add(deny, "ioctl", self.masked(1, 0xFFFFFFFF, request))
        for name, mode in MODES.items():
            for bit in _SETID:
                self.add(deny, name, self.masked(mode, bit, bit))
        for name in MAKES:
            self.add(deny, name, self.masked(MODES[name], DEVICE, DEVICE))
        for name, flags in OPENS.items():
            for bit in _SETID:
                for creates in (_O_CREAT, _O_TMPFILE):
                    self.add(deny, name, self.masked(flags, creates, creates), self.masked(flags + 1, bit, bit))


class _Sharing(_Rules):
    """No socket but connected pairs, no System V or POSIX IPC: with the host's namespaces, any name is the host's.

    A pair of datagram sockets is refused too: an end of it can be sent to another address.
    """

    def __init__(self, lib: Any, machine: str) -> None:
        super().__init__(lib, machine, lib.ALLOW)
        for name in sorted(SHARED - {"socket"}):
            self.add(lib.ERRNO(errno.EPERM), name)
        self.add(lib.ERRNO(errno.EAFNOSUPPORT), "socket")
        self.add(lib.ERRNO(errno.EPERM), "socketpair", self.masked(1, 0xF, int(socket.SOCK_DGRAM)))


def _bits(mask: int) -> list[int]:
    return [1 << at for at in range(64) if mask >> at & 1]


def _key() -> str:
    """Digest of this module's text and libseccomp's version: what the bytes depend on besides the architecture."""
    text = Path(__file__).read_bytes() + Path(syscalls.__file__).read_bytes()
    return hashlib.sha256(text + b"\0" + _library_version().encode()).hexdigest()[:16]


def _library_version() -> str:
    class Version(ctypes.Structure):
        _fields_ = [("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint)]

    try:
        function = ctypes.CDLL("libseccomp.so.2").seccomp_version
    except (OSError, AttributeError):
        return "unknown"
    function.restype = ctypes.POINTER(Version)
    version = function().contents
    return f"{version.major}.{version.minor}.{version.micro}"


def _read(path: Path) -> Programs | None:
    """Cached programs; None when there are none that are whole. Each after its length, SHA-256 over all of it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body, digest = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    found = []
    while body:
        cut = 4 + int.from_bytes(body[:4], "big")
        found.append(body[4:cut])
        body = body[cut:]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _write(path: Path, found: Programs) -> None:
    body = b"".join(len(program).to_bytes(4, "big") + program for program in found)
    # A cache that cannot be written costs time, not safety.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(body + hashlib.sha256(body).digest())
        partial.replace(path)
