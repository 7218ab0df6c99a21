"""Runs the attacks of ``escape_probes.py`` in a boundary of each level named, and prints the results as JSON.

Acts only in mount, pid and network namespaces of its own, which ``unshare`` made: it compares them with the host's,
whose inodes its caller passes in ``HOST_NAMESPACES``, and refuses otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

KINDS = ("mnt", "pid", "net", "user", "ipc")
DISPOSABLE = ("mnt", "pid", "net")


def namespaces() -> dict[str, int]:
    return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in KINDS}


def check() -> None:
    host = json.loads(os.environ["HOST_NAMESPACES"])
    shared = [kind for kind in DISPOSABLE if namespaces()[kind] == host[kind]]
    if shared:
        raise SystemExit(f"the attacks run only in namespaces of their own; shared with the host: {shared}")


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loopback_up() -> None:
    """Bring lo up with the link-local address that clouds serve credentials at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(control, 0x8914, flags)
        address = struct.pack("16sH2x4s8x", b"lo:1", socket.AF_INET, socket.inet_aton("169.254.169.254"))
        fcntl.ioctl(control, 0x8916, address)


def serve() -> dict[str, Any]:
    """Listeners of the host: what answers is reached."""
    tcp = socket.create_server(("0.0.0.0", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0holdfast-escape-test")
    abstract.listen()

    def answer() -> None:
        while True:
            _, sender = udp.recvfrom(10)
            udp.sendto(b"y", sender)

    threading.Thread(target=answer, daemon=True).start()
    serve.kept = (tcp, abstract)  # type: ignore[attr-defined]
    return {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "abstract": "holdfast-escape-test"}


def furnish(world: Path, probes: Path) -> dict[str, Any]:
    """A host with things worth stealing, all readable for everybody: only the boundary protects them."""
    code = world / "code"
    secrets = [name.partition(":")[2] for name in load(probes).PROBES if name.startswith("secret:")]
    for name in secrets:
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("secret")
    (code / "escape_probes.py").write_bytes(probes.read_bytes())
    tenant = world / "workspaces" / "other-tenant"
    tenant.mkdir(parents=True)
    (tenant / "notes").write_text("of another tenant")
    (world / "host-file").write_text("of the host")
    (world / "home" / "boundaries").mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(world / "host.sock"))
    listener.listen()
    os.chmod(world / "host.sock", 0o777)
    furnish.kept = listener  # type: ignore[attr-defined]
    for path in [world, *world.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.copy(shutil.which("id") or "/usr/bin/id", code / "setuid-id")
    os.chmod(code / "setuid-id", 0o4755)
    return {
        "tenant_folder": str(tenant),
        "host_file": str(world / "host-file"),
        "home": str(world / "home"),
        "unix": str(world / "host.sock"),
    }


EXHAUST = """
import errno, json, os, socket
channel = socket.socket(fileno=int(os.environ["CHANNEL"]))
found = {}
for folder in (os.getcwd(), "/tmp", "/dev/shm"):
    path = os.path.join(folder, "fill")
    try:
        with open(path, "wb", buffering=0) as file:
            while file.tell() < 64 << 20: file.write(bytes(1 << 20))
        found[folder] = "open"
    except OSError as error:
        found[folder] = errno.errorcode[error.errno]
    os.unlink(path)
channel.sendall(json.dumps(found).encode() + b"\\n")
while True:
    try: os.fork()
    except OSError: pass
"""


async def exhaust(level: str, world: Path) -> dict[str, Any]:
    """Fill every place that can be written, then fork without end; then the boundary is killed."""
    from holdfast.sandbox import levels, procs
    from holdfast.sandbox.base import Channel, Label, Limits, Spec
    from holdfast.sandbox.interpreter import interpreter_mounts

    outer, inner = socket.socketpair()
    outer.setblocking(False)
    boundary = await levels.level(level).start(
        Spec(
            argv=(sys.executable, "-c", EXHAUST),
            label=Label(tenant="attacker"),
            home=world / "home",
            mounts=interpreter_mounts(),
            channels=(Channel(variable="CHANNEL", inner=inner),),
            limits=Limits(disk=8 << 20, pids=64, memory=256 << 20),
        )
    )
    try:
        async with asyncio.timeout(180):
            found: dict[str, Any] = json.loads(await asyncio.get_running_loop().sock_recv(outer, 4096))
            while len(boundary.pids()) < 40:
                await asyncio.sleep(0.005)
            fds = []
            for pid in boundary.pids():
                try:
                    fds.append(os.pidfd_open(pid))
                except OSError:
                    continue
            found["most"] = len(boundary.pids())
            boundary.kill()
            await boundary.wait()
            found["gone"] = procs.wait_gone(fds, 60)
    finally:
        await boundary.close()
        outer.close()
    found["left"] = [name for name in os.listdir("/proc") if name.isdigit() and b"found[folder]" in _command(name)]
    return found


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def attack(level: str, world: Path, facts: dict[str, Any]) -> dict[str, str]:
    from holdfast.sandbox import levels
    from holdfast.sandbox.base import Channel, Label, Mount, Spec
    from holdfast.sandbox.interpreter import interpreter_mounts

    code = world / "code"
    seen = str(code) if level in levels.IN_PLACE else "/code"
    (code / f"facts-{level}.json").write_text(json.dumps(facts | {"code": seen}))
    outer, inner = socket.socketpair()
    outer.setblocking(False)
    boundary = await levels.level(level).start(
        Spec(
            argv=(sys.executable, f"{seen}/escape_probes.py", f"{seen}/facts-{level}.json"),
            label=Label(tenant="attacker"),
            home=world / "home",
            mounts=(*interpreter_mounts(), Mount(source=code, target=Path("/code"))),
            channels=(Channel(variable="CHANNEL", inner=inner),),
            stdout=2,
        )
    )
    try:
        data = b""
        async with asyncio.timeout(180):
            while chunk := await asyncio.get_running_loop().sock_recv(outer, 1 << 20):
                data += chunk
            await boundary.wait()
    finally:
        await boundary.close()
        outer.close()
    result: dict[str, str] = json.loads(data)
    return result


def main() -> None:
    check()
    import pyseccomp

    from holdfast.errors import IsolationError
    from holdfast.sandbox import syscalls

    weaker = load(Path(__file__).with_name("escape_weaker.py"))
    world, *chosen = Path(sys.argv[1]), *sys.argv[2:]
    probes = Path(__file__).with_name("escape_probes.py")
    refused = sorted(syscalls.DENIED | {"clone3", "openat2"})
    names = [*refused, "socket", "clone", "personality"]
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in names}
    loopback_up()
    canary = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    facts = furnish(world, probes) | serve()
    facts |= {
        "syscalls": {name: number for name, number in numbers.items() if number >= 0},
        "refused": refused,
        "token": os.environ["NODE_TOKEN"],
        "namespaces": namespaces(),
        "hostname": socket.gethostname(),
        "node_gid": os.getgid(),
        "world": str(world),
        "node_pid": os.getpid(),
        "canary": canary.pid,
    }
    try:
        results: dict[str, Any] = {}
        for level in chosen:
            base, _, left_out = level.partition(" without ")
            try:
                with weaker.weakened(left_out) if left_out else contextlib.nullcontext():
                    results[level] = asyncio.run(attack(base, world, facts))
            except IsolationError as error:
                results[level] = {"unavailable": str(error)}
        for level in ("namespace", "container"):
            if level in chosen and "unavailable" not in results[level]:
                results[f"exhaust:{level}"] = asyncio.run(exhaust(level, world))
    finally:
        canary.kill()
        canary.wait()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
