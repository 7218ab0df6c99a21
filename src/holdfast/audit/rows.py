"""Reading a log that may be damaged: page by page, and past rows that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast.audit.report import Finding
from holdfast.errors import StoreError
from holdfast.journal.columns import EventRow
from holdfast.journal.evidence import Evidence

PAGE = 1000
FIRST = -(1 << 63)
"""Lower than any index: a row that was given a place before the log's first is found too."""
_HOPELESS = 25
"""Rows in a row that cannot be read, after which the journal cannot be."""


class Rows:
    """A tenant's rows. ``report`` takes findings, ``passed_over`` the index of each row that cannot be read."""

    def __init__(
        self,
        store: Evidence,
        tenant: str,
        report: Callable[[Finding], None] = lambda _: None,
        passed_over: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._report = report
        self._passed_over = passed_over

    def pages(self, size: int) -> Iterator[list[EventRow]]:
        """Rows with an index below ``size``, in order; what has a place before the first is named.

        Raises:
            StoreError: many rows in a row cannot be read.
        """
        start, careful, bad = FIRST, 0, 0
        while start < size:
            try:
                page = self._read(start, 1 if careful else PAGE)
            except (StoreError, TypeError, ValueError) as error:
                if not careful:
                    # The page goes again row by row, so that the one that is damaged can be told.
                    careful = PAGE
                    continue
                bad += 1
                if bad > _HOPELESS:
                    raise StoreError(f"the events of tenant {self._tenant} cannot be read: {error}") from None
                start = max(start, 0)
                self._unreadable(start, error)
                start += 1
                continue
            if not page:
                return
            careful, bad = max(careful - 1, 0), 0
            start = page[-1].idx + 1
            while page and page[0].idx < 0:
                self._extra(page.pop(0), "its place is before the first of the log")
            yield [row for row in page if row.idx < size]

    def beyond(self, size: int) -> None:
        """Name rows from index ``size`` on that the tenant's row does not count even now."""
        page = self._store.event_rows(self._tenant, start=size, limit=100)
        if not page:
            return
        # Rows and their count are committed together: a row that was seen before the count is in it.
        now = next((row.log_size for row in self._store.tenants() if row.name == self._tenant), 0)
        for row in page:
            if type(row.idx) is not int or row.idx >= now:
                self._extra(row, f"the tenant's row counts {now} events: it was inserted")

    def _read(self, start: int, limit: int) -> list[EventRow]:
        page = self._store.event_rows(self._tenant, start=start, limit=limit)
        if any(type(row.idx) is not int for row in page):
            raise TypeError("its index is no number")
        return page

    def _extra(self, row: EventRow, message: str) -> None:
        self._report(
            Finding(
                code="event.extra",
                message=message,
                tenant=self._tenant,
                stream=row.stream,
                seq=row.seq,
                index=row.idx,
                kind=row.kind,
            )
        )

    def _unreadable(self, index: int, error: Exception) -> None:
        self._passed_over(index)
        self._report(
            Finding(
                code="event.bytes",
                message=f"its row cannot be read: {error}",
                tenant=self._tenant,
                index=index,
            )
        )
