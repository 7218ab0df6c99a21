"""``when``: CEL over ``action`` and ``facts``, compiled once and evaluated in a few microseconds.

The engine converts each Python value that it is given at 1 to 6 µs apiece, which is more than evaluating costs. So an
expression is given only what it names: each plain path, such as ``facts.counters.steps``, is turned into a variable
of its own when it is compiled; text that hardly varies (who and what kind) stays converted in a context that is used
again; the rest is handed over when asked for. Where a path leads nowhere, is null, or the expression uses ``has()``,
whole views are built instead, so that the language's own rules about missing fields hold. Both ways give the same
answer.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from holdfast.action import Action, Facts
from holdfast.policy.cel import ConditionError, compiled, engine
from holdfast.policy.fields import (
    ACTION_FIELDS,
    FACTS_FIELDS,
    KEPT,
    Getter,
    field_of,
    getter_of,
    plain,
    presence_of,
    read,
)
from holdfast.policy.history import Asked, Question, rewrite
from holdfast.policy.lexemes import Path, paths, tokens
from holdfast.policy.patterns import nearest

MAX_LENGTH = 4096
"""Characters of one expression, at most."""

_MAX_CONTEXTS = 256
_MACROS = ("all", "exists", "exists_one", "map", "filter")
FUNCTIONS = (
    "has", "size", *_MACROS, "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string",
    "bytes", "dyn", "type", "duration", "timestamp",
)  # fmt: skip
"""Functions and macros that a condition may use."""


class Unanswered(Exception):
    """The condition gave no yes or no. The message never holds a value of the action."""


class Condition:
    """One compiled expression."""

    __slots__ = ("_fast", "_program", "_text", "asked", "fields", "flat", "kept", "moving", "source")

    def __init__(self, source: str) -> None:
        """Compile.

        Raises:
            ConditionError: it does not compile, or names something that there is not.
        """
        self.source = source
        self._text, self.asked = _historic(source)
        chains, presence = _checked(self._text)
        self._program = compiled(self._text)
        self.fields = _fields(chains)
        self.kept: dict[str, Getter] = {}
        self.moving: tuple[tuple[str, Getter], ...] = ()
        """Variables of the flat form, each with what gives its value."""
        self.flat = ""
        """The expression with a variable for each path; empty where it needs whole views."""
        self._fast: Any = None
        if not presence and all(chain.plain for chain in chains):
            self._flatten(chains)

    def _flatten(self, chains: Sequence[Path]) -> None:
        moving: dict[str, Getter] = {}
        pieces, at = [], 0
        for chain in chains:
            name = ("h_" if chain.presence else "v_") + "__".join(chain.names)
            if chain.presence:
                moving[name] = presence_of(chain.names)
            elif len(chain.names) == 2 and chain.names[1] in KEPT[chain.names[0]]:
                self.kept[name] = field_of(*chain.names)
            else:
                moving[name] = getter_of(chain.names)
            pieces += [self._text[at : chain.start], name]
            at = chain.end
        self.flat = "".join([*pieces, self._text[at:]])
        self._fast = compiled(self.flat)
        self.moving = tuple(moving.items())

    def __call__(self, scene: Scene) -> bool:
        """Whether the condition holds.

        Raises:
            Unanswered: a field that it names is missing, types do not fit, or the result is not a boolean.
        """
        try:
            result = self._answer(scene)
        except KeyError:
            raise Unanswered("a field that it names is missing; guard it with has()") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the engine's panics are no Exception, and must deny as errors do
            raise Unanswered(f"it cannot be evaluated here ({type(error).__name__})") from None
        if result is True or result is False:
            return bool(result)
        raise Unanswered(f"it gave a {type(result).__name__}, not true or false")

    def _answer(self, scene: Scene) -> Any:
        if self._fast is None:
            return self._program.execute(scene.views())
        values, lacking = scene.values, False
        for name, getter in self.moving:
            value = getter(scene.action, scene.facts)
            if value is None:
                # An undefined variable is an error of the language, as a missing field is: && and || absorb both alike.
                lacking = True
                values.pop(name, None)
            else:
                values[name] = value
        if not lacking:
            return self._fast.execute(scene.context)
        try:
            return self._fast.execute(scene.context)
        except Exception:  # noqa: BLE001 - whatever it was, the views tell a null from a missing field
            return self._program.execute(scene.views())


class Conditions:
    """All conditions of a bundle: what they need is bound once for each decision. Safe with threads."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        kept: dict[str, Getter] = {}
        fields: set[tuple[str, ...]] = set()
        for condition in conditions:
            kept.update(condition.kept)
            fields |= condition.fields
        self._kept = tuple(sorted(kept.items()))
        self.fields = frozenset(fields)
        self._local = threading.local()

    def bind(self, action: Action, facts: Facts) -> Scene:
        """Ready to evaluate over this action and these facts."""
        try:
            contexts, values = self._local.state
        except AttributeError:
            contexts, values = self._local.state = ({}, {})
        key = tuple([getter(action, facts) for _, getter in self._kept])
        context = contexts.get(key)
        if context is None:
            if len(contexts) >= _MAX_CONTEXTS:
                contexts.clear()
            context = engine().Context(
                variables={name: plain(value) for (name, _), value in zip(self._kept, key, strict=True)}
            )
            context.set_variable_resolver(values.get)
            contexts[key] = context
        return Scene(action, facts, context, values, self.fields)


