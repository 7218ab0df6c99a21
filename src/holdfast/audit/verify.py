"""Verification: is the record what was written, whole and in order? Names whatever is not.

Looked at, for each tenant: the home's key and the signed head; every event of the log (bytes, columns, hashes,
links, places, epochs, time); the root under the head; the rows of tenant and streams; every payload; what runs did
(allowed before it happened, intended before it ended, ended as their rows say); and each recorded verdict, decided
again.

Reading goes page by page and may run beside a busy node: what is committed after the start is left for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.audit import heads
from holdfast.audit.keys import KEY_FILE, PUB_FILE, PublicKey, load, load_public
from holdfast.audit.logcheck import LogCheck
from holdfast.audit.merkle import hash_leaf, root
from holdfast.audit.note import Checkpoint, parse, parse_checkpoint
from holdfast.audit.payloadcheck import PayloadCheck
from holdfast.audit.redecide import Judge, Undecidable, arguments_of
from holdfast.audit.report import Finding, Report
from holdfast.audit.rows import Rows
from holdfast.audit.runcheck import RunCheck
from holdfast.errors import AuditError, StoreError
from holdfast.journal import frontier
from holdfast.journal.event import Event
from holdfast.journal.evidence import Evidence

UNSIGNED_US = 60_000_000
"""A log whose events span more than this, microseconds, must have a signed head: heads follow within about a second."""

Progress = Callable[[int, int], None]
"""Told how many events were looked at, and of how many."""


def verify(
    store: Evidence,
    home: Path,
    *,
    run: str | None = None,
    tenant: str | None = None,
    trusted: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify a home's journal: all of it, one tenant's log, or one run and the log that it stands in.

    For a run, the log is checked as a whole (the run is in its tree), payloads and decisions only of the run.
    ``trusted`` is a copy of ``audit.pub`` that an auditor keeps elsewhere; without it the home's own is taken.

    Raises:
        StoreError: the journal cannot be read at all.
    """
    return _Verification(store, home, run, trusted, progress).all(tenant)


