"""An action goes ahead under what still holds when it is written, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from holdfast.action import Action, Facts, Kill, Outcome, Refusal, Verdict
from holdfast.errors import PayloadError, StoreError
from holdfast.gate import ROUNDS, Control, Fenced, Passage, enter
from holdfast.journal.base import Appended, Refused, Result
from holdfast.policy.bundle import Bundle, builtin
from holdfast.policy.model import one

ACTION = Action(kind="tool", name="pay", id="pay.1", digest="d")
WRITTEN = Appended(events=())
KILL = Kill(id="kill-1", scope="agent", name="a", tenant="*", reason="stop", by="alice", at=1)


class Kills:
    """What a control reads of a store."""

    def __init__(self, *kills: Kill) -> None:
        self.standing = list(kills)
        self.generation = len(kills)
        self.gone = False

    def kill_generation(self) -> int:
        if self.gone:
            raise StoreError("gone")
        return self.generation

    def kills(self) -> list[Kill]:
        return self.standing

    def change(self, *kills: Kill) -> None:
        self.standing = list(kills)
        self.generation += 1


def through(
    store: Kills, answers: Callable[[int], Result], *, control: Control | None = None, bundle: Bundle | None = None
) -> tuple[Passage, list[tuple[Verdict, Facts]]]:
    """Take the action through the gate; ``answers`` is what each attempt to write is told."""
    held: Any = control or Control(store)  # type: ignore[arg-type]
    tried: list[tuple[Verdict, Facts]] = []

    def facts_of(refusals: Mapping[str, Refusal]) -> Facts:
        return Facts(
            now=1, agent="a", run="r", kills=held.kills, kill_generation=held.generation, refusals=dict(refusals)
        )

    async def commit(verdict: Verdict, facts: Facts) -> Result:
        tried.append((verdict, facts))
        return answers(len(tried))

    return asyncio.run(enter(ACTION, bundle or builtin(), held, facts_of, commit)), tried


def test_what_is_allowed_is_written_once() -> None:
    passage, tried = through(Kills(), lambda _: WRITTEN)
    assert passage.written is WRITTEN
    assert len(tried) == 1
    assert passage.verdict.kill_generation == 0


def test_a_kill_that_came_meanwhile_ends_it() -> None:
    store = Kills()

    def answers(_: int) -> Result:
        store.change(KILL)
        return Refused(reason="kill", message="", kill_generation=store.generation)

    passage, tried = through(store, answers)
    assert (passage.written, passage.verdict.outcome, passage.verdict.rule) == (None, Outcome.TERMINATE, "kill:kill-1")
    assert len(tried) == 1


def test_a_kill_that_was_lifted_meanwhile_ends_nothing() -> None:
    store = Kills(KILL)
    control = Control(store)  # type: ignore[arg-type]
    store.change()
    passage, _ = through(store, lambda _: WRITTEN, control=control)
    assert passage.written is WRITTEN
    assert passage.facts.kill_generation == 2


def test_a_standing_kill_is_read_again_before_it_is_believed() -> None:
    store = Kills(KILL)
    control = Control(store)  # type: ignore[arg-type]
    facts = Facts(now=1, agent="a")
    assert control.standing(facts) == KILL
    assert control.standing(Facts(now=1, agent="b")) is None
    store.gone = True
    assert control.standing(facts) == KILL, "one that cannot be read again stands"
    store.gone = False
    store.change()
    assert control.standing(facts) is None


def test_what_does_not_fit_is_decided_again_with_that_knowledge() -> None:
    policy = {"id": "rate", "category": "rate_limit", "gates": ["tool"], "with": {"limit": 1}, "on_breach": "deny"}
    bundle = Bundle([one(policy, "test")])

    def answers(_: int) -> Result:
        refusal = Refusal(key="rate_limit/rate/default", policy="rate", limit=1, used=1, retry_after_us=7)
        return Refused(reason="reservation", message="", refusals=(refusal,))

    passage, tried = through(Kills(), answers, bundle=bundle)
    assert len(tried) == 1
    assert (passage.verdict.outcome, passage.verdict.rule) == (Outcome.DENY, "rate")
    assert set(passage.facts.refusals) == {"rate_limit/rate/default"}


@pytest.mark.parametrize(
    ("reason", "error"), [("epoch", Fenced), ("missing", Fenced), ("size", PayloadError), ("invalid", PayloadError)]
)
def test_what_cannot_be_written_goes_nowhere(reason: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="no"):
        through(Kills(), lambda _: Refused(reason=reason, message="no"))


def test_a_world_that_never_stands_still_denies() -> None:
    store = Kills()

    def answers(_: int) -> Result:
        store.change()
        return Refused(reason="kill", message="")

    passage, tried = through(store, answers)
    assert len(tried) == ROUNDS
    assert (passage.written, passage.verdict.outcome, passage.verdict.rule) == (None, Outcome.DENY, "gate")