class Scene:
    """An action and facts, as conditions see them during one decision."""

    __slots__ = ("_fields", "_views", "action", "context", "facts", "values")

    def __init__(
        self, action: Action, facts: Facts, context: Any, values: dict[str, Any], fields: frozenset[tuple[str, ...]]
    ) -> None:
        self.action = action
        self.facts = facts
        self.context = context
        self.values = values
        self._fields = fields
        self._views: dict[str, Any] | None = None

    def views(self) -> dict[str, Any]:
        """``action`` and ``facts`` as objects, with the fields that any condition of the bundle names."""
        if self._views is None:
            roots: dict[str, Any] = {"action": self.action, "facts": self.facts}
            known = {"action": ACTION_FIELDS, "facts": FACTS_FIELDS}
            whole = {names[0] for names in self._fields if len(names) == 1}
            self._views = {
                root: {
                    field: plain(read(value, field))
                    for field in known[root]
                    if root in whole or (root, field) in self._fields
                }
                for root, value in roots.items()
            }
        return self._views


def check(source: str) -> None:
    """Raise when the expression cannot be a condition: it does not compile, or its answer is never true or false.

    Raises:
        ConditionError: says why and what to write instead.
    """
    condition = Condition(source)
    chains, _ = paths(source)
    history = {question.key: 0 for question in condition.asked}
    # What arguments hold is not known here, so each kind of value is tried; only an answer of the wrong type is
    # an error.
    others: set[str] = set()
    samples: tuple[Any, ...] = (0, "", True, 1.5, [], {})
    for sample in samples:
        args: dict[str, Any] = {}
        for chain in chains:
            if chain.names[:2] == ("action", "args") and len(chain.names) > 2:
                _fill(args, chain.names[2:], sample)
        action, facts = Action(kind="step", name="probe", args=args), Facts(now=0, history=history)
        try:
            condition(Conditions([condition]).bind(action, facts))
        except Unanswered as error:
            if "not true or false" in str(error):
                others.add(str(error))
            continue
        return
    if others:
        raise ConditionError(f"{sorted(others)[0]}; compare it with something, as in action.args.amount > 100")


def _historic(source: str) -> tuple[str, tuple[Question, ...]]:
    if len(source) > MAX_LENGTH:
        raise ConditionError(f"the condition is longer than {MAX_LENGTH} characters; split it into several policies")
    if "history" not in source:
        return source, ()
    try:
        return rewrite(source, tokens(source))
    except Asked as error:
        raise ConditionError(str(error)) from None


def _checked(source: str) -> tuple[list[Path], bool]:
    if not source.strip():
        raise ConditionError("the condition is empty; leave the key out to apply the rule always")
    chains, presence = paths(source)
    _names(source)
    for chain in chains:
        if not chain.plain:
            continue
        known = ACTION_FIELDS if chain.names[0] == "action" else FACTS_FIELDS
        if chain.names[1] not in known:
            raise ConditionError(f"there is no {chain.names[0]}.{chain.names[1]}{nearest(chain.names[1], known)}")
    return chains, presence


def _names(source: str) -> None:
    lexemes = [token.text for token in tokens(source)]
    kinds = [token.kind for token in tokens(source)]
    bound = {
        lexemes[at + 2]
        for at in range(len(lexemes) - 3)
        if lexemes[at] in _MACROS and lexemes[at + 1] == "(" and kinds[at + 2] == "name" and lexemes[at + 3] == ","
    }
    for name in sorted(bound):
        if name in ("action", "facts") or name.startswith(("v_", "h_")):
            raise ConditionError(f"{name} cannot be the variable of a macro; call it x")
    for at, name in enumerate(lexemes):
        if kinds[at] != "name" or name in ("true", "false", "null", "in", *bound):
            continue
        called = at + 1 < len(lexemes) and lexemes[at + 1] == "("
        if called and name not in FUNCTIONS:
            raise ConditionError(f"there is no function {name}{nearest(name, FUNCTIONS)}")
        field = at > 0 and lexemes[at - 1] == "."
        if not called and not field and name not in ("action", "facts"):
            raise ConditionError(f'there is no {name}; a condition is about action and facts, as in action.name == "x"')


def _fields(chains: Sequence[Path]) -> frozenset[tuple[str, ...]]:
    return frozenset(chain.names[:2] if chain.plain else chain.names[:1] for chain in chains)


def _fill(args: dict[str, Any], names: tuple[str, ...], sample: Any) -> None:
    for name in names[:-1]:
        inner = args.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        args = inner
    if not isinstance(args.get(names[-1]), dict):
        args[names[-1]] = sample
