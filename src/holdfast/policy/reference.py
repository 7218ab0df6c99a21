"""The reference page of the policy categories, written from their code."""

from __future__ import annotations

from typing import Any

from holdfast.action import Outcome
from holdfast.policy.bundle import BUILTIN
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.aliases import ALIASES
from holdfast.policy.categories.base import Category
from holdfast.policy.conditions import FUNCTIONS
from holdfast.policy.fields import ACTION_FIELDS, FACTS_FIELDS
from holdfast.policy.kills import SCOPES
from holdfast.policy.model import PROFILES, Policy, Scope
from holdfast.policy.profiles import describe

FAMILIES = {
    "cost": "Cost",
    "rates": "Rates",
    "limits": "Limits of a run",
    "operations": "Operation",
    "identity": "Identity",
    "authority": "Authority and delegation",
    "approval": "Approval",
    "tools": "Tools",
    "models": "Models",
    "personal": "Personal data",
    "secrecy": "Secrets",
    "content": "Injected and harmful content",
    "flow": "Flow of labels",
    "reach": "What can be reached",
    "contracts": "Contracts of tools and answers",
    "code": "Code and commands",
}
"""Families of categories, in the order of the page."""


def render() -> str:
    """The page, as Markdown."""
    parts = [_INTRODUCTION, _policy(), _scope(), _conditions(), _outcomes(), _builtin(), _LAYERS]
    parts += [_profiles(), _aliases()]
    for family, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        parts += [_category(category) for category in CATEGORIES.values() if category.family == family]
    return "\n".join(parts)


def _category(category: Category) -> str:
    verdicts = [f"`{outcome.word}`" for outcome in category.verdicts]
    lines = [f"### {category.name}\n", f"{category.summary}\n"]
    lines.append(f"- gates: {_code(category.default_gates)}{_more(category)}")
    lines.append(f"- on_breach: {verdicts[0]} (default){', ' if verdicts[1:] else ''}{', '.join(verdicts[1:])}\n")
    if category.controls:
        lines[-1] = lines[-1].rstrip("\n")
        lines.append(f"- evidence for: {', '.join(category.controls)}\n")
    if rows := parameters(category):
        lines += ["| parameter | what is written | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{name}` | {form} | {default} | {meaning} |" for name, form, default, meaning in rows]
        lines.append("")
    first, *rest = category.example.rstrip().splitlines()
    lines += ["```yaml", f"- {first}", *[f"  {line}" for line in rest], "```", ""]
    return "\n".join(lines)


def parameters(category: Category) -> list[tuple[str, str, str, str]]:
    """Name, form, default and meaning of each parameter of a category."""
    shape = category.params.model_json_schema(by_alias=True, mode="serialization")
    required, shapes = shape.get("required", []), shape.get("properties", {})
    rows = []
    for name, field in category.params.model_fields.items():
        spec = shapes[name]
        default = spec.get("default")
        written = "" if default is None else f"`{_plain(default)}`"
        rows.append((name, _form(spec), "required" if name in required else written, field.description or ""))
    return rows


def _form(spec: dict[str, Any]) -> str:
    options = [option for option in spec.get("anyOf", [spec]) if option.get("type") != "null"]
    return " or ".join(_shape(option) for option in options)


def _shape(spec: dict[str, Any]) -> str:
    if "enum" in spec:
        return _code(spec["enum"])
    if spec.get("format") == "amount":
        return "number"
    if spec.get("type") == "object" or "$ref" in spec:
        return "mapping"
    if spec.get("type") == ["number", "string"]:
        return "USD, such as `0.25`"
    if "us|ms|s" in str(spec.get("pattern", "")):
        return "duration, such as `30s` or `24h`"
    if spec.get("type") == "array":
        return f"list of {_shape(spec.get('items', {}))}"
    if spec.get("type") == "boolean":
        return "`true` or `false`"
    if spec.get("type") == "integer":
        low = spec.get("minimum", spec.get("exclusiveMinimum", -1) + 1)
        return f"whole number, {low:,} to {spec['maximum']:,}"
    if spec.get("type") == "number":
        low = spec.get("minimum", spec.get("exclusiveMinimum", 0))
        return f"number, {low:g} to {spec['maximum']:g}" if "maximum" in spec else "number"
    return "text"


