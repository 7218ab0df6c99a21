"""A kill holds: from any process, beside a busy, stopped or missing node, over restarts, until it is lifted."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import pytest

from holdfast.sandbox import procs, registry

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENTS = """
    import os
    import time
    from holdfast import agent, workflow

    def hold(ctx):
        if "quick" in ctx.input:
            return "ran"
        ctx.call(daemon)
        ctx.call(wait)

    def daemon():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    time.sleep(3600)
            os._exit(0)
        os.wait()
        return "holding"

    def wait():
        time.sleep(3600)

    @agent(name="victim")
    class Victim:
        @workflow
        def main(self, ctx):
            return hold(ctx)

        @workflow
        def other(self, ctx):
            return hold(ctx)

        @workflow
        def asks(self, ctx):
            ctx.approve("go on?")

    @agent(name="caller")
    class Caller:
        @workflow
        def main(self, ctx):
            ctx.tool("hang", who=ctx.tenant)

    @agent(name="bystander")
    class Bystander:
        @workflow
        def main(self, ctx):
            if "quick" in ctx.input:
                return "ran"
            ctx.call(daemon)
            return ctx.wait_signal("go")

        @workflow
        def parent(self, ctx):
            try:
                ctx.spawn(Victim, workflow="asks").result()
            except Exception as error:
                return str(error)
"""


HANG = """
    import os
    import time
    from pathlib import Path

    def hang(who):
        Path(__file__).with_name(f"{who}.pid").write_text(str(os.getpid()))
        time.sleep(3600)
