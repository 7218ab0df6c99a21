"""Contracts: the form of what a tool is given and of what is handed on, and the description that pins a tool."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jsonschema
from pydantic import Field, StringConstraints

from holdfast.action import Action, Ended, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, fits, fits_any
from holdfast.policy.detect.decode import fold
from holdfast.policy.scan import scan_value, strings
from holdfast.values import dump, sha256

_REFUSALS = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)
Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def _checked(schema: Any, where: str) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{where} is no JSON Schema: {error.message[:120]}") from None


@functools.lru_cache(maxsize=512)
def _validator(schema: bytes) -> Any:
    import msgspec

    return jsonschema.Draft202012Validator(msgspec.json.decode(schema))


def _violation(schema: Any, value: Any) -> str:
    """Where a value does not fit and by which keyword; never what it holds."""
    error = next(iter(_validator(dump(schema)).iter_errors(value)), None)
    if error is None:
        return ""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    return f"{place or 'the value'} breaks {error.validator}"


class ToolArgumentSchemaParams(Params):
    """Parameters of tool_argument_schema."""

    tools: dict[Pattern, dict[str, Any]] = Field(
        min_length=1, description="JSON Schema (2020-12) of the arguments, by tool or pattern; all that fit must hold"
    )
    unknown: bool = Field(default=False, description="whether tools without a schema may be called")


class ToolArgumentSchema(Category):
    """Arguments of tools by schema."""

    name = "tool_argument_schema"
    family = "contracts"
    summary = "Lets a tool be called only with arguments that fit its JSON Schema."
    params = ToolArgumentSchemaParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("soc2:PI1.2", "pci-dss:6.2.4", "sox:ITGC-operations")
    example = """\
id: sane-transfers
category: tool_argument_schema
with:
  unknown: true
  tools:
    wire_transfer:
      required: [iban, amount]
      additionalProperties: false
      properties: {iban: {type: string}, amount: {type: number, exclusiveMinimum: 0, maximum: 50000}}
"""

    def check(self, params: Any) -> None:
        """Each schema must be one."""
        for name, schema in params.tools.items():
            _checked(schema, f"tools.{name}")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Check the arguments against every schema that fits."""
        schemas = [schema for pattern, schema in rule.params.tools.items() if fits(pattern, action.name)]
        if not schemas and not rule.params.unknown:
            return Breach(reason=f"tool {action.name} has no schema", facts={"tool": action.name})
        for schema in schemas:
            wrong = _violation(schema, dict(action.args))
            if wrong:
                return Breach(reason=f"arguments of {action.name}: {wrong}", facts={"tool": action.name, "why": wrong})
        return None


class OutputContractParams(Params):
    """Parameters of output_contract."""

    json_schema: dict[str, Any] = Field(
        default={}, description="JSON Schema (2020-12) of what is handed on; left out: any form"
    )
    citations: Annotated[str, StringConstraints(max_length=128)] = Field(
        default="",
        description="field, as a dotted path, whose texts must name what the run has read; lists add no part",
    )
    min_citations: int = Field(default=0, ge=0, le=1000, description="how many different sources must be cited")


class OutputContract(Category):
    """What is handed on has its form, and its sources are real."""

    name = "output_contract"
    family = "contracts"
    summary = "Holds an answer to its JSON Schema, and its citations to what the node saw the run read."
    params = OutputContractParams
    gates = ("output", "llm", "tool")
    default_gates = ("output",)
    verdicts = _REFUSALS
    phases = frozenset({"before", "after"})
    controls = ("soc2:PI1.4", "model-risk:outcomes-analysis", "mifid2:RTS6-Art.2", "model-risk:validation")
    example = """\
id: answers-cite
category: output_contract
with:
  json_schema: {type: object, required: [decision, sources]}
  citations: sources
  min_citations: 1
"""

    def check(self, params: Any) -> None:
        """It must ask for something."""
        if not params.json_schema and not params.citations:
            raise ValueError("it asks for nothing; give json_schema, citations or both")
        if params.min_citations and not params.citations:
            raise ValueError("min_citations counts what stands in the field that citations names; give both")
        _checked(params.json_schema, "json_schema")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Check what a run hands on."""
        return self._check(action.args.get("value"), facts, rule) if action.kind == "output" else None

    def after(self, action: Action, ended: Ended, facts: Facts, rule: Rule) -> Finding:
        """Check what a model or tool answered."""
        return self._check(ended.value, facts, rule) if action.kind != "output" and ended.ok else None

    def _check(self, value: Any, facts: Facts, rule: Rule) -> Finding:
        params = rule.params
        if params.json_schema and (wrong := _violation(params.json_schema, value)):
            return Breach(reason=f"the answer: {wrong}", facts={"why": wrong})
        if not params.citations:
            return None
        cited = {text for path, text, in_key in strings(value) if not in_key and _dotted(path) == params.citations}
        invented = cited - set(facts.sources)
        if invented:
            return Breach(reason=f"{len(invented)} of {len(cited)} citations name nothing that the run has read")
        if len(cited) < params.min_citations:
            return Breach(reason=f"{len(cited)} sources are cited, {params.min_citations} are asked for")
        return None


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def pin(definition: Mapping[str, Any]) -> str:
    """What an MCP tool is pinned by: SHA-256 over the canonical JSON of its description and input schema."""
    kept = {"description": definition.get("description", ""), "inputSchema": definition.get("inputSchema", {})}
    return sha256(dump(kept))


class McpToolPinningParams(Params):
    """Parameters of mcp_tool_pinning."""

    pins: dict[Pattern, tuple[Hash, ...]] = Field(
        description="by `server/tool` or pattern: digests (SHA-256) of definitions that were reviewed"
    )
    servers: tuple[Pattern, ...] = Field(
        default=("*",), min_length=1, description="servers that the rule is about, by name or pattern"
    )


class McpToolPinning(Category):
    """A tool stays what was reviewed."""

    name = "mcp_tool_pinning"
    family = "contracts"
    summary = "Lets a tool of an MCP server be called only as long as its description and schema are what was reviewed."
    params = McpToolPinningParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("soc2:CC8.1", "pci-dss:6.3.2", "soc2:CC9.2")
    example = """\
