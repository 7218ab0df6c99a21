"""The contract of every isolation level: one suite, run against each that this version has."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.errors import IsolationError, UsageError
from holdfast.sandbox import cgroup, collector, confine, levels, procs, registry, runtime
from holdfast.sandbox.base import Boundary, Channel, Exit, Label, Limits, Mount, Reason, Spec
from holdfast.sandbox.interpreter import interpreter_mounts

WAIT = 60.0
GIB = 1 << 30

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@functools.cache
def missing(level: str) -> str:
    """Why a level cannot be had here, in its own words; empty when it can."""
    found = asyncio.run(levels.level(level).probe())
    return "" if found.available else f"{found.reason}: {found.cure}"


@pytest.fixture(
    params=[pytest.param("namespace", marks=needs_bubblewrap), "landlock", "container", "gvisor", "process"]
)
def name(request: pytest.FixtureRequest) -> str:
    level = str(request.param)
    if level not in ("namespace", "process") and (why := missing(level)):
        pytest.skip(why)
    return level


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


HEAD = """
import json, os, socket, sys
channel = socket.socket(fileno=int(os.environ["CHANNEL"]))
def say(value): channel.sendall(json.dumps(value).encode() + b"\\n")
def hear(): return channel.recv(100)
"""


class Talk:
    """The outer end of a boundary's channel, one JSON value a line."""

    def __init__(self, outer: socket.socket) -> None:
        outer.setblocking(False)
        self._outer = outer
        self._data = b""

    async def hear(self) -> Any:
        """The next value; None at the end of the stream."""
        async with asyncio.timeout(WAIT):
            while b"\n" not in self._data:
                try:
                    chunk = await asyncio.get_running_loop().sock_recv(self._outer, 65536)
                except ConnectionError:
                    chunk = b""
                if not chunk:
                    return None
                self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._outer, data)

    def close(self) -> None:
        self._outer.close()


def spec(home: Path, code: str, inner: socket.socket, **fields: Any) -> Spec:
    base: dict[str, Any] = {
        "argv": (sys.executable, "-c", HEAD + textwrap.dedent(code)),
        "label": Label(tenant="acme", agent="tester", run="r1"),
        "home": home,
        "mounts": interpreter_mounts(),
        "channels": (Channel(variable="CHANNEL", inner=inner),),
    }
    return Spec(**(base | fields))


@contextlib.asynccontextmanager
async def started(name: str, home: Path, code: str, **fields: Any) -> AsyncIterator[tuple[Boundary, Talk]]:
    outer, inner = socket.socketpair()
    talk = Talk(outer)
    try:
        boundary = await levels.level(name).start(spec(home, code, inner, **fields))
        try:
            yield boundary, talk
        finally:
            async with asyncio.timeout(WAIT):
                await boundary.close()
    finally:
        talk.close()


async def ended(boundary: Boundary) -> Exit:
    async with asyncio.timeout(WAIT):
        return await boundary.wait()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def pidfds(pids: tuple[int, ...] | list[int]) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids]


def gone(fds: list[int]) -> bool:
    """Wait for processes to end, and close their pidfds."""
    try:
        return procs.wait_gone(fds, WAIT)
    finally:
        for fd in fds:
            os.close(fd)


def test_channel_carries_both_ways(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, "say('hello'); say(hear().decode())") as (boundary, talk):
            assert await talk.hear() == "hello"
            await talk.say(b"there")
            assert await talk.hear() == "there"
            assert await ended(boundary) == Exit(reason=Reason.EXITED, status=0)

    run(scenario())


def test_two_channels_and_threads_can_be_had(name: str, home: Path) -> None:
    code = """
        import threading
        second = socket.socket(fileno=int(os.environ["SECOND"]))
        threading.Thread(target=lambda: second.sendall(b"from a thread")).start()
        hear()
    """

    async def scenario() -> None:
        (outer, inner), (second, second_inner) = socket.socketpair(), socket.socketpair()
        second.setblocking(False)
        made = spec(home, code, inner)
        both = (*made.channels, Channel(variable="SECOND", inner=second_inner))
        boundary = await levels.level(name).start(msgspec.structs.replace(made, channels=both))
        try:
            async with asyncio.timeout(WAIT):
                assert await asyncio.get_running_loop().sock_recv(second, 100) == b"from a thread"
            outer.send(b"end")
            assert await ended(boundary) == Exit(reason=Reason.EXITED, status=0)
        finally:
            async with asyncio.timeout(WAIT):
                await boundary.close()
            outer.close()
            second.close()

    run(scenario())


