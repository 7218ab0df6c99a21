"""What the scripted model server answers: rules on the content of a request. Pure.

A script file is a JSON list of rules, or an object with ``rules``. A rule has what it matches (regular expressions on
the last
user message, the system prompt and the model; the operation) and one reply::

    [{"match": "USD [0-9]{5,}", "category": "requires-review"},
     {"match": "duplicate", "category": "flagged", "delay": 0.05},
     {"operation": "classify", "category": "approved"},
     {"text": "Two of three transactions match.", "usage": {"input": 120, "output": 9}}]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import ConfigError


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that the server reports; None: a quarter of the bytes, rounded up."""

    input: int | None = None
    output: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    missing: bool = False
    """Report nothing at all."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer, or one way to fail."""

    text: str = ""
    category: str | None = None
    """For classify: the category, whether or not it is one of the list."""
    json: Any = None
    """The input of whatever tool call is forced, or of the first tool; without tools, the text."""
    tool: str = ""
    """Call this tool, with ``json`` as its input."""
    usage: Figures = Figures()
    stop_reason: str = ""
    chunk: int = 0
    """Characters of one streamed piece; 0: a word each."""
    delay: float = 0.0
    """Seconds before the first byte."""
    pause: float = 0.0
    """Seconds between streamed pieces."""
    gate: str = ""
    """Hold the answer until this gate is released."""
    error: int = 0
    """HTTP status of a refusal."""
    error_type: str = ""
    message: str = ""
    retry_after: str = ""
    """Value of the header, as it stands."""
    fault: str = ""
    """hang (no answer at all), disconnect (before any answer), cut (in the middle of the answer), stall (likewise,
    without closing), malformed (not of the protocol), stream_error (an error event in the middle)."""


class Rule(Reply, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reply, and the requests that it is for. The first rule that matches and is not used up answers."""

    match: str = ""
    system: str = ""
    model: str = ""
    operation: str = ""
    """classify, extract or text; empty: any."""
    times: int = 0
    """Answers so many requests and then no more; 0: all."""


FAULTS = ("", "hang", "disconnect", "cut", "stall", "malformed", "stream_error")
OPERATIONS = ("", "classify", "extract", "text")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the server saw it."""

    number: int
    """From 1, in order of arrival."""
    protocol: str
    """anthropic or openai."""
    path: str
    headers: Mapping[str, str]
    """Lower-case names, the key among them."""
    key: str
    body: Mapping[str, Any]
    model: str
    system: str
    last: str
    """Text of the last user message."""
    operation: str
    categories: tuple[str, ...]
    tools: tuple[str, ...]
    stream: bool
    max_tokens: int


class Script:
    """Chooses replies. ``rules`` are :class:`Rule` objects, dicts of the same, or a function of a request."""

    def __init__(self, rules: Sequence[Rule | Mapping[str, Any]] | Callable[[Request], Reply | None]) -> None:
        self._function = rules if callable(rules) else None
        self._rules = [] if callable(rules) else [_rule(rule, at) for at, rule in enumerate(rules, 1)]
        self._used = [0] * len(self._rules)
        self._patterns = [
            tuple(re.compile(text, re.DOTALL) for text in (rule.match, rule.system, rule.model)) for rule in self._rules
        ]

    def reply(self, request: Request) -> Reply | None:
        """The reply to a request, None when no rule is for it."""
        if self._function is not None:
            return self._function(request)
        for at, (rule, patterns) in enumerate(zip(self._rules, self._patterns, strict=True)):
            if rule.times and self._used[at] >= rule.times:
                continue
            if rule.operation and rule.operation != request.operation:
                continue
            seen = (request.last, request.system, request.model)
            if all(pattern.search(text) for pattern, text in zip(patterns, seen, strict=True)):
                self._used[at] += 1
                return rule
        return None


def _rule(rule: Rule | Mapping[str, Any], at: int) -> Rule:
    try:
        made = rule if isinstance(rule, Rule) else msgspec.convert(rule, Rule)
        for pattern in (made.match, made.system, made.model):
            re.compile(pattern)
    except (msgspec.ValidationError, re.error) as error:
        raise ConfigError(f"rule {at} of the model script: {error}; correct it") from None
    for name, value, known in (("fault", made.fault, FAULTS), ("operation", made.operation, OPERATIONS)):
        if value not in known:
            raise ConfigError(
                f"rule {at} of the model script: {name} {value!r} is not one of {', '.join(filter(None, known))}"
            )
    return made


def load(path: Path) -> Script:
    """The script of a file.

    Raises:
        ConfigError: it cannot be read or used; names the rule.
    """
    try:
        data = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"the model script {path} cannot be read: {error}; write a JSON list of rules") from None
    rules = data.get("rules") if isinstance(data, dict) else data
    if not isinstance(rules, list):
        raise ConfigError(f"the model script {path} is not a JSON list of rules")
    return Script(rules)
