"""Everything that is wrong or suspicious in policy files: file, line, key, severity and cure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from holdfast.errors import PolicyFileError
from holdfast.policy.categories.base import fits, fits_any, is_pattern
from holdfast.policy.lexemes import tokens
from holdfast.policy.model import PROFILES, Checked, clashes, examine
from holdfast.policy.overlap import overlaps
from holdfast.policy.patterns import nearest
from holdfast.policy.profiles import Named, compose, named
from holdfast.policy.source import Document, Problem, read
from holdfast.values import dump


class Severity(enum.StrEnum):
    """How bad it is. An error keeps the file from loading."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class LintFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to look at."""

    file: str
    line: int
    key: str
    severity: Severity
    message: str
    """What is wrong and the cure."""
    rule: str = ""

    def __str__(self) -> str:
        at = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        return f"{at}: {self.severity}:{key} {self.message}"


def lint(
    paths: Iterable[Path | str], *, known: Mapping[str, Collection[str]] | None = None, profiles: Path = PROFILES
) -> list[LintFinding]:
    """All findings in the files, in their order.

    Args:
        known: names that there are, by what they name (``tenant``, ``agent``, ``workflow``, ``tool``, ``model``, …);
            a name that is missing there is reported. What is not given is not checked.
        profiles: folder of the profiles.
    """
    findings: list[LintFinding] = []
    checked: list[Checked] = []
    regimes: list[Named] = []
    for path in paths:
        try:
            document = read(Path(path))
        except PolicyFileError as error:
            findings.append(_unread(Path(path), error))
            continue
        good, problems = examine(document)
        which, wrong = named(document, profiles)
        checked += good
        regimes += which
        problems += wrong
        findings += [_error(problem) for problem in problems]
        if not good and not problems and not which:
            findings.append(_empty(document))
    composed = compose(checked, regimes)
    findings += [_error(problem) for problem in composed.problems]
    findings += [_advice(problem) for problem in composed.advice]
    findings += [_error(problem) for problem in clashes(composed.checked)]
    for item in checked:
        findings += _one(item, known or {})
    findings += _pairs(checked)
    findings += [_finding(one.item, one.key, Severity.WARNING, one.message) for one in overlaps(checked)]
    return findings


