"""Does a test notice when a policy category stops doing its work? ``python -m tests.mutants`` prints a row for each.

Each category is changed in the running program, one change at a time, and the tests of the tables are run against it:
its condition never or always objects, a parameter is ignored (it has the default's value, or that of the first case),
its scope, its CEL condition, its mode or its gates are ignored. A change that no test notices survives, is named, and
makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pydantic_core
import pytest

from holdfast.policy import bundle
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.base import Breach, Rule
from holdfast.policy.model import Checked, one

TABLES = Path(__file__).parent / "unit" / "policy" / "test_policy_categories.py"
RULE = "rule"
"""Id of the rule that a table's case is about."""
SWITCHES = ("scope", "when", "mode", "gates")
Change = Callable[[Checked], Checked]


class Row(msgspec.Struct, kw_only=True):
    """What became of one category's mutants."""

    category: str
    cases: int
    noticed: dict[str, int] = {}
    """By mutant: how many tests failed."""

    @property
    def survivors(self) -> list[str]:
        """Mutants that no test noticed."""
        return [mutant for mutant, failed in self.noticed.items() if not failed]


def tables() -> ModuleType:
    """The module of the tables."""
    spec = importlib.util.spec_from_file_location("policy_tables", TABLES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def examine(category: str, module: ModuleType) -> Row:
    """Try every mutant of a category."""
    cases = module.CASES[category]
    row = Row(category=category, cases=len(cases), noticed={})
    for name, answer in (("never objects", None), ("always objects", Breach(reason="always"))):
        with pytest.MonkeyPatch.context() as patch:
            for phase in CATEGORIES[category].phases:
                patch.setattr(type(CATEGORIES[category]), phase, lambda self, *_, answer=answer: answer)
            row.noticed[name] = _failing(module, category)
    for key in module.OTHER[category]:
        with _compiled(_fixed(category, key, module)):
            failed = _failing(module, category) + _fails(module.test_every_parameter_matters, category, key)
        row.noticed[f"with.{key} ignored"] = failed
    for switch in SWITCHES:
        # A category that stands at one gate only cannot be moved to another.
        if switch == "gates" and len(CATEGORIES[category].gates) == 1:
            continue
        with _rules(switch):
            failed = _fails(module.test_scope_condition_mode_and_gates_switch_a_rule, category)
        row.noticed[f"{switch} ignored"] = failed
    return row


def _failing(module: ModuleType, category: str) -> int:
    return sum(_fails(module.test_case, case) for case in module.CASES[category])


def _fails(test: Callable[..., None], *args: Any) -> int:
    """1 when a test does not pass."""
    try:
        test(*args)
    except Exception:  # noqa: BLE001 - whatever makes a test fail has noticed
        return 1
    return 0


def _fixed(category: str, key: str, module: ModuleType) -> Change:
    """Ignores a parameter: it always has one value."""
    field = CATEGORIES[category].params.model_fields[key]
    value = field.get_default(call_default_factory=True)
    if value is pydantic_core.PydanticUndefined:
        with_ = next(case.with_ for case in module.CASES[category] if key in case.with_)
        value = getattr(one({"id": RULE, "category": category, "with": with_}).params, key)

    def change(item: Checked) -> Checked:
        if item.policy.id != RULE:
            return item
        return msgspec.structs.replace(item, params=item.params.model_copy(update={key: value}))

    return change


@contextlib.contextmanager
def _compiled(change: Change) -> Iterator[None]:
    """Rules come out of the compiler changed."""
    usual = bundle._compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_compile", lambda item: usual(change(item)))
        yield


@contextlib.contextmanager
def _rules(switch: str) -> Iterator[None]:
    """What says whom, when, whether and where is ignored."""
    usual = bundle._compile

    def compiled(item: Checked) -> Rule:
        rule = usual(item)
        if rule.id != RULE:
            return rule
        if switch == "scope":
            rule.scope = {}
        elif switch == "when":
            rule.when, rule.source = None, ""
        elif switch == "mode":
            rule.mode = "enforce"
        else:
            rule.gates = frozenset(rule.category.gates)
        return rule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_compile", compiled)
        yield


def main(args: list[str] | None = None) -> int:
    """Print a row for each category; 1 when a mutant survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("category", nargs="*", help="only these")
    wanted = parser.parse_args(args).category
    module = tables()
    rows = []
    print("category                    cases  mutants  noticed  fewest tests that notice one")
    for category in wanted or sorted(module.CASES):
        row = examine(category, module)
        rows.append(row)
        weakest = min(row.noticed, key=lambda mutant: row.noticed[mutant])
        noticed = len(row.noticed) - len(row.survivors)
        print(
            f"{category:<26} {row.cases:>6} {len(row.noticed):>8} {noticed:>8}  {row.noticed[weakest]} ({weakest})",
            flush=True,
        )
    survivors = [f"{row.category}: {mutant}" for row in rows for mutant in row.survivors]
    total = sum(len(row.noticed) for row in rows)
    print(f"{len(rows)} categories, {total} mutants, {total - len(survivors)} noticed")
    for survivor in survivors:
        print(f"survives: {survivor}", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
