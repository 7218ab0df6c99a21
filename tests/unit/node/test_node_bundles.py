"""The policies in force: what is read, what is kept while files are wrong, and when a change counts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast import config
from holdfast.audit import keys
from holdfast.errors import PolicyFileError
from holdfast.node import bundles as in_force
from holdfast.node.bundles import Bundles
from holdfast.policy.bundle import builtin
from holdfast.policy.signing import SUFFIX, signature

RULE = "version: 1\npolicies:\n  - {{id: steps, category: step_limit, with: {{limit: {limit}}}}}\n"


def put(path: Path, text: str) -> Path:
    """Write a file as a new one: its inode differs whatever the clock's grain is."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)
    return path


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return put(tmp_path / "rules.yaml", RULE.format(limit=5))


def bundles(folder: Path, more: str = "") -> Bundles:
    text = f'[policy]\nfiles = ["rules.yaml"]\n{more}'
    return Bundles(config.parse(text, folder / "holdfast.toml", {}))


def limit(found: Bundles, tenant: str = "default", agent: str = "a") -> int:
    return int(found.of(tenant, agent).rules[0].params.limit)


def test_a_change_counts_when_it_looks_the_same_twice(rules: Path) -> None:
    found = bundles(rules.parent)
    assert limit(found) == 5
    assert not found.look()
    put(rules, RULE.format(limit=7))
    assert not found.look()
    assert limit(found) == 5
    put(rules, RULE.format(limit=8))
    assert not found.look()
    assert found.look()
    assert limit(found) == 8
    assert not found.look()


def test_what_is_half_written_changes_nothing_is_said_once_and_is_taken_when_whole(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        in_force, "log", SimpleNamespace(error=lambda words, **_: said.append(words), info=lambda *_, **__: None)
    )
    found = bundles(rules.parent)
    assert limit(found) == 5
    put(rules, RULE.format(limit=7)[:-9])
    assert [found.look() for _ in range(4)] == [False] * 4
    assert limit(found) == 5
    assert len(found.problems) == 1
    assert "rules.yaml" in found.problems[0]
    assert said == ["the policies stay as they were: a file cannot be used"]
    put(rules, RULE.format(limit=7))
    assert [found.look(), found.look()] == [False, True]
    assert (limit(found), found.problems) == (7, [])


def test_a_file_that_is_gone_changes_nothing(rules: Path) -> None:
    found = bundles(rules.parent)
    assert limit(found) == 5
    rules.unlink()
    assert [found.look(), found.look()] == [False, False]
    assert limit(found) == 5
    with pytest.raises(PolicyFileError, match="does not exist"):
        bundles(rules.parent).of("default", "a")


def test_now_reads_at_once_and_keeps_what_was_good(rules: Path) -> None:
    found = bundles(rules.parent)
    assert found.now("default", "a").rules[0].params.limit == 5
    put(rules, RULE.format(limit=6))
    assert found.now("default", "a").rules[0].params.limit == 6
    put(rules, "version: 2\n")
    assert found.now("default", "a").rules[0].params.limit == 6


def test_tenants_and_agents_have_layers_of_their_own(rules: Path) -> None:
    put(rules.with_name("t.yaml"), RULE.format(limit=4))
    put(rules.with_name("a.yaml"), RULE.format(limit=3))
    found = bundles(rules.parent, '[tenants.t]\npolicies = ["t.yaml"]\n[agents.a]\npolicies = ["a.yaml"]\n')
    assert [limit(found, *pair) for pair in (("x", "y"), ("t", "y"), ("x", "a"), ("t", "a"))] == [5, 4, 3, 3]
    run = put(rules.with_name("r.yaml"), RULE.format(limit=2))
    assert found.of("t", "a", (run,)).rules[0].params.limit == 2
    put(run, RULE.format(limit=4))
    with pytest.raises(PolicyFileError, match="the layer run may not loosen"):
        found.of("t", "a", (run,))


def test_without_files_what_is_built_in_stands(tmp_path: Path) -> None:
    assert Bundles(config.parse("", tmp_path / "holdfast.toml", {})).of("default", "a") is builtin()


def test_a_signature_is_looked_at_with_its_file(rules: Path) -> None:
    key = keys.create(rules.with_name("k"))
    more = 'require_signed = true\ntrusted_keys = ["k.pub"]\n'
    with pytest.raises(PolicyFileError, match="is not signed"):
        bundles(rules.parent, more).of("default", "a")

    def sign() -> None:
        beside = rules.with_name(rules.name + SUFFIX)
        put(beside, signature(rules.read_bytes(), key.public.name, key.sign))

    sign()
    found = bundles(rules.parent, more)
    assert limit(found) == 5
    put(rules, RULE.format(limit=9))
    assert [found.look(), found.look()] == [False, False]
    assert limit(found) == 5
    sign()
    assert [found.look(), found.look()] == [False, True]
    assert limit(found) == 9


def test_keys_that_are_required_must_be_named(rules: Path) -> None:
    with pytest.raises(PolicyFileError, match="trusted_keys is empty"):
        bundles(rules.parent, "require_signed = true\n").of("default", "a")
    with pytest.raises(PolicyFileError, match="trusted_keys"):
        bundles(rules.parent, 'trusted_keys = ["none.pub"]\n').of("default", "a")
