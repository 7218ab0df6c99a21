"""A serving node keeps boundaries ready: a run gets one that nobody had, with its code and nothing of another's."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from holdfast.node.dispatch.local import ask
from holdfast.sandbox import procs, registry

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

AGENT = """
    import os, time
    from holdfast import agent, workflow

    VERSION = {version}
    SEEN = []
    print("loaded", VERSION)

    @agent(name="looker")
    class Looker:
        @workflow
        def run(self, ctx):
            return ctx.call(self.look)

        def look(self):
            # What a run before this one would have left behind in the same boundary.
            before = [*SEEN, *os.listdir("."), *(name for name in os.listdir("/tmp") if name == "temporary")]
            SEEN.append("module")
            open("workspace", "w").close()
            open("/tmp/temporary", "w").close()
            os.environ["LEFT"] = "variable"
            return {{
                "version": VERSION,
                "before": before,
                "variables": {{name: value for name, value in os.environ.items() if "HOLDFAST" in name}},
                "namespace": os.stat("/proc/self/ns/pid").st_ino,
                "uid": os.getuid(),
            }}

        @workflow
        def stay(self, ctx):
            ctx.call(self.sleep)

        def sleep(self):
            time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def one_for_each_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SANDBOX_POOL", "1")


def waiting(lab: Any) -> list[registry.Entry]:
    """Boundaries that no run has, once the node says that as many are ready."""
    found = [entry for entry in registry.entries(lab.home) if not entry.label.run and entry.init is not None]
    said = [json.loads(answer)["ready_boundaries"] for answer in ask(lab.home)]
    return found if found and said == [len(found)] else []


def look(lab: Any) -> tuple[str, dict[str, Any], bool]:
    """A run that completes: its id, its output, and whether its boundary was ready ahead."""
    run = lab.submit("looker.py:Looker", workflow="run")
    view = lab.ended(run, "completed")
    [started] = lab.events(run, "run.started")
    return run, view.output, bool(started.data.get("warm"))


def test_two_runs_share_nothing_and_each_finds_its_own_name(lab: Any) -> None:
    lab.write("looker.py", AGENT.format(version=1))
    with lab.serving():
        first, cold, warm = look(lab)
        assert not warm
        seen = [cold]
        for _ in range(2):
            [entry] = lab.until(lambda: waiting(lab), "one boundary is ready")
            assert (entry.label.tenant, entry.label.agent, entry.label.workflow) == ("default", "looker", "")
            run, output, warm = look(lab)
            assert warm
            assert output["variables"] == {"HOLDFAST_RUN_ID": run}
            assert first not in str(output)
            seen.append(output)
            # What its code printed when it was imported is in the record of the run that has it.
            assert [event.data["level"] for event in lab.events(run, "log")] == ["info"]
    assert [output["before"] for output in seen] == [[], [], []]
    assert len({output["namespace"] for output in seen}) == 3
    if os.geteuid() == 0:
        assert all(output["uid"] != 0 for output in seen)
    assert registry.entries(lab.home) == []
    lab.verify()


def test_new_code_is_what_runs(lab: Any) -> None:
    lab.write("looker.py", AGENT.format(version=1))
    with lab.serving():
        look(lab)
        [old] = lab.until(lambda: waiting(lab), "one boundary is ready")
        lab.write("looker.py", AGENT.format(version=2))
        _, output, warm = look(lab)
        assert (output["version"], warm) == (2, False)
        lab.until(lambda: [one for one in waiting(lab) if one.id != old.id], "one of the new code is ready")
        lab.until(lambda: old.init is not None and not procs.alive(old.init), "that of the old code has ended")
        _, output, warm = look(lab)
        assert (output["version"], warm) == (2, True)


def test_a_kill_ends_those_that_wait_and_holds(lab: Any) -> None:
    lab.write("looker.py", AGENT.format(version=1))
    with lab.serving():
        look(lab)
        [entry] = lab.until(lambda: waiting(lab), "one boundary is ready")
        put = lab.json("kill", "agent", "looker", "--reason", "test")
        assert put["ended"] == 1
        assert entry.init is not None
        assert not procs.alive(entry.init)
        lab.until(lambda: not registry.entries(lab.home), "nothing is left of it")
        refused = lab.submit("looker.py:Looker", workflow="run")
        assert lab.view(refused).status != "completed"
        lab.json("kill", "lift", put["id"])
        look(lab)
        lab.until(lambda: waiting(lab), "one boundary is ready again")


def test_a_kill_of_the_run_ends_a_boundary_that_was_ready_before_it(lab: Any) -> None:
    lab.write("looker.py", AGENT.format(version=1))
    with lab.serving():
        look(lab)
        [entry] = lab.until(lambda: waiting(lab), "one boundary is ready")
        run = lab.submit("looker.py:Looker", workflow="stay")
        lab.reached(run, "intent")
        [mine] = [one for one in registry.entries(lab.home) if one.label.run == run]
        assert mine.id == entry.id
        assert lab.json("kill", "run", run, "--reason", "test")["ended"] == 1
        lab.ended(run, "killed")
        assert mine.init is not None
        assert not procs.alive(mine.init)


def test_none_is_kept_where_none_is_asked_for(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_SANDBOX_POOL")
    lab.write("looker.py", AGENT.format(version=1))
    with lab.serving():
        assert [look(lab)[2] for _ in range(2)] == [False, False]
        assert waiting(lab) == []
