"""Allow and deny cases of the categories of conduct: operation, identity, authority, approval, order."""

from __future__ import annotations

from typing import Any

from holdfast.action import Action, Effect, Facts, Glass, Grant, Past, Refusal
from holdfast.policy.history import COST, answers
from holdfast.policy.model import one
from holdfast.values import digest, dump

DENY, WARN, END = "deny", "warn", "terminate"
SECOND, MINUTE, HOUR, DAY = 10**6, 60 * 10**6, 3600 * 10**6, 86400 * 10**6
NOW = 1_772_366_400_000_000  # Sunday 2026-03-01 12:00:00 UTC
NANO = 10**9
A, B = "a" * 64, "b" * 64
CALL = {"model": "m-1", "provider": "anthropic", "input_tokens": 100, "max_tokens": 200}
WORST = 100 * 3_000 + 200 * 15_000
TREE = "budget_tree/default/rule/run-0"


def refused(key: str, limit: int, used: int) -> dict[str, Any]:
    return {"refusals": {key: Refusal(key=key, policy="rule", limit=limit, used=used)}}


def past(name: str, ago: int, state: str = "ok", gate: str = "tool", agent: str = "finance", **figures: Any) -> Past:
    at = NOW - ago
    ended = 0 if state == "open" else at
    return Past(gate=gate, name=name, at=at, state=state, ended_at=ended, agent=agent, figures=figures)


def told(category: str, with_: dict[str, Any], action: dict[str, Any], *record: Past) -> dict[str, Any]:
    """Facts with the answers that a node gives, from a record that is the run's and the tenant's."""
    item = one({"id": "rule", "category": category, "with": with_})
    act = Action(**{"kind": KINDS[category], "name": "validate", "id": "validate.1", **action})
    facts = Facts(now=NOW, agent="finance")
    asked = [question.of(act) for question in item.category.asks(item.params)]
    return {"history": answers(asked, facts, record, record)}


def grant(who: str, *roles: str, **more: Any) -> Grant:
    return Grant(principal=who, roles=roles, **{"auth": "oidc:bank", "at": NOW - MINUTE, "digest": A, **more})


KINDS = {
    "budget_tree": "llm",
    "cost_anomaly": "llm",
    "chargeback_tags": "step",
    "circuit_breaker": "tool",
    "retry_limit": "tool",
    "schedule_window": "tool",
    "idempotency_guard": "tool",
    "agent_identity_required": "tool",
    "on_behalf_of": "tool",
    "service_account_scope": "tool",
    "tenant_isolation": "tool",
    "user_suspension": "step",
    "credential_scope": "http",
    "tool_authz": "tool",
    "delegation_depth": "spawn",
    "delegation_attenuation": "spawn",
    "spawn_limit": "spawn",
    "segregation_of_duties": "tool",
    "approval_binding": "tool",
    "approval_expiry": "tool",
    "break_glass": "tool",
    "blast_radius": "tool",
    "sequence_rule": "tool",
}


def historic(category: str, name: str, with_: dict[str, Any], record: tuple[Past, ...], **more: Any) -> dict[str, Any]:
    """A case whose facts hold the answers of a record."""
    action = more.pop("action", {})
    facts = {**told(category, with_, action, *record), **more.pop("facts", {})}
    return {"name": name, "with_": with_, "action": action, "facts": facts, **more}


