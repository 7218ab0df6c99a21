"""What a replay reads, and what it tells: recorded decisions, and what a candidate changes about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.action import Action, Facts, Reservation, Settlement, Verdict


class Unreadable(Exception):
    """The arguments of a recorded action cannot be had. The message says why."""


class Deferred(Mapping[str, Any]):
    """Arguments that are fetched, decrypted and decoded when a rule first looks at them."""

    __slots__ = ("_fetch", "_held", "wrong")

    def __init__(self, fetch: Callable[[], Mapping[str, Any]]) -> None:
        self._fetch = fetch
        self._held: Mapping[str, Any] | None = None
        self.wrong = ""
        """Why a rule that looked saw nothing; empty: none looked, or it saw them."""

    def _value(self) -> Mapping[str, Any]:
        if self._held is None:
            try:
                self._held = self._fetch()
            except Unreadable as error:
                self.wrong = str(error)
                raise
        return self._held

    def __getitem__(self, key: str) -> Any:
        return self._value()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._value())

    def __len__(self) -> int:
        return len(self._value())


class Decided(msgspec.Struct, kw_only=True):
    """A recorded decision."""

    run: str
    seq: int
    at: int
    action: Action
    """Its arguments may be :class:`Deferred`."""
    facts: Facts
    verdict: Verdict
    went: bool = False
    """Whether the action went ahead with it: an intent."""


class Done(msgspec.Struct, kw_only=True, gc=False):
    """What came of an action."""

    run: str
    seq: int
    at: int
    id: str
    ok: bool = True
    cost: int | None = None
    """Nano-dollars."""
    tokens: int | None = None
    output_tokens: int = 0
    value: Callable[[], Any] | None = None
    """Gives what came back; None: nothing did, or a stream was stopped before it had all come."""
    facts: Facts | None = None
    verdict: Verdict | None = None
    """What rules said of what came back, where they had something to say."""


class Recorded(msgspec.Struct, kw_only=True):
    """A run, as the journal tells it."""

    run: str
    parent: str = ""
    tenant: str = "default"
    agent: str = ""
    workflow: str = ""
    status: str = ""
    created_at: int = 0
    items: Sequence[Decided | Done] = ()
    wrong: str = ""
    """Why it cannot be replayed; empty: it can."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One action that the candidate decides otherwise."""

    step: str
    action: str
    """``tool wire_transfer``."""
    effect: str
    """denied, asked, delayed, allowed (the record refused it), unasked (the record asked people), sooner (the record
    delayed it), redacted, warned or lowered (the output limit)."""
    was: str
    now: str
    rule: str
    reason: str


class Delta(msgspec.Struct, kw_only=True):
    """What the candidate changes about one run."""

    run: str
    tenant: str
    agent: str
    workflow: str
    status: str
    decisions: int = 0
    same: int = 0
    """Verdicts that are as recorded in every part that counts."""
    pinned: int = 0
    """Decisions that were made under this very bundle."""
    differ: int = 0
    """Those among them that come out otherwise: none, unless the record or this version is damaged."""
    stops_at: str = ""
    """Step at which the candidate stops the run; empty: it does not."""
    not_reached: int = 0
    """Recorded decisions after that."""
    denied: int = 0
    asked: int = 0
    unasked: int = 0
    allowed: int = 0
    delayed: int = 0
    redactions: int = 0
    """Stretches of text that are replaced and were not; negative: fewer."""
    minutes: float = 0.0
    """Reviewers' time more; negative: less."""
    saved: int = 0
    """Nano-dollars that would not have been spent."""
    spent: int = 0
    """Nano-dollars that would have been spent on top, at most."""
    shadow: int = 0
    """Decisions to which a rule in shadow objects."""
    changes: list[Change] = []
    unknown: list[str] = []
    """Decisions that could not be made again, and why."""

    @property
    def changed(self) -> bool:
        """Whether the run would have gone otherwise."""
        return bool(self.changes)


class Claim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an action wants of a count that several families share, or settles of it."""

    run: str
    seq: int
    at: int
    wants: tuple[Reservation, ...] = ()
    """Whether these fit is to be found out."""
    known: tuple[Reservation, ...] = ()
    """These fitted, by the record."""
    settles: tuple[Settlement, ...] = ()


class Told(msgspec.Struct, kw_only=True):
    """What a family's replay gives."""

    root: str
    deltas: list[Delta]
    claims: list[Claim] = []
