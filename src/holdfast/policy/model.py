"""Policy files become validated policies; an error names the file, the line, the key and the cure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from holdfast.action import GATES, Outcome
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.aliases import ALIASES
from holdfast.policy.categories.approvals import check_people
from holdfast.policy.categories.base import ApprovalParams, Category, Params
from holdfast.policy.cel import ConditionError
from holdfast.policy.conditions import check
from holdfast.policy.patterns import nearest
from holdfast.policy.source import Document, Place, Problem, read, refuse

VERSION = 1
PROFILES = Path(__file__).parent / "profiles"
"""Folder of the profiles: policy lists by name."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)]
Scoped = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Word = Literal["warn", "redact", "throttle", "require_approval", "deny", "terminate"]
Lower = Literal["tenant", "agent", "run"]
_STRICT = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)


class Strict(BaseModel):
    """Base of what stands in a file: unknown keys are refused, nothing changes after loading."""

    model_config = _STRICT


class Scope(BaseModel):
    """Whom a policy concerns. Each key is a name or a pattern (``*``, ``?``, ``[…]``); all that are given must fit."""

    model_config = _STRICT

    tenant: Scoped | None = Field(default=None, description="tenant")
    region: Scoped | None = Field(default=None, description="the tenant's region")
    agent: Scoped | None = Field(default=None, description="agent's name")
    workflow: Scoped | None = Field(default=None, description="workflow's name, without its agent's")
    session: Scoped | None = Field(default=None, description="hosted session")
    run: Scoped | None = Field(default=None, description="run")
    principal: Scoped | None = Field(default=None, description="who asked for the run")
    isolation: Scoped | None = Field(default=None, description="isolation level of the run")


SCOPE_KEYS = tuple(Scope.model_fields)


class Policy(BaseModel):
    """One rule as it stands in a file."""

    model_config = _STRICT

    id: Name = Field(description="the rule's name, in every verdict that it leads to; unique in a bundle")
    category: str = Field(description="what kind of rule it is")
    description: str = Field(default="", max_length=2000, description="why it is there, for people")
    scope: Scope = Field(default_factory=Scope, description="whom it concerns; left out: everyone")
    gates: tuple[str, ...] | None = Field(
        default=None, description="where it stands; left out: the category's own gates"
    )
    when: str | None = Field(default=None, description="CEL over `action` and `facts`; left out: always")
    with_: dict[str, Any] = Field(default={}, alias="with", description="the category's parameters")
    mode: Literal["enforce", "shadow", "off"] = Field(
        default="enforce", description="shadow: recorded without effect; off: not asked"
    )
    on_breach: Word | None = Field(default=None, description="what a breach leads to; left out: the category's default")
    approval: ApprovalParams | None = Field(
        default=None, description="who is asked, with `on_breach: require_approval`"
    )
    in_flight: Literal["pin", "next-step", "immediate"] = Field(
        default="pin",
        description="what a change means for runs in flight: `pin`: nothing; `next-step`: it is in force for what is "
        "decided from then on; `immediate`: what is under way is decided again, too",
    )
    loosened_by: tuple[Lower, ...] = Field(
        default=(), description="layers below (tenant, agent, run) that may loosen it under the same id"
    )


class PolicyFile(BaseModel):
    """A policy file."""

    model_config = _STRICT

    version: Literal[1] = Field(description="format of this file")
    profiles: tuple[str, ...] = Field(default=(), description="profiles whose policies apply as well")
    profile_level: Literal["strict", "warn"] = Field(
        default="strict", description="warn: the profiles' rules are in shadow, and what they lack is only said by lint"
    )
    opened_by: dict[Literal["egress_allowlist", "break_glass"], tuple[Lower, ...]] = Field(
        default={}, description="layers below that may add a rule of a category that opens something"
    )
    policies: tuple[Policy, ...] = Field(default=(), description="the rules")


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A policy whose parameters, gates and condition are known to be good."""

    policy: Policy
    params: Params
    gates: tuple[str, ...]
    on_breach: Outcome
    file: str = ""
    line: int = 0
    note: str = ""
    """What the name in the file came to, when it was an alias."""

    @property
    def category(self) -> Category:
        """Its category."""
        return CATEGORIES[self.policy.category]

    def normal(self) -> dict[str, Any]:
        """What it means, spelt one way whatever the file left out: what a bundle's digest is over."""
        policy = self.policy
        result: dict[str, Any] = {
            "id": policy.id,
            "category": policy.category,
            "gates": sorted(self.gates),
            "mode": policy.mode,
            "on_breach": self.on_breach.word,
            "with": self.params.model_dump(mode="json", exclude_none=True),
        }
        if scope := policy.scope.model_dump(exclude_none=True):
            result["scope"] = scope
        if policy.when is not None:
            result["when"] = policy.when
        if policy.description:
            result["description"] = policy.description
        if policy.approval is not None:
            result["approval"] = policy.approval.model_dump(mode="json")
        if policy.in_flight != "pin":
            result["in_flight"] = policy.in_flight
        return result


