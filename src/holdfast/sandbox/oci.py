"""What an OCI runtime is told: ``config.json`` and the root file system of a bundle, as data.

The view is the namespace level's (the host's programs, read-only, and nothing else of it), so no image is needed. The
hardening is all that the runtime specification has: every namespace, two uids of the host that are nobody's else, no
capability, no new privileges, the system call filter, a read-only root, masked kernel files, no network. Format:
https://github.com/opencontainers/runtime-spec (1.0.2).
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import platform
import stat
from pathlib import Path
from typing import Any

import msgspec

from holdfast.sandbox import bwrap, seccomp, syscalls
from holdfast.sandbox.base import Limits
from holdfast.sandbox.bwrap import View

_MASKED = """
/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi
/proc/timer_list /proc/timer_stats /sys/firmware
"""
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"
_SAFE = ("nosuid", "nodev")


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """All that a configuration depends on."""

    argv: tuple[str, ...]
    env: dict[str, str]
    views: tuple[View, ...]
    hide_files: tuple[str, ...]
    hide_folders: tuple[str, ...]
    empty: str
    """An empty file: what hidden files look like."""
    uid: int
    """Of the program, inside and out."""
    root_uid: int
    """What the runtime's uid 0 inside is on the host; nothing runs as it once the program does."""
    limits: Limits
    hold_memory: bool = False
    """Whether nothing but an rlimit holds the memory."""
    gate: str
    """Shell script of the first process inside."""
    shell: str = "/bin/sh"
    """What runs it."""
    folders: frozenset[str] = frozenset()
    """Targets that are folders: a view's source may be in a mount namespace of its own."""
    gvisor: bool = False
    """gVisor masks nothing by itself, has a ``/sys`` of its own, and serves a folder and all below it as one mount."""


def gate(fd: int, redirections: str) -> str:
    """Script of the first process: says on ``fd`` that it is there, waits for the word, runs the program.

    It is no part of the program, so the program cannot undo that it dies with the runtime (``setpriv --pdeathsig``).
    It reaps what loses its parent, and its end is the end of all inside.
    """
    return f'echo >&{fd}; read -r go <&{fd} || exit 125; "$@" {redirections} </dev/null 2>&1; exit $?'


def configuration(bundle: Bundle) -> dict[str, Any]:
    """The ``config.json`` of a bundle."""
    ids = [
        {"containerID": 0, "hostID": bundle.root_uid, "size": 1},
        {"containerID": bundle.uid, "hostID": bundle.uid, "size": 1},
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": bundle.uid, "gid": bundle.uid, "additionalGids": []},
            "args": [
                "/usr/bin/setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                bundle.shell,
                "-c",
                bundle.gate,
                "sh",
                *bundle.argv,
            ],
            "env": [f"{name}={value}" for name, value in bwrap.environment(bundle.env).items()],
            "cwd": bwrap.WORKSPACE,
            "capabilities": {which: [] for which in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "rlimits": _rlimits(bundle),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": bwrap.HOSTNAME,
        "mounts": _mounts(bundle),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")],
            "uidMappings": ids,
            "gidMappings": ids,
            "maskedPaths": [*_MASKED.split(), *bundle.hide_files, *bundle.hide_folders],
            "readonlyPaths": _READ_ONLY.split(),
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": filter_(platform.machine(), gvisor=bundle.gvisor),
        },
    }


