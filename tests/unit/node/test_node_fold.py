"""A run is what its events say: lists of events, and the state that follows from each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, ApprovalSpec, Budget, Facts, Outcome, Verdict
from holdfast.journal.event import GENESIS, Event, Kind, decode, encode
from holdfast.journal.fold import RunState, apply, fold

AT = 1_700_000_000_000_000
RESERVED = Budget(key="budget_usd/default/b/run/run-1", amount=10, limit=100, policy="b")
INPUT = "1" * 64
FAILED = {"id": "a.1", "attempt": 1, "code": "step_failed", "message": "no", "retry_at": AT + 99}
LOST = {"reason": "crashed", "status": -6}
RESULT = "2" * 64


class Stream:
    """Writes events as a store would: numbered, and through their canonical bytes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        created = {"agent": "a", "workflow": "w", "bundle": "b", "isolation": "namespace"}
        self(Kind.RUN_CREATED, created, input=INPUT)

    def __call__(self, kind: str, data: dict[str, Any], /, **payloads: str) -> Stream:
        event = Event(
            v=1, tenant="default", stream="run-1", seq=len(self.events) + 1, index=len(self.events), epoch=1,
            kind=kind, at=AT + len(self.events), clock_error=-1, node="n", witness="node", principal="alice",
            auth="token", prev=GENESIS, data=data, payloads=payloads,
        )  # fmt: skip
        self.events.append(decode(encode(event)))
        return self

    def call(self, id_: str, kind: str = "step", place: int = 0, attempt: int = 1, **more: Any) -> Stream:
        action = Action(kind=kind, name=id_.rpartition(".")[0].rpartition("/")[2], id=id_, attempt=attempt, digest=id_)
        verdict = Verdict(outcome=Outcome.ALLOW, reservations=more.pop("reserve", ()))
        data = {
            "action": action, "facts": Facts(now=AT), "verdict": verdict, "parent": id_.rpartition("/")[0],
            "place": place, "key": "k", "undo": "", **more,
        }  # fmt: skip
        return self(Kind.INTENT, data, args="3" * 64)

    def ok(self, id_: str, **more: Any) -> Stream:
        return self(Kind.OUTCOME, {"id": id_, "status": "ok", **more}, result=RESULT)

    def fault(self, id_: str, code: str = "step_failed") -> Stream:
        return self(Kind.OUTCOME, {"id": id_, "status": "fault", "code": code, "message": "no"})

    def wait(self, id_: str, kind: str, **more: Any) -> Stream:
        action = Action(kind="approval" if kind == "approval" else "wait", name=kind, id=id_, digest=id_)
        return self(Kind.WAIT, {"action": action, "parent": "", "place": 0, "wait": kind, **more})

    @property
    def state(self) -> RunState:
        return fold(self.events)


def started(number: int = 1) -> dict[str, Any]:
    return {"incarnation": number, "held": {"level": "namespace"}}


def test_a_run_that_began() -> None:
    state = Stream()(Kind.RUN_STARTED, started()).state
    assert (state.run, state.tenant, state.status, state.incarnation) == ("run-1", "default", "running", 1)
    assert (state.input, state.principal, state.created_at) == (INPUT, "alice", AT)
    assert state.held == {"level": "namespace"}


def test_an_intent_is_open_until_its_outcome() -> None:
    stream = Stream().call("a.1", reserve=(RESERVED,))
    (record,) = stream.state.open()
    assert (record.reservations, record.attempt, record.finished) == ((RESERVED,), 1, False)
    stream.ok("a.1", cost=7, tokens=3)
    state = stream.state
    assert state.open() == []
    record = state.records["a.1"]
    assert (record.state, record.result, record.reservations) == ("done", RESULT, ())
    assert state.counters == {"steps": 1, "cost": 7, "tokens": 3}
    assert state.active_at == stream.events[-1].at