def broken(findings: Iterable[LintFinding]) -> bool:
    """Whether one of the findings keeps its file from loading."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def layered(message: str) -> LintFinding:
    """What does not go together between layers, from the message of the error that loading them gave."""
    return LintFinding(file="layers", line=0, key="", severity=Severity.ERROR, message=message)


def _unread(path: Path, error: PolicyFileError) -> LintFinding:
    """``error`` names file, line and key at its start; they are taken apart again."""
    text = str(error).removeprefix(str(path)).lstrip(":")
    number, _, rest = text.partition(":")
    line = int(number) if number.isdigit() else 0
    return LintFinding(
        file=str(path), line=line, key="", severity=Severity.ERROR, message=(rest if line else text).strip()
    )


def _error(problem: Problem) -> LintFinding:
    return LintFinding(
        file=problem.file, line=problem.line, key=problem.key, severity=Severity.ERROR, message=problem.message
    )


def _advice(problem: Problem) -> LintFinding:
    return msgspec.structs.replace(_error(problem), severity=Severity.WARNING)


def _empty(document: Document) -> LintFinding:
    message = "the file holds no policy, so that it only switches the built-in bundle off; add policies or leave it out"
    return LintFinding(file=document.file, line=1, key="policies", severity=Severity.WARNING, message=message)


def _finding(item: Checked, key: str, severity: Severity, message: str) -> LintFinding:
    return LintFinding(file=item.file, line=item.line, key=key, severity=severity, message=message, rule=item.policy.id)


def _one(item: Checked, known: Mapping[str, Collection[str]]) -> list[LintFinding]:
    findings = []
    policy = item.policy
    if policy.mode == "shadow":
        message = f"{policy.id} is in shadow: recorded, and stops nothing; set mode: enforce when its record is right"
        findings.append(_finding(item, "mode", Severity.WARNING, message))
    if policy.mode == "off":
        message = f"{policy.id} is off and is never asked; remove it, or set mode: shadow to see what it would do"
        findings.append(_finding(item, "mode", Severity.NOTE, message))
    if item.note:
        findings.append(_finding(item, "category", Severity.NOTE, item.note))
    findings += _condition(item)
    findings += _lists(item)
    findings += _names(item, known)
    return findings


def _condition(item: Checked) -> list[LintFinding]:
    """Conditions that can never hold, or hold always."""
    source = item.policy.when
    if source is None:
        return []
    lexemes = [token.text for token in tokens(source)]
    if not {"action", "facts", "history"} & set(lexemes):
        message = "the condition looks at nothing, so the rule applies always or never; remove it, or name a field"
        return [_finding(item, "when", Severity.WARNING, message)]
    if any(mark in lexemes for mark in ("|", "!", "?")):
        return []
    findings = []
    for at in range(len(lexemes) - 5):
        chain, sign, word = lexemes[at : at + 3], lexemes[at + 3 : at + 5], lexemes[at + 5].strip("\"'")
        if sign != ["=", "="]:
            continue
        gates = {"step" if word == "decision" else word} if chain[2] == "kind" else {word}
        if chain[:2] == ["action", "."] and chain[2] in ("kind", "gate") and gates.isdisjoint(item.gates):
            where = ", ".join(item.gates)
            message = f"it stands at {where}, where no action has the {chain[2]} {word}: add {word} to gates"
            findings.append(_finding(item, "when", Severity.WARNING, message))
        pattern = item.policy.scope.model_dump().get(chain[2]) if chain[:2] == ["facts", "."] else None
        if pattern is not None and not fits(pattern, word):
            message = f"the scope wants {chain[2]} {pattern} and the condition {chain[2]} {word}: it never applies"
            findings.append(_finding(item, "when", Severity.WARNING, message))
    return findings


def _lists(item: Checked) -> list[LintFinding]:
    """Lists that let nothing through."""
    allow, deny = getattr(item.params, "allow", None), getattr(item.params, "deny", ())
    if allow is None or type(item.params).model_fields["allow"].default == ():
        return []  # nothing was listed, or an exception that nobody needs
    if not allow:
        message = "the list of what is allowed is empty, so that nothing is; add names, or use kill_switch to say so"
        return [_finding(item, "with.allow", Severity.WARNING, message)]
    lost = [name for name in allow if name in deny or (not is_pattern(name) and fits_any(deny, name))]
    if len(lost) == len(allow):
        message = "everything that is allowed is denied as well, and deny wins: nothing gets through"
        return [_finding(item, "with.deny", Severity.WARNING, message)]
    return [
        _finding(item, "with.allow", Severity.WARNING, f"{name} is denied as well, and deny wins; remove one")
        for name in lost
    ]


def _names(item: Checked, known: Mapping[str, Collection[str]]) -> list[LintFinding]:
    """Names that nothing has."""
    findings = []
    used = [(f"scope.{field}", field, pattern) for field, pattern in item.policy.scope if pattern is not None]
    kind = {"tool_allowlist": "tool", "model_allowlist": "model", "tool_call_limit": "tool"}.get(item.policy.category)
    if kind is not None:
        single = getattr(item.params, "tool", None)
        lists = {"allow": getattr(item.params, "allow", None) or (), "deny": getattr(item.params, "deny", ())}
        lists["tool"] = (single,) if single else ()
        used += [(f"with.{key}", kind, pattern) for key, patterns in lists.items() for pattern in patterns]
    for key, field, pattern in used:
        names = known.get(field)
        if names is None or any(fits(pattern, name) for name in names):
            continue
        message = f"there is no {field} {pattern}{nearest(pattern, list(names))}"
        findings.append(_finding(item, key, Severity.WARNING, message))
    return findings


def _pairs(checked: Sequence[Checked]) -> list[LintFinding]:
    """Rules that say the same under two names, and allow-lists that together allow nothing."""
    findings = []
    seen: dict[bytes, Checked] = {}
    lists: list[Checked] = []
    for item in checked:
        if item.policy.mode == "off":
            continue
        same = {key: value for key, value in item.normal().items() if key not in ("id", "description")}
        first = seen.setdefault(dump(same), item)
        if first is not item:
            message = f"it says the same as {first.policy.id} ({first.file}:{first.line}); remove one"
            findings.append(_finding(item, "id", Severity.WARNING, message))
        elif item.policy.category in ("tool_allowlist", "model_allowlist") and _total(item):
            findings += [_clash(item, other) for other in lists if _disjoint(item, other)]
            lists.append(item)
    return findings


def _total(item: Checked) -> bool:
    policy = item.policy
    return policy.mode == "enforce" and policy.when is None and item.on_breach.word in ("deny", "terminate")


def _disjoint(one: Checked, other: Checked) -> bool:
    mine, theirs = getattr(one.params, "allow", None), getattr(other.params, "allow", None)
    if not mine or not theirs or one.policy.category != other.policy.category or one.policy.scope != other.policy.scope:
        return False
    if any(is_pattern(name) for name in mine) and any(is_pattern(name) for name in theirs):
        return False
    return not any(fits(a, b) or fits(b, a) for a in mine for b in theirs)


def _clash(item: Checked, other: Checked) -> LintFinding:
    message = f"it and {other.policy.id} ({other.file}:{other.line}) allow nothing in common: nothing gets through"
    return _finding(item, "with.allow", Severity.WARNING, message)
