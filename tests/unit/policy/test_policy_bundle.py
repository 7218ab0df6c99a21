from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import GATES, Facts
from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import Bundle, builtin, load
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.model import one
from holdfast.values import sha256


def rule(id_: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "category": "step_limit", "with": {"limit": 5}, **more}


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(item) for item in policies])


def test_the_digest_names_what_the_policies_mean(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(
        "version: 1\npolicies:\n"
        "  - {id: x, category: wall_clock_limit, with: {limit: 24h}}\n"
        "  - {id: y, category: budget_usd, with: {limit: 0.10}}\n"
    )
    b.write_text(
        "# another spelling\nversion: 1\npolicies:\n"
        "  - with: {window: run, limit: '0.1'}\n    on_breach: deny\n    gates: [llm]\n"
        "    category: budget_usd\n    id: y\n"
        "  - {id: x, mode: enforce, category: wall_clock_limit, with: {limit: 1d}}\n"
    )
    assert load([a]).digest == load([b]).digest
    assert load([a]).digest == sha256(load([a]).to_bytes())


def test_a_known_digest_stays() -> None:
    assert bundle(rule("a")).to_bytes() == (
        b'{"policies":[{"category":"step_limit","gates":["step"],"id":"a","mode":"enforce",'
        b'"on_breach":"terminate","with":{"limit":5}}],"v":1}'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"with": {"limit": 6}},
        {"mode": "shadow"},
        {"on_breach": "deny"},
        {"scope": {"agent": "x"}},
        {"when": "facts.depth > 1"},
        {"description": "why"},
        {"id": "b"},
    ],
)
def test_every_change_has_a_digest_of_its_own(change: dict[str, Any]) -> None:
    assert bundle({**rule("a"), **change}).digest != bundle(rule("a")).digest


def test_files_together_are_one_bundle(tmp_path: Path) -> None:
    texts = [f"version: 1\npolicies: [{{id: {name}, category: step_limit, with: {{limit: 5}}}}]\n" for name in "ab"]
    paths = [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    assert load(paths).digest == load(reversed(paths)).digest
    assert [item.id for item in load(paths).rules] == ["a", "b"]
    with pytest.raises(PolicyFileError, match="is taken by"):
        load([paths[0], paths[0]])


def test_no_file_is_the_built_in_bundle() -> None:
    assert load([]) is builtin()
    assert [item.category.name for item in builtin().rules] == ["step_limit", "wall_clock_limit"]


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_every_category_comes_back_from_bytes(name: str) -> None:
    from holdfast.policy.source import parse

    value = parse(CATEGORIES[name].example.encode(), "example").value
    first = bundle(value)
    again = Bundle.from_bytes(first.to_bytes())
    assert again.digest == first.digest
    assert again.rules[0].params == first.rules[0].params
    assert msgspec.structs.replace(again.rules[0], when=None).source == first.rules[0].source


def test_pinned_bytes_keep_their_digest() -> None:
    value = json.loads(bundle(rule("a")).to_bytes())
    pinned = json.dumps(value, indent=1).encode()
    assert Bundle.from_bytes(pinned).digest == sha256(pinned)
    assert Bundle.from_bytes(pinned).to_bytes() == pinned


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "does not decode"),
        (b"{}", "does not decode"),
        (b'{"v":2,"policies":[]}', "format 2"),
        (b'{"v":1,"policies":[{"id":"a","category":"from_the_future"}]}', "no category from_the_future"),
    ],
)
def test_bytes_that_are_no_bundle(data: bytes, part: str) -> None:
    with pytest.raises(PolicyFileError, match=part):
        Bundle.from_bytes(data)


FIELDS = st.sampled_from(["tenant", "agent", "workflow", "run", "region"])
NAMES = st.sampled_from(["a", "ab", "b", "*", "a*", "?", "[ab]", "[!a]*"])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(FIELDS, NAMES, max_size=2), min_size=1, max_size=6),
    st.lists(
        st.fixed_dictionaries({field: st.sampled_from(["a", "ab", "b", "c"]) for field in ("tenant", "agent", "run")})
    ),
)
def test_the_index_finds_what_looking_at_every_rule_finds(scopes: list[Any], people: list[Any]) -> None:
    import fnmatch

    rules = bundle(*[rule(f"r{index}", scope=scope) for index, scope in enumerate(scopes)])
    for person in people:
        facts = Facts(now=1, workflow="a", region="b", **person)
        wanted = [
            f"r{index}"
            for index, scope in enumerate(scopes)
            if all(fnmatch.fnmatchcase(getattr(facts, field), pattern) for field, pattern in scope.items())
        ]
        assert [item.id for item in rules.plan("step", facts)] == sorted(wanted)
        assert all(rules.plan(gate, facts) == () for gate in GATES if gate != "step")


def test_many_scopes_do_not_grow_without_end() -> None:
    rules = bundle(rule("a", scope={"run": "r-*"}))
    for number in range(5000):
        assert len(rules.plan("step", Facts(now=1, run=f"r-{number}"))) == 1
    assert len(rules._plans) <= 4096


def test_a_bundle_without_conditions_does_not_load_the_engine() -> None:
    code = (
        "import sys; from holdfast.policy.bundle import builtin; builtin(); "
        "sys.exit(any(name in sys.modules for name in ('cel', 'cel.cel', 'typer', 'sqlalchemy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_a_condition_loads_the_engine_without_its_terminal() -> None:
    code = (
        "import sys; from holdfast.policy.conditions import check; check('facts.depth > 1'); "
        "sys.exit(any(name in sys.modules for name in ('cel.cli', 'prompt_toolkit')))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
