"""What a run has taken in, as labels (see :mod:`holdfast.policy.flow`): joined where data enters, told where it leaves.

A run's labels are a high-water mark. They are recorded with the event that brings the data in, and hold from the moment
at which the data is handed on: an intent made while that event is still on its way to the journal carries them already,
and its commit takes the event along ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from holdfast.action import Action, Declassified, Ended
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError, UsageError
from holdfast.journal.fold import RunState
from holdfast.log import Log
from holdfast.policy import flow
from holdfast.policy.bundle import Bundle
from holdfast.policy.flow import OUTSIDE, UNTRUSTED, Source
from holdfast.values import load

UNSEEN = (*flow.PRIVATE, UNTRUSTED)
"""Labels of what cannot be looked into: it may be anything."""
log = Log(__name__)


class Labels:
    """The labels of one run on this node."""

    __slots__ = ("_back", "_held", "_look", "_seen", "_state")

    def __init__(self, state: RunState, bundle: Bundle) -> None:
        self._state = state
        self._look = bundle.flows
        self._seen = self._held = tuple(state.labels)
        self._back: dict[str, int] = {}
        """Labels that came in again, and when that was taken off which they undo."""

    def go_by(self, bundle: Bundle) -> None:
        """Other policies are in force from now on."""
        self._look = bundle.flows

    def now(self) -> tuple[str, ...]:
        """What the run carries at this moment: what is recorded, and what is about to be."""
        if self._state.labels is not self._seen:
            self._seen = self._state.labels
            self._held = flow.join(self._held, self._seen)
        return self._held

    def off(self) -> tuple[Declassified, ...]:
        """Labels that people have taken off, and that nothing has brought in again."""
        return tuple(one for one in self._state.declassified if self._back.get(one.label, -1) < one.at)

    def take(self, action: Action, ended: Ended, sources: Sequence[Source] = OUTSIDE) -> dict[str, Any]:
        """Take in what an action brought. Gives what the event that records it says of that; mostly nothing."""
        return self._joined(self.of(action, ended, sources))

    def of(self, action: Action, ended: Ended, sources: Sequence[Source] = OUTSIDE) -> list[str]:
        """The labels of what an action brought, which the run does not take in by that."""
        found = set(flow.entering(action, ended, sources, look=False))
        return sorted(found | set(self._seen_in(ended.value)))

    def told(self, payload: bytes, labels: Iterable[str] = ()) -> dict[str, Any]:
        """Take in what somebody said to the run: an input, an answer, a signal, a child's output."""
        found = set(labels)
        if self._look and payload:
            try:
                found.update(self._seen_in(load(payload)))
            except PayloadError:
                found.update(UNSEEN)
        return self._joined(found)

    def _seen_in(self, value: Any) -> Iterable[str]:
        """What a value's form gives away, where some rule asks for labels at all."""
        if not self._look:
            return ()
        try:
            return flow.seen(value)
        except Exception:
            log.exception("a value could not be looked into")
            return UNSEEN

    def leaving(self, tenant: str, region: str) -> tuple[str, ...]:
        """What stays with something that the run of this tenant and region writes: an entry, a child, a message."""
        return flow.join(self.now(), (f"tenant:{tenant}", f"region:{region}"))

    def _joined(self, found: Iterable[str]) -> dict[str, Any]:
        held = self.now()
        off = {one.label: one.at for one in self.off()} if self._state.declassified else {}
        new = sorted(label for label in set(found) if label not in held or label in off)
        if not new:
            return {}
        self._back.update((label, off[label]) for label in new if label in off)
        self._held = flow.join(held, new)
        return {"labels": new}


def sources(name: str, connector: ConnectorSettings) -> tuple[Source, ...]:
    """What a connector's results are labelled with; one that declares nothing brings in what nobody vouches for."""
    labels = (UNTRUSTED,) if connector.labels is None else connector.labels
    return (Source(f"tool:{name}", labels),) if labels else ()


def named(what: Any) -> tuple[str, str]:
    """Label and reason of a request to declassify.

    Raises:
        UsageError: it names no label, or no reason.
    """
    label, reason = (what.get("label"), what.get("reason")) if isinstance(what, dict) else (None, None)
    if not isinstance(label, str) or not flow.valid(label):
        raise UsageError(f"{str(label)[:64]!r} is no label; give private, secret, phi, pan, untrusted, region:NAME, …")
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"to take {label} off needs a reason that people can weigh")
    return label, reason


class _Entry(msgspec.Struct):
    labels: tuple[str, ...]
    value: msgspec.Raw


_entries: msgspec.json.Decoder[_Entry] = msgspec.json.Decoder(_Entry)


def keep(value: bytes, labels: Iterable[str]) -> bytes:
    """A memory entry as it is stored: the value, and the labels that stay with it."""
    return msgspec.json.encode(_Entry(labels=tuple(labels), value=msgspec.Raw(value)))


def kept(entry: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Value and labels of a stored memory entry.

    Raises:
        PayloadError: it is no entry.
    """
    try:
        found = _entries.decode(entry)
    except msgspec.DecodeError:
        raise PayloadError("a memory entry does not read; delete it and write it again") from None
    return bytes(found.value), found.labels
