"""Redactions: what stands instead, where it is put, and that a verdict asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, Ended, Facts, Outcome, Redaction
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide, decide_after, decide_during
from holdfast.policy.model import one
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.policy.redact import apply, mask, replacement
from holdfast.policy.scan import scan_value

KEY = b"k" * 32
FACTS = Facts(now=0, tenant="acme")


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one({"id": f"r{index}", **policy}) for index, policy in enumerate(policies)])


def redaction(path: tuple[str | int, ...], start: int, end: int, text: str = "#") -> Redaction:
    return Redaction(path=path, start=start, end=end, replacement=text)


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("CREDIT_CARD", "4111-1111-1111-1111", "4111-11**-****-1111"),
        ("IBAN_CODE", "DE89 3704 0044 0532 0130 00", "DE** **** **** **** **30 00"),
        ("US_SSN", "536-22-1234", "***-**-1234"),
        ("PHONE_NUMBER", "+49 30 901820", "+** ** **1820"),
        ("EMAIL_ADDRESS", "ann@corp.example", "a**@corp.example"),
        ("IP_ADDRESS", "10.2.3.4", "**.*.*.*"),
        ("SECRET", "hunter2", "[SECRET]"),
    ],
)
def test_forms_are_kept(kind: str, text: str, masked: str) -> None:
    assert replacement(kind, text) == masked


def test_styles() -> None:
    assert replacement("US_SSN", "536-22-1234", style="label") == "[US_SSN]"
    assert replacement("US_SSN", "536-22-1234", style="remove") == ""
    assert replacement("US_SSN", "NTM2LTIyLTEyMzQ=", hidden=True) == "[US_SSN]"
    assert mask("ab", first=1, last=1) == "**"


def test_a_verdict_says_what_to_replace() -> None:
    action = Action(kind="llm", name="chat", args={"system": "", "messages": [{"content": "ask ann@corp.example"}]})
    verdict = decide(action, FACTS, bundle({"category": "pii_redact"}))
    assert verdict.outcome is Outcome.REDACT
    assert verdict.allowed
    assert apply(action.args, verdict) == {"system": "", "messages": [{"content": "ask a**@corp.example"}]}
    assert action.args["messages"][0]["content"] == "ask ann@corp.example"


def test_shadow_and_stronger_verdicts_replace_nothing() -> None:
    action = Action(kind="llm", name="chat", args={"q": "ann@corp.example"})
    shadow = decide(action, FACTS, bundle({"category": "pii_redact", "mode": "shadow"}))
    assert (shadow.outcome, shadow.redactions) == (Outcome.ALLOW, ())
    denied = decide(action, FACTS, bundle({"category": "pii_redact"}, {"category": "pii_redact", "on_breach": "deny"}))
    assert (denied.outcome, denied.redactions) == (Outcome.DENY, ())
    warned = decide(action, FACTS, bundle({"category": "pii_redact", "on_breach": "warn"}))
    assert (warned.outcome, warned.redactions) == (Outcome.WARN, ())


def test_what_comes_back_and_what_streams() -> None:
    rules = bundle({"category": "pan_guard", "with": {"keep": "last4"}})
    action = Action(kind="tool", name="lookup")
    value = {"rows": [{"card": "4111111111111111"}]}
    verdict = decide_after(action, Ended(value=value), FACTS, rules)
    assert apply(value, verdict) == {"rows": [{"card": "************1111"}]}
    text = "it is 4111 1111 1111 1111, he said"
    verdict = decide_during(action, text, FACTS, rules)
    assert apply(text, verdict) == "it is **** **** **** 1111, he said"


def test_two_rules_replace_side_by_side() -> None:
    action = Action(kind="llm", name="chat", args={"q": "ann@corp.example pays with 4111111111111111"})
    rules = bundle({"category": "pan_guard"}, {"category": "pii_redact", "with": {"types": ["EMAIL_ADDRESS"]}})
    assert apply(action.args, decide(action, FACTS, rules)) == {"q": "a**@corp.example pays with 411111******1111"}


def test_numbers_become_text() -> None:
    assert apply({"n": 4111111111111111}, [redaction(("n",), 0, 16, "x")]) == {"n": "x"}


@pytest.mark.parametrize(
    "wrong",
    [redaction(("z",), 0, 1), redaction(("a", 5), 0, 1), redaction(("b",), 0, 9), redaction(("a",), 0, 1)],
    ids=["no key", "no index", "too long", "no text"],
)
def test_a_value_that_was_not_decided_on_is_refused(wrong: Redaction) -> None:
    with pytest.raises(ValueError, match="redaction"):
        apply({"a": ["x"], "b": "x"}, [wrong])


@given(st.text(min_size=1, max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5))
def test_nothing_of_a_stretch_is_left_and_all_else_is(text: str, pairs: list[tuple[int, int]]) -> None:
    found = [(min(a, b), max(a, b)) for a, b in pairs if max(a, b) <= len(text)]
    kept = [char for index, char in enumerate(text) if not any(a <= index < b for a, b in found)]
    assert apply(text, [redaction((), a, b, "") for a, b in found]) == "".join(kept)


def test_what_is_replaced_is_not_found_again() -> None:
    value = {"a": "ann@corp.example", "b": ["536-22-1234 or 4111 1111 1111 1111", "DE89370400440532013000"]}
    found = scan_value(value, ("CREDIT_CARD", "US_SSN", "IBAN_CODE"))
    done = apply(
        value,
        [redaction(i.path, i.found.start, i.found.end, replacement(i.found.type, i.text)) for i in found],
    )
    assert len(found) == 3
    assert scan_value(done, ("CREDIT_CARD", "US_SSN", "IBAN_CODE")) == ()


def test_pseudonyms_are_stable_for_a_tenant_and_restored() -> None:
    action = Action(kind="llm", name="chat", args={"q": "ann@corp.example, ANN@corp.example and bob@corp.example"})
    verdict = decide(action, FACTS, bundle({"category": "pseudonymise"}))
    names = Pseudonyms(KEY, "acme")
    sent = apply(action.args, verdict, names)["q"]
    first, second, third = sent.replace(",", "").replace(" and", "").split()
    assert first == second != third
    assert first.startswith("<EMAIL_ADDRESS:")
    assert Pseudonyms(KEY, "acme").token("EMAIL_ADDRESS", "ann@corp.example") == first
    assert Pseudonyms(KEY, "other").token("EMAIL_ADDRESS", "ann@corp.example") != first
    assert Pseudonyms(b"j" * 32, "acme").token("EMAIL_ADDRESS", "ann@corp.example") != first
    assert names.restore(f"write to {third}") == "write to bob@corp.example"
    assert Pseudonyms(KEY, "acme").restore(first) == first
    assert apply(action.args, verdict)["q"] == "[EMAIL_ADDRESS], [EMAIL_ADDRESS] and [EMAIL_ADDRESS]"


def test_separators_make_no_other_pseudonym() -> None:
    names = Pseudonyms(KEY, "acme")
    assert names.token("CREDIT_CARD", "4111 1111 1111 1111") == names.token("CREDIT_CARD", "4111111111111111")
    with pytest.raises(ValueError, match="16 bytes"):
        Pseudonyms(b"short", "acme")
