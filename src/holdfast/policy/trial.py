"""Unit tests for policies: actions with facts in a YAML file, and the verdicts that they must get.

    version: 1
    policies: [finance.yaml]           # from this file's folder; left out: those in force
    facts: {agent: finance}            # for every test; those of a test win
    tests:
      - name: large wires need two people
        action: {kind: tool, name: wire_transfer, args: {amount: 20000}}
        history: [{gate: tool, name: sanctions_check, ago: 5m}]
        expect: require_approval
      - name: odd costs are noticed
        action: {kind: llm, provider: anthropic, model: m-1}
        ended: {cost: 0.5}
        expect: {outcome: warn, rule: odd-costs, reason: usual}

A test decides ahead of the action; with ``text`` while a stream brings it, with ``ended`` after it. The time is
``facts.now`` or ``at``, and the same in every run of the file unless it says otherwise.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from holdfast.action import NANO, Action, Ended, Facts, Outcome, Past, Verdict
from holdfast.policy.bundle import Bundle, load
from holdfast.policy.decide import decide, decide_after, decide_during
from holdfast.policy.history import COST, recall
from holdfast.policy.patterns import nearest
from holdfast.policy.source import Document, Place, Problem, read, refuse
from holdfast.policy.units import parse_duration
from holdfast.values import digest, dump

Made = TypeVar("Made", bound=msgspec.Struct)

NOON = 1_772_445_600_000_000
"""Monday 2026-03-02 10:00 UTC: when a test takes place that does not say when."""
_TOP = ("version", "policies", "facts", "tests")
_TEST = ("name", "action", "facts", "at", "history", "text", "ended", "expect")
_EXPECT = ("outcome", "rule", "reason", "reserves", "max_tokens")
_PAST = ("gate", "name", "ago", "state", "agent", "figures", "cost")
_WORDS = tuple(outcome.word for outcome in Outcome)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What must come of a test; what is None or empty is not looked at."""

    outcome: str
    rule: str | None = None
    reason: str = ""
    reserves: tuple[str, ...] | None = None
    """Beginnings of the ledger keys that are reserved."""
    max_tokens: int | None = None


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One test."""

    __test__ = False

    name: str
    file: str
    line: int
    action: Action
    facts: Facts
    record: tuple[Past, ...]
    text: str | None
    ended: Ended | None
    expect: Expected


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A file of tests."""

    file: str
    policies: tuple[Path, ...]
    tests: tuple[Test, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a test went."""

    test: Test
    verdict: Verdict
    wrong: tuple[str, ...]
    """What is not as expected; empty: passed."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the tests of some files went, and which rules none of them reached."""

    results: tuple[Result, ...]
    silent: tuple[str, ...]
    """Rules that had something to say in no test, by id."""

    @property
    def failed(self) -> tuple[Result, ...]:
        """The tests that did not get what they expect."""
        return tuple(result for result in self.results if result.wrong)


def suite(path: Path) -> Suite:
    """Read a file of tests.

    Raises:
        PolicyFileError: names file, line, key and cure of the first problem.
    """
    reader = _Reader(read(path))
    found = reader.suite()
    if reader.problems:
        raise refuse(reader.problems)
    return found


def run(suites: Iterable[Suite], standing: Bundle) -> Report:
    """Decide every test. ``standing`` holds for files that name no policies.

    Raises:
        PolicyFileError: the policies that a file names are not good.
    """
    results: list[Result] = []
    rules: set[str] = set()
    bundles: dict[tuple[Path, ...], Bundle] = {(): standing}
    for item in suites:
        bundle = bundles.get(item.policies)
        if bundle is None:
            bundle = bundles[item.policies] = load(item.policies)
        results += [_result(test, bundle) for test in item.tests]
        rules |= {rule.id for rule in bundle.rules if rule.mode != "off"}
    heard = {hit.rule for result in results for hit in result.verdict.hits}
    heard |= {item.policy for result in results for item in result.verdict.reservations}
    return Report(results=tuple(results), silent=tuple(sorted(rules - heard)))


def judge(test: Test, bundle: Bundle) -> Verdict:
    """The verdict on a test's action."""
    phase = "after" if test.ended is not None else "during" if test.text is not None else "before"
    facts = recall(test.action, test.facts, bundle.asks(test.action, test.facts, phase), test.record, test.record)
    if test.ended is not None:
        return decide_after(test.action, test.ended, facts, bundle)
    if test.text is not None:
        return decide_during(test.action, test.text, facts, bundle)
    return decide(test.action, facts, bundle)


def _result(test: Test, bundle: Bundle) -> Result:
    verdict, expect = judge(test, bundle), test.expect
    wrong = []
    if verdict.outcome.word != expect.outcome:
        because = f" by {verdict.rule}: {verdict.reason}" if verdict.rule else ""
        wrong.append(f"{verdict.outcome.word}{because}, not {expect.outcome}")
    elif expect.rule is not None and verdict.rule != expect.rule:
        wrong.append(f"by {verdict.rule or 'no rule'}, not by {expect.rule}")
    if expect.reason and expect.reason not in " ".join([verdict.reason, *(hit.reason for hit in verdict.hits)]):
        wrong.append(f"no reason says {expect.reason!r}; it is {verdict.reason!r}")
    keys = [item.key for item in verdict.reservations]
    if expect.reserves is not None and not (
        len(keys) == len(expect.reserves)
        and all(any(key.startswith(start) for key in keys) for start in expect.reserves)
    ):
        wrong.append(f"it reserves {', '.join(keys) or 'nothing'}")
    if expect.max_tokens is not None and verdict.max_tokens != expect.max_tokens:
        wrong.append(f"the output limit is {verdict.max_tokens}, not {expect.max_tokens}")
    return Result(test=test, verdict=verdict, wrong=tuple(wrong))


class _Reader:
    """Makes tests of a document, and gathers what is wrong with it."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []

    def suite(self) -> Suite:
        document, value = self._document, self._document.value
        if not self._keys((), value, _TOP):
            return Suite(file=document.file, policies=(), tests=())
        if value.get("version") != 1:
            self._wrong(("version",), "the format of this file is needed: version: 1")
        folder = Path(document.file).parent
        names = self._list(("policies",), value.get("policies"))
        given = value.get("facts") or {}
        tests = [
            test
            for index, item in enumerate(self._list(("tests",), value.get("tests")))
            if (test := self._test(("tests", index), item, given)) is not None
        ]
        if not tests and not self.problems:
            self._wrong(("tests",), "there is no test; start each with: - name: …")
        policies = tuple(folder / str(name) for name in names)
        return Suite(file=document.file, policies=policies, tests=tuple(tests))

    def _test(self, place: Place, value: Any, given: Any) -> Test | None:
        if not self._keys(place, value, _TEST, needed=("action", "expect")):
            return None
        typed = value["action"]
        if isinstance(typed, dict) and typed.get("kind") == "llm":
            typed = {"name": "generate", **typed}
        action = self._made((*place, "action"), typed, Action)
        facts = self._facts(place, value, given)
        expect = self._expect((*place, "expect"), value["expect"])
        if action is None or facts is None or expect is None:
            return None
        if not action.digest:
            key = digest(action.kind, action.name, dump(dict(action.args), "args"))
            action = msgspec.structs.replace(action, digest=key)
        record = [
            past
            for index, item in enumerate(self._list((*place, "history"), value.get("history")))
            if (past := self._past((*place, "history", index), item, facts)) is not None
        ]
        ended = value.get("ended")
        return Test(
            name=str(value.get("name") or f"{action.kind} {action.name}"),
            file=self._document.file,
            line=self._document.line(place),
            action=action,
            facts=facts,
            record=tuple(sorted(record, key=lambda past: past.at)),
            text=value.get("text"),
            ended=None if ended is None else self._ended((*place, "ended"), ended),
            expect=expect,
        )

    def _facts(self, place: Place, value: Mapping[str, Any], given: Any) -> Facts | None:
        own = value.get("facts") or {}
        if not isinstance(own, dict) or not isinstance(given, dict):
            self._wrong((*place, "facts"), "facts are a mapping, as in {agent: finance}")
            return None
        now = {"now": NOON}
        if (at := value.get("at")) is not None:
            try:
                moment = datetime.datetime.fromisoformat(str(at))
            except ValueError:
                self._wrong((*place, "at"), f"{at} is no time; write 2026-03-02T10:00:00+00:00")
                return None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
            now["now"] = int(moment.timestamp() * 1_000_000)
        return self._made((*place, "facts"), {**now, **given, **own}, Facts)

    def _past(self, place: Place, value: Any, facts: Facts) -> Past | None:
        if not self._keys(place, value, _PAST, needed=("gate", "name")):
            return None
        try:
            at = facts.now - parse_duration(value.get("ago", "1s"))
        except ValueError as error:
            self._wrong((*place, "ago"), str(error))
            return None
        figures = dict(value.get("figures") or {})
        if (cost := value.get("cost")) is not None:
            figures[COST] = int(Decimal(str(cost)) * NANO)
        state = value.get("state", "ok")
        made = {"gate": value["gate"], "name": value["name"], "at": at, "state": state, "figures": figures}
        made |= {"ended_at": 0 if state == "open" else at, "agent": value.get("agent", facts.agent)}
        return self._made(place, made, Past)

    def _ended(self, place: Place, value: Any) -> Ended | None:
        if isinstance(value, dict) and value.get("cost") is not None:
            value = {**value, "cost": int(Decimal(str(value["cost"])) * NANO)}
        return self._made(place, value, Ended)

    def _expect(self, place: Place, value: Any) -> Expected | None:
        if isinstance(value, str):
            value = {"outcome": value}
        if not self._keys(place, value, _EXPECT, needed=("outcome",)):
            return None
        if value["outcome"] not in _WORDS:
            hint = nearest(str(value["outcome"]), _WORDS)
            self._wrong((*place, "outcome"), f"there is no outcome {value['outcome']}{hint}")
            return None
        return self._made(place, value, Expected)

    def _made(self, place: Place, value: Any, kind: type[Made]) -> Made | None:
        known = [field.name for field in msgspec.structs.fields(kind)]
        if not self._keys(place, value, known):
            return None
        try:
            return msgspec.convert(_plain(value), kind)
        except msgspec.ValidationError as error:
            self._wrong(place, str(error).replace("`", ""))
            return None

    def _list(self, place: Place, value: Any) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self._wrong(place, "a list is needed")
            return []
        return value

    def _keys(self, place: Place, value: Any, known: Iterable[str], needed: Iterable[str] = ()) -> bool:
        if not isinstance(value, dict):
            self._wrong(place, f"a mapping is needed, with {', '.join(needed or known)}")
            return False
        before = len(self.problems)
        for key in value:
            if key not in known:
                self._wrong((*place, key), f"there is no key {key}{nearest(key, list(known))}")
        for key in needed:
            if key not in value:
                self._wrong(place, f"{key} is missing; add {key}: …")
        return len(self.problems) == before

    def _wrong(self, place: Place, message: str) -> None:
        self.problems.append(self._document.problem(place, message))


def _plain(value: Any) -> Any:
    """As JSON would hold it: fractions are floating point."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value
