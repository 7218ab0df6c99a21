"""The process: what it hides, survives, reports, and when it must be gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast import wire
from holdfast.testing.broker import Broker, Later, Raw, model
from holdfast.values import load

Run = Callable[..., Broker]
STEP = """
    @agent
    class A:
        @workflow
        def run(self, ctx):
            try:
                return ctx.call(self.one)
            except BaseException as error:
                return repr(error)
            finally:
                print("swallowed")
        def one(self, ctx):
            try:
                return ctx.ask("now")
            except BaseException as error:
                return repr(error)
"""


def test_prints_become_log_lines_and_corrupt_nothing(run: Run) -> None:
    text = """
        import logging, os, subprocess, sys
        print("at import")
        @agent
        class A:
            @workflow
            def run(self, ctx):
                print("one", "two")
                print("x" * 20000)
                sys.stdout.buffer.write(b"\\xff raw\\n")
                print("\\ud800 lone")
                logging.warning("logged %s", 1)
                print("no end", end="")
                os.write(1, b"straight to the descriptor")
                subprocess.run([sys.executable, "-S", "-c", "print(5)"], check=True)
                return ctx.call(self.one)
            def one(self):
                print("in a step")
                return 1
    """
    broker = run(text)
    assert broker.output == 1
    lines = [(log.message, load(log.fields.data)["stream"]) for log in broker.logs]
    assert lines[:2] == [("at import", "stdout"), ("one two", "stdout")]
    assert [len(line) for line, _ in lines[2:5]] == [8192, 8192, 20000 - 2 * 8192]
    assert lines[5:] == [
        ("� raw", "stdout"),
        ("\\ud800 lone", "stdout"),
        ("WARNING:root:logged 1", "stderr"),
        ("no endin a step", "stdout"),
    ]


def test_a_flood_of_lines_is_cut(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                for number in range(10_100):
                    print(number)
    """
    broker = run(text)
    assert len(broker.logs) == 10_000
    assert "the rest is dropped" in broker.logs[-1].message


def test_the_channel_is_hidden_from_the_author_and_its_programs(run: Run) -> None:
    text = """
        import os, socket, subprocess, sys
        LOOK = (
            "import os; links = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3, 64) "
            "if os.path.islink(f'/proc/self/fd/{fd}')]; "
            "print([link for link in links if 'socket' in link], 'HOLDFAST_CHANNEL' in os.environ)"
        )
        @agent
        class A:
            @workflow
            def run(self, ctx):
                look = [sys.executable, "-S", "-c", LOOK]
                child = subprocess.run(look, capture_output=True, text=True, close_fds=False)
                pid = os.fork()
                if not pid:
                    try:
                        ctx.ask("from a fork")
                    finally:
                        os._exit(9)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                return [child.stdout.strip(), "HOLDFAST_CHANNEL" in os.environ, status]
    """
    broker = run(text)
    assert broker.output == ["[] False", False, 75]
    assert not broker.of(wire.Ask)


def test_when_the_channel_ends_the_process_is_gone_and_nothing_swallows_it(start: Run) -> None:
    text = """
        import atexit
        @agent
        class A:
            @workflow
            def run(self, ctx):
                atexit.register(lambda: open("atexit", "w").close())
                while True:
                    try:
                        ctx.call(self.one)
                    except BaseException:
                        continue
                    finally:
                        open("finally", "w").close()
            def one(self, ctx):
                ctx.ask("now")
    """
    broker = start(text, answers={"ask": Later()})
    broker.until(wire.Ask)
    assert broker.finish() == 75
    assert not {"atexit", "finally"} & set(os.listdir(broker.root))


LIES: list[tuple[str, Callable[[Broker, int], None]]] = [
    ("another call", lambda broker, number: broker.send(wire.Reply(number + 100, wire.Value(b"1")))),
    ("go for no step", lambda broker, number: broker.send(wire.Go(number, 1, "k"))),
    ("chunk for no stream", lambda broker, number: broker.send(wire.Chunk(number, "x"))),
    ("answer for a running body", lambda broker, number: broker.send(wire.Reply(number - 1, wire.Value(b"1")))),
    ("begin twice", lambda broker, number: broker.begin()),
    ("blob that never came", lambda broker, number: broker.send(wire.Reply(number, wire.Value(b"", 9)))),
    ("a worker's message", lambda broker, number: broker.outer.sendall(wire.frame(wire.Cancel(number)))),
    ("a frame too large", lambda broker, number: broker.outer.sendall(b"\xff\xff\xff\xff")),
    ("an empty frame", lambda broker, number: broker.outer.sendall(b"\0\0\0\0")),
    ("noise", lambda broker, number: broker.outer.sendall(b"\0\0\0\3abc")),
]


