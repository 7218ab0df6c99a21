"""What an author can write, through a real sandbox and a real journal, and over restarts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.journal.base import InboxItem
from holdfast.node.views import Principal

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

BOB = Principal(name="bob", auth="token", roles=("controller",))
CAROL = Principal(name="carol", auth="token", roles=("clerk",))


def test_gathered_ids_and_samples_are_the_same_after_a_resume(desk: Any) -> None:
    begun = desk.start("gathers")
    assert begun.status == "suspended"
    ids = desk.steps(begun.run_id)
    assert sorted(ids) == sorted(f"gather.1.{n}/score.{m}" for n in range(3) for m in (1, 2))
    ended = desk.signal(begun.run_id, "go")
    assert ended.status == "completed"
    assert [branch[:2] for branch in ended.output["first"]] == [[0, 100], [1, 121], [4, 144]]
    assert len({branch[3] for branch in ended.output["first"]}) == 3
    assert ended.output["second"] == [49, 64]
    after = desk.steps(begun.run_id)
    assert after[: len(ids)] == ids
    assert sorted(after[len(ids) :]) == ["gather.2.0/score.1", "gather.2.1/score.1"]
    assert len(desk.events(begun.run_id, "run.started")) == 2
    desk.verify()


def test_children_are_runs_of_their_own_and_their_failures_are_the_callers(desk: Any) -> None:
    view = desk.start("family")
    assert view.status == "completed", view
    assert view.output["many"] == [2, "StepError", 6]
    assert view.output["one"] == 42
    assert "unlucky" in view.output["failed"]
    assert "failed" in view.output["failed"]
    child = desk.view(view.output["id"])
    assert (child.agent, child.status, child.output) == ("child", "completed", 42)
    (created,) = desk.events(child.run_id, "run.created")
    assert (created.data["parent"], created.data["root"], created.data["depth"]) == (view.run_id, view.run_id, 1)
    desk.verify()


def test_signals_before_and_after_they_are_waited_for(desk: Any) -> None:
    run = desk.submit("features_agent.py:Features", workflow="signals")
    with desk.service() as service:
        service.signal(run, "early", b'{"n":1}', principal=desk.person)
    assert desk.drive(run).pending[0].kind == "signal"
    ended = desk.start("remembers").run_id
    told = desk.start("tells", {"run": run, "ended": ended})
    assert told.output == [True, False]
    assert desk.drive(run).output == [{"n": 1}, {"n": 2}, "timeout"]
    desk.verify()


def test_questions_and_answers(desk: Any) -> None:
    view = desk.start("asks")
    (pending,) = view.pending
    assert (view.status, pending.kind) == ("suspended", "answer")
    (listed,) = desk.json("approvals", "list")["approvals"]
    assert (listed["id"], listed["what"]) == (pending.id, "Which account?")
    desk.json("approvals", "answer", pending.id, "--data", '{"account": 7}')
    view = desk.json("runs", "resume", view.run_id)
    assert view["output"] == [{"account": 7}, "StepTimeout"]
    desk.verify()


def test_timers_go_on_over_restarts(desk: Any) -> None:
    run = desk.submit("features_agent.py:Features", {"seconds": 3}, workflow="sleeps")
    with desk.serving() as node:
        desk.reached(run, "wait")
        node.kill()
        node.wait()
    with desk.serving():
        assert desk.ended(run, "completed").output >= 3
    assert desk.start("sleeps", {"seconds": 3600}).pending[0].kind == "timer"
    desk.verify()


def test_a_quorum_is_of_distinct_people_of_the_role(desk: Any) -> None:
    people = {"alice": "controller", "bob": "controller", "carol": "clerk"}
    principals = "".join(
        f'[principals.{name}]\nroles = ["{role}"]\ntoken_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name, role in people.items()
    )
    desk.settings(desk.features.replace("    ", "") + principals)
    view = desk.start("approves", {"amount": 7})
    (pending,) = view.pending
    assert pending.kind == "approval"

    def approve(name: str, status: int = 0, token: str = "") -> Any:
        return desk.cli(
            "approvals", "approve", pending.id, "--as", name, HOLDFAST_PRINCIPAL_TOKEN=token or name
        ).returncode

    assert approve("carol") == 2
    assert approve("alice", token="wrong") == 2
    assert approve("alice") == 0
    assert approve("alice") == 0
    assert desk.drive(view.run_id).status == "suspended"
    (listed,) = desk.json("approvals", "list")["approvals"]
    assert (listed["given"], listed["quorum"]) == (1, 2)
    assert approve("bob") == 0
    assert desk.drive(view.run_id).output == [True, ["alice", "alice", "bob"], "approved"]
    desk.verify()


def test_one_refusal_denies(desk: Any) -> None:
    view = desk.start("approves", {"amount": 7})
    desk.answer(view.pending[0].id, True, desk.person)
    desk.answer(view.pending[0].id, False, BOB)
    ended = desk.drive(view.run_id)
    assert (ended.output[0], ended.output[2]) == (False, "denied")


def test_what_nobody_answers_expires_as_asked(desk: Any) -> None:
    view = desk.start("expires")
    assert view.status == "completed", view
    assert view.output == ["expired", "approved", "expired", []]
    desk.verify()


def test_an_expired_request_is_escalated(desk: Any) -> None:
    with desk.serving():
        run = desk.submit("features_agent.py:Features", {"ttl": 6}, workflow="expires")

        def escalated() -> bool:
            return any(event.data["kind"] == "escalated" for event in desk.events(run, "inbox"))

        desk.until(escalated, "it is escalated")
        with desk.service() as service:
            (asked,) = service.approvals()
            assert asked.approvers == ("role:controller",)
            with pytest.raises(UsageError, match="not among the approvers"):
                service.answer(asked.id, True, principal=CAROL)
            service.answer(asked.id, True, principal=BOB)
        assert desk.ended(run, "completed").output[2:] == ["approved", ["bob"]]
    desk.verify()


def test_an_approval_is_bound_to_what_was_shown(desk: Any) -> None:
    view = desk.start("approves", {"amount": 7})
    with desk.service() as service:
        (shown,) = service.approvals()
        assert shown.what == {"amount": 7}
        data = {"approval": shown.id, "digest": "0" * 64, "reason": "", "approved": True, "roles": ["controller"]}
        for who in ("mallory", "trudy"):
            service.store.deliver(
                InboxItem(
                    tenant="default", stream=view.run_id, kind="approval", data=data, principal=who, auth="token", at=1
                )
            )
    assert desk.drive(view.run_id).status == "suspended"
    refused = [event.data for event in desk.events(view.run_id, "inbox")]
    assert [(item["accepted"], item["why"]) for item in refused] == [(False, "it was given to other arguments")] * 2
    desk.verify()


def test_attempts_back_off_and_keep_what_they_achieved(desk: Any) -> None:
    view = desk.start("retries")
    assert view.output == [3, 32]
    assert [e.data["attempt"] for e in desk.events(view.run_id, "attempt.failed")] == [1, 2]
    assert desk.steps(view.run_id).count("shaky.1/counted.1") == 1, "what an attempt achieved is served to the next"
    lost = desk.start("gives_up")
    assert (lost.status, lost.error_code) == ("failed", "step_failed")
    assert "ConnectionError: no" in lost.error
    desk.verify()


def test_a_step_that_overruns_loses_its_process_and_not_its_run(desk: Any) -> None:
    view = desk.start("overruns")
    # On a machine that stands still, a later attempt may overrun as well.
    failed = desk.events(view.run_id, "attempt.failed")
    assert view.output == [True, len(failed) + 1]
    assert {event.data["code"] for event in failed} == {"timeout"}
    assert len(desk.events(view.run_id, "run.started")) == len(failed) + 1 >= 2
    desk.verify()


def test_continuing_as_new_leaves_history_and_keeps_counters_files_and_signals(desk: Any) -> None:
    view = desk.start("anew", {"n": 1})
    with desk.service() as service:
        service.signal(view.run_id, "kept", b'"since the first"', principal=desk.person)
    ended = desk.signal(view.run_id, "go")
    assert ended.status == "completed", ended
    assert ended.output == [3, ["1.txt", "2.txt", "3.txt"], "since the first"]
    assert ended.steps == 3
    assert desk.steps(view.run_id).count("score.1") == 3, "each begins with an empty history"
    assert desk.kinds(view.run_id).count("run.continued") == 2
    desk.verify()


def test_a_run_keeps_the_version_that_it_began_with(desk: Any) -> None:
    old = desk.start("signals")
    view = desk.start("patches")
    assert desk.signal(view.run_id, "go").output == [1, 1]
    assert old.status == "suspended"


def test_memory_outlasts_runs_and_is_the_agents_own(desk: Any) -> None:
    assert desk.start("remembers").output == [1, ["other", "seen"], {"a": [1]}]
    assert desk.start("remembers").output == [2, ["other", "seen"], {"a": [1]}]
    assert desk.start("remembers").output == [3, ["seen"], None]
    with desk.service() as service:
        service.create_tenant("acme", "eu-west", principal=desk.person)
    assert desk.start("remembers", tenant="acme").output[0] == 1
    desk.verify()


def test_files_outlast_incarnations(desk: Any) -> None:
    view = desk.start("files")
    assert desk.signal(view.run_id, "go").output == [["a/b.bin", "text"], "anders", 1 << 20]
    gone = desk.start("files", {"delete": True})
    ended = desk.signal(gone.run_id, "go")
    assert ended.status == "failed"
    assert "there is no file 'a/b.bin'" in ended.error
    desk.verify()


def test_what_is_left_of_the_budgets(desk: Any, model_server: Callable[..., Any]) -> None:
    model_server([{"text": "ok", "usage": {"input": 100, "output": 50}}])
    policies = """
    - id: dollars
      category: budget_usd
      with: {limit: 0.01, window: run}
    - id: tokens
      category: budget_tokens
      with: {limit: 1000, window: run}
    """
    view = desk.start("balance", policies=policies)
    assert view.output == [[0.01, 1000], [pytest.approx(0.01 - 0.0006), 850]]
    assert view.cost_nano == 600_000
    desk.verify()


def test_a_run_undoes_its_effects_latest_first(desk: Any) -> None:
    view = desk.start("compensates")
    assert view.output == [3, 0]
    assert (desk.folder / "books.log").read_text().split("\n")[:-1] == ["book 1", "book 2", "unbook 2", "unbook 1"]
    steps = desk.steps(view.run_id)
    assert steps[-3:] == ["release.1", "unbook.1", "unbook.2"]
    desk.verify()


def test_streams_are_served_again_from_the_record(desk: Any, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "one two three four five"}])
    view = desk.start("streams")
    assert view.status == "suspended", view
    assert desk.signal(view.run_id, "go").output == "one two three four five"
    (said,) = desk.events(view.run_id, "log")
    with desk.service() as service:
        pieces = service.store.payload("default", said.payloads["message"]).split()[0]
    assert int(pieces) > 1
    assert len(server.requests) == 1
    desk.verify()


def test_models_fail_are_retried_and_time_out(desk: Any, model_server: Callable[..., Any]) -> None:
    server = model_server(
        [
            {"match": "retry", "error": 529, "times": 2},
            {"match": "retry", "text": "third time"},
            {"match": "limit", "error": 429, "retry_after": "0", "times": 1},
            {"match": "limit", "text": "after a while"},
            {"match": "broken", "fault": "malformed"},
            {"match": "hang", "fault": "hang"},
            {"match": "bad", "error": 400, "message": "no such model"},
            {"match": "class", "category": "b"},
            {"match": "object", "json": {"n": 3}},
        ]
    )
    view = desk.start("models")
    assert view.status == "completed", view
    assert view.output == {
        "retry": "third time",
        "limit": "after a while",
        "broken": "LLMError",
        "hang": "StepTimeout",
        "bad": "LLMError",
        "class": "b",
        "object": {"n": 3},
    }
    asked = [request.last for request in server.requests]
    assert (asked.count("retry"), asked.count("limit"), asked.count("bad")) == (3, 2, 1)
    desk.verify()
