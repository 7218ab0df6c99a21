"""Streams are looked at as they come: whatever the pieces, the same is heard, and nothing that should be hidden."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Action, Facts
from holdfast.node.content import LAG, Cut, Window
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide_during
from holdfast.policy.model import one
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.policy.redact import apply

ASK = Action(kind="llm", name="generate", provider="p", model="m", digest="d")
CARD = "4111 1111 1111 1111"
PIECES = st.lists(st.integers(1, 900), min_size=1, max_size=40)
TEXTS = st.lists(
    st.sampled_from(["word " * 30, "\n", CARD, "5500-0000-0000-0004", "12 ", "<b>", "é"]), max_size=30
).map(" ".join)


def rules(on_breach: str, phases: tuple[str, ...] = ("during",)) -> Bundle:
    rule = {"category": "pan_guard", "gates": ["llm"], "on_breach": on_breach, "with": {"phases": list(phases)}}
    return Bundle([one({"id": "cards", **rule}, "test")])


def run(bundle: Bundle) -> Any:
    return SimpleNamespace(bundle=bundle, facts=lambda *_, **__: Facts(now=1), state=SimpleNamespace(records={}))


def listen(window: Window, text: str, sizes: list[int]) -> str:
    heard, at = "", 0
    while at < len(text):
        size = sizes[at % len(sizes)]
        heard += window.take(text[at : at + size])
        at += size
    return heard + window.rest()


@given(TEXTS, PIECES)
@settings(max_examples=20)
def test_whatever_the_pieces_the_same_is_heard(text: str, sizes: list[int]) -> None:
    bundle = rules("redact")
    window = Window.of(run(bundle), ASK, None, None)
    assert window is not None
    heard = listen(window, text, sizes)
    assert heard == window.heard == apply(text, decide_during(ASK, text, Facts(now=1), bundle))
    assert CARD not in heard


@given(TEXTS, PIECES)
@settings(max_examples=20)
def test_of_a_stream_that_is_cut_only_what_was_harmless_is_heard(text: str, sizes: list[int]) -> None:
    window_rules = rules("deny")
    window = Window.of(run(window_rules), ASK, None, None)
    assert window is not None
    if decide_during(ASK, text, Facts(now=1), window_rules).allowed:
        assert listen(window, text, sizes) == text
        return
    with pytest.raises(Cut) as caught:
        listen(window, text, sizes)
    assert text.startswith(window.heard)
    assert CARD not in window.heard
    assert caught.value.judged.refused
    assert caught.value.text


@given(st.lists(st.sampled_from(["anna@corp.example", "text ", "< ", "<b> "]), max_size=200), PIECES)
@settings(max_examples=15)
def test_tokens_are_put_back_whole(words: list[str], sizes: list[int]) -> None:
    tokens = Pseudonyms(b"k" * 32, "acme")
    sent = "".join(tokens.token("EMAIL_ADDRESS", word) if "@" in word else word for word in words)
    window = Window.of(run(rules("warn", ("before",))), ASK, None, tokens)
    assert window is not None
    assert listen(window, sent, sizes) == "".join(words)


def test_a_rule_that_looks_only_afterwards_holds_everything_back() -> None:
    window = Window.of(run(rules("deny", ("after",))), ASK, None, None)
    assert window is not None
    assert window.holds
    assert listen(window, "x" * 5 * LAG, [100]) == ""


@pytest.mark.parametrize(("on_breach", "phases"), [("warn", ("after",)), ("deny", ("before",))])
def test_where_nobody_can_object_pieces_pass_as_they_come(on_breach: str, phases: tuple[str, ...]) -> None:
    bundle = rules(on_breach, phases)
    window = Window.of(run(bundle), ASK, None, None)
    assert window is not None, "the category looks at streams, whatever this rule of it does"
    assert not window.holds
    assert listen(window, "x" * 5 * LAG, [100]) == "x" * 5 * LAG
