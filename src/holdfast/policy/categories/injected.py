"""What text may hide or order: heuristics, and the exact tricks of Unicode, encodings and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome, Redaction
from holdfast.policy.categories.base import Breach, Finding, Pattern, Rule, fits_any
from holdfast.policy.categories.content import REDACT, ContentCategory, ContentParams, objection
from holdfast.policy.detect.decode import BIDI, INVISIBLE, TAGS, VARIANTS
from holdfast.policy.scan import TYPES, scan, scan_value, strings

Kind = Annotated[str, StringConstraints(pattern="^[A-Z][A-Z0-9_]{1,39}$")]


class InjectionHeuristicParams(ContentParams):
    """Parameters of injection_heuristic."""

    threshold: float = Field(default=0.6, ge=0.1, le=1, description="the least confidence of a finding")


class InjectionHeuristic(ContentCategory):
    """Orders to a model, said openly."""

    name = "injection_heuristic"
    family = "content"
    summary = "Notices text that gives orders to a model. A hint to people: what holds is untrusted_taint."
    params = InjectionHeuristicParams
    verdicts = (Outcome.WARN, Outcome.REDACT, Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    default_gates = ("llm", "tool", "http", "memory")
    controls = ("soc2:CC6.8", "soc2:CC7.2")
    example = """\
id: notice-orders
category: injection_heuristic
gates: [tool, http]
with: {phases: [after]}
on_breach: warn
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for orders."""
        placed = scan_value(value, ("PROMPT_INJECTION",), threshold=rule.params.threshold)
        return objection(placed, rule, "orders to a model", style="label")


Trick = Literal["tags", "bidi", "invisible", "variants", "lookalikes"]
_PLAIN_EMOJI = "\u200d\ufe0e\ufe0f"
_TRICKS: dict[str, re.Pattern[str]] = {
    "tags": re.compile(f"[{TAGS}]+"),
    "bidi": re.compile(f"[{BIDI}]+"),
    "invisible": re.compile(f"[{INVISIBLE}]+"),
    "variants": re.compile(f"[{VARIANTS}]{{2,}}|(?<=[A-Za-z0-9 ])[{VARIANTS}]+"),
    "lookalikes": re.compile("[A-Za-z]+[\u0370-\u03ff\u0400-\u04ff][A-Za-z]*|[\u0370-\u03ff\u0400-\u04ff]+[A-Za-z]+"),
}
_FLAG = re.compile("\U0001f3f4[\U000e0061-\U000e007a]{4,6}\U000e007f")


class UnicodeSmugglingParams(ContentParams):
    """Parameters of unicode_smuggling."""

    tricks: tuple[Trick, ...] = Field(
        default=("tags", "bidi", "invisible", "variants", "lookalikes"),
        min_length=1,
        description="`tags` and `variants` carry text that nobody sees, `bidi` shows another order, `invisible` parts "
        "words, `lookalikes` mixes alphabets within a word",
    )


class UnicodeSmuggling(ContentCategory):
    """Text that people do not see and models read."""

    name = "unicode_smuggling"
    family = "content"
    summary = "Removes or refuses invisible characters, tag characters, turned directions and mixed alphabets."
    params = UnicodeSmugglingParams
    verdicts = REDACT
    controls = ("soc2:CC6.8", "pci-dss:6.2.4")
    example = """\
id: no-hidden-text
category: unicode_smuggling
gates: [tool, http, memory]
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for each trick."""
        redactions, kinds, fixed = [], set(), False
        for path, text, in_key in strings(value):
            if text.isascii():
                continue
            for trick, start, end in _tricks(text, rule.params.tricks):
                kinds.add(trick)
                fixed = fixed or in_key
                redactions.append(Redaction(path=path, start=start, end=end, replacement=""))
        if not kinds:
            return None
        return Breach(
            reason=f"hidden or disguised characters: {', '.join(sorted(kinds))}",
            facts={"found": sorted(kinds)},
            outcome=Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None,
            redactions=tuple(redactions),
        )


def _tricks(text: str, tricks: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    flags = [match.span() for match in _FLAG.finditer(text)]
    for trick in tricks:
        for match in _TRICKS[trick].finditer(text):
            start, end = match.span()
            if trick == "tags" and any(first <= start < last for first, last in flags):
                continue
            # Joiners and one variation selector belong to emoji, and joiners to several scripts.
            if trick == "invisible" and match[0] in _PLAIN_EMOJI and _joins(text, start):
                continue
            if trick == "invisible" and match[0] == "\ufeff" and start == 0:
                continue
            yield trick, start, end


def _joins(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    return bool(before and after and ord(before) > 0x5FF and ord(after) > 0x5FF)


class EncodedPayloadParams(ContentParams):
    """Parameters of encoded_payload."""

    types: tuple[Kind, ...] = Field(default=TYPES, description="which types of findings within an encoding count")
    every: bool = Field(default=False, description="whether any stretch that decodes to text counts, whatever it says")
    unreadable: bool = Field(default=False, description="whether what cannot be decoded counts")
    allow: tuple[Pattern, ...] = Field(
        default=("*png", "*jpeg", "*gif", "*pdf", "*woff"), description="what may stay unreadable, by what it is"
    )


class EncodedPayload(ContentCategory):
    """What an encoding hides."""

    name = "encoded_payload"
    family = "content"
    summary = "Decodes base64, hex, escapes, gzip and Unicode within bounds and refuses what they hide."
    params = EncodedPayloadParams
    verdicts = (Outcome.DENY, Outcome.REDACT, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    controls = ("soc2:CC6.7", "soc2:CC6.8", "pci-dss:5.2.2")
    example = """\
