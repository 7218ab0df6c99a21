"""Connectors in real processes: what reaches the callable, what comes back, what a crash, a hang or a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from holdfast.config import ConnectorSettings
from holdfast.node.connectors import ConnectorFailure, ConnectorPool
from holdfast.sandbox import registry

BANK = """
import asyncio, os, signal, sys, threading
from pathlib import Path

gate = threading.Event()

class Final(Exception):
    retryable = False

def transfer(amount, to="x", idempotency_key=None):
    return {"amount": amount, "to": to, "key": idempotency_key, "pid": os.getpid(), "cwd": os.getcwd()}

async def later(amount, idempotency_key):
    await asyncio.sleep(0)
    return [amount, idempotency_key]

def plain(amount):
    return amount

def fails(secret):
    local = secret
    raise ValueError("no such account")

def final():
    raise Final("closed")

def leaves():
    sys.exit(3)

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(mark):
    Path(mark).write_text("in")
    threading.Event().wait()

async def hang_async():
    await asyncio.Event().wait()

async def block():
    threading.Event().wait()

def wait_gate():
    gate.wait()
    return "through"

def open_gate():
    gate.set()

def huge():
    return "x" * (9 << 20)

def reverse(amount, result):
    return {"undid": amount, "was": result}

def reverse_whole(args, result, idempotency_key):
    return [args, result, idempotency_key]

def child(mark):
    import subprocess
    process = subprocess.Popen(["sleep", "600"])
    Path(mark).write_text(str(process.pid))
    process.wait()

