"""The vocabulary of every door and every rule: Action, Facts, Verdict, and what a verdict reserves.

Pure data. Money is counted in nano-dollars (1e-9 USD), time in microseconds since the Unix epoch, so that every
value is an integer and every record of it has one canonical form.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

GATES = ("llm", "tool", "step", "http", "file", "spawn", "approval", "output", "memory")
"""Every gate, by the name that a policy's ``gates`` list uses. A decision passes the step gate."""


class Effect(enum.StrEnum):
    """What doing something twice means. An undeclared connector counts as irreversible."""

    PURE = "pure"
    IDEMPOTENT = "idempotent"
    COMPENSABLE = "compensable"
    IRREVERSIBLE = "irreversible"


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Anything that an agent is about to do."""

    kind: str
    """step, decision, llm, tool, http, file, spawn, approval, memory or output."""
    name: str
    id: str = ""
    """The step id: parent path + name + ordinal. Empty for a typed action that no run made."""
    args: Mapping[str, Any] = {}
    digest: str = ""
    """SHA-256 (hex) of kind, name and canonical arguments: what an approval is bound to."""
    effect: Effect = Effect.PURE
    attempt: int = 1
    model: str = ""
    provider: str = ""
    max_tokens: int = 0
    """The output limit that was asked for (LLM only)."""
    input_tokens: int = 0
    """The node's estimate of the input, an upper bound (LLM only)."""
    host: str = ""
    """Whom an HTTP request goes to, in lower case, with the port where it is not the scheme's own."""
    method: str = ""
    """Method of an HTTP request, in capitals."""
    path: str = ""
    """Path of an HTTP request, without its query; of a file action, the file."""
    credential: str = ""
    """Name of the secret that the node would add on the way out; empty: none."""
    addresses: tuple[str, ...] = ()
    """What the node resolved ``host`` to (HTTP only); empty: it has not."""
    region: str = ""
    """Where what it reaches stands, as the node's configuration says; empty: not known."""
    labels: tuple[str, ...] = ()
    """Labels of what its arguments stand for without holding it: opaque handles, artefacts."""
    server: str = ""
    """The MCP server whose tool it is; empty: it is none's."""
    definition: Mapping[str, Any] = {}
    """The tool as its server describes it: ``description`` and ``inputSchema`` (MCP only)."""
    witness: str = "node"

    @property
    def gate(self) -> str:
        """The gate that this action passes."""
        return "step" if self.kind == "decision" else self.kind

    @property
    def target(self) -> str:
        """Whom or what it reaches: ``provider/model``, the host of a request, otherwise its name."""
        if self.kind == "llm":
            return f"{self.provider}/{self.model}"
        return self.host if self.kind == "http" and self.host else self.name


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in nano-dollars per token."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """A standing kill. ``tenant`` is empty for the whole fleet."""

    id: str
    scope: str
    """fleet, tenant, agent, workflow, session or run."""
    name: str
    tenant: str
    reason: str
    by: str
    at: int
    compensate: bool = False


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One authenticated person's answer to a request for approval."""

    principal: str
    auth: str
    roles: tuple[str, ...] = ()
    at: int = 0
    approved: bool = True
    reason: str = ""
    digest: str = ""
    """Digest of the action that was shown when the answer was given; empty: not recorded."""


