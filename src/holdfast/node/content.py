"""What rules look at beside what is about to happen: what came back, and what a stream brings while it does.

An outcome that a rule objected to, or took something out of, says so: ``after`` holds the verdict and the facts that it
was given on, and the payload ``received`` what came in before anything was taken out. What may be handed on is the
payload ``result``, as ever. What was done stays done, so nobody can be asked any more: to ask for approval denies.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from holdfast.action import Action, Ended, Facts, Outcome, Price, Redaction, Verdict
from holdfast.errors import DeniedError, TerminatedError
from holdfast.journal.event import Kind
from holdfast.node.run import Run, Stop
from holdfast.policy import redact, scan
from holdfast.policy.decide import decide_after, decide_during
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.policy.scan import LARGE

LAG = 512
"""Characters of a stream that are held back while more may come: what straddles two pieces is seen as a whole."""
STRIDE = 512
"""Characters after which a stream is looked at again, at least: an eighth of its length where that is more, so that a
long stream is not read over and over."""

LONGEST_TOKEN = 64
"""Characters of a pseudonym, at most."""


async def read_ahead(run: Run, gate: str, value: Any, size: int) -> None:
    """Look into a large value in a thread, where some rule will: the node's other runs go on meanwhile."""
    if size > LARGE and (run.bundle.reads(gate) or run.bundle.flows):
        with contextlib.suppress(Exception):
            # What goes wrong goes wrong again when a rule looks, and denies there.
            await asyncio.to_thread(scan.read_ahead, value)


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What rules said of what came back."""

    verdict: Verdict
    facts: Facts
    value: Any
    """What may be handed on; None where nothing may."""

    @property
    def refused(self) -> bool:
        """Whether nothing may be handed on."""
        return not self.verdict.allowed

    @property
    def changed(self) -> bool:
        """Whether what may be handed on is not what came in."""
        return self.refused or bool(self.verdict.redactions)

    def data(self) -> dict[str, Any]:
        """What the outcome's event says of it."""
        said: dict[str, Any] = {"after": {"verdict": self.verdict, "facts": self.facts}}
        if self.refused:
            said |= {"status": "fault", "code": self.code, "message": self.verdict.reason, "rule": self.verdict.rule}
        return said

    @property
    def code(self) -> str:
        """Code of the error that stands in place of the value."""
        return TerminatedError.code if self.verdict.outcome is Outcome.TERMINATE else DeniedError.code

    def stop(self) -> Stop | None:
        """How the run ends because of it, if it does."""
        if self.verdict.outcome is not Outcome.TERMINATE:
            return None
        return Stop(Kind.RUN_TERMINATED, code=self.code, message=self.verdict.reason, rule=self.verdict.rule)


def look_after(run: Run, action: Action, ended: Ended, price: Price | None = None) -> Judged | None:
    """What the rules say of what came back; None: nobody looks, or nobody has anything to say."""
    if ("after", action.gate) not in run.bundle.later:
        return None
    facts = run.facts({}, run.state.records.get(action.id), price, action, phase="after")
    verdict = decide_after(action, ended, facts, run.bundle)
    if not verdict.hits:
        return None
    return Judged(verdict=verdict, facts=facts, value=handed(ended.value, verdict) if verdict.allowed else None)


def handed(value: Any, verdict: Verdict) -> Any:
    """A value with what the rules want taken out of it taken out."""
    return redact.apply(value, verdict) if verdict.redactions else value


class Cut(Exception):
    """A rule stopped a stream. ``text`` is what had come by then, handed on or not."""

    def __init__(self, judged: Judged, text: str, *, late: bool) -> None:
        super().__init__(judged.verdict.reason)
        self.judged = judged
        self.text = text
        self.late = late
        """Whether something was to be taken out that had been handed on."""
        self.delivered: dict[str, Any] = {}
        """Length and digest of the prefix that was handed on."""

    @property
    def message(self) -> str:
        """Why the stream ends here."""
        why = ", but it was handed on before it showed" if self.late else ""
        return f"the stream was stopped: {self.judged.verdict.reason}{why}"


