"""What a category is: a small class with parameters, a description, gates, and a rule for each phase.

A category decides from an action and facts alone. ``before`` runs ahead of the action and answers with nothing (no
objection), a :class:`Breach`, reservations, or a :class:`Spend` (an amount that depends on the output limit of an LLM
call). ``phases`` names when a category looks: ``before``, ``during`` (at what a stream has brought so far), ``after``
(at what came back). A method of that name answers; later phases cannot reserve anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema

from holdfast.action import Action, ApprovalSpec, Ended, Facts, Outcome, Redaction, Reservation
from holdfast.policy.history import Question
from holdfast.policy.patterns import fits as fits
from holdfast.policy.patterns import fits_any as fits_any
from holdfast.policy.patterns import is_pattern as is_pattern
from holdfast.policy.units import DURATION_PATTERN, format_duration, format_usd, parse_duration, parse_usd

Usd = Annotated[
    int,
    BeforeValidator(parse_usd),
    PlainSerializer(format_usd, return_type=str),
    WithJsonSchema({"type": ["number", "string"], "description": "an amount in USD", "minimum": 0}),
]
"""An amount in USD in the file, nano-dollars here."""

Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
"""A duration such as 24h in the file, microseconds here."""

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A name, or a pattern with ``*``, ``?`` and ``[…]``; letters count as they are written."""

Approver = Annotated[str, StringConstraints(pattern=r"^(role|user):[^\s:][^\s]*$", max_length=256)]
"""``role:NAME`` or ``user:NAME``."""


class Params(BaseModel):
    """Base of every category's parameters: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, validate_default=False)


class ApprovalParams(Params):
    """How people are asked."""

    approvers: tuple[Approver, ...] = Field(
        default=(), description="who may answer: `role:NAME` or `user:NAME`; empty: any authenticated principal"
    )
    quorum: int = Field(default=1, ge=1, le=20, description="how many distinct principals must approve")
    ttl: Duration = Field(default=86_400_000_000, gt=0, description="how long the request stands")
    on_expiry: Annotated[str, StringConstraints(pattern="^(deny|approve|escalate)$")] = Field(
        default="deny", description="what happens when nobody answered in time: deny, approve or escalate"
    )
    escalate_to: tuple[Approver, ...] = Field(
        default=(), description="who is asked after the time has passed (with `on_expiry: escalate`)"
    )

    def spec(self, *, distinct_from_requester: bool = False) -> ApprovalSpec:
        """The request that the node opens."""
        return ApprovalSpec(
            approvers=self.approvers,
            quorum=self.quorum,
            ttl_us=self.ttl,
            on_expiry=self.on_expiry,
            escalate_to=self.escalate_to,
            distinct_from_requester=distinct_from_requester,
        )


class Breach(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The rule objects. ``outcome`` None: as the policy's ``on_breach`` says."""

    reason: str
    facts: Mapping[str, Any] = {}
    outcome: Outcome | None = None
    retry_after_us: int = 0
    approval: ApprovalSpec | None = None
    redactions: tuple[Redaction, ...] = ()
    """What an outcome of ``redact`` replaces."""
    failure: bool = False
    """The rule could not be decided: nobody can lift that."""


class Granted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The rule asked people and they agreed: allowed, and worth recording."""

    reason: str
    facts: Mapping[str, Any] = {}


class Spend(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Reserve ``fixed + per_token × max_tokens`` under ``key``; ``key`` empty: only check that it fits ``limit``."""

    key: str
    limit: int
    fixed: int
    per_token: int
    used: int = 0
    """What is known to be reserved or settled already."""
    floor_tokens: int = 0
    render: Callable[[int], str] = str
    """Shows an amount in the reason."""


