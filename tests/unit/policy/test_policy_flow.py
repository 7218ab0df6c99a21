"""Labels: where they come in, how they travel, who takes them off, and what a person's own words vouch for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, Declassified, Effect, Ended, Facts, Outcome
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.flow import (
    Source,
    carried,
    entering,
    handle,
    handles,
    inherited,
    join,
    mark,
    opened,
    valid,
    vouch,
    vouched,
)
from holdfast.policy.model import one

MAIL = Source("tool:read_mail", ("untrusted", "private"))


def test_labels_have_a_form() -> None:
    assert all(map(valid, ("private", "untrusted", "tenant:acme", "region:eu-west", "source:web")))
    assert not any(map(valid, ("", "Private", "tenant:", "tenant:a b", "owner:x")))


@pytest.mark.parametrize(
    ("action", "ended", "labels"),
    [
        (Action(kind="http", name="get", host="x.example"), Ended(value="hello"), ("untrusted",)),
        (Action(kind="tool", name="read_mail"), Ended(value="hello"), ("private", "untrusted")),
        (Action(kind="tool", name="add"), Ended(value=3), ()),
        (Action(kind="tool", name="add", server="sums"), Ended(value=3), ("untrusted",)),
        (Action(kind="memory", name="get"), Ended(value="x", labels=("phi",)), ("phi",)),
        (Action(kind="tool", name="add"), Ended(value="4111 1111 1111 1111"), ("pan",)),
        (Action(kind="tool", name="add"), Ended(value={"password": "t7!Kp0qzz"}), ("secret",)),
        (Action(kind="tool", name="add"), Ended(value=["MRN: A1234567"]), ("phi",)),
        (Action(kind="tool", name="add"), Ended(value={"m": "ann@corp.example"}), ("private",)),
    ],
)
def test_what_comes_in(action: Action, ended: Ended, labels: tuple[str, ...]) -> None:
    assert entering(action, ended, (MAIL, Source("http:*", ("untrusted",)))) == labels


def test_trusted_sources_bring_only_what_was_kept_with_them() -> None:
    action = Action(kind="http", name="get", host="wiki.corp.example")
    ended = Ended(value="4111 1111 1111 1111", labels=("region:eu-west",))
    assert entering(action, ended, trusted=("http:*.corp.example",), look=False) == ("region:eu-west",)
    assert entering(action, ended, trusted=("http:*.corp.example",)) == ("pan", "region:eu-west")
    assert "untrusted" in entering(action, ended)


def test_a_label_is_taken_off_by_a_person_with_a_reason() -> None:
    action = Action(kind="tool", name="send", digest="d1")

    def left(**more: Any) -> tuple[str, ...]:
        given = {"label": "untrusted", "by": "ann", "reason": "read it", "at": 1, **more}
        return carried(action, Facts(now=2, labels=("untrusted", "phi"), declassified=(Declassified(**given),)))

    assert left() == ("phi",)
    assert left(digest="d1") == ("phi",)
    assert left(digest="d2") == left(by="") == left(reason="") == left(label="private") == ("phi", "untrusted")


def test_what_is_written_keeps_where_it_comes_from() -> None:
    facts = Facts(now=0, tenant="acme", region="eu-west", labels=("untrusted",))
    assert inherited(("phi",), facts) == ("phi", "region:eu-west", "tenant:acme", "untrusted")
    assert join(("b", "a"), ("a",)) == ("a", "b")


def test_handles_are_opened_by_the_node_alone() -> None:
    held = {"read_mail.1": {"text": "dear all"}, "fetch.2": "a page"}
    args = {"body": handle("read_mail.1"), "more": [handle("fetch.2"), "x"], "n": 1}
    assert handles(args) == set(held)
    assert opened(args, held) == {"body": {"text": "dear all"}, "more": ["a page", "x"], "n": 1}
    assert not handles({"$holdfast": "x", "more": 1})
    with pytest.raises(KeyError):
        opened({"body": {"$holdfast": "h9"}}, held)


def test_a_person_vouches_for_what_they_name() -> None:
    said = "Pay 1,250.00 EUR to DE89 3704 0044 0532 0130 00 and tell bob@corp.example; see https://corp.example/a."
    facts = Facts(now=0, vouched=vouch({"text": said, "amount": 99}))
    for value in (
        *("DE89370400440532013000", "de89 3704 0044 0532 0130 00", "Bob@corp.example", "https://corp.example/a"),
        *(99, "99", ["bob@corp.example"], said),
    ):
        assert vouched(value, facts), value
    for value in (
        "DE02120300000000202051",
        "eve@evil.example",
        "https://corp.example/b",
        98,
        ["bob@corp.example", "eve"],
    ):
        assert not vouched(value, facts), value
    assert not vouched("bob@corp.example", Facts(now=0))


@given(st.text(min_size=1, max_size=40))
def test_a_mark_does_not_show_what_it_stands_for(text: str) -> None:
    assert len(mark(text)) == 20
    assert mark(text) == mark(f"  {text.upper()} ".lower()) or text.upper().lower() != text.lower()


LABELS = st.sets(st.sampled_from(["private", "phi", "untrusted", "pan", "secret", "source:web"]))
GUARD = Bundle([one({"id": "t", "category": "lethal_trifecta"}), one({"id": "u", "category": "untrusted_taint"})])


@given(LABELS, LABELS, st.sampled_from(list(Effect)))
def test_more_labels_never_allow_more(some: set[str], more: set[str], effect: Effect) -> None:
    action = Action(kind="tool", name="send", effect=effect)
    fewer = decide(action, Facts(now=0, labels=tuple(sorted(some))), GUARD)
    all_of_them = decide(action, Facts(now=0, labels=tuple(sorted(some | more))), GUARD)
    assert all_of_them.outcome >= fewer.outcome
    if effect is not Effect.PURE and "untrusted" in some:
        assert fewer.outcome is Outcome.DENY
