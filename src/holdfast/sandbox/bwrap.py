"""The command line of bubblewrap for a boundary, as data: what is mounted, in which order, and nothing else.

``--remount-ro /`` comes last of the mounts: before it, mount points can still be made. Arguments travel in a memory
file (``--args FD``), so neither the host's process list nor ``/proc/1/cmdline`` inside shows them.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec

from holdfast.sandbox.base import Limits

WORKSPACE = "/workspace"
HOSTNAME = "sandbox"
USER = "agent"
PATH = "/usr/local/bin:/usr/bin:/bin"
UNSHARE = (
    "--unshare-user",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
)
LIFETIME = ("--die-with-parent", "--new-session")
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
)
"""Of the host's ``/etc``: what programs need to load and to check certificates. Nothing there names the host."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be seen inside: ``source`` is where the mounting uid finds it."""

    source: str
    target: str
    writable: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a command line depends on."""

    views: tuple[View, ...]
    hide_files: tuple[str, ...]
    hide_folders: tuple[str, ...]
    empty: str
    """An empty file that the mounting uid can read: what hidden files look like."""
    env: dict[str, str]
    limits: Limits
    passwd: int
    """Descriptors of what ``/etc/passwd``, ``/etc/group`` and ``/etc/hosts`` hold."""
    group: int
    hosts: int
    seccomp: tuple[int, ...]
    info: int
    fresh_proc: bool = True
    disable_userns: bool = True


def arguments(plan: Plan) -> list[str]:
    """Arguments of ``bwrap``, without the command to run."""
    out = [*UNSHARE, *LIFETIME, "--cap-drop", "ALL", "--hostname", HOSTNAME]
    if plan.disable_userns:
        out.append("--disable-userns")
    out += system()
    for fd, target in ((plan.passwd, "/etc/passwd"), (plan.group, "/etc/group"), (plan.hosts, "/etc/hosts")):
        # A copy, not a mount: each mount costs a start a third of a millisecond.
        out += ["--perms", "0444", "--file", str(fd), target]
    if plan.fresh_proc:
        # The first process is bubblewrap, under the program's own uid: what can be written of it there would let the
        # program loose from the node's life.
        out += ["--proc", "/proc", "--perms", "0000", "--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]
    else:
        out += ["--dir", "/proc"]
    out += ["--dev", "/dev"]
    size = [] if plan.limits.disk is None else ["--size", str(plan.limits.disk)]
    for target, mode in (("/dev/shm", "1777"), ("/tmp", "1777"), (WORKSPACE, "0700")):  # noqa: S108
        out += ["--perms", mode, *size, "--tmpfs", target]
    for view in sorted(plan.views, key=lambda one: one.target.count("/")):
        out += ["--bind" if view.writable else "--ro-bind", view.source, view.target]
    for target in plan.hide_folders:
        out += ["--perms", "0000", "--size", "4096", "--tmpfs", target, "--remount-ro", target]
    for target in plan.hide_files:
        out += ["--ro-bind", plan.empty, target]
    out += ["--chdir", WORKSPACE, "--remount-ro", "/dev", "--remount-ro", "/", "--clearenv"]
    for name, value in environment(plan.env).items():
        out += ["--setenv", name, value]
    for fd in plan.seccomp:
        out += ["--add-seccomp-fd", str(fd)]
    return [*out, "--info-fd", str(plan.info)]


def environment(env: dict[str, str]) -> dict[str, str]:
    """The whole environment inside."""
    base = {"PATH": PATH, "HOME": WORKSPACE, "USER": USER, "LOGNAME": USER, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108
    return base | env


@functools.cache
def system() -> tuple[str, ...]:
    """The host's programs and libraries, read-only."""
    out = ["--ro-bind", "/usr", "/usr"]
    for path in _MERGED:
        if os.path.islink(path):
            out += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            out += ["--ro-bind", path, path]
    for path in ETC:
        if os.path.exists(path):
            out += ["--ro-bind", os.path.realpath(path), path]
    return tuple(out)


def people(uid: int, gid: int) -> tuple[bytes, bytes, bytes]:
    """Contents of passwd, group and hosts inside."""
    passwd = (
        f"{USER}:x:{uid}:{gid}:{USER}:{WORKSPACE}:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    group = f"{USER}:x:{gid}:\nnogroup:x:65534:\n"
    hosts = f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n"
    return passwd.encode(), group.encode(), hosts.encode()


def memory_file(name: str, data: bytes) -> int:
    """A descriptor that reads as ``data``; the caller closes it."""
    fd = os.memfd_create(name)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def joined(args: list[str]) -> bytes:
    """Arguments as ``--args`` reads them."""
    return b"".join(os.fsencode(arg) + b"\0" for arg in args)


def inside(target: Path) -> bool:
    """Whether every boundary has this path from the host already."""
    return target.is_relative_to("/usr")
