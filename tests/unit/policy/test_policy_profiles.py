from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import load
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.aliases import ALIASES
from holdfast.policy.lint import Severity, lint
from holdfast.policy.model import PROFILES, one, profile_names
from holdfast.policy.profiles import describe, looser, read_profile
from holdfast.policy.source import parse

NAMES = profile_names()
RULES = [(name, rule) for name in NAMES for rule in read_profile(PROFILES, name)[0].rules]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "p.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_profiles_that_ship() -> None:
    assert NAMES == ["gdpr", "hipaa", "mifid2", "model-risk", "pci-dss", "soc2", "sox"]
    assert [item["name"] for item in describe(PROFILES)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_good_and_every_rule_answers_a_control(name: str, write: Any) -> None:
    profile, problems = read_profile(PROFILES, name)
    assert problems == []
    assert profile is not None
    for rule in profile.rules:
        assert profile.control(rule.policy.id)
        assert rule.policy.mode == "enforce"
    for need in profile.requires:
        assert need.category is None or need.category in CATEGORIES
    bundle = load([write(f"version: 1\nprofiles: [{name}]\n")])
    assert {rule.id for rule in bundle.rules} == {rule.policy.id for rule in profile.rules}


def test_profiles_compose(write: Any) -> None:
    together = load([write(f"version: 1\nprofiles: [{', '.join(NAMES)}]\n")])
    assert {rule.id for rule in together.rules} == {rule.policy.id for _, rule in RULES}
    twice = load([write("version: 1\nprofiles: [soc2]\n"), write("version: 1\nprofiles: [soc2]\n", "q.yaml")])
    assert twice.digest == load([write("version: 1\nprofiles: [soc2]\n", "r.yaml")]).digest


@pytest.mark.parametrize(("profile", "id_"), [(name, rule.policy.id) for name, rule in RULES])
def test_no_rule_of_a_profile_is_switched_off(profile: str, id_: str, write: Any) -> None:
    rule = next(rule for _, rule in RULES if rule.policy.id == id_)
    text = f"version: 1\nprofiles: [{profile}]\npolicies:\n  - id: {id_}\n    category: {rule.policy.category}\n"
    path = write(f"{text}    mode: off\n    with: {one_line(rule.policy.with_)}\n")
    with pytest.raises(PolicyFileError) as caught:
        load([path])
    control = read_profile(PROFILES, profile)[0].control(id_)  # type: ignore[union-attr]
    assert f"looser than {profile} asks for {control}" in str(caught.value)
    assert str(caught.value).startswith(f"{path}:4:")


def one_line(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one_line(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_stricter_rule_takes_the_place_of_the_profiles(write: Any) -> None:
    text = """version: 1
profiles: [soc2]
policies:
  - {id: soc2/attempts, category: retry_limit, with: {attempts: 2, per_run: 5}, on_breach: terminate}
"""
    rules = [rule for rule in load([write(text)]).rules if rule.id == "soc2/attempts"]
    assert [rule.params.attempts for rule in rules] == [2]


MINIMUM = {
    "id": "m",
    "category": "tool_allowlist",
    "with": {"allow": ["a", "b"], "deny": ["c"]},
    "gates": ["tool"],
    "scope": {"agent": "fin*"},
}
APPROVAL = {"id": "m", "category": "require_approval", "with": {"quorum": 2, "ttl": "4h", "approvers": ["role:x"]}}
WINDOW = {"id": "m", "category": "schedule_window", "with": {"tz": "UTC", "days": ["mon", "tue"]}}
REPEATS = {"id": "m", "category": "retry_limit", "with": {"attempts": 3, "per_run": 5}}


@pytest.mark.parametrize(
    ("minimum", "change", "why"),
    [
        (MINIMUM, {}, ""),
        (MINIMUM, {"with": {"allow": ["a"], "deny": ["c", "d"]}}, ""),
        (MINIMUM, {"with": {"allow": ["a", "z"], "deny": ["c"]}}, "with.allow"),
        (MINIMUM, {"with": {"deny": ["c"]}}, "with.allow"),
        (MINIMUM, {"with": {"allow": ["a"], "deny": []}}, "with.deny"),
        (MINIMUM, {"mode": "shadow"}, "mode"),
        (MINIMUM, {"mode": "off"}, "mode"),
        (MINIMUM, {"on_breach": "warn"}, "on_breach"),
        (MINIMUM, {"on_breach": "require_approval"}, "on_breach"),
        (MINIMUM, {"on_breach": "terminate"}, ""),
        (MINIMUM, {"scope": {}}, ""),
        (MINIMUM, {"scope": {"agent": "finance"}}, "scope"),
        (MINIMUM, {"scope": {"agent": "fin*", "tenant": "x"}}, "scope"),
        (MINIMUM, {"when": "action.attempt > 1"}, "condition"),
        (MINIMUM, {"category": "kill_switch", "with": {}}, "category"),
        (APPROVAL, {"with": {"quorum": 3, "ttl": "1h", "approvers": ["role:x"]}}, ""),
        (APPROVAL, {"with": {"quorum": 1, "ttl": "4h", "approvers": ["role:x"]}}, "with.quorum"),
        (APPROVAL, {"with": {"quorum": 2, "ttl": "5h", "approvers": ["role:x"]}}, "with.ttl"),
        (APPROVAL, {"with": {"quorum": 2, "ttl": "4h"}}, "with.approvers"),
        (APPROVAL, {"gates": ["llm"]}, "does not stand at tool"),
        (APPROVAL, {"gates": ["tool", "llm"]}, ""),
        (WINDOW, {"with": {"tz": "Asia/Tokyo", "days": ["mon"]}}, "with.tz"),
        (WINDOW, {"with": {"days": ["mon"], "blackout": ["2026-01-01"]}}, ""),
        (REPEATS, {"with": {"attempts": 3}}, "with.per_run"),
        (REPEATS, {"with": {"attempts": 3, "per_run": 5, "irreversible": True}}, "with.irreversible"),
        (REPEATS, {"with": {"attempts": 2, "per_run": 0}}, ""),
    ],
)
def test_what_is_looser(minimum: dict[str, Any], change: dict[str, Any], why: str) -> None:
    found = looser(one({**minimum, **change}), one(minimum))
    assert (why in " ".join(found)) if why else found == []
    assert bool(found) is bool(why)


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_how_a_parameter_gets_stricter_is_said_of_parameters_that_there_are(name: str) -> None:
    category = CATEGORIES[name]
    assert set(category.tighter) <= set(category.params.model_fields)
    assert set(category.tighter.values()) <= {"lower", "higher", "subset", "superset", "named", "true", "false"}


def test_a_category_that_a_site_must_fill_in(write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    need = "{control: c-9, says: tools by name, category: tool_allowlist, level: %s}"
    for level in ("strict", "warn"):
        (folder / f"{level}.yaml").write_text(f"version: 1\ntitle: T\nabout: A\nrequires: [{need % level}]\n")
    bare = write("version: 1\nprofiles: [strict]\npolicies: [{id: a, category: kill_switch}]\n")
    with_ = "version: 1\nprofiles: [strict]\npolicies: [{id: a, category: tool_allowlist, with: {allow: [x]}%s}]\n"
    assert [(item.severity, item.line) for item in lint([bare], profiles=folder)] == [(Severity.ERROR, 2)]
    assert "c-9" in lint([bare], profiles=folder)[0].message
    assert lint([write(with_ % "")], profiles=folder) == []
    shadow = lint([write(with_ % ", mode: shadow")], profiles=folder)
    assert Severity.ERROR in [item.severity for item in shadow]
    soft = write("version: 1\nprofiles: [warn]\npolicies: [{id: a, category: kill_switch}]\n", "soft.yaml")
    assert [item.severity for item in lint([soft], profiles=folder)] == [Severity.WARNING]


def test_profiles_as_advice(write: Any) -> None:
    text = """version: 1
profiles: [soc2]
profile_level: warn
policies:
  - {id: soc2/attempts, category: retry_limit, with: {attempts: 900}}
"""
    path = write(text)
    modes = {rule.id: rule.mode for rule in load([path]).rules}
    assert modes.pop("soc2/attempts") == "enforce"
    assert set(modes.values()) == {"shadow"}
    advice = [item for item in lint([path]) if "looser than soc2 asks for A1.2" in item.message]
    assert [item.severity for item in advice] == [Severity.WARNING]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\ntitle: T\nabout: A\nrequires: [{control: c, says: s}]\n", "either a rule or a category"),
        ("version: 1\ntitle: T\nabout: A\nrequires: [{control: c, says: s, rule: bad/x}]\n", "no rule bad/x"),
        ("version: 1\ntitle: T\nabout: A\nrequires: [{control: c, says: s, category: bugdet}]\n", "no category bugdet"),
        (
            "version: 1\ntitle: T\nabout: A\nrequires: [{control: c, says: s, rule: x}]\npolicies:\n"
            "  - {id: x, category: kill_switch}\n",
            "must start with bad/",
        ),
        (
            "version: 1\ntitle: T\nabout: A\nrequires: [{control: c, says: s, category: kill_switch}]\npolicies:\n"
            "  - {id: bad/x, category: kill_switch}\n",
            "answers no control",
        ),
        ("version: 1\n", "title is missing"),
        ("[]\n", "a profile holds"),
    ],
)
def test_a_profile_that_is_not_good_is_refused(text: str, message: str, write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "bad.yaml").write_text(text)
    _, problems = read_profile(folder, "bad")
    assert any(message in problem.message for problem in problems)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_an_alias_comes_to_a_category_and_says_so(name: str, write: Any) -> None:
    alias = ALIASES[name]
    category = CATEGORIES[alias.category]
    example = parse(category.example.encode(), "example").value.get("with", {})
    value = {"version": 1, "policies": [{"id": "a", "category": name, "with": example}]}
    path = write(json.dumps(value, default=str))
    rule = load([path]).rules[0]
    assert rule.category is category
    for key, given in alias.params.items():
        assert key in example or getattr(rule.params, key) == given
    notes = [item.message for item in lint([path]) if item.severity is Severity.NOTE]
    assert f"{name} is {alias.category} here: {alias.note}" in notes


def test_an_alias_yields_to_what_the_policy_says() -> None:
    checked = one({"id": "a", "category": "end_user_budget", "with": {"limit": 1, "window": "month"}})
    assert (checked.params.window, checked.params.per) == ("month", "principal")  # type: ignore[attr-defined]
    with pytest.raises(PolicyFileError, match="did you mean end_user_budget"):
        one({"id": "a", "category": "end_user_budgets", "with": {"limit": 1}})


SPELLINGS = {
    "soc2": r"(?:CC|A|C|P|PI)\d+\.\d+",
    "hipaa": r"164\.\d+(?:\([a-zA-Z0-9]+\))*",
    "pci-dss": r"\d+(?:\.\d+)+",
    "gdpr": r"Art\.\d+(?:\(\w+\))*",
    "sox": r"ITGC-(?:access|approval|change|operations)",
    "mifid2": r"RTS6-Art\.\d+(?:\(\w+\))*",
    "model-risk": r"[a-z]+(?:-[a-z]+)*",
}
"""How each regime's control ids are written, in profiles and categories alike."""


def test_control_ids_are_spelt_one_way_everywhere() -> None:
    found = {
        (name, need.control)
        for name in profile_names()
        if (profile := read_profile(PROFILES, name)[0]) is not None
        for need in profile.requires
    }
    for category in CATEGORIES.values():
        found |= {(regime, control) for regime, _, control in (each.partition(":") for each in category.controls)}
    assert {regime for regime, _ in found} == set(SPELLINGS)
    assert [pair for pair in sorted(found) if not re.fullmatch(SPELLINGS[pair[0]], pair[1])] == []


@pytest.mark.parametrize("name", profile_names())
def test_a_category_names_the_controls_that_profiles_ask_it_for(name: str) -> None:
    profile, _ = read_profile(PROFILES, name)
    assert profile is not None
    of_rule = {rule.policy.id: rule.policy.category for rule in profile.rules}
    for need in profile.requires:
        category = need.category or of_rule[str(need.rule)]
        assert f"{name}:{need.control}" in CATEGORIES[category].controls, category
