"""Deciding again: the recorded action, facts and bundle must give the recorded verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from holdfast.action import Action, Facts, Verdict
from holdfast.errors import HoldfastError
from holdfast.journal.event import Event, Kind
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.values import load

GATE = "gate"
"""Rule of a verdict that no bundle gave: the gate gave up because the world kept changing under it."""

_WRAPPED = {"approval": "what", "output": "value"}
"""Actions whose one argument is recorded bare, and the argument's name."""
_COMPARED = ("outcome", "rule", "category", "reason", "reservations", "approval", "max_tokens", "kill_generation")


class Undecidable(Exception):
    """What is needed in order to decide again is not on record. The message says what."""


class Judge:
    """Decides again, with bundles read by ``blob``."""

    def __init__(self, blob: Callable[[str], bytes | None]) -> None:
        self._blob = blob
        self._bundles: dict[str, Bundle | str] = {}
        self.damaged: dict[str, str] = {}
        """Bundles that verdicts cite and that were changed in the store: digest to what is wrong."""
        self.missing: set[str] = set()
        """Bundles that verdicts cite and that are not in the store."""

    def differs(self, event: Event, args: bytes | None) -> str:
        """How the verdict that was recorded differs from that decided now; empty when it does not.

        ``args`` is the payload that :func:`arguments_of` names; None when it was erased.

        Raises:
            Undecidable: facts, arguments or bundle are not on record.
        """
        data = event.data
        if "verdict" not in data or "facts" not in data:
            raise Undecidable("no facts were recorded")
        try:
            verdict = msgspec.convert(data["verdict"], Verdict)
            facts = msgspec.convert(data["facts"], Facts)
            action = msgspec.convert({**data["action"], "args": {}}, Action)
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            return f"its action, facts or verdict cannot be read: {error}"
        if not verdict.bundle and verdict.rule == GATE:
            raise Undecidable("no bundle gave this verdict")
        bundle = self._bundle(verdict.bundle)
        if arguments_of(event):
            if args is None:
                raise Undecidable("its arguments were erased")
            action = msgspec.structs.replace(action, args=arguments(action.kind, args))
        again = _plain(decide(action, facts, bundle))
        recorded = _plain(verdict)
        different = [name for name in _COMPARED if again.get(name) != recorded.get(name)]
        return "; ".join(
            f"{name} was recorded as {_short(recorded.get(name))} and is {_short(again.get(name))}"
            for name in different
        )

    def _bundle(self, digest: str) -> Bundle:
        known = self._bundles.get(digest)
        if known is None:
            known = self._bundles[digest] = self._load(digest)
        if isinstance(known, str):
            raise Undecidable(known)
        return known

    def _load(self, digest: str) -> Bundle | str:
        try:
            data = self._blob(digest)
            if data is not None:
                return Bundle.from_bytes(data)
        except HoldfastError as error:
            self.damaged[digest] = str(error)
            return str(error)
        self.missing.add(digest)
        return f"the bundle {digest[:16]} is not in the store"


def arguments_of(event: Event) -> str:
    """Commitment to what was decided about; empty when there was nothing. An output is decided where the run ends."""
    payloads = event.payloads
    if event.kind == Kind.RUN_COMPLETED:
        # What the workflow returned, where the rules took something out of it.
        return payloads.get("returned") or payloads.get("output", "")
    return payloads.get("args", "")


def arguments(kind: str, payload: bytes) -> Mapping[str, Any]:
    """What ``action.args`` was, from the payload that was recorded for an action of this kind.

    Raises:
        Undecidable: the payload does not hold arguments.
    """
    try:
        value = load(payload)
    except HoldfastError as error:
        raise Undecidable(f"its arguments cannot be read: {error}") from None
    if kind in _WRAPPED:
        return {_WRAPPED[kind]: value}
    if not isinstance(value, dict):
        raise Undecidable("its arguments are not an object")
    if kind != "llm":
        return value
    try:
        return {
            "system": value.get("system", ""),
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in value.get("messages", ())],
            "categories": list(value.get("categories", ())),
        }
    except (KeyError, TypeError):
        raise Undecidable("its request to the model cannot be read") from None


def _plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict in the one form that JSON leaves of it."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(verdict))
    return plain


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else text[:117] + "…"