class Past(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One earlier action, as far as temporal rules ask for it."""

    gate: str
    name: str
    """As :attr:`Action.target`."""
    at: int
    """When its intent was recorded."""
    state: str = "open"
    """open (under way), ok, or failed."""
    ended_at: int = 0
    agent: str = ""
    figures: Mapping[str, int | float] = {}
    """Numbers that rules add up: named arguments, and ``$cost`` (nano-dollars) once it is known."""


class Glass(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A broken glass: people who lifted rules for a while, and what they must still account for."""

    id: str
    reason: str
    opened_at: int
    until: int
    """When it ends by itself."""
    by: tuple[Grant, ...] = ()
    """Who opened it."""
    review_by: int = 0
    """When the review is due; 0: none was set."""
    reviewed_at: int = 0
    """When the review was recorded; 0: not yet."""


class Declassified(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Someone has taken a label off, and answers for it."""

    label: str
    by: str
    """The authenticated principal."""
    reason: str
    at: int
    digest: str = ""
    """Digest of the one action that it is for; empty: the rest of the run."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of an action: what the rules that look afterwards decide on."""

    ok: bool = True
    code: str = ""
    """Code of the error, when it failed."""
    value: Any = None
    """What came back, before the agent sees it."""
    cost: int | None = None
    """Nano-dollars; None: not known."""
    tokens: int | None = None
    """Input and output together; None: not known."""
    took_us: int = 0
    labels: tuple[str, ...] = ()
    """Labels that were kept with what came back: of a memory entry, an artefact, a child's output."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, tag="budget", tag_field="op"):
    """Reserve ``amount`` so that reserved + settled never exceeds ``limit`` under ``key``."""

    key: str
    amount: int
    limit: int
    policy: str = ""


class Rate(msgspec.Struct, frozen=True, kw_only=True, tag="rate", tag_field="op"):
    """Take one cell of a GCRA (ITU-T I.371): ``limit`` per ``period_us``, ``burst`` at once."""

    key: str
    limit: int
    period_us: int
    burst: int
    policy: str = ""


class Hold(msgspec.Struct, frozen=True, kw_only=True, tag="hold", tag_field="op"):
    """Hold one of ``limit`` places of a leased semaphore until released or ``ttl_us`` passed."""

    key: str
    holder: str
    limit: int
    ttl_us: int
    policy: str = ""


class Once(msgspec.Struct, frozen=True, kw_only=True, tag="once", tag_field="op"):
    """Claim an idempotency key: refused when it was ever claimed by another holder."""

    key: str
    holder: str
    policy: str = ""


Reservation = Budget | Rate | Hold | Once


class Settle(msgspec.Struct, frozen=True, kw_only=True, tag="settle", tag_field="op"):
    """Give back ``reserved`` under ``key`` and count ``actual`` as spent."""

    key: str
    reserved: int
    actual: int


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release", tag_field="op"):
    """Give back the place that ``holder`` holds under ``key``."""

    key: str
    holder: str


Settlement = Settle | Release


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a reservation did not fit: what ``decide`` sees when it decides again."""

    key: str
    policy: str
    limit: int
    used: int
    """reserved + settled, or places held, at the time of the refusal."""
    retry_after_us: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``decide`` may know beyond the action. Recorded, so that it can be decided again."""

    now: int
    tenant: str = "default"
    region: str = "us-east"
    agent: str = ""
    workflow: str = ""
    run: str = ""
    session: str = ""
    root: str = ""
    depth: int = 0
    principal: str = ""
    auth: str = ""
    roles: tuple[str, ...] = ()
    isolation: str = ""
    deployment: str = ""
    started_at: int = 0
    active_at: int = 0
    """When the run last made progress: its last outcome."""
    counters: Mapping[str, int] = {}
    """Of this run: ``steps``, ``llm_calls``, ``tool_calls``, ``tool_calls:NAME``, ``tokens``, ``cost`` (nano-dollars).
    They count what came before this action and what is under way beside it, not the action itself."""
    price: Price | None = None
    """Of ``action.model``; None when it is not known, which denies where money is limited."""
    kills: tuple[Kill, ...] = ()
    kill_generation: int = 0
    grants: tuple[Grant, ...] = ()
    """Answers given so far to this very action (same digest)."""
    approval_state: str = ""
    """Empty, or how the request for approval of this very action ended: approved, denied, expired."""
    recent: tuple[str, ...] = ()
    """Digests of the run's latest tool calls before this action, oldest first (at most 64)."""
    refusals: Mapping[str, Refusal] = {}
    """Reservations that did not fit, by key, when this action was last tried."""
    labels: tuple[str, ...] = ()
    """What the incarnation has taken in so far: a high-water mark."""
    declassified: tuple[Declassified, ...] = ()
    """Labels that people have taken off, each with who and why."""
    vouched: tuple[str, ...] = ()
    """Marks (see ``policy.flow.mark``) of values that the principal's own input named."""
    sources: tuple[str, ...] = ()
    """Names of what the run has read, as the node saw it: URLs, documents, tool calls."""
    tags: Mapping[str, str] = {}
    """What the run's cost is booked under, as given at its start: ``cost-centre``, ``project``, …"""
    identity: str = ""
    """How the agent's own identity was verified at the door: jwt, mtls, local; empty: it was not."""
    claims: Mapping[str, Any] = {}
    """The verified claims of that identity (``iss``, ``sub``, ``aud``, ``exp``, ``scope``, …)."""
    on_behalf_of: str = ""
    """The person for whom the agent acts, when that is not the principal itself."""
    authority: tuple[str, ...] | None = None
    """What the run may do, as ``gate:name`` patterns; None: nothing was said."""
    user_authority: tuple[str, ...] | None = None
    """What the person may do for whom the agent acts; None: not known."""
    suspended: tuple[str, ...] = ()
    """Those of ``principal``, ``on_behalf_of`` and the agent that are suspended."""
    glasses: tuple[Glass, ...] = ()
    """Broken glasses that concern this run: those in force, and those whose review is still open."""
    history: Mapping[str, int | float] = {}
    """Answers to what the bundle's temporal rules ask of the record, by the question's key."""


class Outcome(enum.IntEnum):
    """How a verdict ends, weakest first: the strongest wins."""

    ALLOW = 0
    WARN = 1
    REDACT = 2
    THROTTLE = 3
    REQUIRE_APPROVAL = 4
    DENY = 5
    TERMINATE = 6

    @property
    def word(self) -> str:
        """The name that files and records use."""
        return self.name.lower()


class ApprovalSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for approval asks for."""

    approvers: tuple[str, ...] = ()
    """``role:NAME`` or ``user:NAME``; empty: any authenticated principal."""
    quorum: int = 1
    ttl_us: int = 86_400_000_000
    on_expiry: str = "deny"
    """deny, approve or escalate."""
    escalate_to: tuple[str, ...] = ()
    distinct_from_requester: bool = False


class Hit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule that had something to say."""

    rule: str
    category: str
    outcome: Outcome
    reason: str
    mode: str = "enforce"
    """enforce or shadow: a shadow hit is recorded and changes nothing."""
    facts: Mapping[str, Any] = {}
    """The facts that the rule used, by name."""


class Redaction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A stretch of a text within a value, and what stands there instead."""

    path: tuple[str | int, ...]
    """Keys and indexes that lead to the text; empty: the value is the text."""
    start: int
    end: int
    """Offsets in code points, the end exclusive."""
    replacement: str
    pseudonym: str = ""
    """Type of the value, when a pseudonym of it under the tenant's key stands there; ``replacement`` where there is no
    key."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of ``decide``: what may happen, why, and what must be reserved for it."""

    outcome: Outcome
    rule: str = ""
    category: str = ""
    reason: str = ""
    hits: tuple[Hit, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    kill_generation: int = 0
    bundle: str = ""
    approval: ApprovalSpec | None = None
    max_tokens: int = 0
    """For an LLM call: the output limit that fits every budget; 0 leaves what was asked for."""
    retry_after_us: int = 0
    redactions: tuple[Redaction, ...] = ()
    """What must be replaced before the action goes ahead, or before what came back is handed on."""

    @property
    def allowed(self) -> bool:
        """Whether the action may go ahead now."""
        return self.outcome <= Outcome.REDACT
