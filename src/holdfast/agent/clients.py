"""Libraries that look at the proxy variables only when they are told to: told, once they are imported."""

from __future__ import annotations

import functools
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Finder(MetaPathFinder):
    """Finds what every other finder finds, and teaches it after it was run."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if fullname != "aiohttp":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Teacher(spec.loader)
        return spec


class _Teacher(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _trust_environment(module.ClientSession)


def _trust_environment(session: type) -> None:
    """aiohttp has ``trust_env``, which is off by default: a session that says nothing goes by the environment here."""
    start: Any = session.__init__  # type: ignore[misc]

    @functools.wraps(start)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{"trust_env": True, **kwargs})

    session.__init__ = __init__  # type: ignore[misc]


def teach() -> None:
    """From now on. Does nothing for what was imported before."""
    sys.meta_path.insert(0, _Finder())
