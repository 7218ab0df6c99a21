"""What comes back to a run's request, before the agent sees it, where a rule looks at answers.

Nothing passes until all has come: what was handed on cannot be taken back.
"""

from __future__ import annotations

import msgspec

from holdfast.action import Action, Ended
from holdfast.egress.answers import render
from holdfast.egress.base import Deny
from holdfast.node.content import Judged, handed, look_after
from holdfast.node.effects import value_of
from holdfast.node.run import Run
from holdfast.values import dump

MOST = 8 << 20
"""Bytes of an answer that rules can look at; of a longer one nothing passes."""


class Withheld:
    """An answer on its way through the rules: a :class:`holdfast.egress.base.Transform`."""

    def __init__(self, run: Run, action: Action) -> None:
        self._run = run
        self._action = action
        self._held = bytearray()
        self._over = False
        self.judged: Judged | None = None
        """What the rules said, once all has come; None: nothing."""
        self.received = b""
        """What came, where something else was handed on."""

    @classmethod
    def of(cls, run: Run, action: Action) -> Withheld | None:
        """None: no rule looks at what comes back, and it may pass as it comes."""
        return cls(run, action) if ("after", action.gate) in run.bundle.later else None

    def feed(self, data: bytes) -> bytes:
        """See :class:`holdfast.egress.base.Transform`."""
        if len(self._held) + len(data) > MOST:
            self._over = True
        if not self._over:
            self._held += data
        return b""

    def finish(self) -> bytes:
        """See :class:`holdfast.egress.base.Transform`."""
        if self._over:
            return self._refusal("answer_too_large", f"rules look at answers, and this one is longer than {MOST} bytes")
        received = bytes(self._held)
        value = _read(received)
        self.judged = look_after(self._run, self._action, Ended(value=value))
        if self.judged is None or not self.judged.changed:
            return received
        self.received = received
        if self.judged.refused:
            return self._refusal(self.judged.verdict.rule, self.judged.verdict.reason)
        left = handed(value, self.judged.verdict)
        return left.encode() if isinstance(left, str) else dump(left, "an answer")

    @staticmethod
    def _refusal(rule: str, reason: str) -> bytes:
        return render(Deny(type="denied", rule=rule, reason=reason))[1]


def _read(data: bytes) -> object:
    """JSON where it is an object or a list of some, whatever it says that it is; else text."""
    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return value_of(data)
    return found if isinstance(found, dict | list) else value_of(data)
