"""Who acts, and for whom: verified identities, people behind agents, service accounts, tenants, secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import Field

from holdfast.action import GATES, Action, Facts, Outcome
from holdfast.policy.categories.base import (
    Breach,
    Category,
    Deed,
    Duration,
    Finding,
    Params,
    Pattern,
    Rule,
    does_any,
    fits,
    fits_any,
)
from holdfast.policy.categories.limits import ACTS

REFUSALS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
HARD = (Outcome.DENY, Outcome.TERMINATE, Outcome.WARN)
_SECOND = 1_000_000


class AgentIdentityRequiredParams(Params):
    """Parameters of agent_identity_required."""

    methods: tuple[Literal["jwt", "mtls", "local"], ...] = Field(
        default=("jwt", "mtls"), min_length=1, description="how the identity may have been verified at the door"
    )
    issuers: tuple[Pattern, ...] = Field(default=(), description="who may have issued it (`iss`); none: anyone")
    audience: str | None = Field(default=None, max_length=256, description="for whom it must be meant (`aud`)")
    subjects: tuple[Pattern, ...] = Field(default=(), description="whom it may name (`sub`); none: anyone")
    claims: Mapping[str, Pattern] = Field(default={}, description="further claims and what each must fit")
    max_age: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="how long ago it may have been issued (`iat`)"
    )


class AgentIdentityRequired(Category):
    """Agents with a name."""

    name = "agent_identity_required"
    family = "identity"
    summary = (
        "Lets only agents act whose own identity was verified: by a signed token (JWT) or a client certificate, of the "
        "right issuer, for the right audience, and not expired. Signatures are verified at the door; this rule looks "
        "at what was found."
    )
    params = AgentIdentityRequiredParams
    gates = GATES
    default_gates = ACTS
    verdicts = HARD
    controls = ("soc2:CC6.1", "hipaa:164.312(d)", "pci-dss:8.2.1")
    tighter: ClassVar[Mapping[str, str]] = {
        "methods": "subset",
        "max_age": "lower",
        "issuers": "named",
        "subjects": "named",
    }
    example = """\
id: agents-have-names
category: agent_identity_required
with: {issuers: ["https://id.bank.example"], audience: holdfast, max_age: 12h}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at the verified claims."""
        params, claims = rule.params, facts.claims
        if facts.identity not in params.methods:
            how = facts.identity or "not at all"
            return Breach(reason=f"the agent's identity was verified {how}; {' or '.join(params.methods)} is needed")
        expires = claims.get("exp")
        if expires is not None or facts.identity == "jwt":
            if not _is_number(expires):
                return Breach(reason="the agent's token does not say when it expires (exp)")
            if facts.now >= expires * _SECOND:
                return Breach(reason="the agent's token has expired; get a new one")
        if params.max_age is not None:
            issued = claims.get("iat")
            if not _is_number(issued) or facts.now - issued * _SECOND > params.max_age:
                return Breach(reason="the agent's token was issued too long ago, or does not say when (iat)")
        if params.issuers and not fits_any(params.issuers, str(claims.get("iss", ""))):
            return Breach(reason="the agent's token is of an issuer that is not accepted (iss)")
        if params.audience is not None and params.audience not in _listed(claims.get("aud")):
            return Breach(reason=f"the agent's token is not meant for {params.audience} (aud)")
        if params.subjects and not fits_any(params.subjects, str(claims.get("sub", ""))):
            return Breach(reason="the agent's token names someone who is not accepted (sub)")
        for name, pattern in params.claims.items():
            if not any(fits(pattern, value) for value in _listed(claims.get(name))):
                return Breach(reason=f"the claim {name} of the agent's token is missing or not accepted")
        return None


class OnBehalfOfParams(Params):
    """Parameters of on_behalf_of."""

    required: bool = Field(default=True, description="whether there must be a person for whom the agent acts")
    people: tuple[Pattern, ...] = Field(default=(), description="for whom it may act; none: anyone")


class OnBehalfOf(Category):
    """Agent and person together."""

    name = "on_behalf_of"
    family = "identity"
    people = True
    summary = (
        "Lets an agent that acts for a person do only what both may do: what the agent's authority covers and what the "
        "person's does. Where the person's is not known, nothing goes."
    )
    params = OnBehalfOfParams
    gates = GATES
    default_gates = ("tool", "http", "memory", "file")
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "hipaa:164.308(a)(4)(ii)(C)", "pci-dss:7.2.5", "gdpr:Art.29")
    tighter: ClassVar[Mapping[str, str]] = {"required": "true", "people": "named"}
    example = """\