def furnish(folder: Path, bundle: Bundle) -> None:
    """Make the root file system: links, empty places to mount onto, and who lives there."""
    root = folder / "rootfs"
    for name in ("usr", "proc", "dev", "tmp", "run", "etc", bwrap.WORKSPACE[1:]):
        (root / name).mkdir(parents=True)
    if bundle.gvisor:
        (root / "dev/fuse").touch()
    # A runtime gives a tmpfs the mode of the place that it is mounted onto.
    (root / "tmp").chmod(0o1777)
    (root / bwrap.WORKSPACE[1:]).chmod(0o700)
    for source, target in _links():
        (root / target[1:]).symlink_to(source)
    files = ("etc/passwd", "etc/group", "etc/hosts")
    for name, data in zip(files, bwrap.people(bundle.uid, bundle.uid), strict=True):
        (root / name).write_bytes(data)
        (root / name).chmod(0o444)
    for source, target in (*_host(), *((view.source, view.target) for view in bundle.views)):
        place = root / target[1:]
        if any(target.startswith(f"{top}/") for top in ("/usr", "/tmp", bwrap.WORKSPACE)):  # noqa: S108
            continue
        if target in bundle.folders or os.path.isdir(source):
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def _mounts(bundle: Bundle) -> list[dict[str, Any]]:
    size = [] if bundle.limits.disk is None else [f"size={bundle.limits.disk}"]
    owner = [f"uid={bundle.uid}", f"gid={bundle.uid}"]

    def one(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    mounts = [
        one("/proc", "proc", "proc", "noexec", *_SAFE),
        one("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        one("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        one("/dev/shm", "tmpfs", "shm", "noexec", *_SAFE, "mode=1777", *size),  # noqa: S108
        one("/tmp", "tmpfs", "tmpfs", *_SAFE, "mode=1777", *size),  # noqa: S108
        one(bwrap.WORKSPACE, "tmpfs", "tmpfs", *_SAFE, "mode=0700", *owner, *size),
    ]
    fixed = ("ro",) if bundle.gvisor else ("ro", "rro")
    mounts += [one(target, "bind", source, "rbind", *fixed, *_SAFE) for source, target in _host()]
    for view in sorted(bundle.views, key=lambda view: view.target.count("/")):
        access = ("rw",) if view.writable else fixed
        mounts.append(one(view.target, "bind", view.source, "rbind", *access, *_SAFE))
    if bundle.gvisor:
        for target in ("/sys", "/dev/net", *bundle.hide_folders):
            mounts.append(one(target, "tmpfs", "tmpfs", "ro", *_SAFE, "mode=0000", "size=4096"))
        mounts += [
            one(target, "bind", bundle.empty, "bind", "ro", *_SAFE) for target in ("/dev/fuse", *bundle.hide_files)
        ]
    return mounts


@functools.cache
def _host() -> tuple[tuple[str, str], ...]:
    """What is mounted of the host's system: source and target."""
    words = bwrap.system()
    return tuple((words[at + 1], words[at + 2]) for at, word in enumerate(words) if word == "--ro-bind")


@functools.cache
def _links() -> tuple[tuple[str, str], ...]:
    words = bwrap.system()
    return tuple((words[at + 1], words[at + 2]) for at, word in enumerate(words) if word == "--symlink")


def _rlimits(bundle: Bundle) -> list[dict[str, Any]]:
    memory = bundle.limits.memory if bundle.hold_memory else None
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": bundle.limits.files,
        "RLIMIT_FSIZE": bundle.limits.file_size,
        "RLIMIT_AS": memory,
    }
    return [{"type": name, "hard": value, "soft": value} for name, value in wanted.items() if value is not None]


@functools.cache
def filter_(machine: str, *, gvisor: bool = False) -> dict[str, Any]:
    """Our system call filter in the specification's form, for a machine named as ``uname -m`` does.

    One list, whose rules are alternatives: what our own filter forbids by argument is here allowed for every other
    value of the argument. What is named nowhere answers ENOSYS, other ABIs end the process.
    """
    conditional = {
        "setpriority",
        "ioctl",
        "clone",
        "socket",
        "socketpair",
        "personality",
        *seccomp.MODES,
        *seccomp.OPENS,
    }
    rules = [
        _rule(sorted(syscalls.ALLOWED - conditional)),
        _rule(sorted(syscalls.DENIED), action="SCMP_ACT_ERRNO", error=errno.EPERM),
        _rule(["clone"], _bits(0, seccomp.NAMESPACE_FLAGS, 0)),
        # Nothing above the usual priority: a negative number is a large one here.
        _rule(["setpriority"], {"index": 2, "value": 20, "op": "SCMP_CMP_LE"}),
        _rule(["socketpair"], _equal(0, 1)),
        *(_rule(["personality"], _equal(0, value)) for value in seccomp.PERSONALITIES),
        *(_rule(["socket"], _equal(0, int(family))) for family in seccomp.FAMILIES),
        *(_rule(["ioctl"], _bits(1, mask, value)) for mask, value in _others((seccomp.TIOCSTI, seccomp.TIOCLINUX))),
    ]
    setid = stat.S_ISUID | stat.S_ISGID
    for name, mode in seccomp.MODES.items():
        device = seccomp.DEVICE if name in seccomp.MAKES else 0
        rules.append(_rule([name], _bits(mode, setid | device, 0)))
    for name, flags in seccomp.OPENS.items():
        rules += [_rule([name], _bits(flags, seccomp.CREATES, 0)), _rule([name], _bits(flags + 1, setid, 0))]
    if gvisor:
        # It answers EPERM where the filter says ENOSYS, and then no thread can be started; its own answer is ENOSYS.
        rules.append(_rule(["clone3"]))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [f"SCMP_ARCH_{seccomp.ARCHITECTURES[machine]}"],
        "syscalls": rules,
    }


def _others(forbidden: tuple[int, ...]) -> list[tuple[int, int]]:
    """Masked comparisons of 32 bits, one of which holds for every value but the forbidden ones."""
    same = [bit for bit in range(32) if len({value >> bit & 1 for value in forbidden}) == 1]
    differing = [bit for bit in range(32) if bit not in same]
    found = [(1 << bit, ~forbidden[0] & 1 << bit) for bit in same]
    mask = sum(1 << bit for bit in differing)
    taken = {value & mask for value in forbidden}
    for chosen in itertools.product((0, 1), repeat=len(differing)):
        value = sum(on << bit for on, bit in zip(chosen, differing, strict=True))
        if mask and value not in taken:
            found.append((mask, value))
    return found


def _rule(
    names: list[str], *conditions: dict[str, Any], action: str = "SCMP_ACT_ALLOW", error: int | None = None
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action, "args": list(conditions)}
    return rule if error is None else rule | {"errnoRet": error}


def _equal(argument: int, value: int) -> dict[str, Any]:
    return {"index": argument, "value": value, "op": "SCMP_CMP_EQ"}


def _bits(argument: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
