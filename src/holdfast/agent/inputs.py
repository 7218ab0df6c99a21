"""``ctx.input``: the run's input, by attribute and by key."""

from __future__ import annotations

from typing import Any

from holdfast.errors import UsageError


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


def _missing(held: dict[str, Any], name: object) -> MissingInput:
    names = ", ".join(map(repr, dict.keys(held))) or "nothing"
    return MissingInput(f"the input has no {name!r}; it has {names[:500]}")


def wrap(value: Any) -> Any:
    """A JSON value with its objects as :class:`Input`."""
    if isinstance(value, dict):
        return Input({name: wrap(item) for name, item in value.items()})
    if isinstance(value, list):
        return [wrap(item) for item in value]
    return value
