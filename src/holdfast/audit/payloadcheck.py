"""Payloads: each that an event commits to is there and unchanged, or was erased; and there are no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from holdfast.audit.report import Counts, Finding
from holdfast.audit.rows import Rows
from holdfast.errors import StoreError
from holdfast.journal.columns import PayloadRow
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
        self._misplaced: set[str] = set()

    def feed(self, events: Sequence[Event]) -> dict[str, bytes]:
        """Check what a page of events commits to; gives the payloads that could be read, by commitment."""
        values: dict[str, bytes] = {}
        events = [event for event in events if event.payloads]
        if not events:
            return values
        rows = self._store.sealed(self.tenant, events)
        for event in events:
            self._counts.payloads += len(event.payloads)
            for role, commitment in event.payloads.items():
                row = rows.get(commitment)
                if row is None:
                    self._add("payload.missing", f"its {role} is gone and was not erased", event, commitment)
                elif (value := self._held(event, role, row)) is not None:
                    values[commitment] = value
        return values

    def extra(self) -> None:
        """Name payloads that no event commits to. After the last page."""
        if self._store.payload_count(self.tenant) == self._present:
            return
        orphans: set[tuple[int, str, bytes | str]] = set()
        after = (-(1 << 63), "")
        while page := self._store.payload_names(self.tenant, after=after, limit=_PAGE):
            orphans.update((index, role, _short(name)) for index, role, name in page)
            after = page[-1][:2]
        # Read after the payloads: what was committed meanwhile finds its event.
        for events in Rows(self._store, self.tenant).pages(1 << 62):
            for row in events:
                try:
                    event = decode(row.body)
                except (msgspec.DecodeError, ValueError, RecursionError):
                    continue
                orphans.difference_update((event.index, role, _short(name)) for role, name in event.payloads.items())
        for orphan in sorted({_long(short) for _, _, short in orphans} - self._misplaced):
            self._add(
                "payload.extra", "no event commits to it: it was inserted, or its event was changed", None, orphan
            )

    def _held(self, event: Event, role: str, row: PayloadRow) -> bytes | None:
        self._present += 1
        state, commitment = row.state, row.commitment
        if (row.idx, row.role) != (event.index, role):
            self._misplaced.add(commitment)
            text = f"the row of its {role} says that it is the {row.role} of event {row.idx} of the log"
            self._add("payload.changed", text, event, commitment)
        if state == "erased":
            self._counts.erased += 1
        elif state == "lost":
            self._add(
                "payload.missing", f"the key of its {role} is gone and no erasure is on record", event, commitment
            )
        else:
            try:
                return self._store.opened(self.tenant, row)
            except (StoreError, TypeError, ValueError) as error:
                self._unreadable(event, role, commitment, str(error))
        return None

    def _unreadable(self, event: Event, role: str, commitment: str, reason: str) -> None:
        if commitment[:16] in reason:
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
