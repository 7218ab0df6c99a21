"""How long a boundary takes to start: cold beside the plain tools that it is made of, warm from the pool.

Measured in turn, round by round. Cold: from the call to the first byte that ``python3`` inside sends, against plain
``bwrap --unshare-all`` with the same control groups, and plain ``runc run`` on the same bundle of the host's programs.
Warm: from the claim of a boundary that is ready, with its code imported, to the intent of its first step.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from holdfast import wire
from holdfast.journal.base import Header, StreamKind
from holdfast.node.launch import Launched, Launcher, root_inside
from holdfast.sandbox import levels, pool, procs
from holdfast.sandbox.base import Channel, Label, Level, Limits, Spec
from holdfast.sandbox.cgroup import Cgroups
from holdfast.sandbox.interpreter import interpreter_mounts

RATIO = 1.2
WARM_MS = 3.0
PROGRAM = "import os; os.write(int(os.environ['OUT']), b'!')"
LIMITS = Limits(memory=128 << 20)


async def ours(level: Level, home: Path) -> float:
    """A boundary of Holdfast's with ``python3`` in it, milliseconds to its first byte."""
    outer, inner = socket.socketpair()
    outer.setblocking(False)
    began = time.perf_counter()
    boundary = await level.start(
        Spec(
            argv=(sys.executable, "-c", PROGRAM),
            label=Label(tenant="bench"),
            home=home,
            mounts=interpreter_mounts(),
            channels=(Channel(variable="OUT", inner=inner),),
            limits=LIMITS,
        )
    )
    assert await asyncio.get_running_loop().sock_recv(outer, 1)
    took = (time.perf_counter() - began) * 1000
    await boundary.close()
    outer.close()
    return took


async def plain(command: list[str]) -> float:
    """A command, milliseconds to the first byte on its stdout."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.read, 1)
    took = (time.perf_counter() - began) * 1000
    process.wait()
    process.stdout.close()
    return took


async def plain_bwrap(groups: Cgroups, number: int) -> float:
    """The same control groups, plain bubblewrap, ``python3``."""
    began = time.perf_counter()
    group = groups.create(f"plain{number}", LIMITS)
    entries = () if group is None else tuple(str(path / "cgroup.procs") for path in group.paths)
    made = (time.perf_counter() - began) * 1000
    command = ["/bin/sh", "-c", procs.ENTER, "sh", *entries, "--", "bwrap", "--unshare-all", "--die-with-parent"]
    command += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    took = made + await plain([*command, "--setenv", "OUT", "1", sys.executable, "-c", PROGRAM])
    if group is not None:
        group.remove()
    return took


async def plain_runc(bundle: Path, number: int) -> float:
    """``runc run`` of ``python3`` on a bundle that is there already."""
    return await plain(["runc", "run", "--bundle", str(bundle), f"plain{number}"])


def runc_bundle(where: Path) -> Path:
    """What ``runc spec`` makes, with the host's programs mounted into its root, and our program in it."""
    root = where / "rootfs"
    root.mkdir(parents=True)
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib64")):
        if path.is_symlink():
            (root / path.name).symlink_to(path.readlink())
    subprocess.run(["runc", "spec"], cwd=where, check=True)
    config = json.loads((where / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": [sys.executable, "-c", PROGRAM]}
    config["process"]["env"].append("OUT=1")
    for source, target in (("/usr", "/usr"), *((str(one.source), str(one.target)) for one in interpreter_mounts())):
        config["mounts"].append(
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]},
        )
    config["root"]["readonly"] = False  # places for the mounts are made in it
    (where / "config.json").write_text(json.dumps(config))
    return where


