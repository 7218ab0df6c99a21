"""What becomes of runs that go wrong: kept, named, asked about, tried another way, ended with the right status."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.sandbox import registry

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


def test_code_that_diverges_is_kept_and_named(desk: Any) -> None:
    view = desk.start("diverges")
    assert view.status == "suspended"
    diverged = desk.signal(view.run_id, "go")
    assert diverged.status == "suspended"
    recorded, asked = desk.steps(view.run_id)[0], diverged.error.split()[4]
    assert asked.startswith("step_")
    assert asked != recorded
    assert recorded in diverged.error
    assert "runs resolve" in diverged.error
    assert [pending.kind for pending in diverged.pending] == ["resolve"]
    shown = desk.json("runs", "resolve", view.run_id, "--fail")
    assert shown["resolved"] == "fail"
    ended = desk.json("runs", "resume", view.run_id, status=1)
    assert ended["status"] == "failed"
    assert recorded in ended["error"]
    desk.verify()


@pytest.mark.parametrize("how", ["done", "retry", "fail"])
def test_an_irreversible_call_without_an_answer_is_in_doubt(desk: Any, how: str) -> None:
    view = desk.start("pays")
    assert view.status == "in_doubt"
    key = desk.events(view.run_id, "intent")[0].data["key"]
    assert key in view.error
    assert (desk.folder / "books.log").read_text() == f"pay 7 {key}\n"
    assert desk.drive(view.run_id).status == "in_doubt"
    with desk.service() as service:
        service.resolve(view.run_id, how, b'{"paid":7}', principal=desk.person)
    ended = desk.drive(view.run_id)
    assert ended.status == "completed", ended
    books = (desk.folder / "books.log").read_text().splitlines()
    assert books == [f"pay 7 {key}"] * (2 if how == "retry" else 1), "the key is the same"
    if how == "fail":
        assert "resolved as failed by alice" in ended.output
    else:
        assert ended.output == {"paid": 7}
    desk.verify()


def test_what_cannot_be_recorded_is_refused_with_its_place(desk: Any) -> None:
    view = desk.start("large")
    assert view.status == "completed", view
    large, mixed, other, number, raw = view.output
    assert "bytes of JSON; at most" in large
    assert "ctx.files" in large
    assert mixed == "ok" or "$" in mixed
    assert "holds a builtins.object at $" in other
    assert "holds nan at $" in number
    assert "holds bytes at $" in raw
    desk.verify()


def test_without_a_key_the_error_says_which_to_set(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    view = desk.start("asks_model")
    assert view.status == "failed"
    assert "ANTHROPIC_API_KEY" in view.error
    assert "\n" not in view.error


def test_denied_and_terminated_leave_with_their_statuses(desk: Any, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "ok", "usage": {"input": 10, "output": 100}}])
    deny = """
    - id: no-payments
      category: tool_allowlist
      with: {allow: []}
    """
    caught = desk.start("denied", {"catch": True}, policies=deny)
    assert caught.output == ["no-payments", "tool pay is not on the list of allowed tools"]
    desk.write("deny.yaml", "version: 1\npolicies:\n- {id: no, category: tool_allowlist, with: {allow: []}}\n")
    denied = desk.json("run", "features_agent.py:Features", "--workflow", "denied", "--policy", "deny.yaml", status=4)
    assert (denied["status"], denied["output"]) == ("denied", None)
    assert "not on the list" in denied["error"]
    desk.write(
        "spend.yaml",
        "version: 1\npolicies:\n- {id: cap, category: budget_usd, with: {limit: 0.004}, on_breach: terminate}\n",
    )
    ended = desk.json("run", "features_agent.py:Features", "--workflow", "spends", "--policy", "spend.yaml", status=5)
    assert ended["status"] == "terminated"
    assert ended["cost_usd"] <= 0.004
    assert 1 <= len(server.requests) <= 5
    assert not (desk.folder / "books.log").exists()
    desk.verify()


def test_a_fork_shares_its_history_and_goes_on_by_itself(desk: Any) -> None:
    origin = desk.start("forked")
    assert origin.status == "completed", origin
    forked = desk.json("runs", "fork", origin.run_id, "--step", "nests.1/draws.2")
    assert (forked["status"], forked["run_id"] != origin.run_id) == ("completed", True)
    old, new = origin.output, forked["output"]
    assert new[:3] == old[:3], "samples and children are shared"
    assert new[3][0] == old[3][0], "and so is what came before the step, within the one around it too"
    assert new[3][1] != old[3][1], "the step itself runs anew"
    assert (new[4], new[5] != old[5]) == (["note"], True)
    assert (desk.folder / "books.log").read_text() == "book 1\n", "no effect happens again"
    (created,) = desk.events(forked["run_id"], "run.created")
    assert (created.data["forked_from"], created.data["at"]) == (origin.run_id, "nests.1/draws.2")
    made = [e.data["action"]["id"] for e in desk.events(forked["run_id"], "intent") if "copied" not in e.data]
    assert made == ["nests.1", "nests.1/draws.2", "draws.1"]
    with desk.service() as service:
        service.kill("run", forked["run_id"], "too late", principal=desk.person, compensate=True)
        whole = service.fork(origin.run_id)
        with pytest.raises(UsageError, match=r"has no step nests\.7"):
            service.fork(origin.run_id, "nests.7")
    assert desk.drive(whole).output == old
    desk.verify()


def test_a_fork_undoes_nothing_of_its_origin_and_is_refused_under_a_kill(desk: Any) -> None:
    origin = desk.start("forked")
    with desk.service() as service:
        copy = service.fork(origin.run_id, "draws.1")
        killed = service.kill("run", copy, "not this one", principal=desk.person, compensate=True)
        assert service.run(copy).rule == f"kill:{killed.id}"
    assert (desk.folder / "books.log").read_text() == "book 1\n"
    with desk.service() as service:
        service.kill("agent", "features", "all", principal=desk.person)
        refused = service.fork(origin.run_id, "draws.1")
        assert service.run(refused).status == "refused"
        with pytest.raises(UsageError, match="has no history"):
            service.fork(refused)
    desk.verify()


@pytest.mark.parametrize("how", ["hangs", "connector"])
def test_an_irreversible_tool_that_overruns_is_in_doubt_and_not_tried_again(desk: Any, how: str) -> None:
    view = desk.start("once", {"how": how})
    assert view.status == "in_doubt", view
    (pending,) = view.pending
    assert pending.step == {"hangs": "wire.1", "connector": "around.1/hangs.1"}[how]
    assert desk.steps(view.run_id).count(pending.step) == 1
    with desk.service() as service:
        service.resolve(view.run_id, "done", b'"sent"', principal=desk.person)
    assert desk.drive(view.run_id).output == "sent"
    assert desk.steps(view.run_id).count(pending.step) == 1
    desk.verify()


def test_an_irreversible_tool_that_raised_is_not_tried_again(desk: Any) -> None:
    view = desk.start("once", {"how": "raises"})
    assert (view.status, view.error_code) == ("failed", "step_failed")
    assert desk.steps(view.run_id) == ["wire.1"]
    desk.verify()


def test_a_waiting_run_costs_no_process_and_goes_on_with_the_code_that_it_began_with(desk: Any) -> None:
    with desk.serving():
        run = desk.submit("features_agent.py:Features", workflow="pinned")
        desk.until(lambda: desk.view(run).status == "suspended", "it waits")
        desk.until(lambda: all(one.label.run != run for one in registry.entries(desk.home)), "its process is gone")
        source = desk.folder / "features_agent.py"
        source.write_text(source.read_text().replace('return "old"', 'return "new"'))
        fresh = desk.submit("features_agent.py:Features", workflow="pinned")
        for one in (run, fresh):
            with desk.service() as service:
                service.signal(one, "go", b"null", principal=desk.person)
        assert desk.ended(run, "completed").output == "old"
        assert desk.ended(fresh, "completed").output == "new"
    desk.verify()


def test_a_node_that_is_stopped_in_the_middle_leaves_its_runs_to_the_next(desk: Any) -> None:
    with desk.serving():
        runs = [desk.submit("features_agent.py:Features", workflow="long") for _ in range(2)]
        for run in runs:
            desk.reached(run, "intent", 2)
    with desk.service() as service:
        assert service.store.nodes() == []
    with desk.serving():
        for run in runs:
            assert desk.ended(run, "completed").output == [True, 2]
            assert desk.steps(run) == ["counted.1", "until_stopped.1", "until_stopped.1"]
    desk.verify()
