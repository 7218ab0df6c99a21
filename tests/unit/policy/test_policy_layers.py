"""Layers of policies: what a lower one may say, and what changes for runs in flight."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, Facts
from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import Bundle, builtin
from holdfast.policy.decide import decide
from holdfast.policy.layers import Layer, load, shift, stack
from holdfast.policy.model import one

STEPS = "- {id: steps, category: step_limit, with: {limit: 100}%s}"


class Files:
    """Layers from text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def layers(self, **texts: str) -> list[Layer]:
        made = []
        for name in ("organisation", "tenant", "agent", "run"):
            files: tuple[Path, ...] = ()
            if name in texts:
                path = self.folder / f"{name}.yaml"
                top, _, rules = texts[name].rpartition("|")
                path.write_text(f"version: 1\n{top}\npolicies:\n{textwrap.indent(rules.strip(), '  ')}\n")
                files = (path,)
            made.append(Layer(name=name, files=files))
        return made

    def load(self, **texts: str) -> Bundle:
        return load(self.layers(**texts))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def ids(bundle: Bundle) -> list[str]:
    return [rule.id for rule in bundle.rules]


def test_without_a_file_the_built_in_bundle_stands(files: Files) -> None:
    assert files.load() is builtin()


@pytest.mark.parametrize("layer", ["organisation", "tenant", "agent", "run"])
def test_any_layer_alone_is_a_bundle_of_its_own(files: Files, layer: str) -> None:
    assert ids(files.load(**{layer: STEPS % ""})) == ["steps"]


@pytest.mark.parametrize("layer", ["tenant", "agent", "run"])
def test_a_lower_layer_adds_and_tightens(files: Files, layer: str) -> None:
    lower = "- {id: steps, category: step_limit, with: {limit: 10}}\n- {id: more, category: loop_detection}"
    bundle = files.load(organisation=STEPS % "", **{layer: lower})
    assert ids(bundle) == ["more", "steps"]
    assert bundle.rules[1].params.limit == 10


@pytest.mark.parametrize(
    ("lower", "words"),
    [
        ("- {id: steps, category: step_limit, with: {limit: 101}}", "with.limit is looser"),
        ("- {id: steps, category: step_limit, with: {limit: 5}, mode: shadow}", "mode is shadow"),
        ("- {id: steps, category: step_limit, with: {limit: 5}, mode: 'off'}", "mode is off"),
        ("- {id: steps, category: step_limit, with: {limit: 5}, on_breach: warn}", "on_breach is warn"),
        ("- {id: steps, category: step_limit, with: {limit: 5}, scope: {agent: a}}", "scope is only agent a"),
        ("- {id: steps, category: step_limit, with: {limit: 5}, when: facts.depth > 0}", "it has a condition"),
        ("- {id: steps, category: tool_call_limit, with: {limit: 5}}", "the category is tool_call_limit"),
    ],
)
@pytest.mark.parametrize("layer", ["tenant", "agent", "run"])
def test_what_is_looser_is_refused_with_rule_layer_and_place(files: Files, layer: str, lower: str, words: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        files.load(organisation=STEPS % "", **{layer: lower})
    for word in (f"{layer}.yaml:4", words, f"the layer {layer}", "steps", "organisation.yaml:4", "loosened_by"):
        assert word in str(caught.value)


def test_what_is_allowed_below_may_be_looser_there_and_only_there(files: Files) -> None:
    loose = "- {id: steps, category: step_limit, with: {limit: 500}}"
    upper = STEPS % ", loosened_by: [agent]"
    assert files.load(organisation=upper, agent=loose).rules[0].params.limit == 500
    with pytest.raises(PolicyFileError, match="the layer tenant"):
        files.load(organisation=upper, tenant=loose)


def test_the_nearest_layer_above_is_what_counts(files: Files) -> None:
    middle = "- {id: steps, category: step_limit, with: {limit: 50}}"
    with pytest.raises(PolicyFileError, match="of the layer tenant"):
        files.load(organisation=STEPS % "", tenant=middle, run=STEPS % "")


HOSTS = '- {id: hosts, category: egress_allowlist, with: {hosts: ["%s.example"]}}'
GLASS = "- {id: glass, category: break_glass, with: {lifts: [steps]}}"


@pytest.mark.parametrize("opening", [HOSTS % "a", GLASS])
def test_nothing_is_opened_from_below(files: Files, opening: str) -> None:
    category = "egress_allowlist" if "hosts" in opening else "break_glass"
    with pytest.raises(PolicyFileError, match="may not open anything"):
        files.load(organisation=STEPS % "", agent=opening)
    allowed = f"opened_by: {{{category}: [agent]}}|" + STEPS % ""
    assert len(files.load(organisation=allowed, agent=opening).rules) == 2
    with pytest.raises(PolicyFileError, match="the layer run may not open"):
        files.load(organisation=allowed, run=opening)


def test_a_second_list_of_hosts_only_narrows(files: Files) -> None:
    other = (HOSTS % "b").replace("id: hosts", "id: more-hosts")
    assert len(files.load(organisation=HOSTS % "a", run=other).rules) == 2


def test_profiles_of_any_layer_count_with_what_stands_above(files: Files, tmp_path: Path) -> None:
    stacked = stack(files.layers(organisation="profiles: [soc2]\nprofile_level: warn|" + STEPS % ""))
    assert {found.layer for found in stacked} == {"organisation"}
    name = next(found.item.policy.id for found in stacked if found.item.policy.id.startswith("soc2/"))
    category = next(found.item.policy.category for found in stacked if found.item.policy.id == name)
    strict = "profiles: [soc2]\nprofile_level: warn|" + STEPS % ""
    with pytest.raises(PolicyFileError, match="the layer run"):
        files.load(organisation=strict, run=f"- {{id: {name}, category: {category}, mode: 'off'}}")


@given(upper=st.integers(1, 50), lower=st.integers(1, 50), used=st.integers(0, 60))
def test_a_lower_layer_never_allows_what_the_upper_denies(
    tmp_path_factory: pytest.TempPathFactory, upper: int, lower: int, used: int
) -> None:
    files = Files(tmp_path_factory.mktemp("layers"))
    above = f"- {{id: s, category: step_limit, with: {{limit: {upper}}}}}"
    action, facts = Action(kind="step", name="x"), Facts(now=1, counters={"steps": used})
    alone = decide(action, facts, files.load(organisation=above)).outcome
    try:
        both = files.load(organisation=above, run=f"- {{id: s, category: step_limit, with: {{limit: {lower}}}}}")
    except PolicyFileError:
        assert lower > upper
        return
    assert decide(action, facts, both).outcome >= alone


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(policy) for policy in policies])


