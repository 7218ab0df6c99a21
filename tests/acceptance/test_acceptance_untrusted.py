"""A worker that lies, floods, stalls or dies harms its own run only."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

# What follows speaks to the node past the worker: it finds the channel as any code inside could.
LIAR = """
    import os
    import socket
    import stat
    import struct
    import threading
    import msgspec
    from holdfast import agent, workflow

    def channel():
        for fd in range(3, 1024):
            try:
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    continue
            except OSError:
                continue
            # The broker's comes before the egress's; the relay's listener is of another family.
            found = socket.socket(fileno=os.dup(fd))
            if found.family == socket.AF_UNIX:
                return found
        raise AssertionError("there is no channel")

    def frame(*parts):
        body = msgspec.msgpack.encode(list(parts))
        return struct.pack(">I", len(body)) + body

    def call(number, scope=0, kind="step", name="lie"):
        return frame("call", number, scope, kind, name, [b"{}", 0])

    def garbage(sock):
        sock.sendall(os.urandom(4096))

    def huge(sock):
        sock.sendall(struct.pack(">I", 1 << 30))

    def empty(sock):
        sock.sendall(struct.pack(">I", 0))

    def unknown(sock):
        sock.sendall(frame("sudo", 1))

    def forged_answer(sock):
        sock.sendall(frame("reply", 1, [b"{}", 0], False))

    def wrong_types(sock):
        sock.sendall(frame("call", "one", 0, "step", "lie", [b"{}", 0]))

    def unknown_kind(sock):
        sock.sendall(call(100, kind="sudo"))

    def reused(sock):
        sock.sendall(call(100) + call(100))

    def falling(sock):
        sock.sendall(call(100) + call(99))

    def strange_scope(sock):
        sock.sendall(call(100, scope=77))

    def strange_close(sock):
        sock.sendall(frame("close", 100, [b"null", 0], "", "", "", ""))

    def closed_twice(sock):
        ended = frame("close", 1, [b"null", 0], "", "", "", "")
        sock.sendall(ended + ended)

    def ready_again(sock):
        sock.sendall(frame("ready", 1, 1, "3.11"))

    def loaded_again(sock):
        sock.sendall(frame("loaded", "liar", "main", {}))

    def blob_that_never_came(sock):
        sock.sendall(frame("call", 100, 0, "step", "lie", [b"", 9]))

    def no_json(sock):
        sock.sendall(frame("call", 100, 0, "step", "lie", [b"{no json", 0]))

    def no_object(sock):
        sock.sendall(frame("call", 100, 0, "step", "lie", [b"[]", 0]))

    def model_operation(sock):
        sock.sendall(frame("llm", 100, 0, "jailbreak", [b"{}", 0], False, [1, 1, 1.0, 1], 1))

    def model_request(sock):
        sock.sendall(frame("llm", 100, 0, "chat", [b'{"messages": 7}', 0], False, [1, 1, 1.0, 1], 1))

    def endless_wait(sock):
        sock.sendall(frame("sleep", 100, 0, -1))

    def quorum(sock):
        sock.sendall(frame("approve", 100, 0, [b"1", 0], [], 0, 1, "deny", []))

    def deep(sock):
        for number in range(100, 200):
            sock.sendall(frame("branch", number, number - 1 if number > 100 else 0, 1, 0))
        sock.sendall(call(300, scope=199))

    def many_scopes(sock):
        for number in range(100, 20000):
            sock.sendall(frame("branch", number, 0, 1, number))

    def large_values(sock):
        for number in range(1, 70):
            for _ in range(8):
                sock.sendall(frame("blob", number, b"x" * (256 << 10), False))

    def half_of_it(sock):
        sock.sendall(call(100)[:-3])

    def flood(sock):
        sock.settimeout(2)
        try:
            for number in range(100, 10100):
                sock.sendall(frame("sample", number, 0, "uuid", "", 0))
        except TimeoutError:
            pass

    def leaves(sock):
        os._exit(3)

    def aborts(sock):
        os.abort()

    def closes(sock):
        sock.shutdown(socket.SHUT_RDWR)
        for fd in range(3, 1024):
            try:
                os.close(fd)
            except OSError:
                pass
        while True:
            pass

    def eats(sock):
        held = []
        while True:
            held.append(bytearray(16 << 20))

    @agent(name="liar")
    class Liar:
        @workflow
        def main(self, ctx):
            ctx.call(self.lie, ctx.input.how)
            return "the lie was not noticed"

        def lie(self, how):
            globals()[how](channel())
            threading.Event().wait()

    @agent(name="honest")
    class Honest:
        @workflow
        def main(self, ctx):
            total = 0
            for number in range(5):
                total += ctx.call(self.add, number)
            return total

        def add(self, number):
            return number