def load(paths: Iterable[Path | str], *, profiles: Path = PROFILES) -> list[Checked]:
    """The policies of several files and of the profiles that they name.

    Raises:
        PolicyFileError: names file, line, key and cure of the first problem.
    """
    from holdfast.policy.profiles import compose, named

    checked: list[Checked] = []
    problems: list[Problem] = []
    regimes = []
    for path in paths:
        document = read(Path(path))
        found, wrong = examine(document)
        checked += found
        problems += wrong
        which, wrong = named(document, profiles)
        regimes += which
        problems += wrong
    composed = compose(checked, regimes)
    problems += composed.problems
    problems += clashes(composed.checked)
    if problems:
        raise refuse(problems)
    return composed.checked


def examine(document: Document) -> tuple[list[Checked], list[Problem]]:
    """The good policies that stand in a document, and every problem in it."""
    value = document.value
    if not isinstance(value, dict):
        return [], [document.problem((), "a policy file holds version, profiles and policies; start with: version: 1")]
    problems: list[Problem] = []
    outer = {key: item for key, item in value.items() if key != "policies"}
    try:
        PolicyFile.model_validate(outer)
    except ValidationError as error:
        problems += translate(document, (), error, PolicyFile)
    checked, wrong = examine_policies(document)
    return checked, problems + wrong


def examine_policies(document: Document) -> tuple[list[Checked], list[Problem]]:
    """The good ones among a document's ``policies``, and every problem in them."""
    problems: list[Problem] = []
    policies = document.value.get("policies")
    if not isinstance(policies, list | None):
        problems.append(document.problem(("policies",), "a list of policies is needed; start each with: - id: NAME"))
        policies = None
    checked: list[Checked] = []
    for index, item in enumerate(policies or ()):
        one, wrong = _policy(document, ("policies", index), item)
        problems += wrong
        if one is not None:
            checked.append(one)
    return checked, problems


def one(value: Mapping[str, Any], source: str = "(policy)") -> Checked:
    """Validate a single policy that is already plain data.

    Raises:
        PolicyFileError: names the key and the cure.
    """
    checked, problems = _policy(Document(file=source, value=value, lines={}), (), dict(value))
    if checked is None or problems:
        raise refuse([Problem(file=source, line=0, key=item.key, message=item.message) for item in problems])
    return checked


def clashes(checked: Sequence[Checked]) -> list[Problem]:
    """Ids that are given twice."""
    seen: dict[str, Checked] = {}
    problems = []
    for item in checked:
        first = seen.setdefault(item.policy.id, item)
        if first is not item:
            place = f"{first.file}:{first.line}" if first.file else "another policy"
            message = f"the id {item.policy.id} is taken by {place}; give each policy an id of its own"
            problems.append(Problem(file=item.file, line=item.line, key="id", message=message))
    return problems