class Lift(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """People have lifted rules for a while: what those object to is recorded and allowed."""

    rules: tuple[str, ...]
    """Ids or patterns of the rules that are lifted."""
    reason: str
    facts: Mapping[str, Any] = {}


Finding = None | Breach | Granted | Lift | Spend | Reservation


class Rule(msgspec.Struct, kw_only=True, eq=False):
    """One policy, ready to decide."""

    id: str
    category: Category
    params: Any
    mode: str
    on_breach: Outcome
    gates: frozenset[str]
    scope: Mapping[str, str]
    when: Callable[[Any], bool] | None = None
    source: str = ""
    """The condition as it was written."""
    approval: ApprovalSpec | None = None
    """How people are asked when ``on_breach`` is require_approval."""
    description: str = ""
    asks: tuple[Question, ...] = ()
    """What it and its condition need to know of the record."""

    @property
    def enforced(self) -> bool:
        """Whether it has an effect (shadow rules have none)."""
        return self.mode == "enforce"


class Category(ABC):
    """A kind of policy. Instances hold nothing; one of each is registered."""

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    """One sentence for lists."""
    params: ClassVar[type[Params]] = Params
    gates: ClassVar[tuple[str, ...]]
    """Gates that it can stand at."""
    default_gates: ClassVar[tuple[str, ...]]
    """Gates when the policy names none."""
    verdicts: ClassVar[tuple[Outcome, ...]]
    """What ``on_breach`` may be; the first is the default."""
    phases: ClassVar[frozenset[str]] = frozenset({"before"})
    labels: ClassVar[bool] = False
    """Whether it decides on labels: only then what comes in is also looked into for what its form gives away."""
    people: ClassVar[bool] = False
    """Whether it asks who is suspended, and what people may do: only then the node looks that up."""
    first: ClassVar[bool] = False
    """Whether it is heard before the others, because it changes what they lead to."""
    example: ClassVar[str]
    """A policy as it stands in a file's list."""
    controls: ClassVar[tuple[str, ...]] = ()
    """Controls of regimes that its record is evidence for, as ``regime:id``."""
    tighter: ClassVar[Mapping[str, str]] = {}
    """How a parameter gets stricter: ``lower``, ``higher``, ``subset``, ``superset``, or ``true``. What is not named
    can only be compared for being equal."""

    @abstractmethod
    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """What the rule says ahead of the action. Pure; may raise, which denies."""

    def during(self, action: Action, text: str, facts: Facts, rule: Rule) -> Finding:
        """What the rule says of all that a stream has brought so far. Pure; may raise, which denies."""
        return None

    def after(self, action: Action, ended: Ended, facts: Facts, rule: Rule) -> Finding:
        """What the rule says of what came back, before the agent sees it. Pure; may raise, which denies."""
        return None

    def asks(self, params: Any) -> tuple[Question, ...]:
        """What it needs to know of the record: the answers are ``facts.history``, by each question's key."""
        return ()

    def deadline(self, facts: Facts, rule: Rule) -> int | None:
        """When (microseconds) the rule will object although no action is taken; None: never."""
        return None

    def check(self, params: Any) -> None:  # noqa: B027 - most categories have nothing to add
        """Refuse parameters that only together make no sense.

        Raises:
            ValueError: says which and what to write instead.
        """


Deed = Annotated[
    str,
    StringConstraints(pattern=r"^(llm|tool|step|http|file|spawn|approval|output|memory|\*):\S+$", max_length=256),
]
"""``GATE:NAME`` with wildcards in either part: ``tool:wire_*``. The name is that of :attr:`Action.target`."""


def does(deed: str, action: Action) -> bool:
    """Whether an action is what a deed names."""
    gate, _, name = deed.partition(":")
    return gate in ("*", action.gate) and fits(name, action.target)


def does_any(deeds: tuple[str, ...], action: Action) -> bool:
    """Whether an action is one of the deeds."""
    return any(does(deed, action) for deed in deeds)


def subject(facts: Facts, per: str) -> str:
    """The part of a ledger key that says whose count it is, within its tenant: a run, agent, tenant or principal."""
    tenant = safe(facts.tenant)
    if per == "tenant":
        return tenant
    return f"{tenant}/{per}/{safe(getattr(facts, per))}"


def safe(name: str) -> str:
    """A name as one part of a ledger key."""
    if "/" in name or "%" in name:
        return name.replace("%", "%25").replace("/", "%2F")
    return name