def test_calls_are_counted_by_kind_and_tools_by_name() -> None:
    stream = Stream()
    kinds = {
        "a.1": "step", "b.1": "decision", "pay.1": "tool", "pay.2": "tool", "llm.chat.1": "llm", "c.1": "spawn",
    }  # fmt: skip
    for place, (id_, kind) in enumerate(kinds.items()):
        stream.call(id_, kind, place)
    state = stream.state
    assert state.counters == {
        "steps": 2, "tool_calls": 2, "tool_calls:pay": 2, "llm_calls": 1, "spawns": 1,
    }  # fmt: skip
    assert state.recent == ["pay.1", "pay.2"]
    assert state.children[""] == {0: "a.1", 1: "b.1", 2: "pay.1", 3: "pay.2", 4: "llm.chat.1", 5: "c.1"}


def test_what_is_throttled_is_tried_again_and_what_is_denied_is_not() -> None:
    action = Action(kind="step", name="a", id="a.1", digest="a.1")
    verdict = Verdict(outcome=Outcome.THROTTLE, rule="slowly", reason="too soon")
    data = {"action": action, "facts": Facts(now=AT), "verdict": verdict, "parent": "", "place": 0, "key": "k"}
    stream = Stream()(Kind.VERDICT, {**data, "retry_at": AT + 7})
    record = stream.state.records["a.1"]
    assert (record.state, record.retry_at, record.attempt, record.rule) == ("retry", AT + 7, 0, "slowly")
    assert stream.state.wake_at == AT + 7
    assert stream.call("a.1").state.records["a.1"].state == "open"
    denied = Stream()(Kind.VERDICT, data).state.records["a.1"]
    assert (denied.state, denied.code) == ("fault", "denied")


def test_a_failed_attempt_keeps_what_its_calls_achieved_and_tries_what_failed_again() -> None:
    stream = Stream().call("a.1").call("a.1/in.1").ok("a.1/in.1").call("a.1/in.2", place=1).fault("a.1/in.2")
    stream(Kind.ATTEMPT_FAILED, FAILED)
    state = stream.state
    assert state.records["a.1"].state == "retry"
    assert state.records["a.1/in.1"].state == "done"
    assert state.records["a.1/in.2"].state == "retry"
    assert state.wake_at == AT + 99
    assert stream.call("a.1", attempt=2).state.records["a.1"].attempt == 2


def test_what_a_step_left_behind_when_it_ended_wakes_nobody() -> None:
    stream = Stream().call("a.1").call("a.1/in.1").fault("a.1/in.1")(Kind.ATTEMPT_FAILED, FAILED)
    stream.call("a.1", attempt=2).call("a.1/in.2", place=1)(Kind.ATTEMPT_FAILED, {**FAILED, "id": "a.1/in.2"})
    stream.wait("a.1/ask.1", "ask", wake_at=AT + 50)
    assert stream.state.wake_at == AT + 50
    assert [record.id for record in stream.state.waiting()] == ["a.1/ask.1"]
    state = stream.fault("a.1", "timeout").state
    assert state.wake_at is None
    assert state.waiting() == []


def test_a_verdict_that_led_to_nothing_is_a_denial() -> None:
    stream = Stream()
    verdict = Verdict(outcome=Outcome.DENY, rule="r", reason="no")
    action = Action(kind="tool", name="pay", id="pay.1")
    stream(Kind.VERDICT, {"action": action, "facts": Facts(now=AT), "verdict": verdict, "parent": "", "place": 0})
    record = stream.state.records["pay.1"]
    assert (record.state, record.code, record.rule, record.message) == ("fault", "denied", "r", "no")
    assert stream.state.counters == {}


def test_signals_queue_until_they_are_taken() -> None:
    stream = Stream()
    for number in (1, 2):
        stream(Kind.INBOX, {"item": number, "kind": "signal", "name": "go", "from": ""}, data=str(number) * 64)
    assert stream.state.signals == {"go": ["1" * 64, "2" * 64]}
    stream.wait("wait_signal.1", "signal", name="go", wake_at=AT + 5)
    assert stream.state.wake_at == AT + 5
    stream(Kind.INBOX, {"item": 0, "kind": "taken", "id": "wait_signal.1", "name": "go", "accepted": True})
    stream.ok("wait_signal.1")
    state = stream.state
    assert state.signals == {"go": ["2" * 64]}
    assert state.waiting() == []
    assert state.wake_at is None


