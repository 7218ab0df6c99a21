"""Rules that never have a say, because another always has it first; conditions that contradict themselves. Pure.

Only what is sure is said: where two rules cannot be compared, neither is called unreachable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation

import msgspec

from holdfast.policy.lexemes import Token, tokens
from holdfast.policy.model import Checked
from holdfast.policy.patterns import fits, fits_any
from holdfast.policy.profiles import looser

_LISTS = {"tool_allowlist": "tool", "model_allowlist": "llm"}
"""Categories that deny by name, and the gate that they stand at."""
NAME = "action.name"
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "=="}


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that is in the way of another, or of itself."""

    item: Checked
    key: str
    message: str


def overlaps(checked: Sequence[Checked]) -> Iterator[Overlap]:
    """What never has a say, rule by rule."""
    active = [item for item in checked if item.policy.mode != "off"]
    enforced = [item for item in active if item.policy.mode == "enforce"]
    for item in active:
        if item.policy.when is not None and (why := contradiction(item.policy.when)):
            yield Overlap(item=item, key="when", message=f"it never applies: {why}; remove one of the two")
            continue
        other = next((one for one in enforced if one is not item and _covers(one, item, enforced)), None)
        if other is not None:
            message = (
                f"it never has a say: {_place(other)} is at least as strict, always; remove it, or make it stricter"
            )
            yield Overlap(item=item, key="id", message=message)
            continue
        stop = next((one for one in enforced if one is not item and _stops(one, item)), None)
        if stop is not None:
            message = f"it never has a say: {_place(stop)} refuses everything there; remove one of them"
            yield Overlap(item=item, key="id", message=message)
            continue
        yield from _denied(item, enforced)


def _place(item: Checked) -> str:
    return f"{item.policy.id} ({item.file}:{item.line})" if item.file else item.policy.id


def _covers(strict: Checked, item: Checked, order: Sequence[Checked]) -> bool:
    """Whether a rule is at least as strict as another of its category. Of two that are alike the later one is moot."""
    if strict.policy.category != item.policy.category or strict.policy.id == item.policy.id or strict.category.first:
        return False
    if looser(strict, item):
        return False
    if looser(item, strict):
        return True
    alike = {key: value for key, value in strict.normal().items() if key not in ("id", "description")}
    # The same under two names is told by itself.
    return alike != {key: value for key, value in item.normal().items() if key not in ("id", "description")} and (
        order.index(strict) < order.index(item) if item in order else True
    )


def _stops(stop: Checked, item: Checked) -> bool:
    """Whether a rule ends everything where another one stands."""
    policy = stop.policy
    return (
        policy.category == "kill_switch"
        and policy.when is None
        and stop.on_breach >= item.on_breach
        and set(item.gates) <= set(stop.gates)
        and _wider(stop, item)
    )


def _wider(one: Checked, other: Checked) -> bool:
    """Whether a rule's scope holds all of another's."""
    inner = other.policy.scope.model_dump(exclude_none=True)
    return all(
        key in inner and fits(pattern, inner[key])
        for key, pattern in one.policy.scope.model_dump(exclude_none=True).items()
    )


def _denied(item: Checked, enforced: Sequence[Checked]) -> Iterator[Overlap]:
    """A rule about one name that a list denies anyway."""
    for key, gate, name in _about(item):
        for one in enforced:
            policy = one.policy
            if (
                _LISTS.get(policy.category) != gate
                or one is item
                or gate not in one.gates
                or policy.when is not None
                or one.on_breach < item.on_breach
                or not _wider(one, item)
            ):
                continue
            allow, deny = getattr(one.params, "allow", None), getattr(one.params, "deny", ())
            if fits_any(deny, name) or (allow is not None and not fits_any(allow, name)):
                message = f"it is about {name}, which {_place(one)} denies: it never has a say; remove one of them"
                yield Overlap(item=item, key=key, message=message)
                return


def _about(item: Checked) -> Iterator[tuple[str, str, str]]:
    """Names that a rule is only about: the key that says so, the gate, the name."""
    if set(item.gates) == {"tool"}:
        tool = getattr(item.params, "tool", None)
        if item.policy.category == "tool_call_limit" and tool and not any(mark in tool for mark in "*?["):
            yield "with.tool", "tool", tool
        wanted = [
            literal for field, sign, literal in _compared(item.policy.when or "") if (field, sign) == (NAME, "==")
        ]
        for literal in wanted:
            if literal[:1] in "\"'":
                yield "when", "tool", literal[1:-1]


def contradiction(source: str) -> str:
    """Which two comparisons of a condition cannot both hold; empty: none that can be told.

    Only conditions whose parts are joined by ``&&`` alone are looked at.
    """
    equal: dict[str, str] = {}
    low: dict[str, tuple[Decimal, bool, str]] = {}
    high: dict[str, tuple[Decimal, bool, str]] = {}
    for field, sign, literal in _compared(source):
        said = f"{field} {sign} {literal}"
        if sign == "==":
            before = equal.setdefault(field, literal)
            if before != literal:
                return f"{field} == {before} and {said}"
        value = _number(literal)
        if value is None:
            continue
        if sign in (">", ">=", "=="):
            low[field] = max(low.get(field, (value, False, said)), (value, sign == ">", said))
        if sign in ("<", "<=", "=="):
            high[field] = min(high.get(field, (value, True, said)), (value, sign != "<", said))
        if field in low and field in high:
            (least, above, one), (most, included, other) = low[field], high[field]
            if least > most or (least == most and (above or not included)):
                return f"{one} and {other}"
    return ""


def _compared(source: str) -> Iterator[tuple[str, str, str]]:
    """Comparisons of a field with a literal, of a condition that is a plain chain of ``&&``."""
    lexemes = tokens(source)
    words = [token.text for token in lexemes]
    if any(word in ("|", "!", "?", "(", "[", "{") for word in words):
        return
    part: list[Token] = []
    for place, token in enumerate([*lexemes, Token("mark", "&", 0, 0), Token("mark", "&", 0, 0)]):
        if token.text != "&":
            part.append(token)
        elif part and place:
            yield from _comparison(part)
            part = []


def _comparison(part: Sequence[Token]) -> Iterator[tuple[str, str, str]]:
    texts = [token.text for token in part]
    at = next((place for place, text in enumerate(texts) if text in "<>="), None)
    if at is None:
        return
    end = at + (2 if texts[at + 1 : at + 2] == ["="] else 1)
    sign, left, right = "".join(texts[at:end]), part[:at], part[end:]
    if sign not in _MIRRORED:
        return
    if _literal(left):
        left, right, sign = right, left, _MIRRORED[sign]
    if _literal(right) and left and all(token.kind == "name" or token.text == "." for token in left):
        yield "".join(token.text for token in left), sign, "".join(token.text for token in right)


def _literal(part: Sequence[Token]) -> bool:
    if len(part) == 2 and part[0].text == "-":
        part = part[1:]
    return len(part) == 1 and part[0].kind in ("text", "number")


def _number(literal: str) -> Decimal | None:
    try:
        return Decimal(literal.rstrip("uU"))
    except InvalidOperation:
        return None
