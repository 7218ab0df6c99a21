"""Payloads: each that an event commits to is there and unchanged, or was erased; and there are no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from holdfast.audit.report import Counts, Finding
from holdfast.audit.rows import Rows
from holdfast.errors import StoreError
from holdfast.journal.event import Event, decode
from holdfast.journal.evidence import Evidence

_PAGE = 5000


class PayloadCheck:
    """Checks one tenant's payloads, page by page of its events."""

    def __init__(self, tenant: str, store: Evidence, report: Callable[[Finding], None], counts: Counts) -> None:
        self.tenant = tenant
        self._store = store
        self._report = report
        self._counts = counts
        self._present = 0
        self._reasons: set[str] = set()

    def feed(self, events: Sequence[Event]) -> dict[str, bytes]:
        """Check what a page of events commits to; gives the payloads that could be read, by commitment."""
        wanted = [commitment for event in events for commitment in event.payloads.values()]
        if not wanted:
            return {}
        try:
            values = self._store.payloads(self.tenant, wanted)
            reasons: dict[str, str] = {}
        except (StoreError, TypeError, ValueError):
            values, reasons = self._one_by_one(wanted)
        self._counts.payloads += len(wanted)
        self._present += len(values)
        absent = {commitment for commitment in wanted if commitment not in values}
        if absent:
            self._explain(events, absent, reasons)
        return values

    def extra(self) -> None:
        """Name payloads that no event commits to. After the last page."""
        if self._store.payload_count(self.tenant) == self._present:
            return
        rows: list[bytes | str] = []
        after = ""
        while page := self._store.payload_names(self.tenant, after=after, limit=_PAGE):
            rows += [_short(name) for name in page]
            after = page[-1]
        # Read after the payloads: what was committed meanwhile finds its event.
        orphans = set(rows)
        for events in Rows(self._store, self.tenant).pages(1 << 62):
            for row in events:
                try:
                    orphans.difference_update(_short(name) for name in decode(row.body).payloads.values())
                except (msgspec.DecodeError, ValueError, RecursionError):
                    continue
        for orphan in sorted(map(_long, orphans)):
            self._add(
                "payload.extra", "no event commits to it: it was inserted, or its event was changed", None, orphan
            )

    def _one_by_one(self, wanted: Sequence[str]) -> tuple[dict[str, bytes], dict[str, str]]:
        values: dict[str, bytes] = {}
        reasons: dict[str, str] = {}
        for commitment in wanted:
            try:
                value = self._store.payload(self.tenant, commitment)
            except (StoreError, TypeError, ValueError) as error:
                reasons[commitment] = str(error)
            else:
                if value is not None:
                    values[commitment] = value
        return values, reasons

    def _explain(self, events: Sequence[Event], absent: set[str], reasons: dict[str, str]) -> None:
        states = self._store.payload_states(self.tenant, sorted(absent))
        for event in events:
            for role, commitment in event.payloads.items():
                if commitment in absent:
                    self._absent(event, role, commitment, states.get(commitment), reasons.get(commitment, ""))

    def _absent(self, event: Event, role: str, commitment: str, state: str | None, reason: str) -> None:
        if state is not None:
            self._present += 1
        if state == "erased":
            self._counts.erased += 1
        elif state is None:
            self._add("payload.missing", f"its {role} is gone and was not erased", event, commitment)
        elif state == "lost":
            self._add(
                "payload.missing", f"the key of its {role} is gone and no erasure is on record", event, commitment
            )
        elif commitment[:16] in reason:
            self._add("payload.changed", f"its {role} was changed: {reason}", event, commitment)
        elif reason not in self._reasons:
            # A key that cannot be used is one finding, however many payloads were sealed with it.
            self._reasons.add(reason)
            self._add("payload.changed", f"its {role} cannot be read: {reason}", event, commitment)

    def _add(self, code: str, message: str, event: Event | None, commitment: str) -> None:
        self._report(
            Finding(
                code=code,
                message=message,
                tenant=self.tenant,
                stream=event.stream if event else "",
                seq=event.seq if event else None,
                index=event.index if event else None,
                kind=event.kind if event else "",
                payload=commitment,
            )
        )


def _short(name: str) -> bytes | str:
    """A commitment in half the memory; what is none stays as it is."""
    try:
        raw = bytes.fromhex(name)
    except (TypeError, ValueError):
        return name
    return raw if raw.hex() == name else name


def _long(name: bytes | str) -> str:
    return name.hex() if isinstance(name, bytes) else name
