"""The OCI runtimes of this machine, where their state lives, and the end of what one left.

Docker and Podman bring the same runtimes; Holdfast calls the runtime itself, so neither daemon nor image is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from holdfast.errors import IsolationError
from holdfast.sandbox.uids import HOST

BUNDLES = HOST / "containers"
LEVELS = ("container", "gvisor")
"""Levels that start a container."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where runtimes are looked for."""
_SECONDS = 30


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime and how it is called."""

    program: str
    options: tuple[str, ...]
    """Before the command word."""
    passes: bool
    """Whether descriptors above the three standard ones can be handed in (``--preserve-fds``)."""
    setpriv: str
    nsenter: str


@functools.cache
def find(level: str) -> Runtime:
    """The runtime for a level.

    Raises:
        IsolationError: there is none, or this process may not use it; says what to do.
    """
    if os.geteuid() != 0:
        raise IsolationError(
            f"level {level} needs root here, for the uids of its user namespace: run the node as root, or choose "
            "level namespace, which gives an ordinary user the same view and filter"
        )
    setpriv, nsenter = (shutil.which(name, path=PATH) for name in ("setpriv", "nsenter"))
    if setpriv is None or nsenter is None or not os.path.exists("/usr/bin/setpriv"):
        raise IsolationError(f"level {level} needs setpriv and nsenter: apt install util-linux")
    if level == "gvisor":
        program = shutil.which("runsc", path=PATH)
        if program is None:
            raise IsolationError(
                "level gvisor needs runsc: install gVisor (https://gvisor.dev/docs/user_guide/install), or Debian's "
                "older one: apt install runsc"
            )
        options: tuple[str, ...] = (
            "--platform=ptrace",
            "--network=none",
            "--oci-seccomp",
            "--ignore-cgroups",
            "--root",
            str(state(level)),
        )
        return Runtime(program=program, options=options, passes=False, setpriv=setpriv, nsenter=nsenter)
    program = shutil.which("runc", path=PATH) or shutil.which("crun", path=PATH)
    if program is None:
        raise IsolationError(
            "level container needs an OCI runtime, runc or crun, which Docker and Podman bring along: apt install runc"
        )
    options = ("--root", str(state(level)))
    return Runtime(program=program, options=options, passes=True, setpriv=setpriv, nsenter=nsenter)


@functools.cache
def closed_shell() -> str:
    """A copy of this host's shell that everybody may run and only root may read.

    The kernel lets nobody trace a process, or see its memory, that runs what that somebody may not read.

    Raises:
        IsolationError: it cannot be made.
    """
    target = HOST / "sh"
    partial = HOST / f"sh.{os.getpid()}"
    try:
        HOST.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile("/bin/sh", partial)
        partial.chmod(0o111)
        partial.replace(target)
    except OSError as error:
        raise IsolationError(f"the gate's shell cannot be made in {HOST}: {error.strerror}") from None
    return str(target)


def state(level: str) -> Path:
    """Folder of the host where a level's runtime keeps what it knows."""
    return HOST / f"{level}-state"


def remove(level: str, id: str) -> None:
    """End a container that is left, and forget its bundle. Blocking; nothing to do is no error."""
    with contextlib.suppress(IsolationError, OSError, subprocess.TimeoutExpired):
        if any(state(level).glob(f"{id}*")):
            runtime = find(level)
            subprocess.run(
                [runtime.program, *runtime.options, "delete", "--force", id],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        for left in state(level).glob(f"{id}*.lock"):
            left.unlink(missing_ok=True)
    shutil.rmtree(BUNDLES / id, ignore_errors=True)