class _Verification:
    def __init__(
        self, store: Evidence, home: Path, run: str | None, trusted: Path | None, progress: Progress | None
    ) -> None:
        self.store = store
        self.home = home
        self.run = run
        self.progress = progress
        self.report = Report()
        self.key = self._public_key(trusted)
        self.judge = Judge(store.blob)
        self.total = 0
        self._local = store.url.startswith("sqlite")

    def all(self, tenant: str | None) -> Report:
        known = self.store.log_tenants()
        signed = heads.read_heads(self.home)
        if self.run is not None:
            state = self.store.stream(self.run)
            if state is None:
                self._unknown(
                    f"there is no run {self.run}; `holdfast runs list` names those there are", stream=self.run
                )
                return self.report
            tenant = state.header.tenant
        if tenant is not None:
            if tenant not in known and tenant not in signed:
                self._unknown(f"there is no tenant {tenant}; `holdfast tenant list` names those there are")
                return self.report
            names = [tenant]
        else:
            names = sorted({*known, *signed})
        self.total = sum(row.log_size for row in self.store.tenants() if row.name in names)
        for name in names:
            self._tenant(name, signed.get(name))
        for digest, what in sorted(self.judge.damaged.items()):
            self._add(Finding(code="bundle.changed", message=f"bundle {digest[:16]}, which verdicts cite: {what}"))
        for digest in sorted(self.judge.missing):
            self.report.warnings.append(
                f"bundle {digest[:16]} is not in the store: its verdicts cannot be decided again"
            )
        return self.report

    def _tenant(self, name: str, note: bytes | None) -> None:
        log = LogCheck(name, self._add)
        try:
            self._records(name, note, log)
        except (StoreError, UnicodeError) as error:
            # A server that went away says nothing about the record; a file that is there and cannot be read does, and
            # so does a name in it that is no text.
            if isinstance(error, StoreError) and not self._local:
                raise
            self._log("log.unreadable", name, f"the record cannot be read from here on: {error}", log.size)

    def _records(self, name: str, note: bytes | None, log: LogCheck) -> None:
        counts = self.report.counts
        counts.tenants += 1
        head = self._head(name, note)
        size, edge, streams = self.store.log_extent(name)
        runs = RunCheck(name, self._add)
        payloads = PayloadCheck(name, self.store, self._add, counts)
        roots: dict[int, bytes] = {}
        wanted = sorted({size, head.size if head else 0} - {0})
        rows = Rows(self.store, name, self._add, log.unreadable)
        for page in rows.pages(size):
            events: list[Event] = []
            for row in page:
                event = log.feed(row)
                if event is not None:
                    events.append(event)
                if wanted and log.pushed == wanted[0]:
                    roots[wanted.pop(0)] = frontier.root(log.frontier)
            self._page(events, runs, payloads)
            counts.events += len(page)
            if self.progress is not None:
                self.progress(counts.events, max(self.total, counts.events))
        log.finish(streams, size)
        runs.finish({stream.stream: stream.status for stream in streams})
        counts.runs += runs.runs
        self._row(name, size, edge, roots)
        self._signed(name, head, log, roots)
        if note is None:
            self._unsigned(name, log)
        rows.beyond(size)
        if self.run is None:
            payloads.extra()

    def _row(self, name: str, size: int, edge: bytes, roots: dict[int, bytes]) -> None:
        """What the tenant's row says of its log. Where events are gone or are too many, that was said already."""
        counted = frontier.size(edge)
        if counted != size:
            self._log("log.row", name, f"the tenant's row counts {size} events, its frontier {counted}", size)
        elif size in roots and frontier.root(edge) != roots[size]:
            self._log("log.row", name, "the frontier in the tenant's row is not that of its log", size)

    def _page(self, events: list[Event], runs: RunCheck, payloads: PayloadCheck) -> None:
        mine = events if self.run is None else [event for event in events if event.stream == self.run]
        values = payloads.feed(mine)
        for event in mine:
            runs.feed(event)
            if "verdict" in event.data and "action" in event.data:
                self._decide(event, values)

    def _decide(self, event: Event, values: dict[str, bytes]) -> None:
        counts = self.report.counts
        try:
            differing = self.judge.differs(event, values.get(arguments_of(event)))
        except Undecidable:
            counts.undecided += 1
            return
        if not differing:
            counts.decisions += 1
            return
        self._add(
            Finding(
                code="run.decision",
                message=f"deciding again gives another verdict: {differing}",
                tenant=event.tenant,
                stream=event.stream,
                seq=event.seq,
                index=event.index,
                kind=event.kind,
            )
        )

    def _public_key(self, trusted: Path | None) -> PublicKey | None:
        """The key that heads must be signed with; what is wrong with the home's own is a finding."""
        found: dict[str, PublicKey] = {}
        try:
            if trusted is not None:
                found[str(trusted)] = load_public(trusted)
            if (self.home / PUB_FILE).exists():
                found[PUB_FILE] = load_public(self.home / PUB_FILE)
            if (self.home / KEY_FILE).exists():
                found[KEY_FILE] = load(self.home).public
            if not found and (self.home / heads.FOLDER).exists():
                load_public(self.home / PUB_FILE)
        except AuditError as error:
            self._add(Finding(code="key.unusable", message=str(error)))
        if not found:
            return None
        first, key = next(iter(found.items()))
        for name, other in found.items():
            if other != key:
                self._add(Finding(code="key.unusable", message=f"{name} is another key than {first}: one was replaced"))
        return key

    def _head(self, tenant: str, note: bytes | None) -> Checkpoint | None:
        if note is None or self.key is None:
            return None
        path = heads.note_path(self.home, tenant)
        code = "head.damaged"
        try:
            parse_checkpoint(parse(note).text)
            code = "head.signature"
            head = heads.open_head(note, tenant, self.key)
        except AuditError as error:
            self._log(code, tenant, f"the signed head {path} does not hold: {error}")
            return None
        self.report.counts.heads += 1
        return head

    def _signed(self, tenant: str, head: Checkpoint | None, log: LogCheck, roots: dict[int, bytes]) -> None:
        """Compare the log with its signed head; where they differ, the hashes kept beside it name the events."""
        if head is None:
            return
        if log.size < head.size:
            gone = head.size - log.size
            self._log(
                "log.cut",
                tenant,
                f"{head.size} events were signed and the log ends after {log.size}: the last {gone} were cut, or the "
                "database was put back to an older copy",
                log.size,
            )
        elif roots.get(head.size) != head.root:
            self._log("log.root", tenant, f"the first {head.size} events do not give the root that was signed")
        else:
            self.report.counts.unsigned += log.size - head.size
            return
        self._name(tenant, head)

    def _name(self, tenant: str, head: Checkpoint) -> None:
        leaves = heads.read_leaves(self.home, tenant, head.size)
        if root(leaves) != head.root or len(leaves) != head.size:
            self.report.warnings.append(
                f"the hashes beside the signed head of tenant {tenant} are damaged too, so that they cannot tell which "
                "events differ from what was signed"
            )
            return
        named = 0
        for page in Rows(self.store, tenant).pages(head.size):
            for row in page:
                if hash_leaf(row.body) == leaves[row.idx]:
                    continue
                named += 1
                if named <= 100:
                    self._add(
                        Finding(
                            code="event.signed",
                            message="it is not the event that was signed: it was changed, moved or put in",
                            tenant=tenant,
                            stream=row.stream,
                            seq=row.seq,
                            index=row.idx,
                            kind=row.kind,
                        )
                    )
        if named > 100:
            self.report.suppressed += named - 100

    def _unsigned(self, tenant: str, log: LogCheck) -> None:
        if not log.size:
            return
        # Several homes may write to one server's journal, and each signs what it wrote.
        if self._local and log.last_at - log.first_at > UNSIGNED_US:
            path = heads.note_path(self.home, tenant)
            self._log("head.missing", tenant, f"the log has {log.size} events and no signed head {path}")
            return
        self.report.counts.unsigned += log.size
        self.report.warnings.append(
            f"the log of tenant {tenant} has no signed head on this home: that its end was not cut cannot be told"
        )

    def _log(self, code: str, tenant: str, message: str, index: int | None = None) -> None:
        self._add(Finding(code=code, message=message, tenant=tenant, index=index))

    def _unknown(self, message: str, stream: str = "") -> None:
        self._add(Finding(code="run.unknown", message=message, stream=stream))

    def _add(self, finding: Finding) -> None:
        self.report.add(finding)