def _more(category: Category) -> str:
    more = [gate for gate in category.gates if gate not in category.default_gates]
    return f"; it can also stand at {_code(more)}" if more else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _code(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _policy() -> str:
    lines = ["## A policy\n", "| key | meaning |", "| --- | --- |"]
    lines += [f"| `{field.alias or name}` | {field.description} |" for name, field in Policy.model_fields.items()]
    return "\n".join([*lines, ""])


def _scope() -> str:
    lines = ["## Scope\n", f"{' '.join((Scope.__doc__ or '').split()).replace('``', '`')}\n"]
    lines += ["| key | whom |", "| --- | --- |"]
    lines += [f"| `{name}` | {field.description} |" for name, field in Scope.model_fields.items()]
    return "\n".join([*lines, ""])


def _conditions() -> str:
    return _CONDITIONS.format(
        action=_code(f"action.{name}" for name in ACTION_FIELDS),
        facts=_code(f"facts.{name}" for name in FACTS_FIELDS),
        functions=_code(FUNCTIONS),
    )


def _outcomes() -> str:
    words = " < ".join(f"`{outcome.word}`" for outcome in Outcome)
    return _OUTCOMES.format(words=words, kills=", ".join(SCOPES))


def _builtin() -> str:
    lines = ["## Without policy files\n", _BUILTIN]
    for policy in BUILTIN:
        limits = ", ".join(f"`{key}: {value}`" for key, value in policy["with"].items())
        lines.append(f"- `{policy['id']}` ({policy['category']}, {limits}): {policy['description']}")
    return "\n".join([*lines, ""])


def _profiles() -> str:
    lines = ["## Profiles\n", _PROFILES]
    for profile in describe(PROFILES):
        lines += [f"### Profile {profile['name']}\n", f"{profile['title']}. {' '.join(profile['about'].split())}\n"]
        lines += ["| control | what it asks for | answered by |", "| --- | --- | --- |"]
        for need in profile["requires"]:
            answer = f"`{need.rule}`" if need.rule else f"a rule of `{need.category}`, {_LEVELS[need.level]}"
            lines.append(f"| {need.control} | {need.says} | {answer} |")
        lines.append("")
    return "\n".join(lines)


def _aliases() -> str:
    lines = ["## Other names\n", _ALIASES, "| name | category | what it comes to |", "| --- | --- | --- |"]
    for name, alias in sorted(ALIASES.items()):
        implied = ", ".join(f"`{key}: {value}`" for key, value in alias.params.items())
        lines.append(f"| `{name}` | `{alias.category}`{f' with {implied}' if implied else ''} | {alias.note} |")
    return "\n".join([*lines, ""])


_LEVELS = {"strict": "without which the files are refused", "warn": "which `lint` asks for"}

_INTRODUCTION = """\
# Policies

A policy file names rules. Each rule is of one category, which says what it looks at; its scope, gates and condition say
when it applies; its mode and `on_breach` say what follows.

```yaml
version: 1
policies:
  - id: cost-ceiling
    category: budget_usd
    scope: {agent: financial-reconciliation}
    with: {limit: 0.10, window: run}
    on_breach: terminate
```

`holdfast policy lint` checks files, `holdfast policy explain` says rule by rule why an action gets its verdict, and
`holdfast policy schema` prints the JSON Schema for editors. Files are YAML 1.2: `off` and `on` are text. Several files
are one bundle; the order of files, rules and keys means nothing. Ids are unique in a bundle.
"""

_CONDITIONS = """\
## Conditions

`when` is [CEL](https://cel.dev) over `action` and `facts`, and must be true or false. Money is counted in nano-dollars
(1,000,000,000 are a dollar) and time in microseconds: `facts.counters.cost > 50000000` is five cents.

A field that is not there is an error, and **an error denies**, whatever `on_breach` says: a rule that cannot be decided
must not let anything through. Test for fields that may be missing, as in
`has(action.args.amount) && action.args.amount > 100`. A part that settles the answer does so too:
`action.name == "wire" && action.args.amount > 100` asks for the amount only of calls of `wire`. The fields below are
always there, and so are the counters `steps`, `llm_calls`, `tool_calls`, `tokens` and `cost`, which start at 0; others,
such as `facts.counters["tool_calls:wire"]`, are there from the first time on: `"tool_calls:wire" in facts.counters`.

- {action}
- {facts}
- functions: {functions}

A condition may ask about what the run did before, calls that are under way included:

- `history.count(GATE, NAME)`: how often; `history.formerly(GATE, NAME)`: whether at all
- `history.sum(GATE, NAME, ARGUMENT)`: a numeric argument, added up; where one was no number, the rule denies

`GATE` may be `"*"` and `NAME` a pattern; the name of an LLM call is `provider/model`, that of a request its host. Each
takes `within="1h"`, `state=` (`open`, `ok`, `failed`, `ended`) and `over=` (`run`; `agent` and `tenant`: what this node
saw of them lately): `history.count("tool", "wire_transfer", within="1h") >= 3`. Only plain text in quotes can be given.
The answers are recorded with the verdict, so that it can be decided again.
"""

_PROFILES = """\
A profile is what a regime asks of policies: `profiles: [soc2, pci-dss]`. Its rules apply as they stand. A policy with
the id of one of them takes its place when it is at least as strict; one that is looser is refused, with the control it
would break. What a site must fill in itself is asked for by category. Profiles compose: all their rules apply. With
`profile_level: warn` their rules are in shadow and what is loose or missing is only said, for a start. Control ids are
the regimes'; the wording is ours. A profile helps to show compliance and does not make it.
"""

_LAYERS = """\
## Layers

Files belong to layers: organisation, tenant, agent, run. A lower layer may add rules and tighten those above it under
the same id; it may not loosen one, unless that one says `loosened_by` with the layer's name. `egress_allowlist` and
`break_glass` open something: only the layer on top may add the first rule of these, unless its file says `opened_by`,
such as `opened_by: {egress_allowlist: [agent, run]}`, beside `policies`.
"""

_ALIASES = """\
A file may call a category by the name that other products use. The record names the category.
"""

_OUTCOMES = """\
## What follows

{words}: the strongest verdict of all rules that apply wins, and every rule that had something to say is recorded.
A rule in `mode: shadow` is recorded and changes nothing; it reserves nothing either, so that a budget in shadow goes by
what its run has spent.

With `on_breach: require_approval` the action waits for people; `approval` says whom to ask and how
(`approvers`, `quorum`, `ttl`, `on_expiry`, `escalate_to`), otherwise one authenticated principal within 24 hours. An
action that was approved goes ahead without counting against the limit that it breached.

A standing kill ({kills}) stops whatever it names, in every bundle.
"""

_BUILTIN = """\
Without any policy file the built-in bundle applies. It only bounds what would never end: no budget, list or approval is
in force. (Nothing is reachable over the network without an `egress_allowlist`, in any bundle.) As soon as a file is
named, what stands in the files is all that applies.
"""
