"""Profiles: what a regime asks of policies, as rules that ship, and as categories that a site must fill in itself.

A profile is a YAML file beside this module. Its rules apply where it is named. A rule of the same id in a policy file
takes the place of the profile's as long as it is at least as strict; what is looser is refused with the control that it
would break. A category that a site must fill in (hosts, people, fields) is required, strictly or as advice. Several
profiles compose: all their rules apply, and the strongest verdict wins.

Control ids are the regimes'; the wording is ours, and no profile makes a system compliant by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, StringConstraints, ValidationError

from holdfast.policy.categories import CATEGORIES
from holdfast.policy.model import (
    Checked,
    Name,
    Strict,
    examine_policies,
    profile_names,
    translate,
)
from holdfast.policy.patterns import nearest
from holdfast.policy.source import Document, Problem, read

_MODES = ("off", "shadow", "enforce")


class Requirement(Strict):
    """What a control asks for: that one of the profile's rules stands, or that there is a rule of a category."""

    control: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(description="id of the control")
    says: Annotated[str, StringConstraints(min_length=1, max_length=400)] = Field(
        description="what it asks, in our words"
    )
    rule: Name | None = Field(default=None, description="a rule of the profile that answers it")
    category: str | None = Field(default=None, description="a category that a site must have a rule of")
    level: Literal["strict", "warn"] = Field(
        default="strict", description="strict: refused without; warn: said by lint"
    )


class ProfileFile(Strict):
    """A profile."""

    version: Literal[1]
    title: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    about: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    requires: tuple[Requirement, ...] = Field(min_length=1)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile that was read."""

    name: str
    title: str
    about: str
    rules: tuple[Checked, ...]
    requires: tuple[Requirement, ...]

    def control(self, rule: str) -> str:
        """The controls that a rule answers, for messages."""
        return ", ".join(one.control for one in self.requires if one.rule == rule)


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A profile as a policy file names it."""

    profile: Profile
    document: Document
    place: tuple[str | int, ...]
    warn: bool
    """The file takes its profiles as advice: their rules are in shadow, and what is loose is only said."""


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """Policies together with those of their profiles."""

    checked: list[Checked]
    problems: list[Problem]
    advice: list[Problem]


def read_profile(folder: Path, name: str) -> tuple[Profile | None, list[Problem]]:
    """A profile of a folder, and what is wrong in its file.

    Raises:
        PolicyFileError: the file cannot be read at all.
    """
    document = read(folder / f"{name}.yaml")
    value = document.value
    if not isinstance(value, dict):
        return None, [document.problem((), "a profile holds version, title, about, requires and policies")]
    try:
        head = ProfileFile.model_validate({key: item for key, item in value.items() if key != "policies"})
    except ValidationError as error:
        return None, translate(document, (), error, ProfileFile)
    rules, problems = examine_policies(document)
    known = {item.policy.id for item in rules}
    for index, one in enumerate(head.requires):
        if (one.rule is None) == (one.category is None):
            problems.append(document.problem(("requires", index), "name either a rule or a category"))
        elif one.category is not None and one.category not in CATEGORIES:
            message = f"there is no category {one.category}{nearest(one.category, CATEGORIES)}"
            problems.append(document.problem(("requires", index, "category"), message))
        elif one.rule is not None and one.rule not in known:
            problems.append(document.problem(("requires", index, "rule"), f"there is no rule {one.rule} in this file"))
    answered = {one.rule for one in head.requires}
    for item in rules:
        if not item.policy.id.startswith(f"{name}/"):
            problems.append(document.problem((), f"the id {item.policy.id} must start with {name}/"))
        if item.policy.id not in answered:
            problems.append(document.problem((), f"{item.policy.id} answers no control; add it to requires"))
    found = Profile(name=name, title=head.title, about=head.about, rules=tuple(rules), requires=head.requires)
    return found, problems


def named(document: Document, folder: Path) -> tuple[list[Named], list[Problem]]:
    """The profiles that a policy file names."""
    value = document.value if isinstance(document.value, dict) else {}
    names = value.get("profiles")
    found: list[Named] = []
    problems: list[Problem] = []
    known = profile_names(folder)
    for index, name in enumerate(names if isinstance(names, list) else ()):
        place = ("profiles", index)
        if name not in known:
            hint = nearest(str(name), known) if known else "; this version ships none, write the rules as policies"
            problems.append(document.problem(place, f"there is no profile {name}{hint}"))
            continue
        profile, wrong = read_profile(folder, name)
        problems += wrong
        if profile is not None:
            warn = value.get("profile_level") == "warn"
            found.append(Named(profile=profile, document=document, place=place, warn=warn))
    return found, problems


