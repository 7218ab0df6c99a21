"""Level microvm under QEMU's software emulation: the attacks, the contract's core, a workflow. Run by ``make microvm``.

There an unavailable QEMU is a failure. Elsewhere these are left out: a guest in software boots for many seconds.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast import config
from holdfast.node.service import Service
from holdfast.sandbox import levels
from holdfast.sandbox.base import Boundary, Channel, Label, Limits, Reason, Spec
from holdfast.sandbox.interpreter import interpreter_mounts

pytestmark = [
    pytest.mark.skipif(not os.environ.get("HOLDFAST_MICROVM"), reason="boots guests in software: make microvm"),
    pytest.mark.timeout(1800),
]
HERE = Path(__file__).parent
LABEL = Label(tenant="t")
ECHO = """
import os, socket
channel = socket.socket(fileno=int(os.environ["CHANNEL"]))
while data := channel.recv(65536): channel.sendall(data)
"""
AGENT = """
from holdfast import agent, workflow


@agent(name="adder")
class Adder:
    @workflow
    def run(self, ctx):
        with open("scratch", "w") as file:
            file.write("of this boundary")
        return {"sum": ctx.call(self.add, ctx.input.amounts)}

    def add(self, ctx, amounts):
        return sum(amounts)
"""


def test_the_probe_boots_a_guest() -> None:
    found = asyncio.run(levels.level("microvm").probe())
    assert (found.available, found.reason) == (True, "")


@asynccontextmanager
async def guest(home: Path, code: str, **options: Any) -> AsyncIterator[tuple[Boundary, socket.socket]]:
    outer, inner = socket.socketpair()
    outer.setblocking(False)
    spec = Spec(
        argv=(sys.executable, "-c", code),
        label=LABEL,
        home=home,
        mounts=interpreter_mounts(),
        channels=(Channel(variable="CHANNEL", inner=inner),),
        **options,
    )
    boundary = await levels.level("microvm").start(spec)
    try:
        yield boundary, outer
    finally:
        await boundary.close()
        outer.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_a_channel_carries_bytes_both_ways_and_its_end_is_seen(tmp_path: Path) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with guest(tmp_path, ECHO) as (boundary, outer):
            sent = os.urandom(300_000)
            received = bytearray()

            async def receive() -> None:
                while len(received) < len(sent):
                    received.extend(await loop.sock_recv(outer, 1 << 16))

            async with asyncio.timeout(300):
                await asyncio.gather(loop.sock_sendall(outer, sent), receive())
            assert bytes(received) == sent
            assert boundary.held.level == "microvm"
            assert any("TCG" in note for note in boundary.held.notes)
            outer.shutdown(socket.SHUT_RDWR)
            outer.close()
            async with asyncio.timeout(300):
                ended = await boundary.wait()
            assert (ended.reason, ended.status) == (Reason.EXITED, 0)

    run(work)


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("raise SystemExit(7)", Reason.EXITED, 7),
        ("import os; os.abort()", Reason.CRASHED, -6),
        ("held = [bytearray(b'x' * (1 << 20)) for _ in range(2000)]", Reason.OUT_OF_MEMORY, -9),
    ],
)
def test_how_a_program_ended_is_told(tmp_path: Path, code: str, reason: Reason, status: int) -> None:
    async def work() -> None:
        async with guest(tmp_path, code, limits=Limits(memory=128 << 20)) as (boundary, _):
            async with asyncio.timeout(600):
                ended = await boundary.wait()
            assert (ended.reason, ended.status) == (reason, status)

    run(work)


def test_a_kill_ends_the_machine(tmp_path: Path) -> None:
    async def work() -> None:
        async with guest(tmp_path, "import time; time.sleep(3600)") as (boundary, _):
            pids = boundary.pids()
            assert pids
            boundary.kill()
            assert (await boundary.wait()).reason is Reason.KILLED
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    run(work)


def test_a_workflow_runs_in_a_guest(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    home = tmp_path / "home"
    with Service.open(config.load(home, cwd=tmp_path), home) as service:
        name = service.submit(f"{tmp_path}/agents.py:Adder", b'{"amounts": [5, 50, 7]}', isolation="microvm")
        view = service.drive(name)
    assert (view.status, view.output, view.isolation) == ("completed", {"sum": 62}, "microvm"), view


def test_no_attack_works(tmp_path: Path) -> None:
    escape = importlib.util.spec_from_file_location("escape", HERE / "test_security_escape.py")
    assert escape is not None
    assert escape.loader is not None
    suite = importlib.util.module_from_spec(escape)
    escape.loader.exec_module(suite)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--mount-proc"),
            *(sys.executable, str(suite.RUNNER), str(tmp_path), "microvm"),
        ],
        env=suite._environment(),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])["microvm"]
    assert set(found) == set(suite.NAMES), found.get("unavailable")
    assert {name: answer for name, answer in found.items() if not answer.startswith("closed")} == {}