class Window:
    """The rules' eyes on one stream: takes its pieces, gives what may be handed on.

    Offsets count the text as the model wrote it, from its beginning; what was handed on cannot be taken back, so a rule
    that wants something out of that stops the stream. Where a rule looks only once all has come, nothing passes before.
    """

    __slots__ = ("_action", "_done", "_next", "_passed", "_price", "_run", "_text", "_tokens", "heard", "holds", "out")

    def __init__(
        self, run: Run, action: Action, price: Price | None, tokens: Pseudonyms | None, *, holds: bool = False
    ) -> None:
        self.holds = holds
        """Whether everything waits for the end."""
        self.heard = ""
        """What was handed on."""
        self.out: tuple[Redaction, ...] = ()
        """What was to be taken out when the rules last looked."""
        self._run = run
        self._action = action
        self._price = price
        self._tokens = tokens
        self._text = ""
        self._passed = 0
        self._next = 0
        self._done: set[tuple[int, int]] = set()

    @classmethod
    def of(cls, run: Run, action: Action, price: Price | None, tokens: Pseudonyms | None) -> Window | None:
        """The window on a stream; None where nothing has to be looked at or put back, and each piece may pass."""
        holds = any(
            rule.enforced
            and rule.on_breach > Outcome.WARN
            and "after" in (phases := getattr(rule.params, "phases", rule.category.phases))
            and "during" not in phases
            for rule in run.bundle.plan(action.gate, run.facts({}, None, None), "after")
        )
        looked_at = ("during", action.gate) in run.bundle.later
        if not (holds or looked_at or tokens is not None):
            return None
        return cls(run, action, price, tokens, holds=holds)

    def take(self, piece: str) -> str:
        """Another piece came: what may be handed on now.

        Raises:
            Cut: a rule stops the stream.
        """
        self._text += piece
        if len(self._text) < self._next:
            return ""
        self._next = len(self._text) + max(STRIDE, len(self._text) >> 3)
        return self._pass(len(self._text) - LAG)

    def rest(self) -> str:
        """The stream has ended: what was held back.

        Raises:
            Cut: a rule stops it at the last moment.
        """
        return self._pass(len(self._text))

    def _pass(self, until: int) -> str:
        redactions = self.out = self._judge()
        if self.holds:
            return ""
        # No stretch that is to be replaced is split, nor is a token.
        while split := [one.start for one in redactions if one.start < until < one.end]:
            until = min(split)
        if self._tokens is not None and until < len(self._text):
            begun = self._text.rfind("<", max(self._passed, until - LONGEST_TOKEN), until)
            if begun >= 0 and ">" not in self._text[begun:until]:
                until = begun
        if until <= self._passed:
            return ""
        start, self._passed = self._passed, until
        inside = []
        for one in redactions:
            if start <= one.start and one.end <= until:
                self._done.add((one.start, one.end))
                inside.append(msgspec.structs.replace(one, start=one.start - start, end=one.end - start))
        piece: str = redact.apply(self._text[start:until], inside)
        if self._tokens is not None:
            piece = self._tokens.restore(piece)
        self.heard += piece
        return piece

    def _judge(self) -> tuple[Redaction, ...]:
        run, action = self._run, self._action
        if ("during", action.gate) not in run.bundle.later:
            return ()
        facts = run.facts({}, run.state.records.get(action.id), self._price, action, phase="during")
        verdict = decide_during(action, self._text, facts, run.bundle)
        # What was taken out of a piece as it passed is found again each time; anything else there comes too late.
        late = any(one.start < self._passed and (one.start, one.end) not in self._done for one in verdict.redactions)
        if late or not verdict.allowed:
            raise Cut(Judged(verdict=verdict, facts=facts, value=None), self._text, late=late)
        return verdict.redactions
