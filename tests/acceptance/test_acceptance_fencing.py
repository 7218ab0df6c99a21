"""Two nodes on one PostgreSQL: of one that was stopped between an intent's commit and its send, nothing more comes."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

BANK = """
    import os
    from pathlib import Path

    BOOKS = Path(__file__).with_name("books.log")

    def write(*words):
        descriptor = os.open(BOOKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
        os.close(descriptor)

    def note(text, idempotency_key):
        write(os.environ["NODE_NAME"], "note", idempotency_key)
        return text

    def pay(amount, idempotency_key):
        write(os.environ["NODE_NAME"], "pay", idempotency_key)
        return amount
"""
AGENT = """
    from holdfast import agent, workflow

    @agent(name="fenced")
    class Fenced:
        @workflow
        def main(self, ctx):
            ctx.call(self.before)
            how = ctx.input.how
            if how == "generate":
                found = ctx.llm.generate("which node asks?")
            elif how == "note":
                found = ctx.tool("note", text="once")
            else:
                found = ctx.tool("pay", amount=7)
            return [found, ctx.call(self.after)]

        def before(self):
            return 1

        def after(self):
            return 2
"""
SETTINGS = """
    [store]
    url = "{url}"
    [node]
    grace = "50ms"
    lease = "4s"
    dial = "1s"
    [connectors.note]
    call = "bank.py:note"
    effect = "idempotent"
    [connectors.pay]
    call = "bank.py:pay"
"""


@pytest.fixture
def place(lab: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    # As on two machines: each node has a home of its own, and the master key comes from outside.
    monkeypatch.setenv("HOLDFAST_MASTER_KEY", base64.b64encode(secrets.token_bytes(32)).decode())
    lab.write("bank.py", BANK)
    lab.write("fenced.py", AGENT)
    lab.settings(SETTINGS.format(url=postgres.create()) + lab.model)
    return lab


@pytest.mark.parametrize("how", ["generate", "note", "pay"])
def test_nothing_of_a_node_that_lost_its_lease_lands_or_leaves(
    place: Any, model_server: Callable[..., Any], how: str
) -> None:
    older, younger = str(place.folder / "older"), str(place.folder / "younger")
    server = model_server([{"text": "the younger"}])
    halting = ["-m", "holdfast.testing.halt", older, "STOP", "intent", how, "1"]
    with place.serving(halting, HOLDFAST_HOME=older, NODE_NAME="older") as stopped:
        run = place.submit("fenced.py:Fenced", {"how": how})
        intents = place.reached(run, "intent", 2)
        assert intents[-1].data["action"]["name"] == how
        place.until(lambda: state_of(stopped.pid) == "T", "the older node has stopped itself")
        assert len(server.requests) == 0
        assert books(place) == []
        (mine,) = {event.node for event in place.events(run, "intent")}
        with place.serving(HOLDFAST_HOME=younger, NODE_NAME="younger"):
            if how == "pay":
                # Whether the irreversible call had left, the younger node cannot know: it asks.
                place.until(lambda: place.view(run).status == "in_doubt", "the run is in doubt")
                with place.service() as service:
                    service.resolve(run, "retry", b"null", principal=place.person)
            assert place.ended(run, "completed").output == [
                {"generate": "the younger", "note": "once", "pay": 7}[how],
                2,
            ]
            events = place.events(run)
            requests = [request.headers for request in server.requests]
            written = books(place)
            os.kill(stopped.pid, signal.SIGCONT)
            # It lives on: its lease is new, and it drives what comes next when the other one is gone.
            fresh = place.until(lambda: node_row(place, mine), "the older node has registered again")
            assert fresh.lease_until > events[-1].at
        again = place.submit("fenced.py:Fenced", {"how": "note"})
        assert place.ended(again, "completed").output == ["once", 2]
        assert {event.node for event in place.events(again, "intent")} == {mine}
    assert place.events(run) == events, "not one row"
    assert [request.headers for request in server.requests] == requests, "not one request"
    assert len(requests) == (how == "generate")
    assert [line for line in books(place) if line in written] == written
    key = intents[-1].data["key"]
    wanted = [] if how == "generate" else [f"younger {how} {key}"]
    assert [line for line in books(place) if key in line] == wanted, "not one call"
    place.home = place.folder / "younger"
    place.verify()


@pytest.mark.parametrize("checked", [True, False])
def test_a_node_stopped_at_the_send_itself_is_held_back_by_its_lease_alone(
    place: Any, model_server: Callable[..., Any], checked: bool
) -> None:
    # Without the check the request leaves: so it is the check that holds, and this test can fail.
    older, younger = str(place.folder / "older"), str(place.folder / "younger")
    server = model_server([{"text": "the younger"}, {"text": "late"}])
    halting = ["-m", "holdfast.testing.halt", older, "STOP", "dial", "", "1", "after" if checked else "unchecked"]
    with place.serving(halting, HOLDFAST_HOME=older, NODE_NAME="older") as stopped:
        run = place.submit("fenced.py:Fenced", {"how": "generate"})
        place.until(lambda: state_of(stopped.pid) == "T", "the older node has stopped itself")
        (mine,) = {event.node for event in place.events(run, "intent")}
        with place.serving(HOLDFAST_HOME=younger, NODE_NAME="younger"):
            assert place.ended(run, "completed").output == ["the younger", 2]
            events = place.events(run)
            assert len(server.requests) == 1
            os.kill(stopped.pid, signal.SIGCONT)
            place.until(lambda: node_row(place, mine), "the older node has registered again")
            if not checked:
                place.until(lambda: len(server.requests) == 2, "the request of the unchecked node has left")
        # Work that the older one drives to its end: whatever it still had to send would have left by now.
        again = place.submit("fenced.py:Fenced", {"how": "note"})
        assert place.ended(again, "completed").output == ["once", 2]
    assert len(server.requests) == (1 if checked else 2)
    assert place.events(run) == events, "not one row, whatever was sent"


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()


def books(lab: Any) -> list[str]:
    path = lab.folder / "books.log"
    return path.read_text().splitlines() if path.exists() else []


def node_row(lab: Any, name: str) -> Any:
    """The node's registration, once it is a living one again."""
    with lab.service() as service:
        now = service.store.now()
        return next((row for row in service.store.nodes() if row.node == name and row.lease_until > now), None)