id: no-more-than-the-person
category: on_behalf_of
with: {required: true}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at both authorities."""
        params, person = rule.params, facts.on_behalf_of
        if not person:
            return Breach(reason="it is not known for whom the agent acts") if params.required else None
        if params.people and not fits_any(params.people, person):
            return Breach(reason=f"the agent may not act for {person}", facts={"on_behalf_of": person})
        deed = f"{action.gate}:{action.target}"
        used = {"on_behalf_of": person, "deed": deed}
        if facts.user_authority is None:
            return Breach(reason=f"it is not known what {person} may do", facts=used)
        if not does_any(facts.user_authority, action):
            return Breach(reason=f"{person} may not do {deed}, so nobody may for them", facts=used)
        if facts.authority is not None and not does_any(facts.authority, action):
            return Breach(reason=f"the agent may not do {deed}, whoever it acts for", facts=used)
        return None


class ServiceAccountScopeParams(Params):
    """Parameters of service_account_scope."""

    accounts: tuple[Pattern, ...] = Field(min_length=1, description="principals that are service accounts")
    allow: tuple[Deed, ...] = Field(description="what they may do, as `GATE:NAME` with wildcards")
    auth: tuple[Pattern, ...] = Field(default=(), description="how they must be authenticated; none: anyhow")
    people: bool = Field(default=True, description="whether principals that are no service accounts may act as well")


class ServiceAccountScope(Category):
    """What machines may do by themselves."""

    name = "service_account_scope"
    family = "identity"
    summary = "Lets service accounts do only what they are there for; it can also keep everyone else out."
    params = ServiceAccountScopeParams
    gates = GATES
    default_gates = ACTS
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "pci-dss:7.2.5", "pci-dss:8.6.1")
    tighter: ClassVar[Mapping[str, str]] = {
        "accounts": "superset",
        "allow": "subset",
        "people": "false",
        "auth": "named",
    }
    example = """\