not_callable = 3
"""

NAMES = [
    "transfer",
    "later",
    "plain",
    "fails",
    "final",
    "leaves",
    "crash",
    "hang",
    "hang_async",
    "block",
    "wait_gate",
    "open_gate",
    "huge",
    "child",
    "not_callable",
    "reverse",
    "reverse_whole",
    "missing",
]


class Node:
    """A pool, and the calls that its tests make."""

    def __init__(self, folder: Path, grace: float) -> None:
        self.folder = folder
        own = {name: ConnectorSettings(call=f"bank.py:{name}", folder=folder) for name in NAMES}
        own["web"] = ConnectorSettings(url="https://bank.example", folder=folder)
        own["module"] = ConnectorSettings(call="bank:plain", folder=folder)
        self.tenants = {"default": own, "acme": own, "empty": {}}
        self.pool = ConnectorPool(lambda tenant: self.tenants.get(tenant, {}), dial=60, grace=grace)
        self.dials: list[float] = []

    async def call(
        self, name: str, args: dict[str, object] | None = None, *, tenant: str = "default", timeout: float = 60.0
    ) -> object:
        data = await self.pool.call(tenant, name, args or {}, "key-1", int(timeout * 1_000_000), self.dials.append)
        return json.loads(data)

    async def late(self, name: str, args: dict[str, object]) -> ConnectorFailure:
        """How a call fails that began and did not answer. On a busy machine it may not even begin in a short time."""
        for timeout in (0.2, 2.0, 20.0):
            with pytest.raises(ConnectorFailure) as caught:
                await self.call(name, args, timeout=timeout)
            if caught.value.sent:
                return caught.value
        raise AssertionError("the call never began")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bank.py").write_text(BANK)
    return tmp_path


def run(folder: Path, body: Callable[[Node], Awaitable[None]], grace: float = 60.0) -> None:
    async def main() -> None:
        node = Node(folder, grace)
        try:
            async with asyncio.timeout(110):
                await body(node)
        finally:
            await node.pool.close()

    uvloop.run(main())


async def gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists() and "Z" not in state(pid):
        await asyncio.sleep(0.01)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_it_runs_in_a_process_of_its_own_in_the_files_folder(folder: Path) -> None:
    async def body(node: Node) -> None:
        answer = await node.call("transfer", {"amount": 5})
        assert isinstance(answer, dict)
        assert answer["pid"] != os.getpid()
        assert answer["cwd"] == str(folder)
        assert (answer["amount"], answer["to"]) == (5, "x")
        assert node.pool.pids("default") == (answer["pid"],)
        again = await node.call("transfer", {"amount": 6})
        assert isinstance(again, dict)
        assert again["pid"] == answer["pid"]

    run(folder, body)


def test_the_key_reaches_only_who_takes_it(folder: Path) -> None:
    async def body(node: Node) -> None:
        answer = await node.call("transfer", {"amount": 1})
        assert isinstance(answer, dict)
        assert answer["key"] == "key-1"
        assert await node.call("later", {"amount": 2}) == [2, "key-1"]
        assert await node.call("plain", {"amount": 3}) == 3
        assert await node.call("module", {"amount": 4}) == 4

    run(folder, body)


def test_each_tenant_has_its_own_process(folder: Path) -> None:
    async def body(node: Node) -> None:
        one = await node.call("transfer", {"amount": 1})
        other = await node.call("transfer", {"amount": 1}, tenant="acme")
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        assert one["pid"] != other["pid"]
        node.pool.kill("acme")
        again = await node.call("transfer", {"amount": 1})
        assert isinstance(again, dict)
        assert again["pid"] == one["pid"]

    run(folder, body)


FAILURES = [
    # name, args, words, sent, retryable
    ("nobody", {}, "has no connector nobody", False, False),
    ("web", {}, "no Python callable", False, False),
    ("missing", {}, "bank.py has no function missing", False, False),
    ("not_callable", {}, "bank.py has no function not_callable", False, False),
    ("plain", {"wrong": 1}, "TypeError", False, False),
    ("transfer", {"amount": 1, "idempotency_key": "mine"}, "given by Holdfast", False, False),
    ("plain", {"amount": object()}, "arguments of plain", False, False),
    ("fails", {"secret": "s3cret"}, "fails: ValueError: no such account", True, True),
    ("final", {}, "Final: closed", True, False),
    ("leaves", {}, "SystemExit: 3", True, True),
    ("huge", {}, "cannot be recorded", True, False),
    ("crash", {}, "SIGSEGV", True, True),
]


@pytest.mark.parametrize(("name", "args", "words", "sent", "retryable"), FAILURES)
def test_failures_say_what_happened(
    folder: Path, name: str, args: dict[str, object], words: str, sent: bool, retryable: bool
) -> None:
    async def body(node: Node) -> None:
        with pytest.raises(ConnectorFailure, match=words) as caught:
            await node.call(name, args)
        failure = caught.value
        assert (failure.sent, failure.retryable, failure.timeout) == (sent, retryable, False)
        assert failure.answered == (len(node.dials) == 1 and name != "crash")
        assert len(node.dials) <= 1
        assert await node.call("plain", {"amount": 1}) == 1

    run(folder, body)


def test_a_trace_is_logged_without_values(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(node: Node) -> None:
        with pytest.raises(ConnectorFailure):
            await node.call("fails", {"secret": "s3cret"})

    with caplog.at_level("WARNING", "holdfast.connectors"):
        run(folder, body)
    assert "bank.py" in caplog.text
    assert "in fails" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_crash_harms_only_the_calls_in_flight(folder: Path) -> None:
    async def body(node: Node) -> None:
        waiting = [asyncio.create_task(node.call("wait_gate")) for _ in range(3)]
        bystander = await node.call("transfer", {"amount": 1}, tenant="acme")
        while len(node.dials) < 4:
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectorFailure, match="SIGSEGV"):
            await node.call("crash")
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, ConnectorFailure)
            assert (result.sent, result.retryable, result.timeout) == (True, True, False)
        assert await node.call("plain", {"amount": 2}) == 2
        again = await node.call("transfer", {"amount": 1}, tenant="acme")
        assert isinstance(again, dict)
        assert isinstance(bystander, dict)
        assert again["pid"] == bystander["pid"]

    run(folder, body)


@pytest.mark.parametrize("name", ["hang", "block"])
def test_what_cannot_be_cancelled_ends_with_its_process(folder: Path, tmp_path: Path, name: str) -> None:
    args: dict[str, object] = {"mark": str(tmp_path / "mark")} if name == "hang" else {}

    async def body(node: Node) -> None:
        first = await node.call("transfer", {"amount": 1})
        assert isinstance(first, dict)
        failure = await node.late(name, args)
        assert "did not answer within" in str(failure)
        assert (failure.retryable, failure.timeout) == (True, True)
        await gone(first["pid"])
        after = await node.call("transfer", {"amount": 1})
        assert isinstance(after, dict)
        assert after["pid"] != first["pid"]

    run(folder, body, grace=0.2)


def test_an_async_call_that_is_late_leaves_its_process_alone(folder: Path) -> None:
    async def body(node: Node) -> None:
        first = await node.call("transfer", {"amount": 1})
        assert (await node.late("hang_async", {})).timeout
        after = await node.call("transfer", {"amount": 1})
        assert isinstance(first, dict)
        assert isinstance(after, dict)
        assert after["pid"] == first["pid"]

    run(folder, body)


def test_calls_run_side_by_side(folder: Path) -> None:
    async def body(node: Node) -> None:
        waiting = [asyncio.create_task(node.call("wait_gate")) for _ in range(20)]
        while len(node.dials) < 20:
            await asyncio.sleep(0.01)
        await node.call("open_gate")
        assert await asyncio.gather(*waiting) == ["through"] * 20

    run(folder, body)


def test_a_node_that_may_not_send_sends_nothing(folder: Path, tmp_path: Path) -> None:
    class Fenced(Exception):
        pass

    def refuse(seconds: float) -> None:
        raise Fenced

    async def body(node: Node) -> None:
        mark = tmp_path / "mark"
        with pytest.raises(Fenced):
            await node.pool.call("default", "hang", {"mark": str(mark)}, "k", 60_000_000, refuse)
        assert await node.call("plain", {"amount": 1}) == 1
        assert not mark.exists()

    run(folder, body)


def test_a_call_that_arrives_after_its_deadline_does_not_start(folder: Path, tmp_path: Path) -> None:
    """The node is stopped between its check and the send: here the process is, so that the call waits in the socket."""

    async def body(node: Node) -> None:
        await node.call("plain", {"amount": 1})
        (pid,) = node.pool.pids("default")
        node.pool.freeze("default")
        while state(pid) != "T":
            await asyncio.sleep(0.01)
        mark = tmp_path / "mark"
        task = asyncio.create_task(node.call("hang", {"mark": str(mark)}, timeout=0.3))
        while len(node.dials) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)
        node.pool.thaw("default")
        with pytest.raises(ConnectorFailure):
            await task
        assert not mark.exists()

    run(folder, body)


def test_a_cancelled_call_is_given_up_and_the_process_lives(folder: Path) -> None:
    async def body(node: Node) -> None:
        task = asyncio.create_task(node.call("wait_gate"))
        quick = asyncio.create_task(node.call("hang_async"))
        while len(node.dials) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        quick.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(task, quick, return_exceptions=True)
        )
        await node.call("open_gate")
        assert await node.call("plain", {"amount": 1}) == 1

    run(folder, body)


def test_kill_ends_the_process_and_its_children(folder: Path, tmp_path: Path) -> None:
    async def body(node: Node) -> None:
        mark = tmp_path / "mark"
        task = asyncio.create_task(node.call("child", {"mark": str(mark)}))
        while not (mark.exists() and mark.read_text()):
            await asyncio.sleep(0.01)
        child, (pid,) = int(mark.read_text()), node.pool.pids("default")
        node.pool.kill("default")
        with pytest.raises(ConnectorFailure, match="killed") as caught:
            await task
        assert (caught.value.sent, caught.value.retryable) == (True, False)
        await gone(child)
        await gone(pid)

    run(folder, body)


def test_a_tenant_without_work_keeps_no_process(folder: Path) -> None:
    async def body(node: Node) -> None:
        await node.call("plain", {"amount": 1})
        (pid,) = node.pool.pids("default")
        await node.pool.ended("default")
        assert node.pool.pids("default") == ()
        await gone(pid)
        waiting = asyncio.create_task(node.call("wait_gate"))
        while len(node.dials) < 2:
            await asyncio.sleep(0.01)
        await node.pool.ended("default")
        assert len(node.pool.pids("default")) == 1
        await node.call("open_gate")
        assert await waiting == "through"

    run(folder, body)


def test_an_undo_gets_what_it_takes(folder: Path) -> None:
    async def body(node: Node) -> None:
        async def undo(name: str) -> object:
            data = await node.pool.call(
                "default", name, {"amount": 5, "to": "y"}, "key-2", 0, node.dials.append, undoes=b'{"id":7}'
            )
            return json.loads(data)

        assert await undo("reverse") == {"undid": 5, "was": {"id": 7}}
        assert await undo("reverse_whole") == [{"amount": 5, "to": "y"}, {"id": 7}, "key-2"]
        assert await undo("plain") == 5

    run(folder, body)


def test_a_kill_finds_the_process_in_the_registry(folder: Path, tmp_path: Path) -> None:
    """Whoever kills a tenant ends its connectors even when their node does not answer."""
    home = tmp_path / "home"

    async def body(node: Node) -> None:
        node.pool = ConnectorPool(lambda tenant: node.tenants[tenant], home=home)
        try:
            mark = tmp_path / "mark"
            await node.call("plain", {"amount": 1}, tenant="acme")
            task = asyncio.create_task(node.call("child", {"mark": str(mark)}))
            while not (mark.exists() and mark.read_text()):
                await asyncio.sleep(0.01)
            assert len(registry.entries(home)) == 2
            ended = registry.end_matching(home, lambda label: label.tenant == "default", seconds=60)
            assert [one.gone for one in ended] == [True]
            with pytest.raises(ConnectorFailure, match="it was killed") as caught:
                await task
            assert (caught.value.sent, caught.value.retryable) == (True, False)
            await gone(int(mark.read_text()))
            assert await node.call("plain", {"amount": 2}, tenant="acme") == 2
        finally:
            await node.pool.close()
        assert list((home / registry.FOLDER).iterdir()) == []

    run(folder, body)


def test_a_connector_that_was_configured_later_is_refused(folder: Path) -> None:
    async def body(node: Node) -> None:
        late = node.tenants["default"].pop("plain")
        await node.call("transfer", {"amount": 1})
        node.tenants["default"]["plain"] = late
        with pytest.raises(ConnectorFailure, match="restart the node") as caught:
            await node.call("plain", {"amount": 1})
        assert (caught.value.sent, caught.value.retryable) == (False, False)

    run(folder, body)


def test_another_thread_may_freeze_and_kill(folder: Path) -> None:
    """As the watch over kills does when the event loop is busy."""

    async def body(node: Node) -> None:
        task = asyncio.create_task(node.call("wait_gate"))
        while not node.dials:
            await asyncio.sleep(0.01)
        (pid,) = node.pool.pids()

        def other() -> None:
            node.pool.freeze()
            while state(pid) != "T":
                time.sleep(0.001)
            node.pool.thaw()
            while state(pid) == "T":
                time.sleep(0.001)
            node.pool.kill()

        await asyncio.to_thread(other)
        with pytest.raises(ConnectorFailure, match="killed"):
            await task

    run(folder, body)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_of_that_name", "bank.py cannot be imported: ModuleNotFoundError"),
        ("def broken(:", "bank.py cannot be imported: SyntaxError"),
        ("raise SystemExit(4)", "bank.py cannot be imported: SystemExit: 4"),
        (None, "bank.py cannot be imported: FileNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "bank.py").write_text(text)

    async def body(node: Node) -> None:
        with pytest.raises(ConnectorFailure, match=words) as caught:
            await node.call("plain", {"amount": 1})
        assert not caught.value.sent
        assert node.dials == []

    run(tmp_path, body)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    async def body(node: Node) -> None:
        with pytest.raises(ConnectorFailure, match="cannot be started") as caught:
            await node.call("plain", {"amount": 1})
        assert not caught.value.sent

    run(tmp_path / "nowhere", body)


def test_a_file_named_like_a_library_does_not_break_the_process(folder: Path) -> None:
    (folder / "asyncio.py").write_text("raise RuntimeError('not the library')")

    async def body(node: Node) -> None:
        assert await node.call("plain", {"amount": 1}) == 1

    run(folder, body)


@pytest.mark.crash
def test_the_process_ends_with_a_node_that_is_killed(folder: Path, tmp_path: Path) -> None:
    """kill -9 of the node while a callable holds the interpreter: only the kernel can end the process then."""
    node = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from holdfast.config import ConnectorSettings
        from holdfast.node.connectors import ConnectorPool

        async def main():
            folder = Path(sys.argv[1])
            one = {name: ConnectorSettings(call=f"bank.py:{name}", folder=folder) for name in ("plain", "block")}
            pool = ConnectorPool(lambda tenant: one)
            await pool.call("default", "plain", {"amount": 1}, "k", 0, lambda seconds: None)
            task = asyncio.create_task(pool.call("default", "block", {}, "k", 0, lambda seconds: None))
            await asyncio.sleep(0)
            print(*pool.pids(), flush=True)
            await task

        import uvloop
        uvloop.run(main())
        """
    )
    process = subprocess.Popen([sys.executable, "-c", node, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert state(pid) != "Z"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
    asyncio.run(asyncio.wait_for(gone(pid), 60))
