"""Chance whose seed is recorded, so that replay sees it again."""

from __future__ import annotations

import random
from collections.abc import Callable

from holdfast.agent.ops import Op
from holdfast.agent.sample import seed
from holdfast.agent.scope import require


class Random(random.Random):
    """A generator whose seed is recorded; calling it gives a float from 0 to 1."""

    def __call__(self) -> float:
        """A float from 0 (with) to 1 (without)."""
        return self.random()


def random_of(ask: Callable[[Op[int]], int]) -> Random:
    """The generator of the running scope; each branch and step has its own, so that none depends on scheduling."""
    scope = require()
    if scope.random is None:
        scope.random = Random(ask(seed()))
    return scope.random