def compose(own: Sequence[Checked], profiles: Iterable[Named]) -> Composed:
    """Policies of files together with those of the profiles that the files name; a profile named twice counts once."""
    result = Composed(checked=list(own), problems=[], advice=[])
    mine = {item.policy.id: item for item in own}
    seen: dict[str, Named] = {}
    for one in profiles:
        first = seen.get(one.profile.name)
        if first is None or (first.warn and not one.warn):
            seen[one.profile.name] = one
    for one in seen.values():
        for rule in one.profile.rules:
            other = mine.get(rule.policy.id)
            if other is None:
                result.checked.append(_shadowed(rule) if one.warn else rule)
                continue
            control = one.profile.control(rule.policy.id)
            for why in looser(other, rule):
                message = (
                    f"{why}: that is looser than {one.profile.name} asks for {control}; make it as strict or remove it"
                )
                problem = Problem(file=other.file, line=other.line, key=other.policy.id, message=message)
                (result.advice if one.warn else result.problems).append(problem)
        for need in one.profile.requires:
            if need.category is None or any(_stands(item, need.category) for item in result.checked):
                continue
            message = f"{one.profile.name} asks for a rule of {need.category} ({need.control}): {need.says}"
            problem = one.document.problem(one.place, message)
            (result.problems if need.level == "strict" and not one.warn else result.advice).append(problem)
    return result


def looser(mine: Checked, minimum: Checked) -> list[str]:
    """In which ways a policy asks for less than another of the same purpose; empty when it is at least as strict.

    Says that it is looser where it cannot tell: a parameter that has no order must be equal.
    """
    own, least = mine.policy, minimum.policy
    if own.category != least.category:
        return [f"the category is {own.category}, not {least.category}"]
    found = []
    if _MODES.index(own.mode) < _MODES.index(least.mode):
        found.append(f"mode is {own.mode}")
    if mine.on_breach < minimum.on_breach:
        found.append(f"on_breach is {mine.on_breach.word}, not {minimum.on_breach.word}")
    if missing := sorted(set(minimum.gates) - set(mine.gates)):
        found.append(f"it does not stand at {', '.join(missing)}")
    wide = least.scope.model_dump(exclude_none=True)
    found += [
        f"its scope is only {key} {pattern}"
        for key, pattern in own.scope.model_dump(exclude_none=True).items()
        if wide.get(key) != pattern
    ]
    if own.when is not None and own.when != least.when:
        found.append("it has a condition")
    if own.approval != least.approval and mine.on_breach == minimum.on_breach:
        found.append("it asks other people for approval")
    for name in type(mine.params).model_fields:
        a, b = getattr(mine.params, name), getattr(minimum.params, name)
        if a != b and not _tighter(mine.category.tighter.get(name, ""), a, b):
            found.append(f"with.{name} is looser")
    return found


def _tighter(direction: str, mine: Any, least: Any) -> bool:
    if direction in ("true", "false"):
        return bool(mine) is (direction == "true")
    if direction in ("lower", "higher", "subset"):
        if least is None or mine is None:
            return least is None
        if direction == "subset":
            return set(mine) <= set(least)
        return bool(mine < least) if direction == "lower" else bool(mine > least)
    if direction == "superset":
        return set(mine or ()) >= set(least or ())
    # A list of whom or what is meant, where an empty one means everybody.
    return direction == "named" and bool(mine) and (not least or set(mine) <= set(least))


def _stands(item: Checked, category: str) -> bool:
    policy = item.policy
    return policy.category == category and policy.mode == "enforce"


def _shadowed(rule: Checked) -> Checked:
    policy = rule.policy.model_copy(update={"mode": "shadow"})
    return msgspec.structs.replace(rule, policy=policy)


def describe(folder: Path) -> list[Mapping[str, Any]]:
    """Every profile with its controls, for lists and the reference page."""
    found: list[Mapping[str, Any]] = []
    for name in profile_names(folder):
        profile, problems = read_profile(folder, name)
        if profile is not None and not problems:
            found.append({"name": name, "title": profile.title, "about": profile.about, "requires": profile.requires})
    return found