id: reviewed-mcp-tools
category: mcp_tool_pinning
with:
  pins: {"github/create_issue": [9f2c1d6f0f8a3c0c6b1a2d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607182]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare digests."""
        if not action.server or not fits_any(rule.params.servers, action.server):
            return None
        name = f"{action.server}/{action.name}"
        pinned = [digest for pattern, digests in rule.params.pins.items() if fits(pattern, name) for digest in digests]
        if not pinned:
            return Breach(reason=f"{name} was not reviewed", facts={"tool": name})
        if not action.definition:
            return Breach(reason=f"the server does not describe {name}", facts={"tool": name}, outcome=Outcome.DENY)
        found = pin(action.definition)
        if found not in pinned:
            return Breach(reason=f"{name} has changed since it was reviewed", facts={"tool": name, "digest": found})
        return None


_HIDDEN_ORDERS = re.compile(
    r"(?i)<\s*/?\s*(?:important|system|secret|instructions?|hidden|critical)\s*>|"
    r"\b(?:before|after|prior to|when|whenever|every time)\b[^.\n]{0,60}\b(?:using|calling|invoking|use|call)\b"
    r"[^.\n]{0,60}\b(?:read|call|use|invoke|send|include|pass|open|fetch)\b|"
    r"\b(?:always|must|instead of|rather than)\b[^.\n]{0,40}\b(?:this tool|call|use|invoke)\b[^.\n]{0,60}"
    r"\b(?:first|before any|other tools?|instead)\b|"
    r"\bdo not (?:mention|tell|reveal|show|inform)\b|\bwithout (?:telling|informing|mentioning)\b|"
    r"(?:~|/home/\w+|/root|\$HOME)?/?\.(?:ssh|aws|cursor|kube|env|netrc|gnupg|docker)\b|\bid_rsa\b|\bmcp\.json\b|"
    r"\b(?:conversation|chat) (?:history|context)\b[^.\n]{0,60}\b(?:include|pass|send|param|argument|field)|"
    r"\b(?:side ?note|sidenote)\b[^.\n]{0,80}\b(?:content|pass|file)"
)


class McpDescriptionScanParams(Params):
    """Parameters of mcp_description_scan."""

    max_length: int = Field(default=4_000, ge=100, le=100_000, description="characters of a description, at most")
    names: tuple[Pattern, ...] = Field(
        default=(), description="names of other tools that a description must not speak of, such as `send_*`"
    )
    threshold: float = Field(default=0.6, ge=0.1, le=1, description="the least confidence of an order to a model")


class McpDescriptionScan(Category):
    """What a server tells the model about its tools."""

    name = "mcp_description_scan"
    family = "contracts"
    summary = "Refuses tools whose description gives orders, speaks of other tools or of credentials, or hides text."
    params = McpDescriptionScanParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = _REFUSALS
    controls = ("soc2:CC6.8", "soc2:CC9.2")
    example = """\
id: honest-descriptions
category: mcp_description_scan
with: {names: [send_mail, "wire_*"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Read the definition as a model would."""
        if not action.server:
            return None
        params, name = rule.params, f"{action.server}/{action.name}"
        for why in _told(action, params):
            return Breach(reason=f"the description of {name} {why}", facts={"tool": name, "why": why})
        return None


def _told(action: Action, params: McpDescriptionScanParams) -> Iterator[str]:
    for _, text, _ in strings(action.definition):
        if len(text) > params.max_length:
            yield f"is longer than {params.max_length} characters"
        folded = fold(text)
        if folded is not None and folded[0] != text and len(folded[0]) != len(text):
            yield "holds characters that nobody sees"
        plain = folded[0] if folded is not None else text
        if _HIDDEN_ORDERS.search(plain):
            yield "gives orders"
        for word in re.findall(r"[A-Za-z][\w.-]{2,}", plain) if params.names else ():
            if word != action.name and fits_any(params.names, word):
                yield "speaks of other tools"
    if scan_value(action.definition, ("PROMPT_INJECTION",), threshold=params.threshold):
        yield "gives orders"
