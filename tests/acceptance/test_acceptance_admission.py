"""Many runs at once on a node with memory for few: none is killed for memory, all complete, tenants get equal shares.

The node runs inside a control group that is limited to just the memory it was given; each run touches all that its
ceiling allows, and the first node-full of them does so at the same moment.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.sandbox.base import Limits
from holdfast.sandbox.cgroup import Cgroups, Group

MIB = 1 << 20
CEILING = 48 * MIB
OVERHEAD = 512 * MIB
MARGIN = 4 * MIB
"""Of a ceiling, what the machinery around the agent's own process takes: bubblewrap, page tables, sockets."""
TENANTS = [f"tenant-{letter}" for letter in "abcde"]

AGENT = """
from holdfast import agent, workflow


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@agent(name="greedy")
class Greedy:
    @workflow
    def run(self, ctx):
        held = []
        while resident() < ctx.input.touch:
            held.append(bytearray(b"x" * (1 << 20)))
        ctx.tool("meet", run=ctx.run_id)
        return {"touched": resident(), "blocks": len(held)}
"""
MEET = """
import pathlib, time

WANTED = {wanted}


def meet(run):
    folder = pathlib.Path("met")
    folder.mkdir(exist_ok=True)
    (folder / run).touch()
    deadline = time.monotonic() + 150
    while len(list(folder.iterdir())) < WANTED:
        if time.monotonic() > deadline:
            raise TimeoutError("fewer runs than fit were there at once")
        time.sleep(0.02)
    return True
"""


# Enter the groups named up to ``--`` and become the program after it.
ENTER = """
while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"
"""
SHELL = "import os, sys; os.execv('/bin/sh', ['/bin/sh', '-c', sys.argv[1], 'sh', *sys.argv[2:]])"


@contextlib.contextmanager
def limited(memory: int) -> Iterator[Group | None]:
    """A group below this process's own, limited to ``memory`` bytes; None where none can be made."""
    group = Cgroups().create("acceptance", Limits(memory=memory, swap=None, pids=None, cpu=None))
    if group is None or "memory" not in group.held:
        yield None
        return
    try:
        yield group
    finally:
        for folder in group.paths:
            # The folder of the node's own groups, which it leaves when it is the last to go.
            with contextlib.suppress(OSError):
                (folder / "holdfast").rmdir()
        group.remove()


@pytest.mark.timeout(600)
def test_two_hundred_at_once_on_memory_for_forty(lab: Any) -> None:
    whole = bool(os.environ.get("HOLDFAST_ADMISSION_ALL"))
    each, fit = (40, 40) if whole else (6, 5)
    memory = OVERHEAD + fit * CEILING
    settings = [f"[sandbox]\nmemory = {CEILING}\n[node]\nmemory = {memory}\noverhead = {OVERHEAD}"]
    settings += [f'[tenants.{name}.connectors.meet]\ncall = "meeting.py:meet"\ntimeout = "170s"' for name in TENANTS]
    lab.settings("\n".join(settings))
    lab.write("agents.py", AGENT)
    lab.write("meeting.py", MEET.format(wanted=fit))
    order = lab.folder / "order"
    with lab.service() as service:
        for name in TENANTS:
            service.create_tenant(name, "us-east", principal=lab.person)
    # One tenant after the other: what came first must not go first.
    runs = {
        lab.submit("agents.py:Greedy", {"touch": CEILING - MARGIN}, tenant=name): name
        for name in TENANTS
        for _ in range(each)
    }
    node = str(Path(__file__).with_name("admission_node.py"))
    with limited(memory) as group:
        entries = [str(path / "cgroup.procs") for path in group.paths] if group is not None else []
        with lab.serving(["-c", SHELL, ENTER, *entries, "--", sys.executable, node, str(order)]):
            for run in runs:
                lab.ended(run, "completed")
        if group is not None:
            assert group.oom_kills() == 0
            assert fit * (CEILING - MARGIN) <= group.memory()[1] <= memory
    lines = [line.split() for line in order.read_text().splitlines()]
    assert sorted(line[0] for line in lines) == sorted(runs)
    assert max(int(line[2]) for line in lines) >= fit
    for length in range(50 if whole else 10, len(runs) + 1):
        shares = Counter(line[1] for line in lines[:length])
        fair = length / len(TENANTS)
        off = max(abs(shares[name] - fair) for name in TENANTS)
        assert off <= (0.1 * fair if whole else 1), (length, shares)
    peaks = []
    for run in runs:
        events = lab.events(run)
        assert not [event for event in events if event.kind == "worker.lost"], run
        peaks.append(events[-1].data["memory_peak"])
    assert min(peaks) >= CEILING - MARGIN
    assert max(peaks) <= CEILING


SMALL = """
from holdfast import agent, workflow


@agent(name="small")
class Small:
    @workflow
    def run(self, ctx):
        return 1
"""


def test_a_full_queue_refuses_and_harms_no_other_tenant(lab: Any) -> None:
    lab.settings("[node]\nqueue = 2")
    lab.write("agents.py", SMALL)
    with lab.service() as service:
        service.create_tenant("other", "us-east", principal=lab.person)
    first = [lab.submit("agents.py:Small") for _ in range(2)]
    shown = lab.json("run", "agents.py:Small", "--input", "{}", status=2)
    assert shown["status"] == "refused"
    assert "[node] queue" in shown["error"]
    assert lab.kinds(shown["run_id"]) == ["run.refused"]
    assert lab.run("agents.py:Small", tenant="other").status == "completed"
    assert lab.drive(first[0]).status == "completed"
    assert lab.run("agents.py:Small").status == "completed"
    lab.verify()


def test_doctor_tells_what_was_measured_and_what_a_node_admits(lab: Any) -> None:
    lab.settings("[node]\nmemory = '4GiB'\noverhead = '1GiB'\n[sandbox]\nmemory = '512MiB'")
    lab.write("agents.py", SMALL)
    for _ in range(3):
        assert lab.run("agents.py:Small").status == "completed"
    found = lab.json("doctor")["capacity"]
    assert (found["memory_bytes"], found["overhead_bytes"], found["per_host"]) == (4096 * MIB, 1024 * MIB, 6)
    assert found["nodes"] == []
    (agent,) = found["agents"]
    assert (agent["tenant"], agent["agent"], agent["peaks"]) == ("default", "small", 3)
    assert 0 < agent["ceiling"] < 512 * MIB
    assert agent["per_host"] == 3072 * MIB // agent["ceiling"]
    with lab.serving():
        (node,) = lab.json("doctor")["capacity"]["nodes"]
    assert (node["memory_bytes"], node["admitted_runs"], node["paused"]) == (4096 * MIB, 0, False)
    assert "agents per host" in lab.cli("doctor").stdout
