"""Labels: what is known of data by where it came from, whatever it says.

Labels attach where data enters (results of tools, answers of the web, files, memory, a child's output) and are decided
on where it would leave. Values that pass through the author's code cannot be followed one by one, so a run's labels are
a high-water mark of its incarnation. Two things are finer: an opaque handle, whose value the node keeps and the worker
never sees, carries its own labels; and a value that the principal's own input named stays vouched for, so that a run
that has read something untrusted can still do what it was asked to do.

Nothing takes a label off by itself. Declassifying is a person's act, recorded with who and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.action import Action, Ended, Facts
from holdfast.policy.patterns import fits
from holdfast.policy.scan import scan_value, strings
from holdfast.settings_kinds import LABEL as LABEL
from holdfast.values import sha256

UNTRUSTED = "untrusted"
PRIVATE = ("private", "secret", "phi", "pan")
"""Labels of what must not get out."""
_LABEL = re.compile(LABEL)
_DETECTED = {"CREDIT_CARD": "pan", "SECRET": "secret", "MEDICAL_RECORD": "phi", "UK_NHS": "phi"}
HANDLE = "$holdfast"
"""The one key of a handle."""
_NAMING = frozenset({"id", "url", "uri", "href", "link", "source", "doc", "document", "title", "path", "file", "name"})
"""Keys whose text says what something is called."""
MAX_NAME = 512
MAX_NAMES = 200


class Source(msgspec.Struct, frozen=True):
    """Where data enters, and what it is labelled with."""

    deed: str
    """``GATE:NAME`` with wildcards, as in ``tool:web_*`` or ``http:*.partner.example``."""
    labels: tuple[str, ...]


OUTSIDE = (Source("http:*", (UNTRUSTED,)),)
"""What holds where nothing else is said: whatever comes from the network is untrusted."""


def valid(label: str) -> bool:
    """Whether it is a label."""
    return _LABEL.match(label) is not None


def join(*several: Iterable[str]) -> tuple[str, ...]:
    """All labels of several sets, sorted, each once."""
    return tuple(sorted({label for labels in several for label in labels}))


def entering(
    action: Action, ended: Ended, sources: Sequence[Source] = OUTSIDE, *, trusted: Sequence[str] = (), look: bool = True
) -> tuple[str, ...]:
    """The labels that come in with what an action brought back.

    Args:
        sources: by where it comes from.
        trusted: deeds whose results bring nothing in but the labels that were kept with them.
        look: whether the value is also scanned for what its form gives away (cards, keys, personal data).
    """
    labels = set(ended.labels)
    if not any(_does(deed, action) for deed in trusted):
        for source in sources:
            if _does(source.deed, action):
                labels.update(source.labels)
        # An MCP server is somebody else's program, whatever its tool is called.
        if action.server:
            labels.add(UNTRUSTED)
    if look:
        labels.update(seen(ended.value))
    return tuple(sorted(labels))


def seen(value: Any) -> tuple[str, ...]:
    """The labels that a value's form gives away: cards, keys, personal data."""
    kinds = {placed.found.type for placed in scan_value(value)} - {"PROMPT_INJECTION"}
    return tuple(sorted({_DETECTED.get(kind, "private") for kind in kinds}))


def _does(deed: str, action: Action) -> bool:
    gate, _, name = deed.partition(":")
    return gate in ("*", action.gate) and fits(name, action.target)


def names(action: Action, value: Any) -> list[str]:
    """What a result may be cited as: the call itself, and what it says that its parts are called."""
    found = [action.id, action.target]
    for path, text, in_key in strings(value):
        if not in_key and len(text) <= MAX_NAME and (not path or str(path[-1]).casefold() in _NAMING):
            found.append(text)
    return list(dict.fromkeys(name for name in found if name))[:MAX_NAMES]


def carried(action: Action, facts: Facts) -> tuple[str, ...]:
    """The labels that an action would take with it: the run's and its handles', but for those that people took off."""
    off = {one.label for one in facts.declassified if one.by and one.reason and one.digest in ("", action.digest)}
    return tuple(sorted({*facts.labels, *action.labels} - off))


def inherited(labels: Iterable[str], facts: Facts) -> tuple[str, ...]:
    """What is kept with something that a run writes: a memory entry, an artefact, a message to a child."""
    return join(labels, facts.labels, (f"tenant:{facts.tenant}", f"region:{facts.region}"))


def mark(value: Any) -> str:
    """What stands for a value in ``facts.vouched``: 80 bits of SHA-256 over its plain form.

    Case, white space and the separators of numbers make no difference.
    """
    text = str(value).casefold().strip()
    if re.fullmatch(r"[\d\s.,()+\-/]+|[a-z]{2}\d{2}[\sa-z0-9]{8,}", text):
        text = re.sub(r"[^a-z0-9]", "", text)
    return sha256(" ".join(text.split()).encode("utf-8", "replace"))[:20]


_WORDS = re.compile(r"https?://[^\s\"'<>]+|[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+|[\w./\-]*\w")


def vouch(value: Any) -> tuple[str, ...]:
    """Marks of all that a principal's input names: each text as a whole, its words, addresses, numbers and paths."""
    marks = set()
    for _, text, in_key in strings(value):
        if in_key:
            continue
        for word in (text, *_spoken(text)):
            marks.add(mark(word))
    return tuple(sorted(marks))


def _spoken(text: str) -> Iterator[str]:
    for match in _WORDS.finditer(text):
        yield match[0].rstrip(".,;:!?")
    for placed in scan_value(text):
        if placed.found.type != "PROMPT_INJECTION":
            yield placed.text


def vouched(value: Any, facts: Facts) -> bool:
    """Whether every text and number in a value was named by the principal's own input; what is true never was."""
    if isinstance(value, Mapping):
        return all(vouched(key, facts) and vouched(item, facts) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(vouched(item, facts) for item in value)
    return value is None or value is False or (value is not True and mark(value) in facts.vouched)


def marks(value: Any) -> frozenset[str]:
    """What :func:`vouched` looks for: a mark of each text and number in a value."""
    if isinstance(value, Mapping):
        return frozenset().union(*(marks(key) | marks(item) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return frozenset().union(*(marks(item) for item in value))
    return frozenset() if value is None or isinstance(value, bool) else frozenset((mark(value),))


def handle(name: str) -> dict[str, str]:
    """What the worker sees of a value that the node keeps: the name of the call that brought it."""
    return {HANDLE: name}


def handles(value: Any) -> frozenset[str]:
    """Names of all handles in a value."""
    if isinstance(value, Mapping):
        if set(value) == {HANDLE}:
            return frozenset((str(value[HANDLE]),))
        return frozenset().union(*map(handles, value.values()))
    return frozenset().union(*map(handles, value)) if isinstance(value, list | tuple) else frozenset()


def opened(value: Any, held: Mapping[str, Any]) -> Any:
    """A value with its handles replaced by what they stand for.

    Raises:
        KeyError: one stands for nothing: the action must not go ahead.
    """
    if isinstance(value, Mapping):
        if set(value) == {HANDLE}:
            return held[str(value[HANDLE])]
        return {key: opened(item, held) for key, item in value.items()}
    return [opened(item, held) for item in value] if isinstance(value, list | tuple) else value
