"""What a node knows about a run beyond its own counters: gathered only where some rule looks at it.

Most of it never changes while a run lives, and most runs have none of it: then it costs nothing. What concerns one
action (who named its arguments, what the run has read, what others did) is gathered when that action is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.action import Action, Declassified, Facts
from holdfast.errors import PayloadError
from holdfast.journal.fold import RunState
from holdfast.journal.masterkey import master_key
from holdfast.node.labels import Labels
from holdfast.node.services import Services
from holdfast.policy import flow
from holdfast.policy.bundle import Bundle
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.values import load


class Beyond:
    """The facts about one run that its own events do not count."""

    __slots__ = (
        "_bundle", "_declassified", "_labels", "_named", "_now", "_pseudonyms", "_said", "_services", "_state",
        "labels",
    )  # fmt: skip

    def __init__(self, state: RunState, bundle: Bundle, services: Services) -> None:
        self._state = state
        self._bundle = bundle
        self._services = services
        self.labels = Labels(state, bundle)
        """What the run has taken in."""
        self._labels: tuple[str, ...] = ()
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
            known = {"labels": held, "declassified": self.labels.off()}
            self._now = {name: value for name, value in known.items() if value}
        return self._now

    def about(self, action: Action, facts: Facts) -> Facts:
        """The facts with what concerns this very action."""
        if self._bundle.vouches and flow.carried(action, facts):
            named = flow.marks(action.args) & self._vouched()
            if named:
                return msgspec.structs.replace(facts, vouched=tuple(sorted(named)))
        return facts

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