"""


@pytest.fixture
def place(lab: Any) -> Any:
    lab.write("agents.py", AGENTS)
    lab.settings("[node]\ngrace = '50ms'\nlease = '60s'\n[connectors.hang]\ncall = 'hang.py:hang'\n")
    lab.write("hang.py", HANG)
    with lab.service() as service:
        service.create_tenant("acme", "eu-west", principal=lab.person)
    return lab


def holds(lab: Any, run: str) -> registry.Entry:
    """A run that holds its daemon: its step `wait` has begun. Gives its boundary."""
    lab.reached(run, "intent", 2)
    (entry,) = [entry for entry in registry.entries(lab.home) if entry.label.run == run]
    return entry


def inside(entry: registry.Entry) -> list[int]:
    """Every process of a boundary, found by its pid namespace, whoever their parents are."""
    assert entry.init is not None
    try:
        wanted = os.readlink(f"/proc/{entry.init.pid}/ns/pid")
    except OSError:
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == wanted:
                found.append(int(name))
        except OSError:
            continue
    return found


def alive(processes: list[procs.Process | None]) -> list[procs.Process]:
    return [process for process in processes if process is not None and procs.alive(process)]


QUICK = {"quick": True}
SCOPES = ("run", "workflow", "tenant", "agent")
NAMES = {"workflow": ["victim.other"], "agent": ["victim"], "tenant": ["acme"]}


def test_every_scope_ends_its_runs_and_no_others(place: Any) -> None:
    with place.serving():
        runs = {
            "run": place.submit("agents.py:Victim", workflow="main"),
            "workflow": place.submit("agents.py:Victim", workflow="other"),
            "agent": place.submit("agents.py:Victim", workflow="main"),
            "tenant": place.submit("agents.py:Victim", workflow="main", tenant="acme"),
            "neighbour": place.submit("agents.py:Bystander", workflow="main", tenant="acme"),
            "bystander": place.submit("agents.py:Bystander", workflow="main"),
        }
        entries = {scope: holds(place, runs[scope]) for scope in SCOPES}
        for name in ("neighbour", "bystander"):
            place.until(lambda name=name: place.view(runs[name]).status == "suspended", f"the {name} waits")
        left = dict(runs)
        for scope in SCOPES:
            run = left.pop(scope)
            processes = [procs.identify(pid) for pid in inside(entries[scope])]
            assert len(alive(processes)) >= 3
            killed = place.json("kill", scope, *NAMES.get(scope, [run]), "--reason", f"stop the {scope}")
            assert not alive(processes), "the command itself ends them, a daemon too"
            assert killed["ended"] >= 1
            view = place.ended(run, "killed")
            assert (view.error_code, view.rule) == ("killed", f"kill:{killed['id']}")
            assert f"stop the {scope}" in view.error
            if scope == "tenant":
                place.ended(left.pop("neighbour"), "killed")
            assert {place.view(other).status for other in left.values()} <= {"running", "suspended"}
            again: dict[str, Any] = {"workflow": "other" if scope == "workflow" else "main"}
            if scope == "tenant":
                again["tenant"] = "acme"
            # Nothing new can be of a run that ended; every other scope refuses what is new.
            wanted = "completed" if scope == "run" else "refused"
            assert place.run("agents.py:Victim", QUICK, **again).status == wanted
            if scope != "tenant":
                assert place.run("agents.py:Bystander", QUICK, workflow="main").status == "completed"
            with place.service() as service:
                service.lift(killed["id"], principal=place.person)
            assert place.run("agents.py:Victim", QUICK, **again).output == "ran"
        fleet = place.json("kill", "fleet", "--reason", "all of it")
        assert place.ended(runs["bystander"], "killed").rule == f"kill:{fleet['id']}"
    place.verify()


def test_a_refused_run_says_why_and_lifting_lets_it_start(place: Any) -> None:
    killed = place.json("kill", "agent", "victim", "--reason", "wrong rates")
    arguments = ("run", "agents.py:Victim", "--workflow", "main", "--input", '{"quick": true}')
    refused = place.json(*arguments, status=6)
    assert (refused["status"], refused["output"]) == ("refused", None)
    assert "wrong rates" in refused["error"]
    assert f"kill lift {killed['id']}" in refused["error"]
    assert place.json("runs", "resume", refused["run_id"], status=6)["status"] == "refused"
    (listed,) = place.json("kill", "list")["kills"]
    assert (listed["id"], listed["scope"], listed["name"]) == (killed["id"], "agent", "victim")
    place.json("kill", "lift", killed["id"])
    assert place.json("kill", "list")["kills"] == []
    assert place.json(*arguments)["output"] == "ran"
    place.verify()


def test_without_a_node_waiting_and_new_runs_are_killed_in_the_record(place: Any) -> None:
    waits = place.run("agents.py:Victim", workflow="asks")
    assert waits.status == "suspended"
    begun = place.submit("agents.py:Victim", QUICK, workflow="main")
    parent = place.run("agents.py:Bystander", workflow="parent")
    assert parent.status == "suspended"
    with place.service() as service:
        killed = service.kill("agent", "victim", "no more", principal=place.person)
        assert service.run(waits.run_id).status == service.run(begun).status == "killed"
        assert service.approvals() == []
    told = place.drive(parent.run_id)
    assert told.status == "completed"
    assert "killed" in told.output
    assert "no more" in told.output
    place.verify()
    assert place.drive(waits.run_id).rule == f"kill:{killed.id}"


def test_a_kill_outlives_restarts(place: Any) -> None:
    with place.serving() as node:
        run = place.submit("agents.py:Victim", workflow="main")
        holds(place, run)
        node.kill()
        node.wait()
    with place.service() as service:
        service.kill("agent", "victim", "over restarts", principal=place.person)
    with place.serving():
        place.ended(run, "killed")
        refused = place.submit("agents.py:Victim", QUICK, workflow="main")
        assert place.view(refused).status == "refused"
        other = place.submit("agents.py:Bystander", QUICK, workflow="main")
        place.ended(other, "completed")
    assert place.run("agents.py:Victim", QUICK, workflow="main").status == "refused"
    place.verify()


def test_beside_a_stopped_node(place: Any) -> None:
    """The command ends the trees itself; a node that comes back records it, and nothing else lands."""
    with place.serving() as node:
        run = place.submit("agents.py:Victim", workflow="main")
        entry = holds(place, run)
        processes = [procs.identify(pid) for pid in inside(entry)]
        os.kill(node.pid, signal.SIGSTOP)
        try:
            before = len(place.events(run))
            killed = place.json("kill", "run", run, "--reason", "it hangs")
            assert killed["ended"] == 1
            assert not alive(processes)
            assert len(place.events(run)) == before, "the stream is the node's, which does not answer"
        finally:
            os.kill(node.pid, signal.SIGCONT)
        assert place.ended(run, "killed").rule == f"kill:{killed['id']}"
        after = [event.kind for event in place.events(run)[before:]]
        assert after[-1] == "run.killed"
        assert not {"intent", "outcome", "run.started"} & set(after)
    place.verify()


def test_a_tenants_connectors_end_with_it_and_no_others(place: Any) -> None:
    """Also beside a node that does not answer: the command finds them itself."""
    place.settings(
        (place.folder / "holdfast.toml").read_text() + "[tenants.acme.connectors.hang]\ncall = 'hang.py:hang'\n"
    )

    def process(tenant: str) -> procs.Process:
        path = place.folder / f"{tenant}.pid"
        found = procs.identify(int(place.until(lambda: path.exists() and path.read_text(), f"{tenant} calls")))
        assert found is not None
        return found

    with place.serving() as node:
        runs = {tenant: place.submit("agents.py:Caller", tenant=tenant) for tenant in ("acme", "default")}
        calls = {tenant: process(tenant) for tenant in runs}
        os.kill(node.pid, signal.SIGSTOP)
        try:
            with place.service() as service:
                service.kill("tenant", "acme", "stop", principal=place.person)
            assert not procs.alive(calls["acme"])
            assert procs.alive(calls["default"])
        finally:
            os.kill(node.pid, signal.SIGCONT)
        place.ended(runs["acme"], "killed")
        assert place.view(runs["default"]).status == "running"
        with place.service() as service:
            service.kill("fleet", "", "stop", principal=place.person)
        place.ended(runs["default"], "killed")
        place.until(lambda: not procs.alive(calls["default"]), "the other tenant's connector ends with the fleet")
    place.verify()


def test_a_drill_kills_a_canary_of_its_own(place: Any) -> None:
    with place.serving():
        bystander = place.submit("agents.py:Bystander", workflow="main")
        place.until(lambda: place.view(bystander).status == "suspended", "the bystander waits")
        drill = place.json("kill", "drill")
        assert drill["ms"] > 0
        assert place.ended(drill["run_id"], "killed").agent == "holdfast-canary"
        assert place.view(bystander).status == "suspended"
        assert place.json("kill", "list")["kills"] == []
    place.verify()


BANK = """
    import os
    from pathlib import Path

    BOOKS = Path(__file__).with_name("books.log")

    def write(*words):
        descriptor = os.open(BOOKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
        os.fsync(descriptor)
        os.close(descriptor)

    def book(amount, idempotency_key):
        write("book", amount, idempotency_key)
        return {"entry": amount * 10}

    def unbook(amount, result, idempotency_key):
        write("unbook", amount, result["entry"], idempotency_key)
"""
BOOKER = """
    from holdfast import agent, tool, workflow

    @agent(name="booker")
    class Booker:
        @workflow
        def main(self, ctx):
            for amount in (1, 2, 3):
                ctx.tool("book", amount=amount)
            ctx.call(self.reserve, 7)
            ctx.tool("book", amount=4)
            return ctx.wait_signal("go")

        @tool(effect="compensable", undo="release")
        def reserve(self, seats):
            return seats

        def release(self, seats):
            raise AssertionError("the kill has ended this code")
"""
BOOKING = """
    [node]
    grace = "50ms"
    [connectors.book]
    call = "bank.py:book"
    effect = "compensable"
    undo = "unbook"
    [connectors.unbook]
    call = "bank.py:unbook"
    effect = "idempotent"
"""
UNDONE = ["unbook 4 40", "unbook 3 30", "unbook 2 20", "unbook 1 10"]


@pytest.fixture
def booking(lab: Any) -> Any:
    lab.write("bank.py", BANK)
    lab.write("booker.py", BOOKER)
    lab.settings(BOOKING)
    return lab


def undos(lab: Any) -> list[list[str]]:
    lines = (lab.folder / "books.log").read_text().splitlines()
    return [line.split() for line in lines if line.startswith("unbook")]


def undone(lab: Any, run: str, killed: str) -> None:
    """Each connector's effect was undone once, latest first, under a key of its own; the author's tool was not."""
    made = undos(lab)
    assert [" ".join(words[:3]) for words in made] == UNDONE
    assert len({words[3] for words in made}) == 4
    (end,) = lab.events(run, "run.killed")
    assert end.data["compensate"] == killed
    assert end.data["undone"] == ["book.4", "book.3", "book.2", "book.1"]
    ((left),) = end.data["left"]
    assert left["id"] == "reserve.1"
    assert "agent's own code" in left["why"]
    keys = {e.data["key"] for e in lab.events(run, "intent") if e.data["action"]["name"] == "unbook"}
    assert keys == {words[3] for words in made}
    lab.verify()


@pytest.mark.parametrize("served", [False, True])
def test_a_kill_that_compensates_undoes_what_connectors_did(booking: Any, served: bool) -> None:
    def kill(run: str) -> None:
        killed = booking.json("kill", "agent", "booker", "--reason", "wrong rates", "--compensate")
        assert booking.ended(run, "killed").rule == f"kill:{killed['id']}"
        undone(booking, run, killed["id"])
        with booking.service() as service:
            service.kill("run", run, "twice", principal=booking.person, compensate=True)
        undone(booking, run, killed["id"])

    if served:
        with booking.serving():
            run = booking.submit("booker.py:Booker")
            booking.until(lambda: booking.view(run).status == "suspended", "it waits")
            kill(run)
    else:
        kill(booking.run("booker.py:Booker").run_id)


def test_a_node_that_dies_while_it_undoes_is_followed_by_one_that_goes_on(booking: Any) -> None:
    run = booking.run("booker.py:Booker").run_id
    with booking.serving(["-m", "holdfast.testing.halt", str(booking.home), "KILL", "intent", "unbook", "2"]) as node:
        killed = booking.json("kill", "run", run, "--reason", "wrong rates", "--compensate")
        node.wait(90)
    assert booking.view(run).status == "running"
    assert [" ".join(words[:3]) for words in undos(booking)] == UNDONE[:1]
    with booking.service() as service:
        service.lift(killed["id"], principal=booking.person)
    # The kill is lifted, and still it has ended this run: what it began is brought to its end.
    assert booking.drive(run).status == "killed"
    undone(booking, run, killed["id"])


def test_an_undo_that_a_policy_refuses_is_left_and_said(booking: Any) -> None:
    policies = """
    - id: no-undo
      category: tool_allowlist
      with: {deny: [unbook]}
    """
    run = booking.run("booker.py:Booker", policies=policies).run_id
    with booking.service() as service:
        service.kill("run", run, "wrong rates", principal=booking.person, compensate=True)
    (end,) = booking.events(run, "run.killed")
    assert end.data["undone"] == []
    assert [left["id"] for left in end.data["left"]] == ["book.4", "reserve.1", "book.3", "book.2", "book.1"]
    assert end.data["left"][0]["why"] == "tool unbook is on the list of denied tools"
    assert undos(booking) == []
    booking.verify()
