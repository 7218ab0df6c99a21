"""The contract of every isolation level: start a program inside a boundary, watch it, end it.

A boundary is started from a :class:`Spec` and never reused. Identity is the channel: a connected Unix socket whose
other end the program inside finds as a file descriptor named by an environment variable; no path leads to it.
"""

from __future__ import annotations

import enum
import socket
from pathlib import Path
from typing import Protocol

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a boundary may use. None: no limit was asked for."""

    memory: int | None = 1 << 30
    """Bytes."""
    swap: int | None = 0
    pids: int | None = 256
    cpu: float | None = None
    """Cores."""
    disk: int | None = 1 << 30
    """Bytes in the workspace."""
    files: int | None = 1024
    """Open files of one process."""
    file_size: int | None = 512 << 20
    """Bytes of one file."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A host folder or file that is seen inside, read-only unless ``writable``."""

    source: Path
    target: Path
    writable: bool = False
    mask: bool = True
    """Whether secret files below it (:mod:`holdfast.sandbox.masks`) are hidden. The interpreter's own folders do
    without."""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """Whose boundary it is: what a kill matches."""

    tenant: str
    agent: str = ""
    workflow: str = ""
    session: str = ""
    run: str = ""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """A socket for the inside. Its descriptor's number is in ``variable`` there."""

    variable: str
    inner: socket.socket
    """``start`` takes it over and closes this process's copy, also when it fails, so that the end inside is seen."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to start."""

    argv: tuple[str, ...]
    label: Label
    home: Path
    """HOLDFAST_HOME: the boundary's registry entry lives below it."""
    mounts: tuple[Mount, ...] = ()
    env: dict[str, str] = {}
    """The whole environment inside; nothing of the node's own is added."""
    channels: tuple[Channel, ...] = ()
    limits: Limits = Limits()
    stdout: int | None = None
    """Descriptor for the program's stdout and stderr; None: /dev/null."""


class Reason(enum.StrEnum):
    """Why a boundary ended."""

    EXITED = "exited"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"
    TIMEOUT = "timeout"


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a boundary ended."""

    reason: Reason
    status: int
    """Exit status, or minus the signal."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the record says of a boundary: never more than holds."""

    level: str
    uid: int
    own_uid: bool
    """Whether the uid belongs to this boundary alone."""
    network: str
    """``none`` or ``host``."""
    limits: dict[str, str]
    """Name of a limit (memory, swap, pids, cpu, disk, files, file_size) to what holds it: cgroup2, cgroup1, rlimit,
    tmpfs."""
    notes: tuple[str, ...] = ()
    """What is weaker than the level's best, in words."""


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found."""

    level: str
    available: bool
    reason: str = ""
    cure: str = ""
    seconds: float = 0.0


class Boundary(Protocol):
    """A started boundary."""

    held: Held
    pid: int
    """The outermost process on the host; its end is the end of all inside."""

    async def wait(self) -> Exit:
        """Wait for the end. May be called often; always gives the same answer."""

    def kill(self, reason: Reason = Reason.KILLED) -> None:
        """End every process inside, now. Idempotent; does not wait."""

    async def close(self) -> None:
        """Kill, wait, and give back all it held: workspace, cgroup, uid, registry entry."""

    def claim(self, label: Label) -> None:
        """Make a boundary that was started ahead of its run that run's: kills of it are kills of this one from now on.

        Raises:
            IsolationError: it was killed meanwhile, or the change cannot be registered.
        """

    def memory(self) -> tuple[int, int]:
        """Current and peak bytes; zeros when unknown."""

    def pids(self) -> tuple[int, ...]:
        """Host pids of all processes inside, as far as they can be seen."""

    def workspace(self) -> int:
        """A descriptor of the workspace, for :func:`holdfast.sandbox.collector.collect`; the caller closes it.

        Opened while the boundary runs, it keeps the files until it is closed, also after all inside has ended.

        Raises:
            IsolationError: the boundary has ended, or this level keeps its files to itself.
        """


class Level(Protocol):
    """One isolation level."""

    name: str

    async def probe(self) -> Availability:
        """Boot a real command at this level within a hard time-out; says why not, and the cure."""

    async def start(self, spec: Spec) -> Boundary:
        """Start a boundary.

        Raises:
            IsolationError: the level cannot be had here; the message says what to do.
        """
