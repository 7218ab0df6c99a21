"""The gate: facts, ``decide`` and one conditional transaction. The only way to an effect.

An action is decided, and its intent is committed on the condition that what the verdict relied on still holds: the
stream's epoch, the kill generation, every reservation. What does not fit any more is decided again with fresh facts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from holdfast.action import Action, Facts, Hit, Kill, Outcome, Refusal, Verdict
from holdfast.errors import HoldfastError, PayloadError, StoreError
from holdfast.journal.base import Appended, Refused, Result, Store
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.kills import standing

ROUNDS = 16
"""How often one action is decided anew before it is denied: each round saw the world change under it."""


LOST = frozenset({"epoch", "missing"})
"""Refusals that mean: this node does not own the stream (any more)."""


class Fenced(HoldfastError):
    """Another node drives the stream now; nothing more of this one lands."""

    code = "fenced"


class Control:
    """What is known of kills: the generation and those in force, read from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.generation = -1
        self.kills: tuple[Kill, ...] = ()
        self.refresh()

    def refresh(self) -> bool:
        """Read again; says whether anything changed.

        Raises:
            StoreError: the store cannot be read.
        """
        before = self.generation
        while True:
            generation = self._store.kill_generation()
            kills = tuple(self._store.kills())
            # A kill between the two reads would pair old kills with a new generation, or the reverse.
            if self._store.kill_generation() == generation:
                break
        self.kills, self.generation = kills, generation
        return generation != before

    def standing(self, facts: Facts) -> Kill | None:
        """The kill that stops what these facts are about; where one seems to, it is read again first, for it may have
        been lifted. One that cannot be read again stands."""
        found = standing(self.kills, facts)
        if found is not None:
            with contextlib.suppress(StoreError):
                self.refresh()
            found = standing(self.kills, facts)
        return found


FactsOf = Callable[[Mapping[str, Refusal]], Facts]
"""Gives fresh facts, with the reservations that did not fit so far."""

Commit = Callable[[Verdict, Facts], Awaitable[Result]]
"""Writes the intent under its verdict's conditions."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """How an action fared at the gate."""

    verdict: Verdict
    facts: Facts
    written: Appended | None = None
    """The intent's events, when the action may go ahead."""


async def enter(
    action: Action, bundle: Bundle, control: Control, facts_of: FactsOf, commit: Commit, *, redacts: bool = False
) -> Passage:
    """Take an action through the gate: allowed and durable, or not at all.

    ``redacts``: the caller sends on only what :func:`holdfast.policy.redact.apply` leaves. Where nobody does, what a
    rule wants redacted does not go ahead.

    Raises:
        Fenced: this node no longer owns the stream.
        PayloadError: the intent cannot be recorded: too large.
        StoreError: the intent could not be made durable; the action must not happen.
    """
    refusals: dict[str, Refusal] = {}
    for _ in range(ROUNDS):
        facts = facts_of(refusals)
        verdict = decide(action, facts, bundle)
        redacted = verdict.outcome is Outcome.REDACT or bool(verdict.redactions)
        if not verdict.allowed or (redacted and not redacts):
            # What was known of kills may be older than a lift, and nothing is committed here that would show it.
            if facts.kills and control.refresh():
                continue
            return Passage(verdict=verdict, facts=facts)
        result = await commit(verdict, facts)
        if isinstance(result, Appended):
            return Passage(verdict=verdict, facts=facts, written=result)
        _learn(result, control, refusals)
    reason = f"the limits around it changed {ROUNDS} times while {action.id or action.name} was decided; try again"
    hit = Hit(rule="gate", category="gate", outcome=Outcome.DENY, reason=reason)
    verdict = Verdict(outcome=Outcome.DENY, rule="gate", category="gate", reason=reason, hits=(hit,))
    return Passage(verdict=verdict, facts=facts)


def _learn(refused: Refused, control: Control, refusals: dict[str, Refusal]) -> None:
    if refused.reason == "kill":
        control.refresh()
    elif refused.reason == "reservation":
        refusals.update({refusal.key: refusal for refusal in refused.refusals})
    elif refused.reason in LOST:
        raise Fenced(refused.message)
    else:
        raise PayloadError(refused.message)