"""
BROKEN = {
    "garbage": "",
    "huge": "frame of 1073741824 bytes",
    "empty": "frame of 0 bytes",
    "unknown": "does not decode",
    "forged_answer": "does not decode",
    "wrong_types": "does not decode",
    "unknown_kind": "no kind of step",
    "reused": "numbers must rise",
    "falling": "numbers must rise",
    "strange_scope": "scope 77, which is not open",
    "strange_close": "call 100 was closed and is not open",
    "closed_twice": "call 1 was closed and is not open",
    "ready_again": "ready was said twice",
    "loaded_again": "loaded was said twice",
    "blob_that_never_came": "blob 9 was named before it was sent",
    "no_json": "not JSON",
    "no_object": "must be an object",
    "model_operation": "no model operation",
    "model_request": "does not decode",
    "endless_wait": "at most a year",
    "quorum": "out of bounds",
    "deep": "nested deeper than 64",
    "many_scopes": "too many scopes",
    "large_values": "large values under way exceed",
}
DEAD = {"leaves": "exited with status 3", "aborts": "crashed", "eats": "ran out of memory", "closes": "killed"}


@pytest.fixture
def place(lab: Any) -> Any:
    lab.write("liar.py", LIAR)
    lab.settings("[node]\ngrace = '50ms'\nconcurrency = 4\n[sandbox]\nmemory = '96MiB'\n")
    return lab


def test_what_breaks_the_protocol_fails_its_own_run(place: Any) -> None:
    with place.serving():
        runs = {how: place.submit("liar.py:Liar", {"how": how}) for how in BROKEN}
        honest = [place.submit("liar.py:Honest") for _ in range(3)]
        for run in honest:
            assert place.ended(run, "completed").output == 10
        for how, run in runs.items():
            view = place.ended(run, "failed")
            assert view.error_code == "protocol", (how, view)
            assert view.error.startswith("the worker broke the protocol: "), (how, view)
            assert BROKEN[how] in view.error, (how, view.error)
            assert "\n" not in view.error
            assert len(view.error) < 400
        assert place.ended(place.submit("liar.py:Honest"), "completed").output == 10
    place.verify()


def test_what_dies_is_tried_again_and_then_failed(place: Any) -> None:
    with place.serving():
        runs = {how: place.submit("liar.py:Liar", {"how": how}) for how in DEAD}
        assert place.ended(place.submit("liar.py:Honest"), "completed").output == 10
        for how, run in runs.items():
            view = place.ended(run, "failed")
            if how == "eats" and view.error_code == "step_failed":
                # Without a cgroup the limit is one of address space: the allocation fails, and the code lives on.
                assert "MemoryError" in view.error
                continue
            assert view.error_code == "worker_lost", (how, view)
            assert DEAD[how] in view.error, (how, view)
            assert place.kinds(run).count("worker.lost") == 3
    place.verify()


def test_a_flood_and_silence_hold_up_nobody_else(place: Any) -> None:
    """What the node would have to keep for a worker that does not read, it does not read; and it waits for no one."""
    idle = """
    - id: idle
      category: idle_limit
      with: {limit: 8s}
    """
    with place.serving():
        silent = place.submit("liar.py:Liar", {"how": "half_of_it"}, policies=idle)
        flooding = place.submit("liar.py:Liar", {"how": "flood"}, policies=idle)
        assert place.ended(place.submit("liar.py:Honest"), "completed").output == 10
        view = place.ended(silent, "terminated")
        assert (view.error_code, view.rule) == ("terminated", "idle")
        # It may ask for so much, if it likes; what it does not take it waits for by itself.
        assert place.ended(flooding, "terminated").rule == "idle"
        assert place.ended(place.submit("liar.py:Honest"), "completed").output == 10
    place.verify()
