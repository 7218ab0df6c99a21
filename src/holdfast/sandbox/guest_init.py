"""The first process of a microVM's guest: loads drivers, mounts what is to be seen, runs the program, tells its end.

A script of its own, started by the guest's kernel with the interpreter that the image holds; it imports nothing of
Holdfast's. What it is to do, and the run's own files, stand on the disk ``run``. Channels are virtio ports: each is
pumped from and to a socket that the program inherits. System calls by number are those of x86-64 and arm64
(``asm-generic/unistd.h``).
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, BinaryIO

_NUMBERS = {"x86_64": {"finit_module": 313}, "aarch64": {"finit_module": 273}}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_MOVE = 1, 2, 4, 8, 32, 8192
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET (``linux/sched.h``)."""
CLONE_NEWUSER = 0x10000000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
SECCOMP_MODE_FILTER = 2
RB_AUTOBOOT = 0x1234567
LAST_CAPABILITY = 63
CHUNK = 1 << 16
PORT_SECONDS = 60

Todo = dict[str, Any]
"""What the node wrote (:mod:`holdfast.sandbox.microvm`)."""

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode() or None), f"mount {target}")


def load(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syscall(_NUMBERS[os.uname().machine]["finit_module"], fd, b"", 0) < 0 and ctypes.get_errno() != 17:
            check(-1, path)
    finally:
        os.close(fd)


def furnish() -> Todo:
    """Load drivers, mount the images, put the run's own files in place; gives what is to be done."""
    mount("dev", "/dev", "devtmpfs", MS_NOSUID)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
    mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with open("/modules/order") as file:
        for path in file.read().split():
            load(path)
    disks: dict[str, str] = {}
    for name in os.listdir("/sys/block"):
        if name.startswith("vd"):
            with open(f"/sys/block/{name}/serial") as file:
                disks[file.read().strip()] = f"/dev/{name}"
    with open(disks["run"], "rb") as disk:
        told = json.loads(disk.readline())
        for number, target in enumerate(told["todo"]["images"]):
            mount(disks[f"image{number}"], target, "ext4", MS_RDONLY | MS_NOSUID | MS_NODEV, "noload")
        for path, size, word in told["files"]:
            place(disk, path, size, word)
    todo: Todo = told["todo"]
    return todo


def place(disk: BinaryIO, path: str, size: int, word: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if size == -2:
        os.makedirs(path, exist_ok=True)
    elif size == -1:
        os.symlink(word, path)
    else:
        with open(path, "wb") as file:
            while size:
                data = disk.read(min(size, 1 << 20))
                size -= file.write(data)
        os.chmod(path, 0o755 if word else 0o644)


def ports(wanted: set[str]) -> dict[str, str]:
    """Name of each wanted virtio port to its device; they come a moment after their driver."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        found: dict[str, str] = {}
        for name in os.listdir("/sys/class/virtio-ports"):
            try:
                with open(f"/sys/class/virtio-ports/{name}/name") as file:
                    found[file.read().strip()] = f"/dev/{name}"
            except OSError:
                continue
        if wanted <= set(found) and all(os.path.exists(found[name]) for name in wanted):
            return found
        if time.monotonic() > deadline:
            raise OSError(f"of the ports {sorted(wanted)} only {sorted(found)} came")
        time.sleep(0.005)


def close_up(todo: Todo) -> None:
    """From here on only what the program may see: its own devices, small places to write, the rest read-only."""
    size = f"size={todo['disk']}," if todo["disk"] else ""
    for target in ("/tmp", "/workspace", "/shm"):  # noqa: S108
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"{size}mode=0700,uid={todo['uid']},gid={todo['uid']}")
    libc.umount2(b"/sys", 2)
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=65536,mode=0755")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        os.mknod(f"/dev/{name}", 0o020666, os.makedev(1, minor))
        os.chmod(f"/dev/{name}", 0o666)  # noqa: S103
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    os.mkdir("/dev/shm")  # noqa: S108
    check(libc.mount(b"/shm", b"/dev/shm", None, MS_MOVE, None), "move /dev/shm")
    check(libc.mount(b"none", b"/dev", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID, None), "remount /dev")
    check(libc.mount(b"none", b"/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, None), "remount /")


def filters(todo: Todo) -> None:
    """Take the system call filters, given as ``struct sock_filter`` arrays."""
    for text in todo["seccomp"]:
        code = bytes.fromhex(text)
        buffer = ctypes.create_string_buffer(code)
        program = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
        check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def become(todo: Todo, inherited: dict[int, int]) -> None:
    """In the child: drop everything and become the program."""
    for fd in (0, 1, 2):
        os.dup2(inherited.get(fd, inherited[0]), fd)
    os.setsid()
    os.chdir("/workspace")
    for name, value in todo["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.setgroups([])
    os.setresgid(todo["uid"], todo["uid"], todo["uid"])
    os.setresuid(todo["uid"], todo["uid"], todo["uid"])
    # Who changed its uid may not write to its own entries in /proc unless it says so.
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    check(libc.unshare(CLONE_NEWUSER), "unshare")
    for name, line in (("setgroups", "deny"), ("gid_map", "{0} {0} 1"), ("uid_map", "{0} {0} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line.format(todo["uid"]))
    for number in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)
    filters(todo)
    os.execve(todo["argv"][0], todo["argv"], todo["env"])  # noqa: S606


def run(todo: Todo) -> None:
    """Start the program and pump its channels; gives how it ended."""
    channels = {f"channel{number}" for number in range(len(todo["channels"]))}
    devices = ports(channels | {"control"} | ({"stdout"} if todo["stdout"] else set()))
    pumps: dict[int, int] = {}
    given: dict[str, socket.socket] = {}
    null = os.open("/dev/null", os.O_RDWR)
    inherited = {0: null}
    for number, name in enumerate(todo["channels"]):
        port = os.open(devices[f"channel{number}"], os.O_RDWR | os.O_NONBLOCK)
        outer, inner = socket.socketpair()
        os.set_inheritable(inner.fileno(), True)
        given[name] = inner
        outer.setblocking(False)
        own = outer.detach()
        pumps[port], pumps[own] = own, port
    todo["env"].update({name: str(inner.fileno()) for name, inner in given.items()})
    said = None
    if todo["stdout"]:
        said = os.open(devices["stdout"], os.O_WRONLY)
        inherited[1] = inherited[2] = said
    control = os.open(devices["control"], os.O_WRONLY)
    close_up(todo)
    socket.sethostname("sandbox")
    check(libc.unshare(NAMESPACES), "unshare")
    pid = os.fork()
    if pid == 0:
        try:
            # First process of its own namespace of pids: it starts the program and reaps what that leaves.
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
            os._exit(supervise(todo, inherited))
        except BaseException as error:  # noqa: BLE001 - nobody else is there to tell
            print(f"guest: {error}", file=sys.stderr)
            os._exit(125)
    for inner in given.values():
        inner.close()
    os.write(control, b"R")
    status = pump(pumps, pid)
    with open("/proc/vmstat") as file:
        if any(line.startswith("oom_kill ") and int(line.split()[1]) for line in file):
            os.write(control, b"M")
    os.write(control, b"%d\n" % status)


def supervise(todo: Todo, inherited: dict[int, int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            become(todo, inherited)
        except BaseException as error:  # noqa: BLE001 - nobody else is there to tell
            os.write(2, f"guest: {error}\n".encode())
        os._exit(126)
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def pump(peers: dict[int, int], pid: int) -> int:
    """Move bytes between ports and sockets until the program has ended and nothing of it is left to send."""
    queued = {fd: bytearray() for fd in peers}
    ended: int | None = None
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    while True:
        for fd, peer in peers.items():
            want = (select.POLLIN if len(queued[peer]) < CHUNK else 0) | (select.POLLOUT if queued[fd] else 0)
            poll.register(fd, want)
        if ended is None:
            poll.register(pidfd, select.POLLIN)
        events = poll.poll(None if ended is None else 1000)
        moved = False
        for fd, event in events:
            if fd == pidfd:
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                poll.unregister(pidfd)
                moved = True
                continue
            if fd not in peers:
                continue
            try:
                if event & select.POLLOUT and queued[fd]:
                    del queued[fd][: os.write(fd, queued[fd])]
                    moved = True
                if event & (select.POLLIN | select.POLLHUP):
                    data = os.read(fd, CHUNK)
                    if not data:
                        raise ConnectionResetError
                    queued[peers[fd]] += data
                    moved = True
            except BlockingIOError:
                continue
            except OSError:
                peer = peers.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                if peer in peers and not queued[peer]:
                    peers.pop(peer)
                    poll.unregister(peer)
                    os.close(peer)
                break
        if ended is not None and not (moved and peers) and not any(queued[fd] for fd in peers):
            return ended


def main() -> None:
    try:
        run(furnish())
    except BaseException as error:  # noqa: BLE001 - nobody else is there to tell
        print(f"guest: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os.sync()
        libc.reboot(RB_AUTOBOOT)


if __name__ == "__main__":
    main()