COSTS = tuple(past("anthropic/m-1", MINUTE * n, gate="llm", **{COST: 20_000_000 + n * 100_000}) for n in range(12))
FAILING = tuple(past("validate", MINUTE + n, "failed") for n in (2, 1, 0))
MIXED = tuple(past("validate", 40 * SECOND - n, "failed" if n % 2 else "ok") for n in range(12))
PROBE = "circuit_breaker/rule/default/validate"
ONCE = "idempotency_guard/rule/default/validate/"
DANGER = {"effect": Effect.IRREVERSIBLE, "digest": A, "args": {"payment_id": "p-1"}}
P1 = digest(dump(["p-1"]))
TOKEN = {"iss": "https://id.bank.example", "sub": "finance", "aud": ["holdfast"], "exp": NOW // SECOND + 60,
         "iat": NOW // SECOND - 3600, "env": "prod"}  # fmt: skip
KNOWN = {"identity": "jwt", "claims": TOKEN}
BOTH = {"on_behalf_of": "eve", "user_authority": ("tool:val*",), "authority": ("tool:*",)}
REQUEST = {"name": "validate", "host": "api.bank.example", "method": "GET", "path": "/v1/x", "credential": "bank-api"}
GRANTED = [
    {"credential": "bank-*", "agents": ["fin*"], "hosts": ["*.bank.example"], "methods": ["GET"], "paths": ["/v1/*"]}
]
CEDAR = """
permit(principal == Agent::"finance", action == Action::"tool", resource == Tool::"validate")
unless { context.args has amount && context.args.amount > 100 };
forbid(principal, action, resource) when { context.labels.contains("untrusted") };
permit(principal == User::"ann", action, resource);
permit(principal in Group::"clerks", action, resource);
"""
DUTY = {"duties": {"create": ["tool:valid*"], "pay": ["tool:pay"]}, "object": "payment_id"}
OF = {"args": {"payment_id": "p-1"}}
HANDS = f"segregation_of_duties/rule/default/principal/ann/{P1[:32]}"
OPEN = {"id": "g-1", "reason": "the payment system is down", "opened_at": NOW - MINUTE, "until": NOW + HOUR,
        "by": (grant("bob"), grant("eve")), "review_by": NOW + DAY}  # fmt: skip


def glass(**more: Any) -> dict[str, Any]:
    return {"glasses": (Glass(**{**OPEN, **more}),)}


RADIUS = "blast_radius/default/rule"


CASES: dict[str, list[dict[str, Any]]] = {
    "budget_tree": [
        {"name": "fits", "with_": {"limit": 1}, "action": CALL, "reserves": (f"{WORST} of {NANO} under {TREE}",)},
        {
            "name": "lowered to what is left",
            "with_": {"limit": 1},
            "action": CALL,
            "facts": refused(TREE, NANO, NANO - 2_000_000),
            "max_tokens": 113,
            "reserves": (f"{300_000 + 113 * 15_000} of {NANO} under {TREE}",),
        },
        {
            "name": "spent by others of the tree",
            "with_": {"limit": 1},
            "action": CALL,
            "facts": refused(TREE, NANO, NANO),
            "outcome": DENY,
        },
        {
            "name": "a higher floor",
            "with_": {"limit": 1, "floor_tokens": 114},
            "action": CALL,
            "facts": refused(TREE, NANO, NANO - 2_000_000),
            "outcome": DENY,
        },
        {"name": "unknown price", "with_": {"limit": 1}, "action": CALL, "facts": {"price": None}, "outcome": DENY},
        {
            "name": "a child, with enough left",
            "with_": {"limit": 1, "spawn_floor": "0.1"},
            "action": {"kind": "spawn"},
            "reserves": (f"0 of {9 * NANO // 10} under {TREE}",),
        },
        {
            "name": "a child, with too little left",
            "with_": {"limit": 1, "spawn_floor": "0.1"},
            "action": {"kind": "spawn"},
            "facts": refused(TREE, NANO, 9 * NANO // 10 + 1),
            "outcome": DENY,
        },
        {
            "name": "a child with a ceiling",
            "with_": {"limit": 1, "max_child": "0.5"},
            "action": {"kind": "spawn", "args": {"budget_nano": NANO // 2}},
            "reserves": (f"0 of {NANO} under {TREE}",),
        },
        {
            "name": "a child with too high a ceiling",
            "with_": {"limit": 1, "max_child": "0.5"},
            "action": {"kind": "spawn", "args": {"budget_nano": NANO // 2 + 1}},
            "outcome": DENY,
        },
        {
            "name": "a child without a ceiling",
            "with_": {"limit": 1, "max_child": "0.5"},
            "action": {"kind": "spawn", "args": {"budget_nano": 0}},
            "outcome": DENY,
        },
    ],
    "cost_anomaly": [
        historic(
            "cost_anomaly", "far more than usual", {}, COSTS, action=CALL, ended={"cost": 200_000_000}, outcome=WARN
        ),
        historic("cost_anomaly", "a little more", {}, COSTS, action=CALL, ended={"cost": 30_000_000}),
        historic(
            "cost_anomaly",
            "a stricter rule",
            {"deviations": 2},
            COSTS,
            action=CALL,
            ended={"cost": 30_000_000},
            outcome=WARN,
        ),
        historic("cost_anomaly", "too few calls to tell", {}, COSTS[:9], action=CALL, ended={"cost": 200_000_000}),
        historic(
            "cost_anomaly",
            "few calls are enough",
            {"min_calls": 3},
            COSTS[:3],
            action=CALL,
            ended={"cost": 200_000_000},
            outcome=WARN,
        ),
        historic(
            "cost_anomaly", "not worth a word", {"min_cost": "0.5"}, COSTS, action=CALL, ended={"cost": 200_000_000}
        ),
        historic("cost_anomaly", "the cost is not known", {}, COSTS, action=CALL, ended={}, outcome=WARN),
        historic("cost_anomaly", "it failed and cost nothing", {}, COSTS, action=CALL, ended={"ok": False}),
        historic(
            "cost_anomaly",
            "another agent's calls",
            {"min_calls": 5, "window": 50, "over": "agent"},
            tuple(past("anthropic/m-1", n, gate="llm", agent="ops", **{COST: 10**7}) for n in range(12)),
            action=CALL,
            ended={"cost": 200_000_000},
        ),
        {
            "name": "the record does not tell",
            "action": CALL,
            "ended": {"cost": 1},
            "outcome": DENY,
            "reason": "does not tell",
        },
    ],
    "chargeback_tags": [
        {"name": "none", "with_": {"required": ["cost-centre"]}, "outcome": DENY},
        {"name": "there", "with_": {"required": ["cost-centre"]}, "facts": {"tags": {"cost-centre": "cc-7"}}},
        {
            "name": "one of two",
            "with_": {"required": ["cost-centre", "project"]},
            "facts": {"tags": {"cost-centre": "cc-7"}},
            "outcome": DENY,
            "reason": "project",
        },
        {
            "name": "an allowed value",
            "with_": {"required": ["cost-centre"], "allowed": {"cost-centre": ["cc-*"]}},
            "facts": {"tags": {"cost-centre": "cc-7"}},
        },
        {
            "name": "another value",
            "with_": {"required": ["cost-centre"], "allowed": {"cost-centre": ["cc-*"]}},
            "facts": {"tags": {"cost-centre": "7"}},
            "outcome": DENY,
        },
        {
            "name": "empty",
            "with_": {"required": ["cost-centre"]},
            "facts": {"tags": {"cost-centre": ""}},
            "outcome": DENY,
        },
    ],
    "circuit_breaker": [
        historic("circuit_breaker", "three in a row", {"failures": 3, "cool_down": "5m"}, FAILING, outcome=DENY),
        historic("circuit_breaker", "two in a row", {"failures": 3, "cool_down": "5m"}, FAILING[1:]),
        historic(
            "circuit_breaker",
            "a success in between",
            {"failures": 3, "cool_down": "5m"},
            (*FAILING, past("validate", 30 * SECOND)),
        ),
        historic(
            "circuit_breaker",
            "another tool failed",
            {"failures": 3, "cool_down": "5m"},
            tuple(past("other", MINUTE, "failed") for _ in range(3)),
        ),
        historic(
            "circuit_breaker",
            "one may try again",
            {"failures": 3, "cool_down": "1m"},
            FAILING,
            reserves=(f"1 of 1 under {PROBE}",),
        ),
        historic(
            "circuit_breaker",
            "one is trying",
            {"failures": 3, "cool_down": "1m"},
            FAILING,
            facts=refused(PROBE, 1, 1),
            outcome=DENY,
        ),
        historic(
            "circuit_breaker",
            "half of them fail",
            {"error_percent": 50, "min_calls": 10},
            MIXED,
            reserves=(f"1 of 1 under {PROBE}",),
        ),
        historic(
            "circuit_breaker",
            "half of them fail, just now",
            {"error_percent": 50, "cool_down": "2m"},
            MIXED,
            outcome=DENY,
        ),
        historic("circuit_breaker", "half is good enough", {"error_percent": 51, "cool_down": "2m"}, MIXED),
        historic(
            "circuit_breaker", "too few to tell", {"error_percent": 50, "min_calls": 13, "cool_down": "2m"}, MIXED
        ),
        historic("circuit_breaker", "long ago", {"error_percent": 50, "window": "30s", "cool_down": "2m"}, MIXED),
        historic(
            "circuit_breaker",
            "another agent's failures",
            {"failures": 3, "cool_down": "5m", "over": "agent"},
            tuple(past("validate", n, "failed", agent="ops") for n in range(3)),
        ),
        {"name": "the record does not tell", "outcome": DENY, "reason": "does not tell"},
    ],
    "retry_limit": [
        {"name": "one too many", "action": {"attempt": 4}, "outcome": DENY},
        {"name": "the last attempt", "action": {"attempt": 3}},
        {"name": "fewer are allowed", "with_": {"attempts": 2}, "action": {"attempt": 3}, "outcome": DENY},
        {"name": "first attempt at what cannot be undone", "action": {"effect": Effect.IRREVERSIBLE}},
        {
            "name": "again what cannot be undone",
            "action": {"effect": Effect.IRREVERSIBLE, "attempt": 2},
            "outcome": DENY,
        },
        {
            "name": "again, and the rule allows it",
            "with_": {"irreversible": True},
            "action": {"effect": Effect.IRREVERSIBLE, "attempt": 2},
        },
        historic(
            "retry_limit", "too many failures in all", {"per_run": 2}, FAILING, action={"attempt": 2}, outcome=DENY
        ),
        historic("retry_limit", "few failures in all", {"per_run": 3}, FAILING, action={"attempt": 2}),
        historic("retry_limit", "a first attempt always", {"per_run": 2}, FAILING),
    ],
    "schedule_window": [
        {"name": "Sunday", "with_": {"days": ["mon", "tue", "wed", "thu", "fri"]}, "outcome": DENY},
        {"name": "any day"},
        {"name": "in hours", "with_": {"start": "12:00", "end": "12:01"}},
        {"name": "before hours", "with_": {"start": "12:01", "end": "18:00"}, "outcome": DENY},
        {"name": "closed already", "with_": {"start": "08:00", "end": "12:00"}, "outcome": DENY},
        {"name": "another clock", "with_": {"tz": "Europe/Berlin", "start": "13:00", "end": "13:01"}},
        {
            "name": "over midnight, inside",
            "with_": {"start": "22:00", "end": "06:00"},
            "facts": {"now": NOW + 11 * HOUR},
        },
        {
            "name": "over midnight, in the morning, opened on Sunday",
            "with_": {"start": "22:00", "end": "06:00", "days": ["sun"]},
            "facts": {"now": NOW + 17 * HOUR},
        },
        {
            "name": "over midnight, in the morning, not opened",
            "with_": {"start": "22:00", "end": "06:00", "days": ["mon"]},
            "facts": {"now": NOW + 17 * HOUR},
            "outcome": DENY,
        },
        {"name": "blacked out", "with_": {"blackout": ["2026-03-01"]}, "outcome": DENY},
        {"name": "blacked out, in a range", "with_": {"blackout": ["2026-02-01/2026-03-31"]}, "outcome": DENY},
        {"name": "not yet blacked out", "with_": {"blackout": ["2026-03-02"]}},
        {
            "name": "blacked out where it is tomorrow",
            "with_": {"tz": "Pacific/Auckland", "blackout": ["2026-03-02"]},
            "outcome": DENY,
        },
    ],
    "idempotency_guard": [
        {"name": "the first", "action": DANGER, "reserves": (f"1 of 1 under {ONCE}{A}",)},
        {
            "name": "a second",
            "action": DANGER,
            "facts": refused(f"{ONCE}{A}", 1, 1),
            "outcome": DENY,
            "reason": "second",
        },
        {
            "name": "by its key",
            "with_": {"key": ["payment_id"]},
            "action": DANGER,
            "reserves": (f"1 of 1 under {ONCE}{P1}",),
        },
        {"name": "without its key", "with_": {"key": ["invoice"]}, "action": DANGER, "outcome": DENY},
        {"name": "without a digest", "action": {**DANGER, "digest": ""}, "outcome": DENY},
        {"name": "harmless", "action": {**DANGER, "effect": Effect.PURE}},
        {
            "name": "harmless, and looked at",
            "with_": {"effects": ["pure"]},
            "action": {**DANGER, "effect": Effect.PURE},
            "reserves": (f"1 of 1 under {ONCE}{A}",),
        },
        {
            "name": "of an agent",
            "with_": {"per": "agent"},
            "action": DANGER,
            "reserves": (f"1 of 1 under idempotency_guard/rule/default/agent/finance/validate/{A}",),
        },
    ],
    "agent_identity_required": [
        {"name": "none", "outcome": DENY},
        {"name": "by a token", "facts": KNOWN},
        {"name": "locally", "facts": {**KNOWN, "identity": "local"}, "outcome": DENY},
        {"name": "locally, which is enough", "with_": {"methods": ["local"]}, "facts": {"identity": "local"}},
        {"name": "expired", "facts": {**KNOWN, "claims": {**TOKEN, "exp": NOW // SECOND}}, "outcome": DENY},
        {"name": "without an end", "facts": {**KNOWN, "claims": {"iss": "x"}}, "outcome": DENY},
        {"name": "an end that is true", "facts": {**KNOWN, "claims": {**TOKEN, "exp": True}}, "outcome": DENY},
        {"name": "a certificate needs none", "facts": {"identity": "mtls"}},
        {"name": "of this issuer", "with_": {"issuers": ["https://id.bank.*"]}, "facts": KNOWN},
        {"name": "of another", "with_": {"issuers": ["https://id.shop.*"]}, "facts": KNOWN, "outcome": DENY},
        {"name": "for us", "with_": {"audience": "holdfast"}, "facts": KNOWN},
        {"name": "for others", "with_": {"audience": "bank"}, "facts": KNOWN, "outcome": DENY},
        {"name": "of this name", "with_": {"subjects": ["fin*"]}, "facts": KNOWN},
        {"name": "of another name", "with_": {"subjects": ["ops"]}, "facts": KNOWN, "outcome": DENY},
        {"name": "of this environment", "with_": {"claims": {"env": "prod"}}, "facts": KNOWN},
        {"name": "of another environment", "with_": {"claims": {"env": "test"}}, "facts": KNOWN, "outcome": DENY},
        {"name": "fresh", "with_": {"max_age": "1h"}, "facts": KNOWN},
        {"name": "stale", "with_": {"max_age": "59m"}, "facts": KNOWN, "outcome": DENY},
    ],
    "on_behalf_of": [
        {"name": "of nobody", "outcome": DENY},
        {"name": "of nobody, which is allowed", "with_": {"required": False}},
        {"name": "both may", "facts": BOTH},
        {"name": "the person may not", "facts": {**BOTH, "user_authority": ("tool:other", "llm:*")}, "outcome": DENY},
        {"name": "the agent may not", "facts": {**BOTH, "authority": ("llm:*",)}, "outcome": DENY},
        {"name": "nothing was said of the agent", "facts": {**BOTH, "authority": None}},
        {"name": "nothing is known of the person", "facts": {**BOTH, "user_authority": None}, "outcome": DENY},
        {"name": "of one of these", "with_": {"people": ["e*"]}, "facts": BOTH},
        {"name": "of none of these", "with_": {"people": ["bob"]}, "facts": BOTH, "outcome": DENY},
    ],
    "service_account_scope": [
        {"name": "not there for this", "with_": {"accounts": ["ann"], "allow": ["llm:*"]}, "outcome": DENY},
        {"name": "there for this", "with_": {"accounts": ["a*"], "allow": ["tool:val*"]}},
        {"name": "a person", "with_": {"accounts": ["svc-*"], "allow": []}},
        {
            "name": "a person, and nobody else may",
            "with_": {"accounts": ["svc-*"], "allow": ["*:*"], "people": False},
            "outcome": DENY,
        },
        {"name": "authenticated", "with_": {"accounts": ["ann"], "allow": ["*:*"], "auth": ["peer-uid:*"]}},
        {
            "name": "authenticated otherwise",
            "with_": {"accounts": ["ann"], "allow": ["*:*"], "auth": ["mtls:*"]},
            "outcome": DENY,
        },
        {"name": "nobody", "with_": {"accounts": ["*"], "allow": ["*:*"]}, "facts": {"principal": ""}, "outcome": DENY},
    ],
    "tenant_isolation": [
        {"name": "one's own", "facts": {"labels": ("tenant:default", "pan")}},
        {"name": "another's", "facts": {"labels": ("pan", "tenant:shop")}, "outcome": DENY},
        {"name": "another's, which is shared", "with_": {"share": ["sh*"]}, "facts": {"labels": ("tenant:shop",)}},
        {"name": "names itself", "with_": {"arguments": ["tenant"]}, "action": {"args": {"tenant": "default"}}},
        {
            "name": "names another",
            "with_": {"arguments": ["tenant"]},
            "action": {"args": {"tenant": "shop"}},
            "outcome": DENY,
        },
        {
            "name": "names no text",
            "with_": {"arguments": ["tenant"]},
            "action": {"args": {"tenant": ["default"]}},
            "outcome": DENY,
        },
        {"name": "a key of its own", "with_": {"keys": ["key"]}, "action": {"args": {"key": "default/x"}}},
        {
            "name": "a key of another",
            "with_": {"keys": ["key"]},
            "action": {"args": {"key": "shop/x"}},
            "outcome": DENY,
        },
        {
            "name": "a key that leads out",
            "with_": {"keys": ["key"]},
            "action": {"args": {"key": "default/../shop/x"}},
            "outcome": DENY,
        },
    ],
    "user_suspension": [
        {"name": "as the door says", "facts": {"suspended": ("ann",)}, "outcome": END},
        {"name": "nobody is"},
        {"name": "as the rule says", "with_": {"users": ["an*"]}, "outcome": END},
        {"name": "the person behind", "with_": {"users": ["eve"]}, "facts": {"on_behalf_of": "eve"}, "outcome": END},
        {"name": "someone else", "with_": {"users": ["eve"]}},
        {"name": "the agent", "with_": {"agents": ["fin*"]}, "outcome": END},
        {"name": "another agent", "with_": {"agents": ["ops"]}},
    ],
    "credential_scope": [
        {"name": "granted", "with_": {"grants": GRANTED}, "action": REQUEST},
        {"name": "no secret", "with_": {"grants": GRANTED}, "action": {**REQUEST, "credential": ""}},
        {
            "name": "another secret",
            "with_": {"grants": GRANTED},
            "action": {**REQUEST, "credential": "mail"},
            "outcome": DENY,
        },
        {
            "name": "another host",
            "with_": {"grants": GRANTED},
            "action": {**REQUEST, "host": "evil.example"},
            "outcome": DENY,
        },
        {
            "name": "another method",
            "with_": {"grants": GRANTED},
            "action": {**REQUEST, "method": "PUT"},
            "outcome": DENY,
        },
        {"name": "another path", "with_": {"grants": GRANTED}, "action": {**REQUEST, "path": "/v2/x"}, "outcome": DENY},
        {
            "name": "a path that climbs",
            "with_": {"grants": GRANTED},
            "action": {**REQUEST, "path": "/v1/../v2"},
            "outcome": DENY,
        },
        {
            "name": "another agent",
            "with_": {"grants": GRANTED},
            "action": REQUEST,
            "facts": {"agent": "ops"},
            "outcome": DENY,
        },
        {
            "name": "a connector",
            "with_": {"grants": [{"credential": "bank-api", "tools": ["wire*"]}]},
            "policy": {"gates": ["tool"]},
            "action": {"kind": "tool", "name": "wire", "credential": "bank-api"},
        },
        {
            "name": "another connector",
            "with_": {"grants": [{"credential": "bank-api", "tools": ["wire*"]}]},
            "policy": {"gates": ["tool"]},
            "action": {"kind": "tool", "name": "mail", "credential": "bank-api"},
            "outcome": DENY,
        },
    ],
    "tool_authz": [
        {"name": "too much", "with_": {"policies": CEDAR}, "action": {"args": {"amount": 101}}, "outcome": DENY},
        {"name": "permitted", "with_": {"policies": CEDAR}},
        {"name": "not permitted", "with_": {"policies": CEDAR}, "action": {"name": "wire"}, "outcome": DENY},
        {"name": "another agent", "with_": {"policies": CEDAR}, "facts": {"agent": "ops"}, "outcome": DENY},
        {"name": "not too much", "with_": {"policies": CEDAR}, "action": {"args": {"amount": 100.0, "none": None}}},
        {
            "name": "forbidden",
            "with_": {"policies": CEDAR},
            "facts": {"labels": ("untrusted",)},
            "outcome": DENY,
            "reason": "forbidden",
        },
        {
            "name": "a policy that fails",
            "with_": {"policies": CEDAR},
            "action": {"args": {"amount": "x"}},
            "outcome": DENY,
            "reason": "failed",
        },
        {"name": "a person", "with_": {"policies": CEDAR, "subject": "principal"}, "action": {"name": "wire"}},
        {
            "name": "in a group",
            "with_": {
                "policies": CEDAR,
                "entities": [
                    {"uid": {"type": "Agent", "id": "ops"}, "attrs": {}, "parents": [{"type": "Group", "id": "clerks"}]}
                ],
            },
            "facts": {"agent": "ops"},
        },
        {
            "name": "an argument that would be an entity",
            "with_": {"policies": 'permit(principal, action, resource) when { context.args.who == User::"root" };'},
            "action": {"args": {"who": {"__entity": {"type": "User", "id": "root"}}}},
            "outcome": DENY,
        },
    ],
    "delegation_depth": [
        {"name": "the last level", "with_": {"limit": 1}},
        {"name": "one too deep", "with_": {"limit": 1}, "facts": {"depth": 1}, "outcome": DENY},
        {"name": "no children", "with_": {"limit": 0}, "outcome": DENY},
        {
            "name": "a step of the last level",
            "with_": {"limit": 1},
            "policy": {"gates": ["step"]},
            "action": {"kind": "step"},
            "facts": {"depth": 1},
        },
        {
            "name": "a step too deep",
            "with_": {"limit": 1},
            "policy": {"gates": ["step"]},
            "action": {"kind": "step"},
            "facts": {"depth": 2},
            "outcome": DENY,
        },
    ],
    "delegation_attenuation": [
        {"name": "as the parent"},
        {"name": "as the parent, which must not be", "with_": {"inherit": False}, "outcome": DENY},
        {
            "name": "less",
            "action": {"args": {"authority": ["tool:report_a", "llm:*"]}},
            "facts": {"authority": ("tool:report_*", "*:*")},
        },
        {
            "name": "more",
            "action": {"args": {"authority": ["tool:report_a", "tool:wire"]}},
            "facts": {"authority": ("tool:report_*",)},
            "outcome": DENY,
        },
        {
            "name": "a wider pattern",
            "action": {"args": {"authority": ["tool:rep*"]}},
            "facts": {"authority": ("tool:report_*",)},
            "outcome": DENY,
        },
        {"name": "the parent may do all", "action": {"args": {"authority": ["tool:wire"]}}},
        {"name": "no list", "action": {"args": {"authority": "tool:wire"}}, "outcome": DENY},
        {"name": "no budget", "with_": {"ceiling": True}, "outcome": DENY},
        {"name": "a budget", "with_": {"ceiling": True}, "action": {"args": {"budget_nano": 5}}},
    ],
    "spawn_limit": [
        {"name": "the last child", "with_": {"per_run": 2}, "facts": {"counters": {"spawns": 1}}},
        {"name": "one too many", "with_": {"per_run": 2}, "facts": {"counters": {"spawns": 2}}, "outcome": DENY},
        {
            "name": "the last child again",
            "with_": {"per_run": 2},
            "action": {"attempt": 2},
            "facts": {"counters": {"spawns": 2}},
        },
        {
            "name": "of the tree",
            "with_": {"per_tree": 9},
            "reserves": ("1 of 9 under spawn_limit/default/rule/tree/run-0",),
        },
        {
            "name": "the tree is full",
            "with_": {"per_tree": 9},
            "facts": refused("spawn_limit/default/rule/tree/run-0", 9, 9),
            "outcome": DENY,
        },
    ],
    "segregation_of_duties": [
        {"name": "the first duty", "with_": DUTY, "action": OF, "reserves": (f"1 of 1 under {HANDS}",)},
        {"name": "the other duty", "with_": DUTY, "action": OF, "facts": refused(HANDS, 1, 1), "outcome": DENY},
        {"name": "no duty", "with_": DUTY, "action": {**OF, "name": "look"}},
        {"name": "about nothing", "with_": DUTY, "outcome": DENY},
        {
            "name": "about the run",
            "with_": {**DUTY, "object": None},
            "reserves": (
                f"1 of 1 under segregation_of_duties/rule/default/principal/ann/{digest(dump(['run-1']))[:32]}",
            ),
        },
        {"name": "two duties at once", "with_": {"duties": {"a": ["tool:v*"], "b": ["*:validate"]}}, "outcome": DENY},
        {"name": "nobody's hands", "with_": {**DUTY, "by": "on_behalf_of"}, "action": OF, "outcome": DENY},
        {
            "name": "an agent's hands",
            "with_": {**DUTY, "by": "agent"},
            "action": OF,
            "reserves": (f"1 of 1 under segregation_of_duties/rule/default/agent/finance/{P1[:32]}",),
        },
    ],
    "approval_binding": [
        {"name": "nobody was asked"},
        {"name": "this very action", "action": {"digest": A}, "facts": {"grants": (grant("bob"),)}},
        {"name": "another", "action": {"digest": B}, "facts": {"grants": (grant("bob"),)}, "outcome": DENY},
        {
            "name": "not said which",
            "action": {"digest": A},
            "facts": {"grants": (grant("bob", digest=""),)},
            "outcome": DENY,
        },
        {
            "name": "one of two is another",
            "action": {"digest": A},
            "facts": {"grants": (grant("bob"), grant("eve", digest=B))},
            "outcome": DENY,
        },
        {"name": "nothing to be bound to", "facts": {"grants": (grant("bob", digest=""),)}, "outcome": DENY},
        {"name": "a refusal is none of its business", "facts": {"grants": (grant("bob", approved=False),)}},
        {
            "name": "well authenticated",
            "with_": {"auth": ["oidc:*"]},
            "action": {"digest": A},
            "facts": {"grants": (grant("bob"),)},
        },
        {
            "name": "badly authenticated",
            "with_": {"auth": ["mtls:*"]},
            "action": {"digest": A},
            "facts": {"grants": (grant("bob"),)},
            "outcome": DENY,
        },
        {
            "name": "with a reason",
            "with_": {"reason": True},
            "action": {"digest": A},
            "facts": {"grants": (grant("bob", reason="checked"),)},
        },
        {
            "name": "without",
            "with_": {"reason": True},
            "action": {"digest": A},
            "facts": {"grants": (grant("bob", reason=" "),)},
            "outcome": DENY,
        },
    ],
    "approval_expiry": [
        {"name": "nobody was asked", "with_": {"max_age": "1h"}},
        {"name": "fresh", "with_": {"max_age": "1h"}, "facts": {"grants": (grant("bob", at=NOW - HOUR),)}},
        {
            "name": "stale",
            "with_": {"max_age": "1h"},
            "facts": {"grants": (grant("bob", at=NOW - HOUR - 1),)},
            "outcome": DENY,
        },
        {
            "name": "one of two is stale",
            "with_": {"max_age": "1h"},
            "facts": {"grants": (grant("bob"), grant("eve", at=NOW - 2 * HOUR))},
            "outcome": DENY,
        },
        {
            "name": "from the future",
            "with_": {"max_age": "1h"},
            "facts": {"grants": (grant("bob", at=NOW + 1),)},
            "outcome": DENY,
        },
        {
            "name": "together",
            "with_": {"max_age": "9h", "together": "1h"},
            "facts": {"grants": (grant("bob", at=NOW - 2 * HOUR), grant("eve", at=NOW - HOUR))},
        },
        {
            "name": "apart",
            "with_": {"max_age": "9h", "together": "1h"},
            "facts": {"grants": (grant("bob", at=NOW - 2 * HOUR - 1), grant("eve", at=NOW - HOUR))},
            "outcome": DENY,
        },
        {
            "name": "a stale refusal",
            "with_": {"max_age": "1h"},
            "facts": {"grants": (grant("bob", at=NOW - 2 * HOUR, approved=False),)},
        },
    ],
    "break_glass": [
        {"name": "none is open", "with_": {"lifts": ["limits"]}},
        {"name": "opened in order", "with_": {"lifts": ["limits"]}, "facts": glass()},
        {
            "name": "by one person",
            "with_": {"lifts": ["limits"]},
            "facts": glass(by=(grant("bob"), grant("bob"))),
            "outcome": DENY,
        },
        {
            "name": "by the requester",
            "with_": {"lifts": ["limits"]},
            "facts": glass(by=(grant("bob"), grant("ann"))),
            "outcome": DENY,
        },
        {
            "name": "by someone unknown",
            "with_": {"lifts": ["limits"]},
            "facts": glass(by=(grant("bob"), grant("eve", auth=""))),
            "outcome": DENY,
        },
        {"name": "three are needed", "with_": {"lifts": ["limits"], "people": 3}, "facts": glass(), "outcome": DENY},
        {
            "name": "of the right role",
            "with_": {"lifts": ["limits"], "openers": ["role:lead"]},
            "facts": glass(by=(grant("bob", "lead"), grant("eve", "lead"))),
        },
        {
            "name": "of the wrong role",
            "with_": {"lifts": ["limits"], "openers": ["role:lead"]},
            "facts": glass(),
            "outcome": DENY,
        },
        {"name": "for too long", "with_": {"lifts": ["limits"], "max": "1h"}, "facts": glass(), "outcome": DENY},
        {"name": "no real reason", "with_": {"lifts": ["limits"]}, "facts": glass(reason="because"), "outcome": DENY},
        {
            "name": "a short reason is enough",
            "with_": {"lifts": ["limits"], "min_reason": 7},
            "facts": glass(reason="because"),
        },
        {"name": "no review", "with_": {"lifts": ["limits"]}, "facts": glass(review_by=0), "outcome": DENY},
        {
            "name": "the review is too late",
            "with_": {"lifts": ["limits"], "review_within": "1h"},
            "facts": glass(),
            "outcome": DENY,
        },
        {
            "name": "over, and reviewed",
            "with_": {"lifts": ["limits"]},
            "facts": glass(until=NOW - SECOND, review_by=NOW - 1, reviewed_at=NOW - 1),
        },
        {
            "name": "over, and the review is due",
            "with_": {"lifts": ["limits"]},
            "facts": glass(until=NOW - SECOND, review_by=NOW),
        },
        {
            "name": "over, and the review is overdue",
            "with_": {"lifts": ["limits"]},
            "facts": glass(until=NOW - SECOND, review_by=NOW - 1),
            "outcome": DENY,
        },
    ],
    "blast_radius": [
        {
            "name": "too much at once",
            "with_": {"argument": "amount", "each": 10},
            "action": {"args": {"amount": 10.01}},
            "outcome": DENY,
        },
        {"name": "just enough", "with_": {"argument": "amount", "each": 10}, "action": {"args": {"amount": 10}}},
        {
            "name": "too many",
            "with_": {"argument": "to", "each": 2},
            "action": {"args": {"to": ["a", "b", "c"]}},
            "outcome": DENY,
        },
        {"name": "not too many", "with_": {"argument": "to", "each": 2}, "action": {"args": {"to": ["a", "b"]}}},
        {"name": "nothing to measure", "with_": {"argument": "amount", "each": 10}, "outcome": DENY},
        {
            "name": "text",
            "with_": {"argument": "amount", "each": 10},
            "action": {"args": {"amount": "1"}},
            "outcome": DENY,
        },
        {
            "name": "less than nothing",
            "with_": {"argument": "amount", "each": 10},
            "action": {"args": {"amount": -1}},
            "outcome": DENY,
        },
        {
            "name": "yes is no number",
            "with_": {"argument": "amount", "each": 10},
            "action": {"args": {"amount": True}},
            "outcome": DENY,
        },
        {
            "name": "added up",
            "with_": {"argument": "amount", "total": "100"},
            "action": {"args": {"amount": 10.5}},
            "reserves": (f"{10_500_000_000} of {100 * NANO} under {RADIUS}/run/run-1",),
        },
        {
            "name": "too much in all",
            "with_": {"argument": "amount", "total": "100"},
            "action": {"args": {"amount": 10.5}},
            "facts": refused(f"{RADIUS}/run/run-1", 100 * NANO, 90 * NANO),
            "outcome": DENY,
        },
        {
            "name": "too much alone",
            "with_": {"argument": "amount", "total": "100"},
            "action": {"args": {"amount": 100.5}},
            "outcome": DENY,
        },
        {
            "name": "of a tree",
            "with_": {"argument": "n", "total": 5, "window": "tree"},
            "action": {"args": {"n": 1}},
            "reserves": (f"{NANO} of {5 * NANO} under {RADIUS}/tree/run-0",),
        },
        {
            "name": "of an agent's day",
            "with_": {"argument": "n", "total": 5, "window": "day", "per": "agent"},
            "action": {"args": {"n": 1}},
            "reserves": (f"{NANO} of {5 * NANO} under {RADIUS}/day/2026-03-01/agent/finance",),
        },
    ],
    "sequence_rule": [
        historic("sequence_rule", "not done", {"require": ["tool:check"]}, (past("other", 1),), outcome=DENY),
        historic("sequence_rule", "done", {"require": ["tool:check"]}, (past("check", HOUR),)),
        historic(
            "sequence_rule", "done badly", {"require": ["tool:check"]}, (past("check", 1, "failed"),), outcome=DENY
        ),
        historic("sequence_rule", "under way", {"require": ["tool:check"]}, (past("check", 1, "open"),), outcome=DENY),
        historic(
            "sequence_rule",
            "done long ago",
            {"require": ["tool:check"], "within": "30m"},
            (past("check", HOUR),),
            outcome=DENY,
        ),
        historic(
            "sequence_rule", "one of two", {"require": ["tool:check", "tool:sign"]}, (past("check", 1),), outcome=DENY
        ),
        historic(
            "sequence_rule",
            "came before",
            {"forbid_after": ["tool:read_*"]},
            (past("read_secret", 1, "open"),),
            outcome=DENY,
        ),
        historic("sequence_rule", "did not come before", {"forbid_after": ["tool:read_*"]}, (past("write", 1),)),
        historic("sequence_rule", "of another gate", {"forbid_after": ["llm:*"]}, (past("read_secret", 1),)),
        {"name": "the record does not tell", "with_": {"require": ["tool:check"]}, "outcome": DENY},
    ],
}

OTHER: dict[str, dict[str, Any]] = {
    "budget_tree": {"limit": "0.5", "floor_tokens": 500, "spawn_floor": "0.2", "max_child": "0.1"},
    "cost_anomaly": {"deviations": 900, "window": 10, "min_calls": 13, "min_cost": "0.5", "over": "run"},
    "chargeback_tags": {"required": ["team"], "allowed": {"cost-centre": ["x"]}},
    "circuit_breaker": {
        "failures": 2, "error_percent": 40, "min_calls": 12, "window": "1s", "cool_down": "6m", "over": "run",
    },
    "retry_limit": {"attempts": 1, "per_run": 0, "irreversible": True},
    "schedule_window": {
        "tz": "Asia/Tokyo", "days": ["sat"], "start": "23:00", "end": "01:00", "blackout": ["2026-03-01"],
    },
    "idempotency_guard": {"key": ["invoice"], "per": "run", "effects": ["pure"]},
    "agent_identity_required": {
        "methods": ["local"], "issuers": ["x"], "audience": "x", "subjects": ["x"], "claims": {"x": "x"},
        "max_age": "1s",
    },
    "on_behalf_of": {"required": False, "people": ["zoe"]},
    "service_account_scope": {"accounts": ["zoe"], "allow": [], "auth": ["x"], "people": False},
    "tenant_isolation": {"share": ["*"], "arguments": ["x"], "keys": ["x"]},
    "user_suspension": {"users": ["ann"], "agents": ["finance"]},
    "credential_scope": {"grants": [{"credential": "x", "hosts": ["x"]}]},
    "tool_authz": {"policies": "permit(principal, action, resource);", "entities": [
        {"uid": {"type": "Agent", "id": "ops"}, "attrs": {}, "parents": [{"type": "Group", "id": "clerks"}]}],
        "subject": "principal"},
    "delegation_depth": {"limit": 0},
    "delegation_attenuation": {"inherit": False, "ceiling": True},
    "spawn_limit": {"per_run": 0, "per_tree": 3},
    "segregation_of_duties": {"duties": {"x": ["tool:x"], "y": ["tool:y"]}, "object": "nope", "by": "run"},
    "approval_binding": {"auth": ["x"], "reason": True},
    "approval_expiry": {"max_age": "1s", "together": "1us"},
    "break_glass": {
        "lifts": ["x"], "people": 4, "openers": ["role:x"], "max": "1m", "review_within": "1s", "min_reason": 100,
    },
    "blast_radius": {"argument": "x", "each": "0.5", "total": "0.5", "window": "hour", "per": "principal"},
    "sequence_rule": {"require": ["tool:x"], "forbid_after": ["tool:*"], "within": "1us"},
}  # fmt: skip
"""Another value of every parameter."""
