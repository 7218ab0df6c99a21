"""The rules of one gate in order, and one look that tells whether any of their conditions holds at all.

Most conditions of most steps do not hold, and to ask each of them costs more than what they compute. So they are also
compiled together, as ``!(a) && !(b) && …``: true means that every one of them is false, without an error, and their
rules have nothing to say. Any other answer says nothing, and each rule is asked by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from holdfast.policy.categories.base import Rule
from holdfast.policy.cel import ConditionError, compiled
from holdfast.policy.conditions import Condition, Scene
from holdfast.policy.fields import Getter

LEAST = 3
"""Conditions below which each is asked by itself."""
MOST = 16
"""Conditions of one expression, at most: the engine's parser is recursive."""


class Plan(tuple[Rule, ...]):
    """The rules at a gate that are to be asked. A tuple that remembers what saves work."""

    @functools.cached_property
    def quiet(self) -> Quiet | None:
        """The look over their conditions; None where it would save nothing."""
        found = [rule.when for rule in self if isinstance(rule.when, Condition) and rule.when.flat]
        if len(found) < LEAST:
            return None
        try:
            return Quiet(found)
        except ConditionError:
            return None

    @functools.cached_property
    def always(self) -> tuple[Rule, ...]:
        """The rules that have to be asked when it is quiet."""
        return tuple(rule for rule in self if not (isinstance(rule.when, Condition) and rule.when.flat))


class Quiet:
    """Conditions that are asked together."""

    __slots__ = ("_moving", "_programs")

    def __init__(self, conditions: Sequence[Condition]) -> None:
        """Compile.

        Raises:
            ConditionError: the engine does not take them together.
        """
        moving: dict[str, Getter] = {}
        for condition in conditions:
            moving.update(condition.moving)
        self._moving = tuple(moving.items())
        self._programs: list[Any] = [
            _together(conditions[start : start + MOST]) for start in range(0, len(conditions), MOST)
        ]

    def __call__(self, scene: Scene) -> bool:
        """Whether each condition is false. False: not known."""
        action, facts, values = scene.action, scene.facts, scene.values
        try:
            for name, getter in self._moving:
                value = getter(action, facts)
                if value is None:
                    values.pop(name, None)
                else:
                    values[name] = value
            for program in self._programs:
                if program.execute(scene.context) is not True:
                    return False
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - an error of one of them is met again where it is asked by itself
            return False
        return True


def _together(conditions: Sequence[Condition]) -> Any:
    # The line's end closes a comment at the end of a condition.
    return compiled(" && ".join(f"!({condition.flat}\n)" for condition in conditions))
