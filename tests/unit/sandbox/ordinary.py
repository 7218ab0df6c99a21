"""Starts one boundary as an ordinary user and prints what held, as JSON. Run by ``test_sandbox_users.py``.

With ``--container``, ``/proc`` is partly covered first, as container engines cover it; the kernel then refuses a fresh
one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

USER = 54321
CODE = """
import json, os, socket
channel = socket.socket(fileno=int(os.environ["CHANNEL"]))
say = {"uid": os.getuid(), "proc": os.path.isdir("/proc/self"), "home": os.getcwd()}
channel.sendall(json.dumps(say).encode())
"""


def reach_interpreter() -> None:
    """Let everybody reach the interpreter, by bind mounts in this mount namespace."""
    from holdfast.sandbox.interpreter import interpreter_mounts
    from holdfast.sandbox.stage import reachable

    def mount(*args: str) -> None:
        subprocess.run(["mount", *args], check=True, timeout=60)

    hidden = [one for one in interpreter_mounts() if not reachable(str(one.source))]
    tops = {"/" + str(one.target).split("/")[1] for one in hidden}
    mount("-t", "tmpfs", "-o", "mode=0755", "none", "/mnt")
    for number, one in enumerate(hidden):
        os.mkdir(f"/mnt/{number}")
        mount("--bind", str(one.source), f"/mnt/{number}")
    for top in tops:
        mount("-t", "tmpfs", "-o", "mode=0755", "none", top)
    for number, one in enumerate(hidden):
        os.makedirs(one.target, exist_ok=True)
        mount("--bind", f"/mnt/{number}", str(one.target))


async def main(home: Path, level: str) -> None:
    from holdfast.sandbox import levels
    from holdfast.sandbox.base import Channel, Label, Spec
    from holdfast.sandbox.interpreter import interpreter_mounts

    outer, inner = socket.socketpair()
    outer.setblocking(False)
    boundary = await levels.level(level).start(
        Spec(
            argv=(sys.executable, "-c", CODE),
            label=Label(tenant="t"),
            home=home,
            mounts=interpreter_mounts(),
            channels=(Channel(variable="CHANNEL", inner=inner),),
            stdout=2,
        )
    )
    try:
        async with asyncio.timeout(60):
            said = json.loads(await asyncio.get_running_loop().sock_recv(outer, 65536))
            ended = await boundary.wait()
    finally:
        await boundary.close()
    held = boundary.held
    print(
        json.dumps(
            said
            | {
                "status": ended.status,
                "own_uid": held.own_uid,
                "held_uid": held.uid,
                "notes": held.notes,
                "limits": held.limits,
                "node": os.getuid(),
            }
        )
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if os.geteuid() == 0:
        reach_interpreter()
        if "--container" in sys.argv:
            subprocess.run(["mount", "-t", "tmpfs", "none", "/proc/fs"], check=True, timeout=60)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    asyncio.run(main(folder, "landlock" if "--landlock" in sys.argv else "namespace"))
