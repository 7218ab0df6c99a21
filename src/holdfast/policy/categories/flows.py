"""Rules over labels: decided by where data came from, not by what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

from holdfast.action import Action, Effect, Facts, Outcome
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
from holdfast.policy.flow import LABEL, PRIVATE, UNTRUSTED, carried, vouched
from holdfast.values import dump

Label = Annotated[str, StringConstraints(pattern=LABEL)]
_REFUSALS = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)
_SINKS = ("tool", "http", "file", "spawn", "memory", "output", "llm")


class UntrustedTaintParams(Params):
    """Parameters of untrusted_taint."""

    labels: tuple[Label, ...] = Field(default=(UNTRUSTED,), min_length=1, description="labels that must not get here")
    sinks: tuple[Deed, ...] = Field(
        default=("*:*",), min_length=1, description="what is guarded, as `GATE:NAME` with wildcards"
    )
    pure: bool = Field(
        default=False, description="whether the node's own tools that are declared to change nothing are guarded too"
    )
    free: dict[Deed, tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...]] = Field(
        default={},
        description="actions that may go ahead all the same when the principal's own input named all their arguments "
        "but these, such as `tool:send_mail: [subject, body]`",
    )


class UntrustedTaint(Category):
    """What has read something untrusted does not act on its own."""

    name = "untrusted_taint"
    family = "flow"
    labels = True
    summary = "Refuses effects of a run that has taken in untrusted data, unless a person named what they reach."
    params = UntrustedTaintParams
    gates = _SINKS
    default_gates = ("tool", "http", "file", "spawn", "memory")
    verdicts = _REFUSALS
    controls = ("soc2:CC6.8", "soc2:CC7.1", "gdpr:Art.32(1)(b)")
    example = """\
id: injected-orders-move-nothing
category: untrusted_taint
with:
  sinks: ["tool:*", "http:*"]
  free: {"tool:send_mail": [subject, body], "tool:wire_transfer": [reference]}
on_breach: require_approval
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare labels, then who named the arguments."""
        params = rule.params
        if not does_any(params.sinks, action):
            return None
        found = [label for label in carried(action, facts) if label in params.labels]
        # What is asked of somebody else's server leaves with the question, whatever the server calls it.
        quiet = action.gate == "tool" and action.effect is Effect.PURE and not action.server
        if not found or (quiet and not params.pure):
            return None
        read = " and ".join(found)
        for deed, free in params.free.items():
            if does_any((deed,), action):
                bound = [name for name in action.args if name not in free]
                strange = [name for name in bound if not vouched(action.args[name], facts)]
                if bound and not strange:
                    return None
                listed = ", ".join(name[:64] for name in strange) or "arguments"
                reason = f"the run has read {read} data, and nobody named its {listed}"
                return Breach(reason=reason, facts={"labels": found, "arguments": strange})
        return Breach(reason=f"the run has read {' and '.join(found)} data", facts={"labels": found})


class LethalTrifectaParams(Params):
    """Parameters of lethal_trifecta."""

    private: tuple[Label, ...] = Field(default=PRIVATE, min_length=1, description="labels of what must not get out")
    untrusted: tuple[Label, ...] = Field(
        default=(UNTRUSTED,), min_length=1, description="labels of what may hold somebody else's orders"
    )
    egress: tuple[Deed, ...] = Field(
        default=("http:*", "tool:*", "spawn:*"), min_length=1, description="what gets out, as `GATE:NAME`"
    )
    inside: tuple[Deed, ...] = Field(default=(), description="of these, what stays inside after all")


class LethalTrifecta(Category):
    """Private data, somebody else's orders, and a way out: never all three."""

    name = "lethal_trifecta"
    family = "flow"
    labels = True
    summary = "Closes every way out of a run that holds private data and has read untrusted data."
    params = LethalTrifectaParams
    gates = _SINKS
    default_gates = ("tool", "http", "spawn")
    verdicts = _REFUSALS
    controls = ("soc2:CC6.7", "soc2:C1.1", "gdpr:Art.32(1)(b)", "hipaa:164.312(e)(1)", "pci-dss:1.4.4")
    example = """\
id: no-trifecta
category: lethal_trifecta
with: {egress: ["http:*", "tool:send_*"], inside: ["http:*.corp.example"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for all three."""
        params = rule.params
        if not does_any(params.egress, action) or does_any(params.inside, action):
            return None
        labels = carried(action, facts)
        private = [label for label in labels if label in params.private]
        foreign = [label for label in labels if label in params.untrusted]
        if not private or not foreign:
            return None
        reason = f"the run holds {', '.join(private)} data and has read {', '.join(foreign)} data, so nothing leaves it"
        return Breach(reason=reason, facts={"labels": [*private, *foreign]})


