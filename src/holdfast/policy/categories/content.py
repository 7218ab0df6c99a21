"""What the categories that read content have in common: where they look, and what they do about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast.action import Action, Ended, Facts, Outcome, Redaction
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Rule
from holdfast.policy.redact import replacement
from holdfast.policy.scan import Placed

REDACT = (Outcome.REDACT, Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
DENY = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
SINKS = ("llm", "tool", "http", "file", "memory", "output", "spawn", "approval")
Phase = Literal["before", "during", "after"]


class ContentParams(Params):
    """Where to look."""

    phases: tuple[Phase, ...] = Field(
        default=("before", "during", "after"),
        min_length=1,
        description="`before`: at what is sent; `during`: at what a stream brings; `after`: at what came back",
    )


class ContentCategory(Category):
    """Reads what goes out and what comes back, by one rule."""

    phases: ClassVar[frozenset[str]] = frozenset({"before", "during", "after"})
    params: ClassVar[type[Params]] = ContentParams
    gates: ClassVar[tuple[str, ...]] = SINKS
    default_gates: ClassVar[tuple[str, ...]] = ("llm", "tool", "http", "file", "memory", "output")

    @abstractmethod
    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """What the rule says of a value: arguments, the text of a stream so far, or what came back."""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at the arguments and the path."""
        if "before" not in rule.params.phases:
            return None
        found = self.look(action.args, action, facts, rule)
        if not action.path:
            return found
        other = self.look(action.path, action, facts, rule)
        if not isinstance(other, Breach):
            return found
        # A path cannot be changed: the action would mean something else.
        return irreplaceable(other) if other.redactions else (found or other)

    def during(self, action: Action, text: str, facts: Facts, rule: Rule) -> Finding:
        """Look at what a stream has brought so far."""
        return self.look(text, action, facts, rule) if "during" in rule.params.phases else None

    def after(self, action: Action, ended: Ended, facts: Facts, rule: Rule) -> Finding:
        """Look at what came back."""
        return self.look(ended.value, action, facts, rule) if "after" in rule.params.phases else None


def irreplaceable(breach: Breach) -> Breach:
    """The same objection where nothing can be replaced."""
    return Breach(reason=f"{breach.reason}, where it cannot be replaced", facts=breach.facts, outcome=Outcome.DENY)


def counted(placed: Iterable[Placed]) -> dict[str, int]:
    """How many findings of each type, by name."""
    counts: dict[str, int] = {}
    for item in placed:
        counts[item.found.type] = counts.get(item.found.type, 0) + 1
    return dict(sorted(counts.items()))


def objection(placed: tuple[Placed, ...], rule: Rule, what: str, *, style: str = "mask") -> Breach | None:
    """What to say of findings: counts only, never what was found."""
    if not placed:
        return None
    counts = counted(placed)
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    breach = Breach(
        reason=f"{what}: {listed}",
        facts={"found": counts},
        redactions=tuple(
            Redaction(
                path=item.path,
                start=item.found.start,
                end=item.found.end,
                replacement=replacement(item.found.type, item.text, hidden=bool(item.found.via), style=style),
            )
            for item in placed
        ),
    )
    redacts = rule.on_breach is Outcome.REDACT
    return irreplaceable(breach) if redacts and any(item.in_key for item in placed) else breach