def test_a_boundary_that_was_started_ahead_becomes_a_runs(name: str, home: Path) -> None:
    async def scenario() -> None:
        ahead = Label(tenant="acme", agent="tester")
        async with started(name, home, "hear()", label=ahead) as (boundary, _):
            [entry] = registry.entries(home)
            assert entry.label == ahead
            mine = Label(tenant="acme", agent="tester", workflow="run", run="r7")
            boundary.claim(mine)
            [claimed] = registry.entries(home)
            assert claimed == msgspec.structs.replace(entry, label=mine)
            ended_ = await asyncio.to_thread(registry.end_matching, home, lambda label: label.run == "r7", seconds=WAIT)
            assert [one.gone for one in ended_] == [True]
            assert (await ended(boundary)).reason is Reason.KILLED

    run(scenario())


def test_a_boundary_that_was_killed_cannot_be_claimed(name: str, home: Path) -> None:
    async def scenario() -> None:
        ahead = Label(tenant="acme", agent="tester")
        async with started(name, home, "hear()", label=ahead) as (boundary, _):
            await asyncio.to_thread(registry.end_matching, home, lambda label: label.agent == "tester", seconds=WAIT)
            with pytest.raises(IsolationError, match="killed"):
                boundary.claim(Label(tenant="acme", agent="tester", run="r7"))

    run(scenario())


def test_end_inside_is_seen_on_the_channel(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, "pass") as (_, talk):
            assert await talk.hear() is None

    run(scenario())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(0)", Exit(reason=Reason.EXITED, status=0)),
        ("sys.exit(7)", Exit(reason=Reason.EXITED, status=7)),
        ("sys.exit(255)", Exit(reason=Reason.EXITED, status=255)),
        ("os.kill(os.getpid(), 11)", Exit(reason=Reason.CRASHED, status=-11)),
        ("os.kill(os.getpid(), 9)", Exit(reason=Reason.CRASHED, status=-9)),
    ],
)
def test_how_it_ended(name: str, home: Path, code: str, expected: Exit) -> None:
    async def scenario() -> None:
        async with started(name, home, code) as (boundary, _):
            assert await ended(boundary) == expected
            assert await ended(boundary) == expected

    run(scenario())


@pytest.mark.parametrize("reason", [Reason.KILLED, Reason.TIMEOUT])
def test_kill_ends_it_and_is_idempotent(name: str, home: Path, reason: Reason) -> None:
    async def scenario() -> None:
        async with started(name, home, "say('up'); hear()") as (boundary, talk):
            await talk.hear()
            boundary.kill(reason)
            boundary.kill()
            assert await ended(boundary) == Exit(reason=reason, status=-9)
            boundary.kill(Reason.TIMEOUT)
            assert await ended(boundary) == Exit(reason=reason, status=-9)

    run(scenario())


def test_kill_after_the_end_changes_nothing(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, "sys.exit(3)") as (boundary, _):
            first = await ended(boundary)
            boundary.kill()
            assert await ended(boundary) == first == Exit(reason=Reason.EXITED, status=3)

    run(scenario())


DAEMON = """
import time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        os.write(write, b"x")
        while True: time.sleep(1000)
    os._exit(0)
os.wait()
os.read(read, 1)
say('up')
hear()
"""


def test_kill_takes_a_daemon_that_left_its_session_and_ignores_signals(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, DAEMON) as (boundary, talk):
            assert await talk.hear() == "up"
            inside = _marked(home)
            fds = pidfds(inside)
            assert len(inside) >= 2
            boundary.kill()
            await ended(boundary)
            await boundary.close()
            assert gone(fds)

    run(scenario())


def test_nothing_outlives_the_outer_process(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, DAEMON) as (boundary, talk):
            assert await talk.hear() == "up"
            fds = pidfds(_marked(home))
            os.kill(boundary.pid, signal.SIGKILL)
            await ended(boundary)
            await boundary.close()
            assert gone(fds)
            assert registry.entries(home) == []

    run(scenario())


def _marked(home: Path) -> list[int]:
    """Host pids of all that belongs to a boundary, by its pid namespace or, without one, by its mark."""
    [entry] = registry.entries(home)
    if entry.init is not None:
        return procs.tree(entry.init.pid)
    fds = registry.stragglers(entry)
    found = []
    for fd in fds:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        found.append(int(info.partition("Pid:")[2].split()[0]))
        os.close(fd)
    return found


