"""What rules do with an answer before the agent sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from holdfast.action import Action, Facts, Outcome, Redaction, Verdict
from holdfast.node import answered
from holdfast.node.answered import Withheld
from holdfast.node.content import Judged

ACTION = Action(kind="http", name="GET api.example", host="api.example")


def through(monkeypatch: pytest.MonkeyPatch, verdict: Verdict | None, *pieces: bytes) -> tuple[bytes, Withheld]:
    def look(run: Any, action: Action, ended: Any) -> Judged | None:
        if verdict is None:
            return None
        return Judged(verdict=verdict, facts=Facts(now=1), value=None)

    monkeypatch.setattr(answered, "look_after", look)
    held = Withheld(SimpleNamespace(), ACTION)  # type: ignore[arg-type]
    assert [held.feed(piece) for piece in pieces] == [b""] * len(pieces), "nothing passes before all has come"
    return held.finish(), held


def test_an_answer_that_nobody_objects_to_passes_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    assert through(monkeypatch, None, b'{"a": ', b"1}")[0] == b'{"a": 1}'


def test_of_a_refused_answer_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(outcome=Outcome.DENY, rule="no-cards", reason="it holds a card")
    out, held = through(monkeypatch, verdict, b"4111 1111 1111 1111")
    assert b"4111" not in out
    assert msgspec.json.decode(out)["error"]["rule"] == "no-cards"
    assert held.received == b"4111 1111 1111 1111"


def test_what_is_to_be_taken_out_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stretch = Redaction(path=("card",), start=0, end=4, replacement="[CARD]")
    verdict = Verdict(outcome=Outcome.REDACT, rule="no-cards", redactions=(stretch,))
    out, _ = through(monkeypatch, verdict, b'{"card": "4111"}')
    assert msgspec.json.decode(out) == {"card": "[CARD]"}


def test_an_answer_too_long_to_look_at_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "MOST", 4)
    out, _ = through(monkeypatch, None, b"abc", b"de")
    assert b"abc" not in out
    assert b"longer than 4 bytes" in out


@pytest.mark.parametrize("looks", [True, False])
def test_only_where_a_rule_looks_at_answers_are_they_held(looks: bool) -> None:
    run: Any = SimpleNamespace(bundle=SimpleNamespace(later={("after", "http")} if looks else set()))
    assert (Withheld.of(run, ACTION) is not None) is looks