id: nothing-wrapped
category: encoded_payload
gates: [http, tool]
with: {unreadable: true}
"""

    def check(self, params: Any) -> None:
        """Types that are not known find nothing."""
        unknown = sorted(set(params.types) - set(TYPES))
        if unknown:
            raise ValueError(f"types: nothing finds {unknown[0]}; there are {', '.join(TYPES)}")

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look behind every encoding."""
        params = rule.params
        redactions, found, fixed = [], set(), False
        for path, text, in_key in strings(value):
            result = scan(text)
            stretches = [
                (one.start, one.end, one.type) for one in result.findings if one.via and one.type in params.types
            ]
            if params.every:
                stretches += [(blob.start, blob.end, "text") for blob in result.decoded]
            if params.unreadable:
                stretches += [
                    (blob.start, blob.end, "unreadable")
                    for blob in result.opaque
                    if not fits_any(params.allow, blob.how)
                ]
            for start, end, kind in stretches:
                found.add(kind)
                fixed = fixed or in_key
                redactions.append(Redaction(path=path, start=start, end=end, replacement="[ENCODED]"))
        if not found:
            return None
        return Breach(
            reason=f"behind an encoding: {', '.join(sorted(found))}",
            facts={"found": sorted(found)},
            outcome=Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None,
            redactions=tuple(redactions),
        )


_LOADED = re.compile(
    r"!\[[^\]\n]{0,500}\]\(\s*<?(?P<a>[^)\s>]{1,4000})|"
    r"(?i:<(?:img|iframe|audio|video|source|script|embed|object|link|input)\b[^>]{0,500}?\b(?:src|srcset|href|data)\s*=\s*"
    r"[\"']?)(?P<b>[^\"'\s>]{1,4000})|"
    r"(?i:url\(\s*[\"']?)(?P<c>https?:[^)\"'\s]{1,4000})"
)
_LINKED = re.compile(
    r"(?<!!)\[[^\]\n]{0,500}\]\(\s*<?(?P<a>(?:https?:)?//[^)\s>]{1,4000})|"
    r"(?m:^\s{0,3}\[[^\]\n]{1,200}\]:\s*<?(?P<b>(?:https?:)?//[^\s>]{1,4000}))|"
    r"(?i:<a\b[^>]{0,500}?\bhref\s*=\s*[\"']?)(?P<c>(?:https?:)?//[^\"'\s>]{1,4000})"
)
_REFERENCE = re.compile(r"!\[[^\]\n]{0,200}\]\[")


class MarkdownExfilParams(ContentParams):
    """Parameters of markdown_exfil."""

    hosts: tuple[Pattern, ...] = Field(default=(), description="hosts or patterns that pictures and links may lead to")
    links: bool = Field(
        default=True, description="whether links that somebody must click count, when they carry data in their query"
    )
    max_query: int = Field(default=48, ge=0, le=4096, description="characters of a link's query that carry no data yet")


class MarkdownExfil(ContentCategory):
    """Pictures and links that carry data away when they are shown."""

    name = "markdown_exfil"
    family = "content"
    summary = "Removes pictures, frames and data-laden links of Markdown and HTML that lead to unlisted hosts."
    params = MarkdownExfilParams
    verdicts = REDACT
    default_gates = ("llm", "output")
    controls = ("soc2:CC6.7", "soc2:C1.1")
    example = """\
id: no-foreign-pictures
category: markdown_exfil
gates: [llm, output]
with: {hosts: ["*.corp.example"]}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at where every picture and link leads."""
        params = rule.params
        redactions, hosts, fixed = [], set(), False
        for path, text, in_key in strings(value):
            if "/" not in text:
                continue
            for start, end, host in _leads(text, params):
                hosts.add(host)
                fixed = fixed or in_key
                redactions.append(Redaction(path=path, start=start, end=end, replacement="about:blank"))
        if not hosts:
            return None
        shown = sorted(hosts)[:5]
        return Breach(
            reason=f"pictures or links lead to {', '.join(shown)}",
            facts={"hosts": sorted(hosts)[:20]},
            outcome=Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None,
            redactions=tuple(redactions),
        )


def _leads(text: str, params: MarkdownExfilParams) -> Iterator[tuple[int, int, str]]:
    by_reference = _REFERENCE.search(text) is not None
    for rule in (_LOADED, _LINKED):
        for match in rule.finditer(text):
            start, end = match.span(match.lastgroup or 0)
            url = text[start:end]
            host = _host(url)
            if host is None or fits_any(params.hosts, host):
                continue
            if rule is _LINKED and not (by_reference and match.lastgroup == "b"):
                parts = urlsplit(url)
                if not params.links or len(parts.query) + len(parts.fragment) <= params.max_query:
                    continue
            yield start, end, host


def _host(url: str) -> str | None:
    """The host of an absolute URL; None when it leads nowhere else."""
    if not re.match(r"(?i)(?:https?:|ftp:|wss?:)?[/\\]{2}", url):
        return None
    try:
        return (urlsplit(url.replace("\\", "/")).hostname or "?").rstrip(".")
    except ValueError:
        return "?"