def rule(limit: int, how: str = "pin", id_: str = "s") -> dict[str, Any]:
    return {"id": id_, "category": "step_limit", "with": {"limit": limit}, "in_flight": how}


@pytest.mark.parametrize(
    ("pinned", "standing", "limit", "immediate"),
    [
        (rule(10), rule(5), 10, None),
        (rule(10), rule(5, "next-step"), 5, False),
        (rule(10), rule(5, "immediate"), 5, True),
        (rule(10), rule(20, "next-step"), 10, None),  # what was pinned for good is only tightened
        (rule(10, "next-step"), rule(20, "next-step"), 20, False),
        (rule(10, "next-step"), rule(20), 10, None),
        (rule(10), rule(10), 10, None),
    ],
)
def test_what_changes_in_flight_is_for_each_rule_to_say(
    pinned: dict[str, Any], standing: dict[str, Any], limit: int, immediate: bool | None
) -> None:
    change = shift(bundle(pinned), bundle(standing))
    if immediate is None:
        assert change is None
        return
    assert change is not None
    assert (change.bundle.rules[0].params.limit, change.immediate, change.changed) == (limit, immediate, ("s",))


def test_rules_come_and_go_in_flight() -> None:
    run = bundle(rule(10), rule(5, "next-step", "old"), rule(7, id_="own"))
    change = shift(run, bundle(rule(10), rule(3, "immediate", "new"), rule(1, id_="later")))
    assert change is not None
    assert change.changed == ("new", "old")
    assert ids(change.bundle) == ["new", "own", "s"]


def test_a_runs_own_rules_are_its_own_for_good(files: Files) -> None:
    own = files.load(run="- {id: own, category: step_limit, with: {limit: 3}, in_flight: next-step}")
    assert shift(own, bundle(rule(10))) is None


def test_the_digest_tells_what_changes_in_flight_and_nothing_else_is_new() -> None:
    assert bundle(rule(10)).digest == bundle({"id": "s", "category": "step_limit", "with": {"limit": 10}}).digest
    assert bundle(rule(10)).digest != bundle(rule(10, "immediate")).digest
    assert Bundle.from_bytes(bundle(rule(10, "immediate")).to_bytes()).digest == bundle(rule(10, "immediate")).digest