id: nightly-job
category: service_account_scope
with: {accounts: ["svc-*"], allow: ["step:*", "llm:*", "tool:ledger_*"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at who asks, and for what."""
        params, who = rule.params, facts.principal
        if not who:
            return Breach(reason="it is not known who asked")
        if not fits_any(params.accounts, who):
            return None if params.people else Breach(reason=f"{who} is no service account", facts={"principal": who})
        if params.auth and not fits_any(params.auth, facts.auth):
            return Breach(reason=f"{who} is not authenticated as it must be", facts={"auth": facts.auth})
        if does_any(params.allow, action):
            return None
        deed = f"{action.gate}:{action.target}"
        return Breach(
            reason=f"the service account {who} is not there for {deed}", facts={"principal": who, "deed": deed}
        )


class TenantIsolationParams(Params):
    """Parameters of tenant_isolation."""

    share: tuple[Pattern, ...] = Field(default=(), description="other tenants whose data may be used")
    arguments: tuple[str, ...] = Field(
        default=(), description="arguments that name a tenant: where one is given, it must be the run's own"
    )
    keys: tuple[str, ...] = Field(
        default=(), description="arguments that are keys or paths: where one is given, it must begin with `TENANT/`"
    )


class TenantIsolation(Category):
    """Each to its own."""

    name = "tenant_isolation"
    family = "identity"
    labels = True
    summary = (
        "Keeps the data of tenants apart: nothing happens with data that carries another tenant's label, and no "
        "argument names another tenant or a key outside of one's own."
    )
    params = TenantIsolationParams
    gates = GATES
    default_gates = ("tool", "http", "file", "spawn", "memory", "output", "llm")
    verdicts = HARD
    controls = ("soc2:CC6.1", "hipaa:164.308(a)(4)(ii)(A)", "gdpr:Art.32(1)(b)", "hipaa:164.308(a)(4)")
    tighter: ClassVar[Mapping[str, str]] = {"share": "subset", "arguments": "superset", "keys": "superset"}
    example = """\
id: tenants-apart
category: tenant_isolation
with: {arguments: [tenant_id], keys: [object_key]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at labels and arguments."""
        params, own = rule.params, facts.tenant
        for label in (*facts.labels, *action.labels):
            kind, _, tenant = label.partition(":")
            if kind == "tenant" and tenant != own and not fits_any(params.share, tenant):
                return Breach(reason="data of another tenant is among what the agent has seen", facts={"label": label})
        for name in params.arguments:
            given = action.args.get(name)
            if given is not None and given != own and not (isinstance(given, str) and fits_any(params.share, given)):
                return Breach(reason=f"{name} names another tenant", facts={"argument": name})
        for name in params.keys:
            given = action.args.get(name)
            if given is not None and not (isinstance(given, str) and _within(given, own)):
                return Breach(reason=f"{name} does not begin with {own}/", facts={"argument": name})
        return None


class UserSuspensionParams(Params):
    """Parameters of user_suspension."""

    users: tuple[Pattern, ...] = Field(default=(), description="suspended as well, beside those that the door reports")
    agents: tuple[Pattern, ...] = Field(default=(), description="suspended agents")


class UserSuspension(Category):
    """Not now."""

    name = "user_suspension"
    family = "identity"
    people = True
    summary = (
        "Lets nothing happen in the name of a person, service or agent that is suspended, runs that are under way "
        "included."
    )
    params = UserSuspensionParams
    gates = GATES
    default_gates = GATES
    verdicts = (Outcome.TERMINATE, Outcome.DENY)
    controls = (
        "soc2:CC6.2",
        "pci-dss:8.2.5",
        "hipaa:164.308(a)(3)(ii)(C)",
        "gdpr:Art.29",
        "mifid2:RTS6-Art.2(2)",
        "sox:ITGC-access",
    )
    tighter: ClassVar[Mapping[str, str]] = {"users": "superset", "agents": "superset"}
    example = """\
id: suspended-users
category: user_suspension
with: {users: ["contractor-*"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at who is behind the run."""
        params = rule.params
        if facts.suspended:
            return Breach(reason=f"{facts.suspended[0]} is suspended", facts={"suspended": list(facts.suspended)})
        for who in (facts.principal, facts.on_behalf_of):
            if who and fits_any(params.users, who):
                return Breach(reason=f"{who} is suspended", facts={"suspended": [who]})
        if facts.agent and fits_any(params.agents, facts.agent):
            return Breach(reason=f"the agent {facts.agent} is suspended", facts={"suspended": [facts.agent]})
        return None


class CredentialGrant(Params):
    """Where a secret may go."""

    credential: Pattern = Field(description="name or pattern of the secret")
    agents: tuple[Pattern, ...] = Field(default=("*",), min_length=1, description="agents that may use it")
    hosts: tuple[Pattern, ...] = Field(default=(), description="hosts that it may be sent to")
    methods: tuple[Pattern, ...] = Field(default=("*",), min_length=1, description="with these methods")
    paths: tuple[Pattern, ...] = Field(default=("*",), min_length=1, description="on these paths")
    tools: tuple[Pattern, ...] = Field(default=(), description="connectors that may use it")


class CredentialScopeParams(Params):
    """Parameters of credential_scope."""

    grants: tuple[CredentialGrant, ...] = Field(
        min_length=1, description="each names a `credential`, and its `agents`, `hosts`, `methods`, `paths`, `tools`"
    )


class CredentialScope(Category):
    """Secrets where they belong."""

    name = "credential_scope"
    family = "identity"
    summary = (
        "Lets a secret be used only by the agents, and sent only to the hosts, methods and paths, or handed only to "
        "the connectors, that it is granted for. A secret that no grant names is not used at all."
    )
    params = CredentialScopeParams
    gates = ("http", "tool", "llm")
    default_gates = ("http", "tool")
    verdicts = HARD
    controls = ("soc2:CC6.1", "pci-dss:8.6.2", "pci-dss:8.6.3")
    example = """\
id: bank-key
category: credential_scope
with: {grants: [{credential: bank-api, agents: [finance], hosts: [api.bank.example], methods: [GET], paths: ["/v1/*"]}]}
"""

    def check(self, params: Any) -> None:
        """A grant that leads nowhere is a mistake."""
        for grant in params.grants:
            if not grant.hosts and not grant.tools:
                raise ValueError(f"the grant of {grant.credential} names neither hosts nor tools")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for a grant that covers the use."""
        secret = action.credential
        if not secret:
            return None
        for grant in rule.params.grants:
            if fits(grant.credential, secret) and fits_any(grant.agents, facts.agent) and _covered(grant, action):
                return None
        return Breach(
            reason=f"the secret {secret} is not granted to {facts.agent or 'nobody'} for {action.gate} {action.target}",
            facts={"credential": secret, "target": action.target},
        )


def _covered(grant: CredentialGrant, action: Action) -> bool:
    if action.kind == "tool":
        return fits_any(grant.tools, action.name)
    return (
        bool(action.host)
        and fits_any(grant.hosts, action.host)
        and fits_any(grant.methods, action.method)
        and fits_any(grant.paths, action.path)
        and ".." not in action.path
    )


def _within(key: str, tenant: str) -> bool:
    return key.startswith(f"{tenant}/") and ".." not in key.split("/")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]