class MemoryWriteGuardParams(Params):
    """Parameters of memory_write_guard."""

    labels: tuple[Label, ...] = Field(default=(UNTRUSTED,), description="labels that nothing lasting may carry")
    keys: tuple[Pattern, ...] = Field(default=("*",), description="keys or patterns that may be written")
    max_bytes: int = Field(default=65_536, ge=1, le=16_777_216, description="the largest entry, as JSON")
    max_ttl: Duration | None = Field(
        default=None,
        gt=0,
        description="each entry must name a `ttl_s` (seconds) of at most this; left out: none is needed",
    )
    provenance: bool = Field(default=False, description="whether each entry must name its `source`")


class MemoryWriteGuard(Category):
    """What a run may leave behind for later ones."""

    name = "memory_write_guard"
    family = "flow"
    labels = True
    summary = "Keeps untrusted data out of lasting memory, and asks for its source, its end and a bounded size."
    params = MemoryWriteGuardParams
    gates = ("memory",)
    default_gates = ("memory",)
    verdicts = _REFUSALS
    controls = ("soc2:CC8.1", "gdpr:Art.5(1)(e)", "hipaa:164.312(c)(1)")
    example = """\
id: clean-memory
category: memory_write_guard
with: {keys: ["preferences.*"], max_ttl: 30d, provenance: true}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Check label, key, size, end and source of what is written; forgetting is free."""
        params = rule.params
        key = str(action.args.get("key", ""))
        if not fits_any(params.keys, key):
            return Breach(reason=f"the key {key[:64]} is not on the list", facts={"key": key[:64]})
        if action.name == "delete":
            return None
        found = [label for label in carried(action, facts) if label in params.labels]
        if found:
            return Breach(reason=f"the run has read {' and '.join(found)} data", facts={"labels": found})
        value = action.args.get("value")
        size = len(dump(value))
        if size > params.max_bytes:
            reason = f"the entry has {size} bytes, {params.max_bytes} are allowed"
            return Breach(reason=reason, facts={"bytes": size, "limit": params.max_bytes})
        entry = value if isinstance(value, Mapping) else {}
        if params.max_ttl is not None:
            ttl = entry.get("ttl_s")
            if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl * 1_000_000 <= params.max_ttl:
                return Breach(reason=f"the entry needs a ttl_s of at most {params.max_ttl // 1_000_000} seconds")
        if params.provenance and not (isinstance(entry.get("source"), str) and entry["source"].strip()):
            return Breach(reason="the entry does not name its source")
        return None


class DataResidencyParams(Params):
    """Parameters of data_residency."""

    regions: dict[Pattern, tuple[Pattern, ...]] = Field(
        min_length=1, description="by the tenant's region or a pattern of it: regions or patterns where data may go"
    )
    endpoints: dict[Pattern, Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        default={}, description="by model (`provider/model`), host or tool: the region where it stands"
    )


class DataResidency(Category):
    """Data stays in its region."""

    name = "data_residency"
    family = "flow"
    labels = True
    summary = "Lets data go only to endpoints in allowed regions; where nobody says where one stands, it is refused."
    params = DataResidencyParams
    gates = ("llm", "http", "tool", "file", "memory", "spawn")
    default_gates = ("llm", "http")
    verdicts = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)
    controls = ("gdpr:Art.44", "gdpr:Art.46", "soc2:P6.1")
    example = """\
id: eu-stays-in-eu
category: data_residency
scope: {region: "eu-*"}
with:
  regions: {"eu-*": ["eu-*"]}
  endpoints: {"mistral/*": eu-west, "*.eu.example": eu-central}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Find where it stands, and where the data may go: by the tenant's region and by each region label."""
        params, target = rule.params, action.target
        listed = [region for pattern, region in params.endpoints.items() if fits(pattern, target)]
        places = listed or ([action.region] if action.region else [])
        if not places:
            return Breach(reason=f"nobody says in which region {target} stands", facts={"target": target})
        origins = [
            facts.region,
            *(one.removeprefix("region:") for one in carried(action, facts) if one.startswith("region:")),
        ]
        for origin in origins:
            allowed = tuple(
                one for pattern, regions in params.regions.items() if fits(pattern, origin) for one in regions
            )
            for place in places:
                if not fits_any(allowed, place):
                    reason = f"data of {origin or 'an unknown region'} may not go to {place}, where {target} stands"
                    return Breach(reason=reason, facts={"from": origin, "to": place, "target": target})
        return None