def approval(stream: Stream, **answer: Any) -> Stream:
    data = {"item": 1, "kind": "approval", "id": "approve.1", "accepted": True, "approved": True, "roles": ["r"]}
    return stream(Kind.INBOX, {**data, "reason": "", **answer})


def test_answers_count_when_they_were_accepted() -> None:
    spec = ApprovalSpec(quorum=2, ttl_us=5)
    stream = Stream().wait("approve.1", "approval", spec=spec, approval="run-1-x", wake_at=AT + 5)
    approval(stream, accepted=False)
    assert stream.state.records["approve.1"].grants == []
    approval(approval(stream), approved=False)
    assert [(g.principal, g.roles, g.approved) for g in stream.state.records["approve.1"].grants] == [
        ("alice", ("r",), True),
        ("alice", ("r",), False),
    ]


def test_an_escalated_request_goes_to_others_for_another_while() -> None:
    spec = ApprovalSpec(approvers=("role:a",), on_expiry="escalate", escalate_to=("role:b",))
    stream = Stream().wait("approve.1", "approval", spec=spec, approval="run-1-x", wake_at=AT + 5)
    data = {"item": 0, "kind": "escalated", "id": "approve.1", "accepted": True, "approvers": ["role:b"]}
    stream(Kind.INBOX, {**data, "wake_at": AT + 10})
    wait = stream.state.records["approve.1"].wait
    assert wait is not None
    assert wait.spec is not None
    assert (wait.wake_at, wait.spec.approvers, wait.spec.on_expiry) == (AT + 10, ("role:b",), "deny")


@pytest.mark.parametrize(("state", "wanted"), [("approved", "retry"), ("denied", "waiting"), ("expired", "waiting")])
def test_a_settled_request_lets_its_call_go_on(state: str, wanted: str) -> None:
    stream = Stream().wait("approve.1", "approval", spec=ApprovalSpec(), approval="run-1-x")
    stream(Kind.INBOX, {"item": 0, "kind": "settled", "id": "approve.1", "accepted": True, "state": state})
    record = stream.state.records["approve.1"]
    assert (record.approval_state, record.state) == (state, wanted)


def test_effects_files_and_what_undoes_them() -> None:
    stream = Stream()
    for number in (1, 2, 3):
        stream.call(f"book.{number}", "tool", number).ok(f"book.{number}", effect={"compensable": True})
    assert stream.state.compensable == ["book.1", "book.2", "book.3"]
    stream.call("book.2/undo.unbook", "tool").ok("book.2/undo.unbook", effect={"undone": ["book.2"]})
    assert stream.state.compensable == ["book.1", "book.3"]
    assert stream.state.undone == ["book.2"]
    stream.call("file.write.1", "file", 9)
    stream(
        Kind.OUTCOME,
        {"id": "file.write.1", "status": "ok", "effect": {"file": "a", "size": 5}},
        result=RESULT,
        data="9" * 64,
    )
    assert stream.state.files == {"a": ("9" * 64, 5)}
    stream.call("file.delete.1", "file", 10).ok("file.delete.1", effect={"deleted": "a"})
    assert stream.state.files == {}


def test_continuing_anew_forgets_calls_and_keeps_what_counts() -> None:
    stream = Stream()(Kind.RUN_STARTED, started(2)).call("a.1").ok("a.1", effect={"compensable": True})
    kept = {
        "counters": {"steps": 1}, "started_at": AT + 1, "incarnation": 2, "signals": {"go": [RESULT]},
        "recent": ["d"], "files": {"f": ["9" * 64, 5]},
    }  # fmt: skip
    stream(Kind.RUN_CONTINUED, kept, input="7" * 64)
    whole = stream.state
    short = fold([stream.events[0], stream.events[-1]])
    for state in (whole, short):
        assert (state.records, state.children, state.compensable) == ({}, {}, [])
        assert (state.input, state.counters, state.started_at) == ("7" * 64, {"steps": 1}, AT + 1)
        assert (state.signals, state.recent, state.incarnation) == ({"go": [RESULT]}, ["d"], 2)
        assert state.files == {"f": ("9" * 64, 5)}


