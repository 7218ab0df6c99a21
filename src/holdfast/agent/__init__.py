"""What runs inside the boundary: the author's decorators, ``ctx``, and the worker that drives them.

Starts in every sandbox, so it imports :mod:`holdfast.wire`, :mod:`holdfast.values` and :mod:`holdfast.errors` only, and
asyncio not before an ``async def`` is run.

``from holdfast import agent`` is the decorator, and ``holdfast.agent`` is this package: one name, which Python gives to
whichever is loaded last. So the package can be called, and is the decorator.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *args: Any, **given: Any) -> Any:
        from holdfast.agent.definition import agent

        return agent(*args, **given)


sys.modules[__name__].__class__ = _Package
