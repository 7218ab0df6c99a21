"""``ctx.input``: the run's input, by attribute and by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

from holdfast.errors import UsageError

_METHODS = frozenset(name for name in dir(dict) if not name.startswith("_"))


class MissingInput(UsageError, AttributeError, KeyError):
    """The input has no such field. Also an AttributeError and a KeyError, so that ``hasattr`` and ``except`` work."""

    __str__ = Exception.__str__


class Input(dict[str, Any]):
    """An object of the input. ``ctx.input.items`` is the field ``items`` where there is one, else the dict's method."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and dict.__contains__(self, name):
            return dict.__getitem__(self, name)
        return dict.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        raise _missing(self, name)

    def __missing__(self, name: object) -> Any:
        raise _missing(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UsageError(f"the input is what the run was given; keep {name} in a variable of your own")

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[dict[str, Any]]]:
        return wrap, ({name: dict.__getitem__(self, name) for name in dict.__iter__(self)},)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[[Any], Any], tuple[dict[str, Any]]]:
        return self.__reduce__()


class Shadowing(list[Any]):
    """A list in a field that is named like a method of dict; callable as that method, for ``json.dumps`` calls it."""

    __slots__ = ("_method",)

    def __init__(self, value: list[Any], method: Callable[..., Any]) -> None:
        super().__init__(value)
        self._method = method

    def __call__(self, *args: Any) -> Any:
        return self._method(*args)

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return list, (list(self),)


def _missing(held: dict[str, Any], name: object) -> MissingInput:
    names = ", ".join(map(repr, dict.keys(held))) or "nothing"
    return MissingInput(f"the input has no {name!r}; it has {names[:500]}")


def wrap(value: Any) -> Any:
    """A JSON value with its objects as :class:`Input`."""
    if isinstance(value, dict):
        found = Input({name: wrap(item) for name, item in dict.items(value)})
        for name in _METHODS & dict.keys(value):
            if isinstance(item := found[name], list):
                found[name] = Shadowing(item, dict.__getattribute__(found, name))
        return found
    if isinstance(value, list):
        return [wrap(item) for item in value]
    return value
