"""Meaning of a run's events, and deciding again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.action import Action, Facts, Outcome, Verdict
from holdfast.audit.redecide import Judge, Undecidable, arguments, arguments_of
from holdfast.audit.report import Finding
from holdfast.audit.runcheck import RunCheck
from holdfast.journal.event import GENESIS, Event, Kind
from holdfast.policy.bundle import Bundle, builtin
from holdfast.policy.decide import decide
from holdfast.policy.model import one
from holdfast.values import dump


def event(kind: str, data: dict[str, Any] | None = None, seq: int = 1, **fields: Any) -> Event:
    base: dict[str, Any] = {
        "v": 1, "tenant": "t", "stream": "run", "seq": seq, "index": seq - 1, "epoch": 1, "kind": kind, "at": 5,
        "clock_error": -1, "node": "n", "witness": "node", "principal": "ann", "auth": "system", "prev": GENESIS,
        "data": msgspec.json.decode(msgspec.json.encode(data or {})), "payloads": {},
    }  # fmt: skip
    return Event(**{**base, **fields})


def intent(name: str = "a.1", kind: str = "step", outcome: int = Outcome.ALLOW) -> tuple[str, dict[str, Any]]:
    return Kind.INTENT, {"action": {"id": name, "kind": kind, "name": "a"}, "verdict": {"outcome": outcome}}


def told(*events: tuple[str, dict[str, Any]] | str, status: str = "running") -> list[tuple[str, int | None]]:
    findings: list[Finding] = []
    checker = RunCheck("t", findings.append)
    checker.feed(event(Kind.RUN_CREATED))
    for seq, one_ in enumerate(events, 2):
        kind, data = (one_, {}) if isinstance(one_, str) else one_
        checker.feed(event(kind, data, seq))
    checker.finish({"run": status})
    assert checker.runs == 1
    return [(finding.code, finding.seq) for finding in findings]


DONE = (Kind.OUTCOME, {"id": "a.1", "status": "ok"})
FAULT = (Kind.OUTCOME, {"id": "a.1", "status": "fault"})
FAILED = (Kind.ATTEMPT_FAILED, {"id": "a.1"})


def wait(kind: str) -> tuple[str, dict[str, Any]]:
    return Kind.WAIT, {"action": {"id": "a.1", "kind": kind, "name": "a"}, "wait": "approval"}


@pytest.mark.parametrize(
    "events",
    [
        [intent(), DONE],
        [intent(), FAILED, intent(), DONE],
        [intent(outcome=Outcome.WARN), FAULT],
        [wait("approval"), DONE],
        [wait("tool"), FAULT],
        [wait("tool"), intent(kind="tool"), DONE],
        [(Kind.SAMPLE, {"action": {"id": "a.1", "kind": "sample"}}), DONE],
        [(Kind.VERDICT, {"action": {"id": "a.1", "kind": "tool"}, "verdict": {"outcome": 5}})],
        [intent(), Kind.RUN_CONTINUED, intent(), DONE],
    ],
)
def test_what_a_run_may_do(events: list[Any]) -> None:
    assert told(*events) == []


@pytest.mark.parametrize(
    ("events", "finding"),
    [
        ([DONE], ("run.outcome", 2)),
        ([FAILED], ("run.outcome", 2)),
        ([wait("tool"), DONE], ("run.outcome", 3)),
        ([intent(outcome=Outcome.DENY)], ("run.verdict", 2)),
        ([intent(outcome=Outcome.REQUIRE_APPROVAL)], ("run.verdict", 2)),
        ([intent(outcome=99)], ("run.verdict", 2)),
        ([(Kind.INTENT, {"action": {"id": "a.1", "kind": "step"}})], ("run.verdict", 2)),
        ([(Kind.INTENT, {"action": {"id": "a.1", "kind": "step"}, "verdict": {"outcome": "x"}})], ("run.verdict", 2)),
        ([(Kind.INTENT, {"action": []})], ("run.outcome", 2)),
        ([(Kind.OUTCOME, {})], ("run.outcome", 2)),
        ([(Kind.OUTCOME, {"id": []})], ("run.outcome", 2)),
    ],
)
def test_what_a_run_may_not_do(events: list[Any], finding: tuple[str, int]) -> None:
    assert told(*events) == [finding]


@pytest.mark.parametrize(
    ("events", "status", "good"),
    [
        ([Kind.RUN_COMPLETED], "completed", True),
        ([Kind.RUN_COMPLETED], "failed", False),
        ([Kind.RUN_COMPLETED], "running", False),
        ([Kind.RUN_KILLED], "killed", True),
        ([], "running", True),
        ([], "suspended", True),
        ([], "completed", False),
        ([Kind.RUN_COMPLETED, DONE], "completed", True),
    ],
)
def test_the_row_must_say_how_the_run_ended(events: list[Any], status: str, good: bool) -> None:
    assert (told(*events, status=status) == []) is good


def test_streams_that_are_no_runs_are_left_alone() -> None:
    findings: list[Finding] = []
    checker = RunCheck("t", findings.append)
    checker.feed(event(Kind.OUTCOME, {"id": "x"}))
    checker.finish({"run": "open"})
    assert (findings, checker.runs) == ([], 0)


LIMITED = Bundle([
    one({"id": "few", "category": "step_limit", "with": {"limit": 3}}, "test"),
    one(
        {
            "id": "big", "category": "require_approval", "gates": ["tool"], "when": "action.args.amount > 10",
            "with": {"approvers": ["role:boss"]},
        },
        "test",
    ),
])  # fmt: skip


def decided(kind: str, args: Any, counters: dict[str, int] | None = None) -> tuple[Event, bytes]:
    action = Action(kind=kind, name="pay", id="pay.1", args=args)
    facts = Facts(now=9, tenant="t", agent="clerk", run="run", counters=counters or {})
    stored = msgspec.structs.replace(action, args={})
    data = {"action": stored, "facts": facts, "verdict": decide(action, facts, LIMITED), "parent": ""}
    return event(Kind.INTENT, data, payloads={"args": "c" * 64}), dump(args)


def blobs(digest: str) -> bytes | None:
    return {bundle.digest: bundle.to_bytes() for bundle in (LIMITED, builtin())}.get(digest)


@pytest.mark.parametrize(
    ("kind", "args", "counters", "outcome"),
    [
        ("step", {"amount": 5}, {"steps": 1}, "allow"),
        ("step", {"amount": 5}, {"steps": 3}, None),
        ("tool", {"amount": 5}, {}, "allow"),
        ("tool", {"amount": 50}, {}, "require_approval"),
    ],
)
def test_deciding_again_gives_the_recorded_verdict(
    kind: str, args: Any, counters: dict[str, int], outcome: str | None
) -> None:
    recorded, payload = decided(kind, args, counters)
    word = Outcome(recorded.data["verdict"]["outcome"]).word
    assert word == outcome if outcome else word in ("deny", "terminate")
    assert Judge(blobs).differs(recorded, payload) == ""


def altered(recorded: Event, part: str, **fields: Any) -> Event:
    return msgspec.structs.replace(recorded, data={**recorded.data, part: {**recorded.data[part], **fields}})


def test_a_verdict_that_does_not_follow_is_told() -> None:
    recorded, payload = decided("tool", {"amount": 50})
    judge = Judge(blobs)
    forged = altered(recorded, "verdict", outcome=0, rule="")
    assert "outcome was recorded as 0 and is 4" in judge.differs(forged, payload)
    assert "outcome" in judge.differs(recorded, dump({"amount": 1}))
    steps, payload = decided("step", {}, {"steps": 1})
    assert "outcome" in judge.differs(altered(steps, "facts", counters={"steps": 9}), payload)
    assert "cannot be read" in judge.differs(altered(steps, "facts", now="soon"), payload)
    assert "cannot be read" in judge.differs(altered(steps, "action", kind=3), payload)


def test_what_is_not_on_record_is_undecidable() -> None:
    recorded, payload = decided("tool", {"amount": 50})
    without_facts = event(Kind.INTENT, {"action": recorded.data["action"], "verdict": recorded.data["verdict"]})
    gate = {"outcome": 5, "rule": "gate", "category": "gate", "reason": "busy"}
    cases: list[tuple[Judge, Event, bytes | None]] = [
        (Judge(blobs), without_facts, payload),
        (Judge(blobs), recorded, None),
        (Judge(blobs), recorded, b"not json"),
        (Judge(blobs), recorded, b"[1]"),
        (Judge(lambda _: None), recorded, payload),
        (Judge(lambda _: b"{}"), recorded, payload),
        (Judge(blobs), msgspec.structs.replace(recorded, data={**recorded.data, "verdict": gate}), payload),
    ]
    for judge, case, args in cases:
        with pytest.raises(Undecidable):
            judge.differs(case, args)


def test_an_output_is_decided_where_the_run_ends() -> None:
    action = Action(kind="output", name="run", id="output", args={"value": [1]})
    facts = Facts(now=9)
    data = {
        "action": msgspec.structs.replace(action, args={}),
        "facts": facts,
        "verdict": decide(action, facts, LIMITED),
    }
    ended = event(Kind.RUN_COMPLETED, data, payloads={"output": "c" * 64, "args": "d" * 64})
    assert arguments_of(ended) == "c" * 64
    assert arguments_of(event(Kind.INTENT, data, payloads={"output": "c" * 64})) == ""
    assert Judge(blobs).differs(ended, b"[1]") == ""


def test_a_bundle_is_read_once() -> None:
    asked: list[str] = []

    def blob(digest: str) -> bytes | None:
        asked.append(digest)
        return blobs(digest)

    judge = Judge(blob)
    recorded, payload = decided("step", {})
    for _ in range(3):
        judge.differs(recorded, payload)
    assert asked == [LIMITED.digest]


@pytest.mark.parametrize(
    ("kind", "payload", "args"),
    [
        ("tool", {"a": 1}, {"a": 1}),
        ("approval", [1, 2], {"what": [1, 2]}),
        ("output", {"a": 1}, {"value": {"a": 1}}),
        ("output", None, {"value": None}),
        (
            "llm",
            {"messages": [{"role": "user", "content": "hi"}], "model": "m", "categories": ["a"]},
            {"system": "", "messages": [{"role": "user", "content": "hi"}], "categories": ["a"]},
        ),
    ],
)
def test_arguments_are_those_that_the_gate_saw(kind: str, payload: Any, args: Any) -> None:
    assert arguments(kind, dump(payload)) == args


def test_a_request_that_is_none_is_undecidable() -> None:
    with pytest.raises(Undecidable):
        arguments("llm", dump({"messages": [1]}))


def test_a_verdict_with_everything_in_it_survives_the_record() -> None:
    verdict = decide(Action(kind="step", name="a"), Facts(now=1), LIMITED)
    again = msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict)
    assert again == verdict


def came_back(outcome: int, **more: Any) -> tuple[str, dict[str, Any]]:
    verdict = {"outcome": outcome, **more}
    return Kind.OUTCOME, {"id": "a.1", "status": "ok", "after": {"verdict": verdict, "facts": {"now": 1}}}


@pytest.mark.parametrize(
    ("ended", "codes"),
    [
        (came_back(Outcome.WARN), []),
        (came_back(Outcome.DENY), ["run.verdict"]),
        (
            came_back(Outcome.REDACT, redactions=[{"path": [], "start": 0, "end": 1, "replacement": ""}]),
            ["run.verdict"],
        ),
        ((Kind.OUTCOME, {"id": "a.1", "status": "ok", "after": {}}), ["run.outcome"]),
    ],
)
def test_what_came_back_is_handed_on_as_the_verdict_says(ended: tuple[str, dict[str, Any]], codes: list[str]) -> None:
    assert [code for code, _ in told(intent(), ended)] == codes
