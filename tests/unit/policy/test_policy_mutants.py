"""The script that shows that tests notice a category which stops doing its work (``make mutants`` runs all)."""

from __future__ import annotations

from types import ModuleType

import pytest
from tests import mutants


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return mutants.tables()


@pytest.mark.parametrize("category", ["budget_usd", "egress_allowlist", "break_glass", "pseudonymise"])
def test_every_mutant_of_a_category_is_noticed(module: ModuleType, category: str) -> None:
    row = mutants.examine(category, module)
    assert row.survivors == []
    assert {"never objects", "always objects", "scope ignored", "when ignored", "mode ignored"} < set(row.noticed)


def test_a_mutant_that_nothing_notices_is_named(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def weak() -> ModuleType:
        monkeypatch.setattr(module, "test_every_parameter_matters", lambda name, key: None)
        denied = [case for case in module.CASES["tool_allowlist"] if case.outcome == "deny"][:1]
        monkeypatch.setitem(module.CASES, "tool_allowlist", tuple(denied))
        return module

    monkeypatch.setattr(mutants, "tables", weak)
    assert mutants.main(["tool_allowlist"]) == 1
    assert "survives: tool_allowlist: always objects" in capsys.readouterr().err


def test_a_table_that_is_whole_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["step_limit"]) == 0
    assert "1 categories, 6 mutants, 6 noticed" in capsys.readouterr().out
