"""Which models may be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, fits_any, is_pattern
from holdfast.values import sha256

REFUSALS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
_FLOATING = "-latest"


Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class ModelAllowlistParams(Params):
    """Parameters of model_allowlist."""

    allow: tuple[Pattern, ...] | None = Field(
        default=None,
        description="models that may be called, by id or as `provider/id`; left out: all that are not denied",
    )
    deny: tuple[Pattern, ...] = Field(default=(), description="models that may not be called; they win over `allow`")
    pinned: bool = Field(
        default=False, description="only exact ids in `allow`, and no alias that floats (`…-latest`) may be called"
    )
    prompts: tuple[Sha256, ...] | None = Field(
        default=None,
        description="SHA-256 (hex) of each system prompt that may be sent, UTF-8 as it stands; left out: any",
    )


class ModelAllowlist(Category):
    """Models by id."""

    name = "model_allowlist"
    family = "models"
    summary = (
        "Lets only the models be called that are listed, or all but those that are denied; and only with system "
        "prompts that were reviewed, where those are listed."
    )
    params = ModelAllowlistParams
    gates = ("llm",)
    default_gates = ("llm",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.8", "model-risk:inventory")
    tighter: ClassVar[Mapping[str, str]] = {
        "allow": "subset",
        "deny": "superset",
        "pinned": "true",
        "prompts": "subset",
    }
    example = """\
id: reviewed-models
category: model_allowlist
with: {allow: ["anthropic/claude-sonnet-4-5-*", gpt-5-mini-2025-08-07]}
"""

    def check(self, params: Any) -> None:
        """At least one list is needed, and pinned ids cannot be patterns."""
        if params.allow is None and not params.deny and not params.pinned and params.prompts is None:
            raise ValueError("it allows everything; give allow, deny or both")
        loose = [model for model in params.allow or () if is_pattern(model) or model.endswith(_FLOATING)]
        if params.pinned and loose:
            raise ValueError(f"pinned: true needs exact ids; {loose[0]} can mean several models")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look the model up."""
        params, model = rule.params, action.model
        used = {"model": model, "provider": action.provider}
        if not model:
            return Breach(reason="the call names no model", facts=used, outcome=Outcome.DENY)
        names = (model, f"{action.provider}/{model}")
        if params.deny and any(fits_any(params.deny, name) for name in names):
            return Breach(reason=f"model {model} is on the list of denied models", facts=used)
        if params.pinned and model.endswith(_FLOATING):
            return Breach(reason=f"model {model} is an alias that floats; name an exact version", facts=used)
        if params.allow is not None and not any(fits_any(params.allow, name) for name in names):
            return Breach(reason=f"model {model} is not on the list of allowed models", facts=used)
        if params.prompts is not None:
            prompt = action.args.get("system")
            if not isinstance(prompt, str) or sha256(prompt.encode()) not in params.prompts:
                return Breach(reason="the system prompt is none of those that were reviewed", facts=used)
        return None
