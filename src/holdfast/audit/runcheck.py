"""Meaning of a run's events: allowed before it happened, intended before it ended, ended as its row says. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.action import Outcome
from holdfast.audit.report import Finding
from holdfast.journal.event import Event, Kind
from holdfast.journal.fold import FINAL

_EFFECTS = frozenset({"step", "decision", "llm", "tool", "http", "file", "spawn"})
"""Kinds of action that need an intent of their own before they can end well."""
_ENDS = {f"run.{status}": status for status in FINAL}
_CALLS = frozenset({Kind.INTENT, Kind.WAIT, Kind.VERDICT, Kind.SAMPLE})


class _Run:
    __slots__ = ("calls", "ended", "index", "intents", "kind", "seq", "status")

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}
        self.intents: set[str] = set()
        self.status = ""
        self.ended = False
        """Ended or continued anew: what was begun before is no longer remembered."""
        self.seq, self.index, self.kind = 0, 0, ""


class RunCheck:
    """Checks the runs of one tenant, event by event in the order of the log."""

    def __init__(self, tenant: str, report: Callable[[Finding], None]) -> None:
        self.tenant = tenant
        self._report = report
        self._runs: dict[str, _Run] = {}

    @property
    def runs(self) -> int:
        """Runs seen."""
        return len(self._runs)

    def feed(self, event: Event) -> None:
        """Check one event. Events whose data is not as their kind has it are named, not trusted."""
        kind = event.kind
        run = self._runs.get(event.stream)
        if run is None:
            if kind not in (Kind.RUN_CREATED, Kind.RUN_REFUSED):
                return
            run = self._runs[event.stream] = _Run()
        try:
            if kind in _CALLS:
                self._call(run, event)
            elif kind in (Kind.OUTCOME, Kind.ATTEMPT_FAILED):
                self._outcome(run, event)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            self._add("run.outcome", event, f"its data is not that of {kind}: {type(error).__name__} {error}")
        if kind in _ENDS:
            run.status = _ENDS[kind]
            run.seq, run.index, run.kind = event.seq, event.index, kind
        if kind in _ENDS or kind == Kind.RUN_CONTINUED:
            run.calls, run.intents, run.ended = {}, set(), True

    def finish(self, statuses: dict[str, str]) -> None:
        """Compare how each run ended with the status in its row."""
        for name, run in self._runs.items():
            status = statuses.get(name)
            if status is None or status == run.status or (not run.status and status not in FINAL):
                continue
            told = f"ended as {run.status}" if run.status else "has no end"
            self._report(
                Finding(
                    code="stream.row",
                    message=f"its row says {status} and by its events it {told}",
                    tenant=self.tenant,
                    stream=name,
                    seq=run.seq or None,
                    index=run.index if run.seq else None,
                    kind=run.kind,
                )
            )

    def _call(self, run: _Run, event: Event) -> None:
        action = event.data["action"]
        run.calls[action["id"]] = action["kind"]
        if event.kind != Kind.INTENT:
            return
        run.intents.add(action["id"])
        verdict = event.data.get("verdict")
        if not isinstance(verdict, dict) or not isinstance(verdict.get("outcome"), int):
            self._add("run.verdict", event, f"{action['id']} went ahead without a verdict")
        elif verdict["outcome"] > Outcome.REDACT:
            word = _word(verdict["outcome"])
            self._add("run.verdict", event, f"{action['id']} went ahead although the verdict was {word}")

    def _outcome(self, run: _Run, event: Event) -> None:
        name = event.data["id"]
        kind = run.calls.get(name)
        if kind is None:
            if not run.ended:
                self._add("run.outcome", event, f"{name} ended and had never begun")
        elif name not in run.intents and kind in _EFFECTS and event.data.get("status", "ok") == "ok":
            self._add("run.outcome", event, f"{name} was done without an intent on record")
        after = event.data.get("after")
        if after is not None and event.data.get("status", "ok") == "ok":
            if after["verdict"]["outcome"] > Outcome.REDACT:
                word = _word(after["verdict"]["outcome"])
                self._add("run.verdict", event, f"what came of {name} was handed on although the verdict was {word}")
            elif after["verdict"].get("redactions") and "received" not in event.payloads:
                self._add(
                    "run.verdict", event, f"what came of {name} was handed on whole although rules took part of it"
                )

    def _add(self, code: str, event: Event, message: str) -> None:
        self._report(
            Finding(
                code=code,
                message=message,
                tenant=event.tenant,
                stream=event.stream,
                seq=event.seq,
                index=event.index,
                kind=event.kind,
            )
        )


def _word(outcome: Any) -> str:
    try:
        return Outcome(outcome).word
    except ValueError:
        return f"number {outcome}"
