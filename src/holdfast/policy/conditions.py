"""``when``: CEL over ``action`` and ``facts``, compiled once and evaluated in a few microseconds.

The engine converts each Python value that it is given at 1 to 6 µs apiece, which is more than evaluating costs. So an
expression is given only what it names: each plain path, such as ``facts.counters.steps``, is turned into a variable
of its own when it is compiled; text that hardly varies (who and what kind) stays converted in a context that is used
again; the rest is handed over when asked for. Where a path leads nowhere, is null, or the expression uses ``has()``,
whole views are built instead, so that the language's own rules about missing fields hold. Both ways give the same
answer.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.action import Action, Facts
from holdfast.policy.history import Asked, Question, rewrite

MAX_LENGTH = 4096
"""Characters of one expression, at most."""

ACTION_FIELDS = (
    "kind", "gate", "name", "id", "args", "digest", "effect", "attempt", "model", "provider", "max_tokens",
    "input_tokens", "witness", "target", "host", "method", "path", "credential",
    "region", "labels", "server",
)  # fmt: skip
FACTS_FIELDS = (
    "now", "tenant", "region", "agent", "workflow", "run", "session", "root", "depth", "principal", "auth", "roles",
    "isolation", "deployment", "started_at", "active_at", "counters", "price", "kill_generation", "approval_state",
    "recent", "labels", "tags", "identity", "claims", "on_behalf_of", "authority", "user_authority", "suspended",
    "history",
)  # fmt: skip
COUNTERS = ("steps", "llm_calls", "tool_calls", "tokens", "cost")
"""Counters that are 0 until they count: a condition may name them from the first step on."""

_KEPT = {
    "action": frozenset({"kind", "gate", "name", "effect", "model", "provider", "witness"}),
    "facts": frozenset(
        {"tenant", "region", "agent", "workflow", "principal", "auth", "roles", "isolation", "deployment", "labels"}
    ),
}
_CONVERTED = frozenset(
    {"args", "effect", "roles", "recent", "labels", "counters", "price", "tags", "claims", "authority"}
    | {"user_authority", "suspended", "history"}
)
_MAX_CONTEXTS = 256
_MACROS = ("all", "exists", "exists_one", "map", "filter")
FUNCTIONS = (
    "has", "size", *_MACROS, "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string",
    "bytes", "dyn", "type", "duration", "timestamp",
)  # fmt: skip
"""Functions and macros that a condition may use."""

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


class ConditionError(ValueError):
    """The expression cannot be used; says why and what to write instead."""


class Unanswered(Exception):
    """The condition gave no yes or no. The message never holds a value of the action."""


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


def _engine() -> Any:
    """The engine's extension module. Its package also imports a terminal interface, which takes 0.3 s to load."""
    if (loaded := sys.modules.get("cel.cel")) is not None:
        return loaded
    package = importlib.util.find_spec("cel")
    places = package.submodule_search_locations if package is not None else None
    spec = importlib.machinery.PathFinder.find_spec("cel.cel", places)
    if spec is None or spec.loader is None:
        raise ConditionError(
            "conditions need the package common-expression-language; install holdfast with its dependencies"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["cel.cel"] = module
    return module


Getter = Callable[[Action, Facts], Any]


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
        engine = _engine()
        self._program = _compiled(engine, self._text)
        self.fields = _fields(chains)
        self.kept: dict[str, Getter] = {}
        self.moving: tuple[tuple[str, Getter], ...] = ()
        """Variables of the flat form, each with what gives its value."""
        self.flat = ""
        """The expression with a variable for each path; empty where it needs whole views."""
        self._fast: Any = None
        if not presence and all(chain.plain for chain in chains):
            self._flatten(engine, chains)

    def _flatten(self, engine: Any, chains: Sequence[Path]) -> None:
        moving: dict[str, Getter] = {}
        pieces, at = [], 0
        for chain in chains:
            name = ("h_" if chain.presence else "v_") + "__".join(chain.names)
            if chain.presence:
                moving[name] = _presence(chain.names)
            elif len(chain.names) == 2 and chain.names[1] in _KEPT[chain.names[0]]:
                self.kept[name] = _raw(*chain.names)
            else:
                moving[name] = _getter(chain.names)
            pieces += [self._text[at : chain.start], name]
            at = chain.end
        self.flat = "".join([*pieces, self._text[at:]])
        self._fast = _compiled(engine, self.flat)
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
            context = _engine().Context(
                variables={name: _plain(value) for (name, _), value in zip(self._kept, key, strict=True)}
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
                    field: _plain(_read(value, field))
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


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """`` (did you mean X?)`` or the words there are, for the end of an error."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(known))}" if known else ""


def _compiled(engine: Any, source: str) -> Any:
    try:
        return engine.compile(source)
    except Exception as error:  # noqa: BLE001 - any refusal by the engine is the expression's fault
        lines = [line.strip() for line in str(error).splitlines()]
        detail = next((line for line in lines if line.startswith("ERROR")), lines[0] if lines else "")
        raise ConditionError(f"the condition is not CEL: {detail.removeprefix('ERROR: <input>:')[:120]}") from None


def _fields(chains: Sequence[Path]) -> frozenset[tuple[str, ...]]:
    return frozenset(chain.names[:2] if chain.plain else chain.names[:1] for chain in chains)


def _raw(root: str, field: str) -> Getter:
    if root == "action":
        return lambda action, facts: getattr(action, field)
    return lambda action, facts: getattr(facts, field)


def _getter(names: tuple[str, ...]) -> Getter:
    root, field, *rest = names
    of_action = root == "action"
    if field == "counters" and len(rest) == 1:
        counter, default = rest[0], 0 if rest[0] in COUNTERS else None
        return lambda action, facts: facts.counters.get(counter, default)
    if field == "args" and len(rest) == 1:
        key = rest[0]
        return lambda action, facts: _scalar(action.args.get(key))
    if not rest:
        convert = field in _CONVERTED
        if of_action:
            return (lambda action, facts: _plain(getattr(action, field))) if convert else _raw(root, field)
        return (lambda action, facts: _plain(_read(facts, field))) if convert else _raw(root, field)

    def deep(action: Action, facts: Facts) -> Any:
        value = getattr(action if of_action else facts, field)
        for name in rest:
            value = _inner(value, name)
        return _scalar(value)

    return deep


def _presence(names: tuple[str, ...]) -> Getter:
    """Whether the last name is there; None where that is for the views to say."""
    root, field, *rest, last = names
    if field == "counters" and not rest:
        return lambda action, facts: last in COUNTERS or last in facts.counters

    def there(action: Action, facts: Facts) -> Any:
        value = getattr(action if root == "action" else facts, field)
        for name in rest:
            value = _inner(value, name)
        if type(value) is not dict and not isinstance(value, Mapping):
            return None
        return None if last in value and value[last] is None else last in value

    return there


def _inner(value: Any, name: str) -> Any:
    """A field of a value as it is, so that nothing but the field itself is converted; None when it is not there."""
    if type(value) is not dict and not isinstance(value, Mapping):
        if type(value) in (int, str, float, bool, list, tuple) or value is None:
            return None
        value = _plain(value)
        if not isinstance(value, dict):
            return None
    return value.get(name)


def _scalar(value: Any) -> Any:
    return value if type(value) in (int, str, float, bool) or value is None else _plain(value)


def _read(value: Any, field: str) -> Any:
    if field == "counters":
        return {**dict.fromkeys(COUNTERS, 0), **value.counters}
    return getattr(value, field)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in (int, str, float, bool) or value is None:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(msgspec.to_builtins(value))


def _fill(args: dict[str, Any], names: tuple[str, ...], sample: Any) -> None:
    for name in names[:-1]:
        inner = args.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        args = inner
    if not isinstance(args.get(names[-1]), dict):
        args[names[-1]] = sample
