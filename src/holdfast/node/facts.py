"""What a node knows about a run beyond its own counters: gathered only where some rule looks at it.

Most of it never changes while a run lives, and most runs have none of it: then it costs nothing. What concerns one
action (who named its arguments, what the run has read, what others did) is gathered when that action is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.action import Action, Declassified, Facts, Past
from holdfast.errors import PayloadError
from holdfast.journal.fold import RunState
from holdfast.journal.masterkey import master_key
from holdfast.node.labels import Labels
from holdfast.node.mandate import Mandate, mandate
from holdfast.node.services import Services
from holdfast.policy import flow
from holdfast.policy.bundle import Bundle
from holdfast.policy.history import Question, answers, recall
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.values import load

MAX_OTHERS = 5000
"""Actions of a tenant that one question can look back on. Where there may be more it gets no answer, which denies."""


class Beyond:
    """The facts about one run that its own events do not count."""

    __slots__ = (
        "_bundle", "_declassified", "_labels", "_named", "_now", "_pseudonyms", "_said", "_services", "_state",
        "_who", "labels",
    )  # fmt: skip

    def __init__(self, state: RunState, bundle: Bundle, services: Services) -> None:
        self._state = state
        self._bundle = bundle
        self._services = services
        self.labels = Labels(state, bundle)
        """What the run has taken in."""
        self._who: Mandate = mandate(state.created)
        self._labels: tuple[str, ...] | None = None
        self._declassified: list[Declassified] = []
        self._now: Mapping[str, Any] = {}
        self._said = 0
        self._pseudonyms: Pseudonyms | None = None
        self._named: frozenset[str] = frozenset()

    def go_by(self, bundle: Bundle) -> None:
        """Other policies are in force from now on."""
        self._bundle = bundle
        self.labels.go_by(bundle)

    def now(self) -> Mapping[str, Any]:
        """Fields of :class:`Facts`, by name; those that say nothing are left out."""
        held = self.labels.now()
        if held is not self._labels or self._state.declassified is not self._declassified:
            self._labels, self._declassified = held, self._state.declassified
            known = {**self._who.facts(), "labels": held, "declassified": self.labels.off()}
            self._now = {name: value for name, value in known.items() if value or name == "authority"}
        return self._now

    def about(self, action: Action, facts: Facts) -> Facts:
        """The facts with what concerns this very action."""
        found: dict[str, Any] = {}
        if self._bundle.vouches and flow.carried(action, facts):
            found["vouched"] = tuple(sorted(flow.marks(action.args) & self._vouched()))
        if self._bundle.people:
            person = facts.on_behalf_of
            names = {facts.principal: facts.principal, person: person, facts.agent: f"agent:{facts.agent}"}
            found["suspended"] = tuple(
                name for name, entry in names.items() if name and self._services.person(entry).suspended
            )
            found["user_authority"] = self._services.person(person).may if person else None
        if self._bundle.cites:
            found["sources"] = tuple(self._state.sources)
        return msgspec.structs.replace(facts, **found)

    def read(self, action: Action, value: Any) -> dict[str, Any]:
        """What the event that records a result says of what was read with it, where some rule looks at citations."""
        return {"sources": flow.names(action, value)} if self._bundle.cites else {}

    def recalled(self, action: Action, facts: Facts, asked: Iterable[Question], record: Sequence[Past]) -> Facts:
        """The facts with the answers of the record: the run's own, and what its agent or tenant did in other runs."""
        asked = tuple(asked)
        wide = [question for question in asked if question.over != "run"]
        facts = recall(action, facts, [question for question in asked if question.over == "run"], record)
        if not wide:
            return facts
        found = dict(facts.history)
        for question in wide:
            one = question.of(action)
            others = self._others(one, facts, record)
            if others is not None:
                found |= answers((one,), facts, (), others)
        return msgspec.structs.replace(facts, history=found)

    def _others(self, question: Question, facts: Facts, record: Sequence[Past]) -> list[Past] | None:
        """What the store holds of the tenant that a question may be about, what is under way included."""
        plain = not any(mark in question.name for mark in "*?[")
        found = self._services.store.pasts(
            facts.tenant,
            since=facts.now - question.within if question.within else 0,
            agent=facts.agent if question.over == "agent" else "",
            gate="" if question.gate == "*" else question.gate,
            name=question.name if plain else "",
            limit=MAX_OTHERS + 1,
        )
        if len(found) > MAX_OTHERS:
            return None
        # What other branches of this run are about to do is not in the store yet.
        known = {(past.gate, past.name, past.at, past.agent) for past in found}
        own = (past for past in record if (past.gate, past.name, past.at, past.agent) not in known)
        return sorted([*found, *own], key=lambda past: past.at)

    @property
    def pseudonyms(self) -> Pseudonyms:
        """The tenant's tokens, and what those that this run was given stood for."""
        if self._pseudonyms is None:
            self._pseudonyms = Pseudonyms(master_key(self._services.home), self._state.tenant)
        return self._pseudonyms

    def _vouched(self) -> frozenset[str]:
        """Marks of all that the principal itself has said to the run."""
        said = self._state.asked
        for commitment in said[self._said :]:
            payload = self._services.store.payload(self._state.tenant, commitment)
            try:
                self._named |= frozenset(flow.vouch(load(payload))) if payload else frozenset()
            except PayloadError:
                # What cannot be read vouches for nothing.
                continue
        self._said = len(said)
        return self._named