def profile_names(folder: Path = PROFILES) -> list[str]:
    """Profiles that there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _policy(document: Document, place: Place, value: Any) -> tuple[Checked | None, list[Problem]]:
    if not isinstance(value, dict):
        return None, [document.problem(place, "a policy is a mapping; it needs id and category")]
    try:
        policy = Policy.model_validate(value)
    except ValidationError as error:
        return None, translate(document, place, error, Policy)
    note, alias = "", ALIASES.get(policy.category)
    if alias is not None:
        note = f"{policy.category} is {alias.category} here: {alias.note}"
        policy = policy.model_copy(update={"category": alias.category, "with_": {**alias.params, **policy.with_}})
    category = CATEGORIES.get(policy.category)
    if category is None:
        message = f"there is no category {policy.category}{nearest(policy.category, [*CATEGORIES, *ALIASES])}"
        return None, [document.problem((*place, "category"), message)]
    problems: list[Problem] = []
    params = _params(document, (*place, "with"), category.params, policy.with_, problems)
    if params is not None:
        try:
            category.check(params)
        except ValueError as error:
            problems.append(document.problem((*place, "with"), str(error)))
    gates = policy.gates if policy.gates is not None else category.default_gates
    problems += _gates(document, (*place, "gates"), category, gates)
    on_breach = Outcome[policy.on_breach.upper()] if policy.on_breach else category.verdicts[0]
    problems += _breach(document, place, category, policy, on_breach)
    if policy.when is not None:
        try:
            check(policy.when)
        except ConditionError as error:
            problems.append(document.problem((*place, "when"), str(error)))
    if problems or params is None:
        return None, problems
    line = document.line((*place, "id")) if document.lines else 0
    checked = Checked(
        policy=policy, params=params, gates=gates, on_breach=on_breach, file=document.file, line=line, note=note
    )
    return checked, []


def _params(
    document: Document, place: Place, model: type[Params], value: Any, problems: list[Problem]
) -> Params | None:
    try:
        return model.model_validate(_numbers(value))
    except ValidationError as error:
        problems += translate(document, place, error, model)
        return None


def _gates(document: Document, place: Place, category: Category, gates: tuple[str, ...]) -> list[Problem]:
    problems = []
    if not gates:
        problems.append(
            document.problem(place, f"no gate is named; leave the key out for {', '.join(category.default_gates)}")
        )
    for index, gate in enumerate(gates):
        if gate not in GATES:
            problems.append(document.problem((*place, index), f"there is no gate {gate}{nearest(gate, GATES)}"))
        elif gate not in category.gates:
            known = ", ".join(category.gates)
            message = f"{category.name} cannot stand at the gate {gate}; it can at {known}"
            problems.append(document.problem((*place, index), message))
    return problems


def _breach(document: Document, place: Place, category: Category, policy: Policy, outcome: Outcome) -> list[Problem]:
    problems = []
    if outcome not in category.verdicts:
        words = ", ".join(verdict.word for verdict in category.verdicts)
        message = f"{category.name} cannot lead to {outcome.word}; use one of {words}"
        problems.append(document.problem((*place, "on_breach"), message))
    if policy.approval is not None:
        if outcome is not Outcome.REQUIRE_APPROVAL:
            message = "approval is used only with on_breach: require_approval; remove one or add the other"
            problems.append(document.problem((*place, "approval"), message))
        try:
            check_people(policy.approval)
        except ValueError as error:
            problems.append(document.problem((*place, "approval"), str(error)))
    return problems


def _numbers(value: Any) -> Any:
    """Decimals that are whole stay amounts; pydantic's integers take them as they are."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, Decimal) and value == value.to_integral_value() and abs(value) < 10**15:
        return int(value)
    return value


@cache
def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def translate(document: Document, place: Place, error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """What pydantic refuses, as problems that name the key and the cure."""
    problems = []
    # A misspelt key is named before the one that it leaves missing: it is the cause.
    items = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    for item in items:
        inner = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        where = (*place, *inner)
        name = str(inner[-1]) if inner else ""
        kind = item["type"]
        if kind == "extra_forbidden":
            known = _keys(_at(model, inner[:-1]))
            message = f"there is no key {name}{nearest(name, known)}"
        elif kind == "missing":
            message = f"{name} is missing; add {name}: …"
        elif kind == "value_error":
            message = str(item.get("ctx", {}).get("error", item["msg"]))
        elif kind == "literal_error":
            message = f"must be {item['ctx']['expected']}{_closest(item)}"
        elif kind == "string_pattern_mismatch":
            message = f"{_shown(item['input'])} does not have the form {item['ctx']['pattern']}"
        elif kind == "string_type":
            message = f"text is needed, not {_shown(item['input'])}; put it in quotes"
        else:
            message = f"{item['msg'][:1].lower()}{item['msg'][1:]}, not {_shown(item['input'])}"
        problems.append(document.problem(where, message))
    return problems


def _at(model: type[BaseModel], inner: Place) -> type[BaseModel]:
    for part in inner:
        field = _keys(model).get(str(part))
        if field is None:
            continue
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model


def _closest(item: Any) -> str:
    import re

    words = re.findall(r"'([^']+)'", item["ctx"]["expected"])
    hint = nearest(str(item["input"]), words)
    return hint if "did you mean" in hint else ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