def test_close_leaves_nothing_behind(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, "open('file', 'w').write('x'); say('up'); hear()") as (boundary, talk):
            await talk.hear()
            [entry] = registry.entries(home)
            assert all(Path(path).is_dir() for path in entry.cgroups)
            pids = boundary.pids()
            assert pids
            fds = pidfds(pids)
            await boundary.close()
            await boundary.close()
            assert gone(fds)
            assert registry.entries(home) == []
            assert boundary.pids() == ()
            assert not [path for path in entry.cgroups if Path(path).exists()]
            assert [path.name for path in home.rglob("*") if path.is_file()] == [
                path.name for path in (home / "cache").glob("*")
            ]
            assert not list((home / "workspaces").glob("*"))

    run(scenario())


def test_files_come_out_after_the_end_and_links_do_not(name: str, home: Path) -> None:
    code = """
    os.mkdir("out")
    open("out/report", "w").write("done")
    os.symlink("/etc/passwd", "link")
    say("up"); hear()
    """
    blobs = collector.FolderBlobs(home / "blobs")

    async def scenario() -> None:
        async with started(name, home, code) as (boundary, talk):
            assert await talk.hear() == "up"
            if name == "gvisor":
                with pytest.raises(IsolationError, match="keeps the workspace to itself"):
                    boundary.workspace()
                return
            fd = boundary.workspace()
            try:
                boundary.kill()
                await ended(boundary)
                found = collector.collect(fd, blobs, "acme")
            finally:
                os.close(fd)
            [one] = found.artefacts
            assert (one.path, blobs.path("acme", one.digest).read_bytes()) == ("out/report", b"done")
            assert [refused.path for refused in found.refused] == ["link"]
            with pytest.raises(IsolationError, match="not there any more"):
                boundary.workspace()

    run(scenario())


