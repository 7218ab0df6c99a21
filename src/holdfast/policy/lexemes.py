"""The lexemes of a CEL expression, and the chains of fields in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|//[^\n]*)
  | (?P<text>[rRbB]{0,2}(?:'{3}.*?'{3}|"{3}.*?"{3})
      | [rR][bB]?(?:'[^'\n]*'|"[^"\n]*")
      | [bB]?(?:'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
  | (?P<number>(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)[uU]?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(msgspec.Struct, frozen=True):
    """A lexeme of CEL: text, number, name or mark."""

    kind: str
    text: str
    start: int
    end: int


def tokens(source: str) -> list[Token]:
    """The lexemes of an expression, without white space and comments."""
    return [
        Token(match.lastgroup or "", match.group(), match.start(), match.end())
        for match in _TOKEN.finditer(source)
        if match.lastgroup != "skip"
    ]


class Path(msgspec.Struct, frozen=True):
    """A chain of fields such as ``action.args.amount`` and where it stands in the expression."""

    names: tuple[str, ...]
    start: int
    end: int
    plain: bool
    """False: the object as a whole is used (``facts["x"]``, or handed to a function)."""
    presence: bool = False
    """The chain is what ``has()`` asks for; ``start`` and ``end`` are then those of the whole test."""


def paths(source: str) -> tuple[list[Path], bool]:
    """Every chain that starts at ``action`` or ``facts``, and whether ``has`` is asked of anything that needs views."""
    found: list[Path] = []
    lexemes = tokens(source)
    tests = 0
    for at, token in enumerate(lexemes):
        if token.kind != "name" or (at and lexemes[at - 1].text == "."):
            continue
        if token.text == "has":
            tests += 1
        if token.text not in ("action", "facts"):
            continue
        names, end, here = [token.text], token.end, at
        while here + 2 < len(lexemes) and lexemes[here + 1].text == "." and lexemes[here + 2].kind == "name":
            if here + 3 < len(lexemes) and lexemes[here + 3].text == "(":
                break
            names.append(lexemes[here + 2].text)
            end = lexemes[here + 2].end
            here += 2
        if _tested(lexemes, at, here) and len(names) > 2 and names[1] in ("args", "counters"):
            found.append(Path(tuple(names), lexemes[at - 2].start, lexemes[here + 1].end, True, True))
        else:
            found.append(Path(tuple(names), token.start, end, len(names) > 1))
    return found, tests > sum(chain.presence for chain in found)


def _tested(lexemes: Sequence[Token], first: int, last: int) -> bool:
    """Whether the chain from ``first`` to ``last`` is all that a ``has(…)`` holds."""
    if first < 2 or last + 1 >= len(lexemes) or (first > 2 and lexemes[first - 3].text == "."):
        return False
    return (lexemes[first - 2].text, lexemes[first - 1].text, lexemes[last + 1].text) == ("has", "(", ")")
