"""Confines itself and becomes the program: the launcher of level ``landlock``, run as a script of its own.

It enters its control groups, makes its workspace, gives up root, and takes a Landlock domain and system call filters,
none of which can be undone. Then it waits at the gate on stdin; closed without a word, it ends. Standard library only:
it starts before anything else of Holdfast's can be reached. What it is to do is a JSON object in the file descriptor
that its argument names (:func:`holdfast.sandbox.landlock.plan` writes it). System calls and constants:
``linux/landlock.h``, ``linux/prctl.h``, ``sys/mount.h``; the calls have the same numbers on every architecture.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import stat
import struct
import sys
from typing import Any

NO_MOUNTS = "holdfast: no mount namespace"
"""Said when this root may not make mounts, as in a container."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS, _SECCOMP, _FILTER = 1, 24, 38, 22, 2
_NEWNS = 0x20000
_NOSUID, _NODEV, _RDONLY, _REMOUNT, _BIND, _REC, _SLAVE = 2, 4, 1, 32, 4096, 16384, 1 << 19

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """Version of the running kernel's Landlock; 0 when it has none or it is turned off."""
    return max(0, int(_libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def handled(version: int) -> tuple[int, int, int]:
    """Rights over files, over the network, and scopes that a version knows: all of them are taken."""
    files = (1 << 13) - 1
    files |= (1 << 13) * (version >= 2) | TRUNCATE * (version >= 3) | IOCTL_DEV * (version >= 5)
    return files, 0b11 * (version >= 4), 0b11 * (version >= 6)


def _check(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _prctl(option: int, value: int, third: Any = 0) -> None:
    word = ctypes.c_ulong
    _check(_libc.prctl(option, word(value), third if third else word(0), word(0), word(0)), "prctl")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(_libc.mount(*arguments), target)


def _furnish(plan: dict[str, Any]) -> None:
    """In a mount namespace of its own: a workspace of limited size, and ways to what lies below closed folders."""
    try:
        _check(_libc.unshare(_NEWNS), "unshare")
        _mount("none", "/", "", _REC | _SLAVE)
    except PermissionError:
        raise SystemExit(NO_MOUNTS) from None
    folder, uid = plan["workspace"], plan["uid"]
    hidden = plan["hidden"]
    if hidden:
        _mount("holdfast", folder, "tmpfs", _NOSUID | _NODEV, "mode=0700,size=256k")
        for number, (source, _) in enumerate(hidden):
            _place(f"{folder}/{number}", source)
            _mount(source, f"{folder}/{number}", "", _BIND | _REC)
        for cover in plan["covers"]:
            _mount("holdfast", cover, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=256k")
        for number, (_, target) in enumerate(hidden):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _place(target, f"{folder}/{number}")
            _mount(f"{folder}/{number}", target, "", _BIND | _REC)
        for cover in plan["covers"]:
            _mount("none", cover, "", _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    size = "" if plan["disk"] is None else f",size={plan['disk']}"
    _mount("holdfast", folder, "tmpfs", _NOSUID | _NODEV, f"mode=0700,uid={uid},gid={uid}{size}")


def _place(path: str, like: str) -> None:
    """Something to mount onto, of the same kind."""
    if os.path.isdir(like):
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))


def _limit(which: int, value: int) -> None:
    """Both limits, as far as the hard one allows."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _give_up_root(uid: int) -> None:
    for number in range(64):
        try:
            _prctl(_CAPBSET_DROP, number)
        except OSError:
            break  # past the last capability that this kernel knows
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _landlock(rules: list[list[Any]]) -> None:
    files, network, scopes = handled(abi())
    attributes = struct.pack("=QQQ", files, network, scopes)
    # Older kernels know the first field or two; trailing zeros are accepted from any length.
    ruleset = _check(
        _libc.syscall(ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(24), ctypes.c_uint(0)),
        "landlock_create_ruleset",
    )
    for path, rights in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise SystemExit(
                f"{path} cannot be reached by the boundary's uid ({error.strerror}): open its folders with "
                "chmod o+x, or move it to a place that all can reach, such as /opt"
            ) from None
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= FOR_FILES
        rule = struct.pack("=Qi", rights & files, fd)
        if rights & files:
            call = _libc.syscall(
                ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0)
            )
            _check(call, path)
        os.close(fd)
    _check(_libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint(0)), "landlock")
    os.close(ruleset)


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _filter(programs: list[str]) -> None:
    for text in programs:
        code = base64.b64decode(text)
        _prctl(_SECCOMP, _FILTER, ctypes.byref(_Program(len(code) // 8, code)))


def main() -> None:
    """Confine this process as the plan says, and run the program. Ends with 125 when that cannot be done."""
    with open(int(sys.argv[1]), "rb") as file:
        plan: dict[str, Any] = json.load(file)
    for path in plan["cgroups"]:
        with open(path, "w") as file_:
            file_.write(str(os.getpid()))
    if plan["furnish"]:
        _furnish(plan)
    for number, value in plan["rlimits"]:
        _limit(number, value)
    if plan["uid"] is not None:
        _give_up_root(plan["uid"])
    os.umask(0o077)
    for folder in (plan["home"], plan["temporary"]):
        os.mkdir(folder, 0o700)
    os.umask(0o022)
    os.chdir(plan["home"])
    _prctl(_NO_NEW_PRIVS, 1)
    # After the change of uid, which clears it: with the node, this ends.
    _prctl(_PDEATHSIG, 9)
    if os.getppid() != plan["node"]:
        raise SystemExit(125)
    _landlock([*plan["rules"], [f"/proc/{os.getpid()}", READ_FILE | READ_DIR | EXECUTE]])
    _filter(plan["seccomp"])
    os.write(0, b"\n")
    if not os.read(0, 3):
        raise SystemExit(125)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(1, 2)
    os.close(null)
    try:
        os.execvpe(plan["argv"][0], plan["argv"], plan["env"])  # noqa: S606
    except OSError as error:
        print(f"{plan['argv'][0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    try:
        main()
    except OSError as failed:
        raise SystemExit(f"{failed.filename or 'a system call'}: {failed.strerror}") from None
