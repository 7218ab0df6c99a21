"""What a verification found: findings that name their victim, and counts that say what was looked at."""

from __future__ import annotations

import msgspec

CODES = {
    "event.bytes": "an event's bytes are not an event's, or not in their one canonical form",
    "event.columns": "a column of an event's row says something else than its bytes",
    "event.hash": "an event's bytes do not give the hash that was recorded with them",
    "event.chain": "an event does not follow the event before it in its stream",
    "event.missing": "an event is gone",
    "event.extra": "an event is there that was not written",
    "event.signed": "an event is not the one over which the log's head was signed",
    "event.time": "an event is older than the one before it by more than its clock can err",
    "event.epoch": "an event was written under an older epoch than the one before it",
    "log.cut": "a log is shorter than its signed head",
    "log.root": "a log does not give the root that was signed",
    "log.unreadable": "a log cannot be read",
    "log.row": "a tenant's row says something else than its log",
    "head.missing": "a log has no signed head",
    "head.damaged": "a signed head cannot be read",
    "head.signature": "a head was not signed by the home's key",
    "key.unusable": "the home's audit key is missing, damaged or another than before",
    "payload.missing": "a payload is gone without having been erased",
    "payload.changed": "a payload is not the one that its event commits to",
    "payload.extra": "a payload is there that no event commits to",
    "stream.row": "a stream's row says something else than its events",
    "run.verdict": "an intent has no verdict that allowed it",
    "run.outcome": "an outcome has no intent before it",
    "run.decision": "deciding again on the recorded facts gives another verdict",
    "bundle.changed": "a bundle that verdicts cite was changed in the store",
    "run.unknown": "there is no such run or tenant",
}
"""Every code of a finding, and what it means."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, and where. What does not apply is empty or None."""

    code: str
    message: str
    tenant: str = ""
    stream: str = ""
    seq: int | None = None
    index: int | None = None
    kind: str = ""
    payload: str = ""
    """Commitment (hex) of the payload that it is about."""

    @property
    def where(self) -> str:
        """The victim in a few words."""
        parts = [f"tenant {self.tenant}"] if self.tenant else []
        if self.stream:
            parts.append(f"{self.stream}" + (f" event {self.seq}" if self.seq is not None else ""))
        if self.index is not None:
            parts.append(f"log index {self.index}")
        if self.kind:
            parts.append(self.kind)
        if self.payload:
            parts.append(f"payload {self.payload[:16]}")
        return ", ".join(parts)


class Counts(msgspec.Struct, kw_only=True):
    """What was looked at."""

    tenants: int = 0
    events: int = 0
    runs: int = 0
    payloads: int = 0
    erased: int = 0
    """Payloads that were erased on purpose: their key is gone, their commitment holds."""
    heads: int = 0
    unsigned: int = 0
    """Events that are newer than their log's signed head."""
    decisions: int = 0
    """Verdicts that were decided again and came out the same."""
    undecided: int = 0
    """Verdicts that could not be decided again: no facts, arguments or bundle on record."""


class Report(msgspec.Struct, kw_only=True):
    """Outcome of a verification. It holds when there are no findings."""

    findings: list[Finding] = []
    warnings: list[str] = []
    """What an auditor should know and what is no damage."""
    counts: Counts = msgspec.field(default_factory=Counts)
    suppressed: int = 0
    """Findings beyond the limit that were only counted."""

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at is as it was written."""
        return not self.findings

    def add(self, finding: Finding, limit: int = 1000) -> None:
        """Keep a finding; beyond ``limit`` of them only their number."""
        if len(self.findings) < limit:
            self.findings.append(_printable(finding))
        else:
            self.suppressed += 1


def _printable(finding: Finding) -> Finding:
    """The finding without what a forger may have written into names in order to fool a terminal or break JSON."""
    return msgspec.structs.replace(
        finding,
        **{name: printable(getattr(finding, name)) for name in ("message", "tenant", "stream", "kind", "payload")},
    )


def printable(text: object) -> str:
    """Text of unknown origin with everything escaped that a terminal or JSON would stumble over; cut at 2000."""
    plain = str(text)[:2000]
    return plain if plain.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