def test_doubt_and_divergence_are_kept_until_resolved() -> None:
    stream = Stream().call("pay.1", "tool")
    stream(Kind.RUN_IN_DOUBT, {"id": "pay.1", "code": "in_doubt", "message": "?", "rule": "pay.1"})
    assert (stream.state.status, stream.state.doubt, stream.state.error) == ("in_doubt", "pay.1", "?")
    stream(Kind.RUN_RESOLVED, {"id": "pay.1", "how": "retry"})
    assert (stream.state.doubt, stream.state.error, stream.state.records["pay.1"].state) == ("", "", "retry")
    stream(Kind.RUN_DIVERGED, {"id": "diverged", "message": "not that"})
    assert (stream.state.status, stream.state.diverged) == ("suspended", "diverged")
    stream(Kind.RUN_RESOLVED, {"id": "diverged", "how": "retry"})
    assert stream.state.diverged == ""


def test_losses_count_until_there_is_progress() -> None:
    stream = Stream()
    stream(Kind.WORKER_LOST, LOST)(Kind.WORKER_LOST, LOST)
    assert stream.state.losses == 2
    assert stream.call("a.1").ok("a.1").state.losses == 0


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Kind.RUN_COMPLETED, "completed"),
        (Kind.RUN_FAILED, "failed"),
        (Kind.RUN_DENIED, "denied"),
        (Kind.RUN_TERMINATED, "terminated"),
        (Kind.RUN_KILLED, "killed"),
    ],
)
def test_an_end_is_an_end(kind: Kind, status: str) -> None:
    state = Stream()(kind, {"code": "c", "message": "m", "rule": "r"}, output=RESULT).state
    assert (state.status, state.final, state.code, state.error, state.rule) == (status, True, "c", "m", "r")
    assert state.output == RESULT


def test_a_kill_that_undoes_is_remembered_until_the_end() -> None:
    stream = Stream().call("pay.1", "tool", reserve=(RESERVED,))
    said = {"kill": "kill-1", "code": "killed", "message": "m", "rule": "kill:kill-1"}
    stream(Kind.RUN_UNDOING, said)
    state = stream.state
    assert (state.undoing, state.status, state.final) == (said, "running", False)
    assert state.records["pay.1"].reservations == (), "it was settled with that event"
    assert stream(Kind.RUN_KILLED, {"code": "killed", "message": "m", "rule": "r"}).state.undoing == {}


def golden() -> Stream:
    stream = Stream()(Kind.RUN_STARTED, started()).call("a.1").call("a.1/b.1").ok("a.1/b.1", cost=3)
    stream.fault("a.1").wait("approve.1", "approval", spec=ApprovalSpec(), approval="run-1-x", wake_at=AT + 5)
    approval(stream)(Kind.RUN_SUSPENDED, {"waiting": ["approve.1"]})
    stream(Kind.INBOX, {"item": 0, "kind": "settled", "id": "approve.1", "accepted": True, "state": "approved"})
    stream.ok("approve.1")(Kind.RUN_STARTED, started(2)).call("pay.1", "tool", 2, reserve=(RESERVED,))
    stream(Kind.LOG, {"level": "info", "bytes": 3}, message=RESULT)(Kind.WORKER_LOST, LOST)
    return stream.ok("pay.1", effect={"compensable": True})(Kind.RUN_COMPLETED, {}, output=RESULT)


@given(st.integers(0, len(golden().events)))
def test_folding_all_is_folding_a_part_and_then_the_rest(cut: int) -> None:
    """What a node that takes over sees is what the one before it saw."""
    events = golden().events
    state = fold(events[:cut])
    before = msgspec.to_builtins(state)
    for event in events[cut:]:
        apply(state, event)
    assert msgspec.to_builtins(state) == msgspec.to_builtins(fold(events))
    assert msgspec.to_builtins(fold(events[:cut])) == before
