"""What rules ask of the record: how often, how much, when last. Asked when a bundle is compiled, answered by the node.

A question has a key. The node answers the questions that a bundle asks about an action from the record that it holds
(:func:`recall`), and only the answers stand among the facts: they stay small however long a run is, and the verdict can
be decided again without the record. A question without an answer is an error of the rule, which denies.

In conditions: ``history.count("tool", "wire_*", within="1h")``, ``history.sum("tool", "wire_transfer", "amount")`` and
``history.formerly("http", "*")``. The engine knows no such functions; each call becomes the path of its answer when the
condition is compiled, which costs nothing more at run time.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.action import GATES, Action, Facts, Past
from holdfast.policy.patterns import fits
from holdfast.policy.units import parse_duration

COST = "$cost"
"""The figure that says what an action cost, in nano-dollars: the node adds it when the action has ended."""
SAME = "="
"""As a question's name: the target of the very action that is decided."""
STATES = ("", "open", "ok", "failed", "ended")
OVERS = ("run", "agent", "tenant")
OPS = ("count", "sum", "last", "streak", "median", "mad")
_WORD = re.compile(r"[^A-Za-z0-9]+")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to know about what happened before the action."""

    op: str
    """count; sum (of a figure); last (time of the latest, 0: never); streak (how many of the latest in a row failed);
    median and mad (median absolute deviation) of a figure."""
    gate: str = "*"
    name: str = "*"
    """Name or pattern of :attr:`holdfast.action.Action.target`; ``=``: that of the action."""
    figure: str = ""
    """The argument, or ``$cost``: what it cost, in nano-dollars."""
    within: int = 0
    """Only what began at most this long ago (microseconds); 0: all."""
    state: str = ""
    """open, ok, failed, ended (ok or failed); empty: all."""
    over: str = "run"
    """run; or agent, tenant: everything that this node saw of them lately."""
    latest: int = 0
    """Only so many of the latest; 0: all."""

    def of(self, action: Action) -> Question:
        """The question as it is asked about this action."""
        return _named(self, action.target) if self.name == SAME else self

    @property
    def key(self) -> str:
        """What the answer is called: the same for the same question, and an identifier of CEL."""
        return _key(self)


@functools.lru_cache(maxsize=4096)
def _named(question: Question, name: str) -> Question:
    return msgspec.structs.replace(question, name=name)


@functools.lru_cache(maxsize=4096)
def _key(question: Question) -> str:
    digest = hashlib.sha256(msgspec.json.encode(question)).hexdigest()[:12]
    words = _WORD.sub("_", f"{question.op}_{question.gate}_{question.name}").strip("_")[:48]
    return f"{words}_{digest}"


def past(action: Action, at: int, agent: str, figures: Iterable[str]) -> Past:
    """What the record keeps of an action that is about to happen. ``figures``: arguments that some rule adds up."""
    kept: dict[str, int | float] = {}
    for name in figures:
        value = action.args.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            kept[name] = value
    return Past(gate=action.gate, name=action.target, at=at, agent=agent, figures=kept)


def answers(
    questions: Iterable[Question], facts: Facts, record: Sequence[Past], wider: Sequence[Past] = ()
) -> dict[str, int | float]:
    """The answers by key. What cannot be known, such as the sum of an argument that was no number, is left out.

    Args:
        questions: what is asked about this action (:meth:`Question.of` is done).
        facts: whose run, agent and time it is.
        record: what the run did before, in the order in which it began, what is under way included.
        wider: what this node saw of the whole tenant, in the same order.
    """
    found: dict[str, int | float] = {}
    for question in questions:
        value = _answer(question, _seen(question, facts, record if question.over == "run" else wider))
        if value is not None:
            found[question.key] = value
    return found


def recall(
    action: Action, facts: Facts, asked: Iterable[Question], record: Sequence[Past], wider: Sequence[Past] = ()
) -> Facts:
    """The facts with the answers to what is asked about an action."""
    found = answers((question.of(action) for question in asked), facts, record, wider)
    return msgspec.structs.replace(facts, history=found)


def _seen(question: Question, facts: Facts, record: Sequence[Past]) -> list[Past]:
    """What a question is about, oldest first. The latest come first to mind: looking stops where enough is found."""
    gate, name, state, latest = question.gate, question.name, question.state, question.latest
    since = facts.now - question.within if question.within else None
    agent = facts.agent if question.over == "agent" else None
    found: list[Past] = []
    for item in reversed(record):
        if since is not None and item.at < since:
            break
        if (
            (name in ("*", item.name) or fits(name, item.name))
            and (gate in ("*", item.gate))
            and (not state or item.state == state or (state == "ended" and item.state != "open"))
            and (agent is None or item.agent == agent)
        ):
            found.append(item)
            if len(found) == latest:
                break
    found.reverse()
    return found


def _answer(question: Question, items: list[Past]) -> int | float | None:
    if question.op == "count":
        return len(items)
    if question.op == "last":
        return max((item.ended_at or item.at for item in items), default=0)
    if question.op == "streak":
        ended = sorted((item for item in items if item.state != "open"), key=lambda item: item.ended_at)
        length = 0
        while length < len(ended) and ended[-1 - length].state == "failed":
            length += 1
        return length
    values = [item.figures.get(question.figure) for item in items]
    known = [value for value in values if value is not None and value == value]
    if question.op == "sum":
        return sum(known) if len(known) == len(values) else None
    if not known:
        return 0
    import statistics  # slow to load, and few rules need it

    middle = statistics.median(known)
    return middle if question.op == "median" else statistics.median(abs(value - middle) for value in known)


class Unrecorded(Exception):
    """The record gives no answer. Names the question, never a value."""


def told(facts: Facts, question: Question) -> int | float:
    """The answer to a question that a category asks.

    Raises:
        Unrecorded: there is none, which denies.
    """
    answer = facts.history.get(question.key)
    if answer is None:
        figure = f" of {question.figure}" if question.figure else ""
        raise Unrecorded(f"the {question.op}{figure} of {question.gate}:{question.name}, so it denies")
    return answer


class Asked(ValueError):
    """A call of ``history`` that cannot be asked; says how to write it."""


_CALLS: Mapping[str, tuple[str, ...]] = {
    "count": ("gate", "name"),
    "formerly": ("gate", "name"),
    "sum": ("gate", "name", "figure"),
}
_OPTIONS = ("within", "state", "over")
_FORM = 'write it as history.count("tool", "wire_transfer", within="1h")'


def rewrite(source: str, lexemes: Sequence[Any]) -> tuple[str, tuple[Question, ...]]:
    """The condition with each call of ``history`` replaced by the path of its answer, and what is asked.

    Raises:
        Asked: a call is not one of those that there are, or its arguments are not plain text.
    """
    pieces: list[str] = []
    asked: list[Question] = []
    at = position = 0
    while at < len(lexemes):
        token = lexemes[at]
        if token.kind != "name" or token.text != "history" or (at and lexemes[at - 1].text == "."):
            at += 1
            continue
        last, question, wrap = _call(lexemes, at)
        path = f"facts.history.{question.key}"
        pieces += [source[position : token.start], f"({path} > 0)" if wrap else path]
        position = lexemes[last].end
        asked.append(question)
        at = last + 1
    return "".join([*pieces, source[position:]]), tuple(asked)


def _call(lexemes: Sequence[Any], at: int) -> tuple[int, Question, bool]:
    words = [token.text for token in lexemes[at : at + 40]]
    if words[1:2] != ["."] or len(words) < 4 or words[3] != "(" or words[2] not in _CALLS:
        raise Asked(f"history knows {', '.join(_CALLS)}; {_FORM}")
    if ")" not in words:
        raise Asked(f"history.{words[2]} is not closed; {_FORM}")
    end = words.index(")")
    plain: list[str] = []
    options: dict[str, Any] = {}
    for part in _split(lexemes[at + 4 : at + end]):
        if len(part) == 1 and part[0].kind == "text" and not options:
            plain.append(_text(part[0].text))
        elif len(part) == 3 and part[1].text == "=" and part[2].kind == "text" and part[0].text in _OPTIONS:
            options[part[0].text] = _text(part[2].text)
        else:
            raise Asked(f"history.{words[2]} takes plain text, and {', '.join(_OPTIONS)}; {_FORM}")
    names = _CALLS[words[2]]
    if len(plain) != len(names):
        raise Asked(f"history.{words[2]} takes {', '.join(names)}; {_FORM}")
    values: dict[str, Any] = {**dict(zip(names, plain, strict=True)), **options}
    return at + end, _question(words[2], values), words[2] == "formerly"


def _question(call: str, values: dict[str, Any]) -> Question:
    if values["gate"] not in (*GATES, "*"):
        raise Asked(f"there is no gate {values['gate']}; there are {', '.join(GATES)}")
    if "within" in values:
        try:
            values["within"] = parse_duration(values["within"])
        except ValueError as error:
            raise Asked(f"within: {error}") from None
    if values.get("state", "") not in STATES:
        raise Asked(f"state is one of {', '.join(STATES[1:])}")
    if values.get("over", "run") not in OVERS:
        raise Asked(f"over is one of {', '.join(OVERS)}")
    return Question(op="sum" if call == "sum" else "count", **values)


def _split(lexemes: Sequence[Any]) -> list[list[Any]]:
    parts: list[list[Any]] = [[]]
    for token in lexemes:
        if token.text == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts != [[]] else []


def _text(literal: str) -> str:
    text = literal[1:-1]
    if literal[:1] not in "\"'" or literal[:3] in ('"""', "'''") or "\\" in text or not text:
        raise Asked(f"history takes plain text in quotes, not {literal[:40]}; {_FORM}")
    return text
