"""Layers of policies: built-in, organisation, tenant, agent, run. A lower one may tighten, not loosen, unless allowed.

Each layer is a list of files. Its rules are added to those above it; one with the id of a rule above takes that one's
place when it is at least as strict, or when the rule above says that this layer may loosen it. What came of the layers
is one bundle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from holdfast.policy.bundle import Bundle, builtin
from holdfast.policy.model import PROFILES, Checked, clashes, examine, one
from holdfast.policy.profiles import compose, looser, named
from holdfast.policy.source import Document, Problem, parse, read_bytes, refuse

NAMES = ("organisation", "tenant", "agent", "run")
"""Layers that files make, upper ones first. Built-in policies stand only where none of them names a file."""
OPENING = ("egress_allowlist", "break_glass")
"""Categories whose rules open something: a lower layer may not add the first of a kind."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one layer."""

    name: str
    files: tuple[Path, ...] = ()


class Stacked(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, and the layer that it comes from."""

    item: Checked
    layer: str


Check = Callable[[Path, bytes], None]
"""Raises PolicyFileError when the bytes of a file must not be used: its signature."""


def load(layers: Sequence[Layer], *, check: Check | None = None, profiles: Path = PROFILES) -> Bundle:
    """The bundle of some layers, upper ones first; without any file the built-in one.

    Raises:
        PolicyFileError: a file is missing, wrong, not signed, or loosens what it may not; names file, line and cure.
    """
    if not any(layer.files for layer in layers):
        return builtin()
    return Bundle([found.item for found in stack(layers, check=check, profiles=profiles)])


def stack(layers: Sequence[Layer], *, check: Check | None = None, profiles: Path = PROFILES) -> list[Stacked]:
    """Every rule that stands, with its layer.

    Raises:
        PolicyFileError: as :func:`load`.
    """
    standing: dict[str, Stacked] = {}
    openings: dict[str, set[str]] = {}
    above = False
    for layer in layers:
        documents = [_document(path, check) for path in layer.files]
        problems: list[Problem] = []
        found: list[Checked] = []
        regimes = []
        for document in documents:
            good, wrong = examine(document)
            which, more = named(document, profiles)
            found += good
            regimes += which
            problems += [*wrong, *more]
        problems += clashes(found)
        for item in found:
            problems += _refused(item, layer.name, standing, openings) if above else ()
        if problems:
            raise refuse(problems)
        for item in found:
            standing[item.policy.id] = Stacked(item=_settled(item, layer.name), layer=layer.name)
        composed = compose([kept.item for kept in standing.values()], regimes)
        if composed.problems:
            raise refuse(composed.problems)
        for item in composed.checked:
            standing.setdefault(item.policy.id, Stacked(item=item, layer=layer.name))
        for document in documents:
            for category, names in (document.value.get("opened_by") or {}).items():
                openings.setdefault(category, set()).update(names)
        above = above or bool(layer.files)
    return list(standing.values())


def _document(path: Path, check: Check | None) -> Document:
    data = read_bytes(path)
    if check is not None:
        check(path, data)
    return parse(data, str(path))


def _settled(item: Checked, layer: str) -> Checked:
    """A run's own rules are its own for good: no file in force later takes them away."""
    if layer != "run" or item.policy.in_flight == "pin":
        return item
    return msgspec.structs.replace(item, policy=item.policy.model_copy(update={"in_flight": "pin"}))


def _refused(
    item: Checked, layer: str, standing: dict[str, Stacked], openings: dict[str, set[str]]
) -> Iterable[Problem]:
    """Why a lower layer may not say this."""
    policy, upper = item.policy, standing.get(item.policy.id)
    if upper is not None:
        if layer in upper.item.policy.loosened_by:
            return
        place = f"{upper.item.file}:{upper.item.line}" if upper.item.file else "built in"
        for why in looser(item, upper.item):
            message = (
                f"{why}: the layer {layer} may not loosen {policy.id} of the layer {upper.layer} ({place}); make it as "
                f"strict, or let {policy.id} say loosened_by: [{layer}] there"
            )
            yield Problem(file=item.file, line=item.line, key=policy.id, message=message)
    elif policy.category in OPENING and policy.mode == "enforce":
        if layer in openings.get(policy.category, ()):
            return
        if policy.category == "egress_allowlist" and any(
            kept.item.policy.category == policy.category and kept.item.policy.mode == "enforce"
            for kept in standing.values()
        ):
            return
        message = (
            f"the layer {layer} may not open anything with {policy.category}; let an upper layer have such a rule, or "
            f"say opened_by: {{{policy.category}: [{layer}]}} there"
        )
        yield Problem(file=item.file, line=item.line, key=policy.id, message=message)


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """What policies in force later change for a run that began under others."""

    bundle: Bundle
    changed: tuple[str, ...]
    """Ids of the rules that are new, other, or gone."""
    immediate: bool
    """Whether one of them is to be heard about what is under way, too."""


@functools.lru_cache(maxsize=256)
def shift(pinned: Bundle, standing: Bundle) -> Shift | None:
    """What a run that is pinned to a bundle goes on under, as each rule's ``in_flight`` has it; None: nothing changes.

    A rule that the run was pinned to for good (``pin``) is only ever tightened.
    """
    if pinned.digest == standing.digest:
        return None
    old, new = _plain(pinned), _plain(standing)
    result = dict(old)
    changed: dict[str, str] = {}
    for id_, policy in new.items():
        how, before = _how(policy), old.get(id_)
        if how == "pin" or policy == before:
            continue
        if before is not None and _how(before) == "pin" and looser(one(policy), one(before)):
            continue
        result[id_], changed[id_] = policy, how
    for id_, policy in old.items():
        if id_ not in new and _how(policy) != "pin":
            del result[id_]
            changed[id_] = _how(policy)
    if not changed:
        return None
    bundle = Bundle([one(policy, "pinned bundle") for policy in result.values()])
    return Shift(bundle=bundle, changed=tuple(sorted(changed)), immediate="immediate" in changed.values())


def _plain(bundle: Bundle) -> dict[str, dict[str, Any]]:
    return {policy["id"]: policy for policy in msgspec.json.decode(bundle.to_bytes())["policies"]}


def _how(policy: dict[str, Any]) -> str:
    return str(policy.get("in_flight", "pin"))