class Warm:
    """A launcher with a pool, and what takes boundaries from it."""

    def __init__(self, home: Path, level: Level) -> None:
        self._pool = pool.Pool(size=1, memory=1 << 30, room=lambda label: True)
        self._launcher = Launcher(home, LIMITS, self._pool)
        self._level = level
        self._folder = home.parent / "code"
        self._folder.mkdir()
        shutil.copy(common.AGENTS, self._folder)
        self._header = Header(
            stream="run-bench",
            tenant="default",
            region="us-east",
            kind=StreamKind.RUN,
            agent="bench-one",
            workflow="run",
            deployment="bench",
        )

    async def start(self) -> tuple[float, bool]:
        """Milliseconds from the claim to the first step's intent; whether it came from the pool."""
        began = time.perf_counter()
        target = "steps.py:One"
        launched = await self._launcher.launch(self._level, self._header, self._folder, target, fresh=True)
        await _first_step(launched, root_inside(self._level, self._folder), target)
        took = (time.perf_counter() - began) * 1000
        launched.broker.close()
        launched.way.close()
        await launched.boundary.close()
        return took, launched.ready is not None

    async def filled(self) -> None:
        """Wait until one is ready."""
        while not self._pool.boundaries():
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._launcher.close()


async def _first_step(launched: Launched, root: str, target: str) -> None:
    launched.broker.setblocking(False)
    begin = wire.Begin(
        version=wire.VERSION, run="run-bench", tenant="default", root=root, target=target, workflow="run",
        input=wire.Value(b"{}"),
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(launched.broker, wire.frame(begin))
    deframer = wire.Deframer()
    while True:
        data = await loop.sock_recv(launched.broker, 1 << 16)
        assert data, "the worker ended before its first step"
        deframer.feed(data)
        if any(isinstance(wire.decode(wire.worker_decoder, body), wire.Call) for body in deframer):
            return


async def in_turn(rounds: int, **ways: Callable[[int], Awaitable[float]]) -> dict[str, list[float]]:
    """Each way once, again and again; the first round warms caches and does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            took = await way(number)
            if number:
                times[name].append(took)
    return times


async def measure(where: Path, rounds: int) -> dict[str, list[float]]:
    """All figures, by what was measured."""
    home = where / "home"
    home.mkdir(mode=0o700)
    namespace = levels.level("namespace")
    groups = Cgroups()
    times = await in_turn(
        rounds,
        namespace=lambda number: ours(namespace, home),
        plain_bwrap=lambda number: plain_bwrap(groups, number),
    )
    if shutil.which("runc") and os.geteuid() == 0:
        container, bundle = levels.level("container"), runc_bundle(where / "bundle")
        times |= await in_turn(
            rounds,
            container=lambda number: ours(container, home),
            plain_runc=lambda number: plain_runc(bundle, number),
        )
    warm = Warm(home, namespace)
    times["cold_first_step"] = [(await warm.start())[0]]
    times["warm_first_step"] = []
    for _ in range(rounds):
        await warm.filled()
        took, ready = await warm.start()
        assert ready
        times["warm_first_step"].append(took)
    await warm.close()
    return times


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(), "targets": {"ratio": RATIO, "warm_ms": WARM_MS}}
    with common.folder("cold_start") as where:
        times = asyncio.run(measure(where, 5 if options.quick else 30))
    for name, values in times.items():
        result[name] = {"p50": round(median(values), 2), "max": round(max(values), 2), "n": len(values)}
    rows = []
    for own, plain, what in (
        ("namespace", "plain_bwrap", "plain bwrap, python3 and the same control groups"),
        ("container", "plain_runc", "plain runc run"),
    ):
        if own not in times:
            continue
        ratio = median(times[own]) / median(times[plain])
        result[f"{own}_ratio"] = round(ratio, 2)
        rows += [
            (f"level {own}, cold, to the first byte, p50", f"{median(times[own]):.1f} ms", "", ""),
            (what, f"{median(times[plain]):.1f} ms", "", ""),
            (f"level {own} / plain", f"{ratio:.2f}x", f"<= {RATIO}x", common.verdict(ratio <= RATIO)),
        ]
    warm, what = median(times["warm_first_step"]), "worker from the pool, to its first step, p50"
    rows.append(("worker, cold, to its first step", f"{times['cold_first_step'][0]:.1f} ms", "", ""))
    rows.append((what, f"{warm:.2f} ms", f"<= {WARM_MS:g} ms", common.verdict(warm <= WARM_MS)))
    common.report("cold_start: a boundary beside what it is made of", result, rows, options.json)


if __name__ == "__main__":
    main()
