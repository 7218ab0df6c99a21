"""The policies in force: compiled, indexed, unchangeable, and named by the digest of what they mean.

The digest is SHA-256 over canonical JSON of the normalised policies, sorted by id: the order of files and keys,
comments and spelling (``24h`` or ``1d``) do not change it. The same bytes are pinned in the store, so that a verdict
can be decided again years later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import GATES, Action, Facts
from holdfast.errors import PolicyFileError
from holdfast.policy.categories.base import Rule, fits
from holdfast.policy.cel import ConditionError
from holdfast.policy.conditions import Condition, Conditions, Scene
from holdfast.policy.history import SAME, Question
from holdfast.policy.model import Checked, clashes, one
from holdfast.policy.model import load as load_policies
from holdfast.policy.quiet import Plan
from holdfast.policy.source import refuse
from holdfast.values import dump, sha256

FORMAT = 1
PHASES = ("before", "during", "after")
"""When a rule looks: ahead of the action, at what a stream has brought so far, at what came back."""
_MAX_PLANS = 4096

BUILTIN: tuple[Mapping[str, Any], ...] = (
    {
        "id": "builtin.step-limit",
        "category": "step_limit",
        "description": "A loop that never ends is cut; more steps than this belong in child runs or continue_as_new.",
        "with": {"limit": 10_000},
    },
    {
        "id": "builtin.wall-clock-limit",
        "category": "wall_clock_limit",
        "description": "A run may wait for people and timers for months, not for ever.",
        "with": {"limit": "90d"},
    },
)
"""What applies when no policy file is named: only bounds against what never ends. No budget, approval or list is in
force, and nothing is reachable over the network without an egress_allowlist. Standing kills are decided on in any
bundle."""


class Bundle:
    """Policies ready to decide. Immutable; what it remembers between calls only saves work."""

    __slots__ = (
        "_asked",
        "_bytes",
        "_phases",
        "_plans",
        "_scope",
        "cites",
        "conditions",
        "digest",
        "figures",
        "flows",
        "glassed",
        "historic",
        "later",
        "people",
        "rules",
        "vouches",
    )

    def __init__(self, policies: Sequence[Checked], *, data: bytes | None = None) -> None:
        """Compile. ``data``: the bytes that the policies were read from, when they are a bundle's own.

        Raises:
            PolicyFileError: two policies have one id.
        """
        problems = clashes(policies)
        if problems:
            raise refuse(problems)
        ordered = sorted(policies, key=lambda item: item.policy.id)
        # Pinned bytes keep their digest, also where a later version would write a parameter that did not exist then.
        self._bytes = data or dump({"v": FORMAT, "policies": [item.normal() for item in ordered]}, "the bundle")
        self.digest = sha256(self._bytes)
        self.rules: tuple[Rule, ...] = tuple(_compile(item) for item in ordered)
        """Every rule, those that are off too, by id."""
        self.conditions = Conditions([rule.when for rule in self.rules if isinstance(rule.when, Condition)])
        active = [rule for rule in self.rules if rule.mode != "off"]
        # What lifts rules is heard before the rules that it lifts; otherwise they come by id.
        heard = sorted(active, key=lambda rule: not rule.category.first)
        self._phases = {
            (phase, gate): Plan(rule for rule in heard if gate in rule.gates and phase in rule.category.phases)
            for phase in PHASES
            for gate in GATES
        }
        asked = [question for rule in active for question in rule.asks]
        self._asked = frozenset(asked)
        self.historic = bool(asked)
        """Whether any rule asks about the record."""
        self.glassed = any(rule.category.name == "break_glass" for rule in active)
        """Whether any rule asks about broken glasses."""
        self.figures = frozenset(question.figure for question in asked if question.figure)
        """What the record must keep of each action for rules to add up."""
        self.flows = any(rule.category.labels or "labels" in rule.source for rule in active)
        """Whether any rule decides on labels."""
        self.later = frozenset(
            (phase, gate) for (phase, gate), plan in self._phases.items() if phase != "before" and plan
        )
        """Phase and gate of what rules look at after the decision ahead of an action."""
        self.people = any(
            rule.category.people or "suspended" in rule.source or "user_authority" in rule.source for rule in active
        )
        """Whether any rule asks about the people behind a run."""
        self.vouches = any(getattr(rule.params, "free", None) for rule in active)
        """Whether any rule asks what the principal's own input named."""
        self.cites = any(getattr(rule.params, "citations", "") for rule in active)
        """Whether any rule holds citations to what the run has read."""
        fields = sorted({field for rule in active for field in rule.scope})
        self._scope: Callable[[Facts], Any] | None = attrgetter(*fields) if fields else None
        self._plans: dict[Any, Plan] = {}

    def plan(self, gate: str, facts: Facts, phase: str = "before") -> Plan:
        """The rules at a gate that look in this phase and whose scope fits, sorted by id."""
        scope = self._scope
        if scope is None:
            return self._phases[phase, gate]
        key = (phase, gate, scope(facts))
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(rule for rule in self._phases[phase, gate] if not misfit(rule, facts))
        return plan

    def asks(self, action: Action, facts: Facts, phase: str = "before") -> tuple[Question, ...]:
        """What the rules that apply want to know of the record: see :func:`holdfast.policy.history.recall`."""
        if not self.historic or action.gate not in GATES:
            return ()
        return tuple(dict.fromkeys(question for rule in self.plan(action.gate, facts, phase) for question in rule.asks))

    def reads(self, gate: str) -> bool:
        """Whether a rule at a gate looks into what passes it, and not only at its name and size."""
        return any("during" in rule.category.phases for rule in self._phases["before", gate])

    def remembers(self, action: Action) -> bool:
        """Whether some rule may ask about this action later: only then the record that is asked need hold it."""
        gate, name = action.gate, action.target
        return any(
            question.gate in ("*", gate) and (question.name == SAME or fits(question.name, name))
            for question in self._asked
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes; ``digest`` is their SHA-256."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """The bundle of canonical bytes.

        Raises:
            PolicyFileError: they are not a bundle's, or this version does not know what it holds.
        """
        try:
            value = msgspec.json.decode(data, type=_Packed)
        except msgspec.DecodeError as error:
            raise PolicyFileError(f"the pinned bundle does not decode: {error}") from None
        if value.v != FORMAT:
            raise PolicyFileError(
                f"the pinned bundle has the format {value.v}, this version reads {FORMAT}; upgrade holdfast"
            )
        return cls([one(policy, "pinned bundle") for policy in value.policies], data=data)

    def __repr__(self) -> str:
        return f"Bundle({len(self.rules)} rules, {self.digest[:12]})"


class _Packed(msgspec.Struct):
    v: int
    policies: list[dict[str, Any]]


def load(paths: Iterable[Path | str]) -> Bundle:
    """The bundle of policy files; with no file at all, the built-in one.

    Raises:
        PolicyFileError: a file is missing or wrong; names file, line, key and cure.
    """
    files = list(paths)
    return Bundle(load_policies(files)) if files else builtin()


@functools.cache
def builtin() -> Bundle:
    """The bundle that applies when no file is named."""
    return Bundle([one(policy, "built-in") for policy in BUILTIN])


def misfit(rule: Rule, facts: Facts) -> str:
    """The first key of the rule's scope that does not fit; empty when all do."""
    for field, pattern in rule.scope.items():
        if not fits(pattern, getattr(facts, field)):
            return field
    return ""


def _compile(item: Checked) -> Rule:
    policy = item.policy
    try:
        when = Condition(policy.when) if policy.when is not None else None
    except ConditionError as error:
        raise PolicyFileError(f"{item.file}: {policy.id}: when: {error}") from None
    condition: Callable[[Scene], bool] | None = when
    asks = (*item.category.asks(item.params), *(when.asked if when is not None else ()))
    return Rule(
        id=policy.id,
        category=item.category,
        params=item.params,
        mode=policy.mode,
        on_breach=item.on_breach,
        gates=frozenset(item.gates),
        scope=policy.scope.model_dump(exclude_none=True),
        when=condition,
        source=policy.when or "",
        approval=policy.approval.spec() if policy.approval is not None else None,
        description=policy.description,
        asks=asks,
    )
