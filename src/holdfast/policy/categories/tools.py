"""Which tools may be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, fits_any

REFUSALS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)


class ToolAllowlistParams(Params):
    """Parameters of tool_allowlist."""

    allow: tuple[Pattern, ...] | None = Field(
        default=None, description="names or patterns of tools that may be called; left out: all that are not denied"
    )
    deny: tuple[Pattern, ...] = Field(
        default=(), description="names or patterns of tools that may not be called; they win over `allow`"
    )


class ToolAllowlist(Category):
    """Tools by name."""

    name = "tool_allowlist"
    family = "tools"
    summary = "Lets only the tools and connectors be called that are listed, or all but those that are denied."
    params = ToolAllowlistParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "pci-dss:7.2.2")
    tighter: ClassVar[Mapping[str, str]] = {"allow": "subset", "deny": "superset"}
    example = """\
id: bank-tools
category: tool_allowlist
with: {allow: [ledger_lookup, "report_*"], deny: [report_delete]}
"""

    def check(self, params: Any) -> None:
        """At least one list is needed."""
        if params.allow is None and not params.deny:
            raise ValueError("it allows everything; give allow, deny or both")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look the tool up."""
        params = rule.params
        if params.deny and fits_any(params.deny, action.name):
            return Breach(reason=f"tool {action.name} is on the list of denied tools", facts={"tool": action.name})
        if params.allow is not None and not fits_any(params.allow, action.name):
            return Breach(reason=f"tool {action.name} is not on the list of allowed tools", facts={"tool": action.name})
        return None