@pytest.mark.parametrize(("name", "lie"), LIES, ids=[name for name, _ in LIES])
def test_a_node_that_breaks_the_protocol_ends_the_process(
    start: Run, name: str, lie: Callable[[Broker, int], None]
) -> None:
    broker = start(STEP, answers={"ask": Later()})
    ask = broker.until(wire.Ask)
    assert isinstance(ask, wire.Ask)
    lie(broker, ask.id)
    out, _ = broker.process.communicate(timeout=60)
    assert broker.process.returncode == 76
    assert b"the node broke the protocol" in out
    assert b"Traceback" not in out


def test_a_stream_sent_past_its_window_ends_the_process(start: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                stream = ctx.llm.stream("x")
                ctx.ask("wait")
                return list(stream)
    """
    broker = start(text, answers={"llm.generate": Later(), "ask": Later()})
    broker.until(wire.Ask)
    for _ in range(wire.WINDOW + 1):
        broker.send(wire.Chunk(broker.of(wire.Llm)[0].id, "x"))
    assert broker.process.wait(60) == 76


def test_another_version_is_refused(start: Run) -> None:
    broker = start(STEP, begin=False)
    broker.until(wire.Ready)
    broker.send(wire.Begin(wire.VERSION + 1, "r", "t", "/", "author.py:A", "", wire.Value(b"null")))
    assert broker.process.wait(60) == 76


def test_both_sides_full_at_once_do_not_lock_up(start: Run) -> None:
    """The node stops listening to a worker that does not read; so a worker that waits to send reads meanwhile."""
    text = """
        @agent
        class A:
            @workflow
            async def run(self, ctx):
                reads = [ctx.files.read(str(n)) for n in range(3)]
                got = await ctx.gather(*reads, ctx.files.write("big", bytes(8 << 20)))
                return [len(x) if x else x for x in got]
    """
    broker = start(text, answers={"file.read": Later()})
    broker.until(wire.File, 3)
    # Nothing is read here, while far more is sent than the socket holds: only a worker that reads lets it end.
    broker.outer.settimeout(60)
    for number in range(1, 7):
        if number in broker.ids:
            broker.answer(number, Raw(bytes(6 << 20)))
    assert broker.run().output == [6 << 20] * 3 + [None]


FAILURES = [
    ("import nothing_like_it", "UsageError", "usage", "author.py:2: importing author.py raised ModuleNotFoundError"),
    ("def broken(:", "UsageError", "usage", "author.py:2: "),
    ("1 / 0", "UsageError", "usage", "author.py:2: importing author.py raised ZeroDivisionError"),
    ("raise SystemExit(3)", "UsageError", "usage", "raised SystemExit"),
    ("x = 1", "UsageError", "usage", "author.py has no A"),
    ("class A: pass", "UsageError", "usage", '@agent(name="…")'),
    ("@agent\nclass A: pass", "UsageError", "usage", "@workflow\n    def run(self, ctx):"),
    ("@agent\nclass B: pass", "UsageError", "usage", "author.py has no A; it has the agents B"),
    ("A = 5", "UsageError", "usage", "5 is not a class"),
    (
        "@agent\nclass A:\n @workflow\n def a(self): pass\n @workflow\n def b(self): pass",
        "UsageError",
        "usage",
        "several workflows (a, b); name one with --workflow",
    ),
    (
        "@agent\nclass A:\n def __init__(self): raise OSError('no')\n @workflow\n def a(self): pass",
        "OSError",
        "",
        "no",
    ),
    ("@agent\nclass A:\n @workflow\n def a(self): raise SystemExit(4)", "RunError", "run_failed", "sys.exit(4)"),
    ("@agent\nclass A:\n @workflow\n def a(self): raise KeyboardInterrupt", "RunError", "run_failed", "interrupted"),
    ("@agent\nclass A:\n @workflow\n def a(self): raise ValueError('v' * 9000)", "ValueError", "", "v" * 4000),
    (
        "@agent\nclass A:\n @workflow\n def a(self): return object()",
        "PayloadError",
        "payload",
        "what the workflow returned",
    ),
    ("@agent\nclass A:\n @workflow\n async def a(self): raise KeyError('k')", "KeyError", "", "'k'"),
    ("@agent\nclass A:\n @workflow\n async def a(self): raise SystemExit(5)", "RunError", "run_failed", "sys.exit(5)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "error", "code", "message"), FAILURES)
def test_failures_say_what_and_where(run: Run, text: str, error: str, code: str, message: str) -> None:
    failed = run(text).failed
    assert failed is not None
    assert (failed.error, failed.code) == (error, code)
    assert message in failed.message
    assert len(failed.message) <= 4000


def test_a_trace_names_places_and_no_values(run: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                secret = "hunter2"
                try:
                    self.inner(secret)
                except ValueError as error:
                    raise RuntimeError("outer") from error
            def inner(self, secret):
                raise ValueError
    """
    failed = run(text).failed
    assert failed is not None
    assert failed.trace == (
        "RuntimeError\n  author.py:11 in A.run\nValueError\n  author.py:9 in A.run\n  author.py:13 in A.inner"
    )


def test_modules_and_packages_beside_the_target(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "prices.py").write_text("PRICE = 3\n")
    body = "\n@agent\nclass A:\n @workflow\n def run(self, ctx): return [PRICE, __name__, ctx.spawn(A).run_id]\n"
    (tmp_path / "shop" / "json.py").write_text("from holdfast import *\nfrom prices import PRICE" + body)
    (tmp_path / "shop" / "till.py").write_text("from holdfast import *\nfrom .prices import PRICE" + body)
    with Broker(tmp_path, "shop/json.py:A") as broker:
        assert broker.run().output[:2] == [3, "holdfast_target_json"]
        assert broker.of(wire.Spawn)[0].target == "shop/json.py:A"
    with Broker(tmp_path, "shop.till:A") as broker:
        assert broker.run().output[:2] == [3, "shop.till"]
        assert broker.of(wire.Spawn)[0].target == "shop.till:A"


@pytest.mark.parametrize("channel", [None, "x", "77"])
def test_without_a_node_it_says_so(channel: str | None) -> None:
    env = {"PYTHONPATH": os.pathsep.join(sys.path)} | ({"HOLDFAST_CHANNEL": channel} if channel else {})
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.agent.worker"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 76
    assert "HOLDFAST_CHANNEL" in done.stderr
    assert "Traceback" not in done.stderr


def test_starting_loads_nothing_heavy(run: Run) -> None:
    text = """
        import sys
        @agent
        class A:
            @workflow
            def run(self, ctx):
                heavy = "asyncio pydantic typing_extensions dataclasses inspect socket threading random logging"
                return [name for name in heavy.split() if name in sys.modules]
    """
    assert run(text.replace("from holdfast import *", "")).output == []


def test_importing_holdfast_loads_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import holdfast; print(sorted(set(sys.modules) - before))"
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['__future__', 'holdfast']"


def test_two_runs_of_the_same_code_say_the_same(start: Run) -> None:
    text = """
        @agent
        class A:
            @workflow
            def run(self, ctx):
                names = {f"name-{n}" for n in range(20)}
                got = [ctx.call(self.one, name) for name in names]
                got.append(ctx.random.sample(range(100), 5))
                got.append(ctx.gather(*[lambda: ctx.random.random() for _ in range(3)]))
                got.append(ctx.llm.classify(got[0], ["a", "b"]))
                return got
            def one(self, name):
                return name
    """
    answers = {"llm.classify": model(value="a"), "random": lambda broker, id_, message: len(id_)}
    first, second = (start(text, answers=answers).run() for _ in range(2))
    assert first.output == second.output
    said = [[m for m in broker.messages if not isinstance(m, wire.Ready)] for broker in (first, second)]
    threads = wire.Branch | wire.Sample
    assert [m for m in said[0] if not isinstance(m, threads)] == [m for m in said[1] if not isinstance(m, threads)]
    assert first.recorded == second.recorded


def test_a_socket_that_is_no_channel_is_never_read(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        env = {"PYTHONPATH": os.pathsep.join(sys.path), "HOLDFAST_CHANNEL": str(file.fileno())}
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.agent.worker"],
            env=env,
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 76
    assert "no socket" in done.stderr


def test_a_process_of_an_author_that_outlives_it_does_not_hold_the_channel(start: Run) -> None:
    text = """
        import subprocess, sys
        @agent
        class A:
            @workflow
            def run(self, ctx):
                subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=0, close_fds=False)
                return 1
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        broker = start(text).run()
        assert broker.output == 1
        broker.outer.settimeout(60)
        assert broker.outer.recv(1) == b""