def test_environment_is_what_was_given(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", "of the node")

    async def scenario() -> None:
        async with started(name, home, "say(dict(os.environ))", env={"GIVEN": "yes"}) as (_, talk):
            env = await talk.hear()
            assert env["GIVEN"] == "yes"
            assert "NODE_SECRET" not in env
            assert "of the node" not in env.values()
            assert env["HOME"] != os.environ.get("HOME")

    run(scenario())


def test_workspace_is_fresh_private_and_the_working_directory(name: str, home: Path) -> None:
    code = """
    mode = os.stat(".").st_mode & 0o777
    say([os.getcwd() == os.environ["HOME"], os.listdir("."), mode, os.stat(".").st_uid == os.getuid()])
    open("mine", "w").write("x")
    """

    async def scenario() -> None:
        for _ in range(2):
            async with started(name, home, code) as (boundary, talk):
                assert await talk.hear() == [True, [], 0o700, True]
                await ended(boundary)

    run(scenario())


def test_stdout_and_stderr_go_to_the_descriptor(name: str, home: Path) -> None:
    read, write = os.pipe()

    async def scenario() -> None:
        code = "print('out', flush=True); print('err', file=sys.stderr)"
        async with started(name, home, code, stdout=write) as (boundary, _):
            await ended(boundary)

    try:
        run(scenario())
        assert os.read(read, 1000).splitlines() == [b"out", b"err"]
    finally:
        os.close(read)
        os.close(write)


DESCRIPTORS = """
links = {}
for number in os.listdir("/proc/self/fd"):
    try: links[int(number)] = os.stat(int(number))
    except OSError: pass
say([sorted(links), int(os.environ["CHANNEL"])])
"""


def test_only_the_channel_is_inherited(name: str, home: Path, tmp_path: Path) -> None:
    leaky = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(leaky, True)

    async def scenario() -> None:
        async with started(name, home, DESCRIPTORS) as (_, talk):
            numbers, channel = await talk.hear()
            assert numbers == sorted({0, 1, 2, channel})

    try:
        run(scenario())
        assert leaky in _descriptors_of_a_careless_child()
    finally:
        os.close(leaky)


def _descriptors_of_a_careless_child() -> list[int]:
    """What the same look shows where nothing is closed: the look can fail."""
    outer, inner = socket.socketpair()
    with outer, inner:
        inner.set_inheritable(True)
        env = os.environ | {"CHANNEL": str(inner.fileno())}
        subprocess.run([sys.executable, "-c", HEAD + DESCRIPTORS], env=env, close_fds=False, timeout=WAIT, check=True)
        found: list[int] = json.loads(outer.recv(65536))[0]
        return found


def test_a_process_group_would_not_have_taken_the_daemon() -> None:
    outer, inner = socket.socketpair()
    with outer:
        with inner:
            child = subprocess.Popen(
                [sys.executable, "-c", HEAD + DAEMON],
                env={"CHANNEL": str(inner.fileno()), registry.MARKER: "left-by-killpg"},
                pass_fds=(inner.fileno(),),
                start_new_session=True,
            )
        outer.settimeout(WAIT)
        assert outer.recv(100) == b'"up"\n'
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(WAIT)
    none = procs.Process(0, 0)
    left = registry.stragglers(
        registry.Entry(id="left-by-killpg", level="process", label=Label(tenant="t"), node=none, outer=none)
    )
    for fd in left:
        procs.send_kill(fd)
    assert len(left) == 1
    assert gone(left)


@pytest.mark.parametrize("turns", [1, 2, 4, 8, 16, 64])
def test_a_start_that_is_cancelled_leaves_nothing(name: str, home: Path, turns: int) -> None:
    async def scenario() -> None:
        outer, inner = socket.socketpair()
        with outer:
            task = asyncio.create_task(levels.level(name).start(spec(home, "say('up'); hear()", inner)))
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
            outer.settimeout(WAIT)
            while outer.recv(100):
                pass
        assert inner.fileno() == -1
        assert registry.entries(home) == []

    run(scenario())


def test_memory_that_runs_out_is_named(name: str, home: Path) -> None:
    limits = Limits(memory=96 << 20, swap=0)
    code = "say('up'); data = bytearray(b'x') * (400 << 20); say('done')"

    async def scenario() -> None:
        async with started(name, home, code, limits=limits) as (boundary, talk):
            if not boundary.held.limits["memory"].startswith("cgroup"):
                pytest.skip("no memory cgroup can be had here")
            assert await talk.hear() == "up"
            assert await talk.hear() is None
            assert (await ended(boundary)).reason is Reason.OUT_OF_MEMORY
            assert boundary.memory()[1] > 48 << 20

    run(scenario())


def test_processes_are_limited(name: str, home: Path) -> None:
    code = """
    import time
    made = 0
    try:
        while made < 200:
            if os.fork() == 0:
                time.sleep(1000)
            made += 1
    except OSError as error:
        say([made, error.errno])
    say([made, 0])
    """

    async def scenario() -> None:
        async with started(name, home, code, limits=Limits(pids=20)) as (boundary, talk):
            if "pids" not in boundary.held.limits:
                pytest.skip("nothing can hold the number of processes here")
            made, errno = await talk.hear()
            assert errno == 11
            assert made < 20

    run(scenario())


def test_open_files_and_file_size_are_limited(name: str, home: Path) -> None:
    code = """
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    held = []
    try:
        for _ in range(100): held.append(open("/dev/null"))
    except OSError as error: say(error.errno)
    held.clear()
    try:
        with open("big", "wb", buffering=0) as file:
            while True: file.write(b"x" * 65536)
    except OSError as error: say([error.errno, os.stat("big").st_size])
    """

    async def scenario() -> None:
        async with started(name, home, code, limits=Limits(files=40, file_size=1 << 20)) as (boundary, talk):
            assert await talk.hear() == 24
            assert await talk.hear() == [27, 1 << 20]
            assert boundary.held.limits["files"] == boundary.held.limits["file_size"] == "rlimit"

    run(scenario())


def test_held_promises_only_what_was_asked_for(name: str, home: Path) -> None:
    nothing = Limits(memory=None, swap=None, pids=None, cpu=None, disk=None, files=None, file_size=None)

    async def scenario() -> None:
        async with started(name, home, "pass", limits=nothing) as (boundary, _):
            assert boundary.held.level == name
            assert boundary.held.limits == {}
            assert boundary.held.network == ("host" if name == "process" else "none")
            if name == "process":
                assert not boundary.held.own_uid
                assert any("no boundary" in note for note in boundary.held.notes)

    run(scenario())


def test_memory_and_pids_can_be_watched(name: str, home: Path) -> None:
    code = "data = bytearray(b'x') * (40 << 20); say('up'); hear()"

    async def scenario() -> None:
        async with started(name, home, code) as (boundary, talk):
            await talk.hear()
            current, peak = boundary.memory()
            assert current > 40 << 20
            assert peak >= current or peak == 0
            assert all(procs.start_time(pid) is not None for pid in boundary.pids())

    run(scenario())


def test_a_program_that_does_not_exist_ends_with_127(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with started(name, home, "", argv=("/no/such/program",)) as (boundary, _):
            assert await ended(boundary) == Exit(reason=Reason.EXITED, status=127)

    run(scenario())


@pytest.mark.parametrize("argv", [(), ("/bin/true", "a\0b")])
def test_what_cannot_be_started_is_an_error_and_the_channel_is_closed(
    name: str, home: Path, argv: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        outer, inner = socket.socketpair()
        with outer, pytest.raises(IsolationError):
            await levels.level(name).start(spec(home, "", inner, argv=argv))
        assert inner.fileno() == -1
        assert registry.entries(home) == []

    run(scenario())


def test_many_at_once_keep_apart(name: str, home: Path) -> None:
    code = "open('note', 'w').write('mine'); say([os.getuid(), os.listdir('.')]); hear()"

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            pairs = await asyncio.gather(*(stack.enter_async_context(started(name, home, code)) for _ in range(6)))
            said = [await talk.hear() for _, talk in pairs]
            assert all(files == ["note"] for _, files in said)
            if pairs[0][0].held.own_uid:
                assert len({uid for uid, _ in said}) == 6
                assert {uid for uid, _ in said} == {boundary.held.uid for boundary, _ in pairs}
                assert 0 not in {uid for uid, _ in said}
            assert len(registry.entries(home)) == 6

    run(scenario())


def test_registry_ends_what_matches_and_nothing_else(name: str, home: Path) -> None:
    async def scenario() -> None:
        async with (
            started(name, home, DAEMON, label=Label(tenant="a", agent="bad")) as (bad, bad_talk),
            started(name, home, DAEMON, label=Label(tenant="a", agent="good")) as (good, good_talk),
        ):
            assert [await bad_talk.hear(), await good_talk.hear()] == ["up", "up"]
            done = await asyncio.to_thread(
                registry.end_matching, home, lambda label: label.agent == "bad", seconds=WAIT
            )
            assert [(one.label.agent, one.gone) for one in done] == [("bad", True)]
            assert await ended(bad) == Exit(reason=Reason.KILLED, status=-9)
            await good_talk.say(b"go")
            assert await ended(good) == Exit(reason=Reason.EXITED, status=0)

    run(scenario())


NODE = """
import asyncio, json, os, socket, sys
from pathlib import Path
from holdfast.sandbox import collector, confine, levels, procs, registry, runtime
from holdfast.sandbox.base import Channel, Label, Spec
from holdfast.sandbox.interpreter import interpreter_mounts

async def main():
    outer, inner = socket.socketpair()
    outer.setblocking(False)
    home = Path(sys.argv[2])
    await levels.level(sys.argv[1]).start(Spec(
        argv=(sys.executable, "-c", sys.argv[3]), label=Label(tenant="t"), home=home,
        mounts=interpreter_mounts(), channels=(Channel(variable="CHANNEL", inner=inner),)))
    await asyncio.get_running_loop().sock_recv(outer, 100)
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@contextlib.contextmanager
def node(name: str, home: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that starts one boundary and waits."""
    command = [sys.executable, "-c", NODE, name, str(home), HEAD + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], WAIT)[0]
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()
            process.wait(WAIT)
            registry.reap(home, seconds=WAIT)


def test_nothing_outlives_a_node_that_is_killed(name: str, home: Path) -> None:
    with node(name, home, DAEMON) as process:
        [entry] = registry.entries(home)
        inside = _marked(home)
        fds = pidfds(inside)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
        if name in registry.PLAIN:
            registry.reap(home, seconds=WAIT)
        assert gone(fds)
    assert registry.entries(home) == []
    assert not [path for path in entry.cgroups if Path(path).exists()]
    assert not list((home / "workspaces").glob("*"))


BOMB = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
say('up')
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass
"""


@pytest.mark.parametrize("end", ["kill", "outer", "node"])
def test_nothing_is_left_of_a_fork_bomb(name: str, home: Path, end: str) -> None:
    async def counted() -> bool:
        async with started(name, home, "pass") as (boundary, _):
            return name not in registry.PLAIN or boundary.held.limits.get("pids", "").startswith("cgroup")

    if not run(counted()):
        pytest.skip("no control group counts processes here, so a fork bomb would be the host's")
    with node(name, home, BOMB) as process:
        [entry] = registry.entries(home)
        if end == "kill":
            assert [one.gone for one in registry.end_matching(home, lambda label: True, seconds=WAIT)] == [True]
        else:
            os.kill(entry.outer.pid if end == "outer" else process.pid, signal.SIGKILL)
        process.kill()
        process.wait(WAIT)
        registry.reap(home, seconds=WAIT)
        assert cgroup.members(tuple(map(Path, entry.cgroups))) == ()
        # What has ended may still have to be reaped; nothing else may be found.
        assert gone(registry.stragglers(entry))
    assert registry.entries(home) == []
    places = [*entry.cgroups, str(registry.HOST_WORKSPACES / entry.id), str(runtime.BUNDLES / entry.id)]
    assert not [place for place in places if Path(place).exists()]
    assert not list((home / "workspaces").glob("*"))


def test_reaper_leaves_a_living_node_alone(name: str, home: Path) -> None:
    with node(name, home, DAEMON):
        [entry] = registry.entries(home)
        assert registry.reap(home) == []
        assert procs.alive(entry.outer)
        assert registry.entries(home) == [entry]


def test_probe_boots_a_command(name: str) -> None:
    found = run(levels.level(name).probe())
    assert (found.level, found.available, found.reason) == (name, True, "")


def test_without_qemu_level_microvm_is_refused_with_the_cure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    spec = Spec(argv=("true",), label=Label(tenant="t"), home=home)
    with pytest.raises(IsolationError, match=r"needs QEMU.*apt install qemu-system-x86"):
        run(levels.level("microvm").start(spec))


@pytest.mark.parametrize("level", ["container", "gvisor"])
def test_without_its_runtime_a_level_is_refused_with_the_cure(
    level: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    runtime.find.cache_clear()
    outer, inner = socket.socketpair()
    try:
        with outer, pytest.raises(IsolationError, match=f"level {level} needs .*apt install"):
            run(levels.level(level).start(spec(home, "", inner)))
        assert inner.fileno() == -1
        assert registry.entries(home) == []
    finally:
        runtime.find.cache_clear()


@pytest.mark.parametrize("level", ["container", "gvisor"])
def test_an_ordinary_user_is_refused_a_container_with_the_cure(
    level: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    runtime.find.cache_clear()
    outer, inner = socket.socketpair()
    try:
        with outer, pytest.raises(IsolationError, match=r"needs root here.*choose level namespace"):
            run(levels.level(level).start(spec(home, "", inner)))
    finally:
        runtime.find.cache_clear()


def test_without_landlock_the_level_is_refused_with_the_cure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "abi", lambda: 0)
    outer, inner = socket.socketpair()
    with outer, pytest.raises(IsolationError, match=r"this kernel has no Landlock: boot Linux 5.13"):
        run(levels.level("landlock").start(spec(home, "", inner)))
    assert registry.entries(home) == []


def test_an_unknown_level_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no isolation level 'jail'"):
        levels.level("jail")


def test_mounts_are_read_only_unless_writable(home: Path, tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    for folder, mode in (("fixed", 0o755), ("open", 0o777)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(mode)
    (tmp_path / "fixed" / "a.txt").write_text("a")
    code = """
    out = [open("/code/a.txt").read()]
    for path in ("/code/new", "/data/new"):
        try:
            open(path, "w").close()
            out.append(True)
        except OSError: out.append(False)
    say(out)
    """
    mounts = (
        *interpreter_mounts(),
        Mount(source=tmp_path / "fixed", target=Path("/code")),
        Mount(source=tmp_path / "open", target=Path("/data"), writable=True),
    )

    async def scenario() -> None:
        async with started("namespace", home, code, mounts=mounts) as (_, talk):
            assert await talk.hear() == ["a", False, True]

    run(scenario())


@needs_bubblewrap
def test_a_folder_that_was_made_anew_is_seen_anew(home: Path, tmp_path: Path) -> None:
    # Below a folder closed to others, so that root has to prepare it for the boundary's uid.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    code = closed / "code"

    async def scenario() -> None:
        level = levels.level("namespace")
        for text in ("first", "second"):
            code.mkdir()
            (code / "text").write_text(text)
            outer, inner = socket.socketpair()
            talk = Talk(outer)
            mounts = (*interpreter_mounts(), Mount(source=code, target=Path("/code")))
            boundary = await level.start(spec(home, "say(open('/code/text').read())", inner, mounts=mounts))
            try:
                assert await talk.hear() == text
            finally:
                await boundary.close()
                talk.close()
            shutil.rmtree(code)

    run(scenario())
