"""How a setting's value is written: durations, sizes, paths, choices, tables; and where in the file it stands."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from holdfast.errors import ConfigError

UNITS = {"us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
"""Microseconds in each unit of a duration."""
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
"""Bytes in each unit of a size."""


class Kind(msgspec.Struct, frozen=True):
    """How a value is written. The functions raise ValueError with words that go on "…  is"."""

    word: str
    parse: Callable[[Any, Path], Any]
    parse_text: Callable[[str, Path], Any] | None = None
    """From a variable; None: the key has none."""
    write: Callable[[Any], str] = str
    item: type[msgspec.Struct] | None = None
    """table: what stands under each name; section: what it is."""
    single: bool = False
    """section: one table, not one for each name."""


class Spec(msgspec.Struct, frozen=True):
    """One key of a section."""

    key: str
    kind: Kind
    help: str
    default: Any
    required: bool


def duration(value: Any, base: Path | None = None) -> int:
    """Microseconds of ``"30s"``, ``"1.5h"``, ``"200ms"``.

    Raises:
        ValueError: it is none.
    """
    return _measured(value, UNITS, 'a duration such as "30s" or "24h"')


def size(value: Any, base: Path | None = None) -> int:
    """Bytes of ``"512MiB"`` or a whole number of bytes.

    Raises:
        ValueError: it is none.
    """
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return _measured(value, SIZES, 'a size such as "512MiB" or "2GiB"')


def write_duration(value: int) -> str:
    """The shortest text of a number of microseconds."""
    return _written(value, UNITS, "0s")


def write_size(value: int) -> str:
    """The shortest text of a number of bytes."""
    return _written(value, {unit: SIZES[unit] for unit in ("B", "KiB", "MiB", "GiB")}, "0B")


def _written(value: int, units: dict[str, int], zero: str) -> str:
    for unit, factor in reversed(units.items()):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return zero


def _measured(value: Any, units: dict[str, int], want: str) -> int:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)", value.strip())):
        number, unit = match.groups()
        if unit in units:
            return int(Decimal(number) * units[unit])
    raise ValueError(f"{value!r}; write {want}")


def _text(value: Any, base: Path) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}; write text in quotes")
    return value


def _texts(value: Any, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f'{value!r}; write a list of texts, as ["a", "b"]')
    return tuple(value)


def _texts_text(value: str, base: Path) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _paths(value: Any, base: Path) -> tuple[Path, ...]:
    return tuple(base / Path(item).expanduser() for item in _texts(value, base))


def _paths_text(value: str, base: Path) -> tuple[Path, ...]:
    return tuple(base / Path(item).expanduser() for item in _texts_text(value, base))


def _path(value: Any, base: Path) -> Path:
    return base / Path(_text(value, base)).expanduser()


def _number(value: Any, base: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r}; write a number above 0")
    return float(value)


def _number_text(value: str, base: Path) -> float:
    try:
        return _number(float(value), base)
    except ValueError:
        raise ValueError(f"{value!r}; write a number above 0") from None


def _boolean(value: Any, base: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}; write true or false")
    return value


def _boolean_text(value: str, base: Path) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"{value!r}; write true or false")
    return value == "true"


def _price(value: Any, base: Path) -> int:
    try:
        nano = Decimal(str(value)) * 1000
    except InvalidOperation:
        nano = Decimal(-1)
    if isinstance(value, bool | str) or not nano.is_finite() or nano < 0 or nano != int(nano):
        raise ValueError(f"{value!r}; write US dollars per million tokens, in steps of 0.001, as 3.0")
    return int(nano)


def _sha256(value: Any, base: Path) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("not a SHA-256; write the 64 hex digits that `printf %s TOKEN | sha256sum` prints")
    return value.lower()


def _uids(value: Any, base: Path) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(uid) is int for uid in value)
        or not 1 <= value[0] <= value[1] < 2**32 - 1
    ):
        raise ValueError(f"{value!r}; write [first, last], two uids above 0")
    return value[0], value[1]


def _uids_text(value: str, base: Path) -> tuple[int, int]:
    first, _, last = value.partition("-")
    if not (first.strip().isdigit() and last.strip().isdigit()):
        raise ValueError(f"{value!r}; write first-last, two uids above 0")
    return _uids([int(first), int(last)], base)


def integer(low: int, high: int) -> Kind:
    """A whole number within bounds."""

    def parse(value: Any, base: Path) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r}; write a whole number from {low} to {high}")
        return value

    def parse_text(value: str, base: Path) -> int:
        return parse(int(value) if re.fullmatch(r"-?\d{1,18}", value) else value, base)

    return Kind("whole number", parse, parse_text)


def choice(*words: str) -> Kind:
    """One word of a list."""

    def parse(value: Any, base: Path) -> str:
        if value not in words:
            shown = [word for word in words if word]
            hint = nearest(str(value), shown, "")
            raise ValueError(f"{value!r}; write {'one of ' + ', '.join(shown)}" + (f" ({hint})" if hint else ""))
        return str(value)

    shown = " \\| ".join(f"`{word}`" for word in words if word)
    return Kind(shown, parse, parse)


def texts_like(word: str, pattern: str, cure: str) -> Kind:
    """A list of texts that all fit a regular expression."""

    def parse(value: Any, base: Path) -> tuple[str, ...]:
        found = _texts(value, base)
        if strange := [text for text in found if not re.match(pattern, text)]:
            raise ValueError(f"{strange[0]!r}; {cure}")
        return found

    return Kind(word, parse, None, _list)


def table(item: type[msgspec.Struct]) -> Kind:
    """A table for each name."""
    return Kind("tables", lambda value, base: value, None, item=item)


def section(item: type[msgspec.Struct]) -> Kind:
    """One table below a name."""
    return Kind("table", lambda value, base: value, None, item=item, single=True)


def _list(value: Iterable[Any]) -> str:
    return ", ".join(str(item) for item in value)


TEXT = Kind("text", _text, _text)
TEXTS = Kind("list of texts", _texts, _texts_text, _list)
PATHS = Kind("list of paths", _paths, _paths_text, _list)
PATH = Kind("path", _path, _path)
DURATION = Kind("duration", duration, duration, write_duration)
SIZE = Kind("size", size, size, write_size)
BOOLEAN = Kind("true or false", _boolean, _boolean_text, lambda value: str(value).lower())
NUMBER = Kind("number", _number, _number_text)
PRICE = Kind("dollars", _price, None)
SHA256 = Kind("hex digits", _sha256, None)
UID_RANGE = Kind("two uids", _uids, _uids_text)
LABEL = r"^(private|secret|phi|pan|untrusted|(tenant|region|source|topic):[A-Za-z0-9][A-Za-z0-9._-]{0,62})$"
"""What a label of data looks like."""
LABELS = texts_like("list of labels", LABEL, "write private, secret, phi, pan, untrusted, region:NAME, …")


@functools.cache
def fields(kind: type[msgspec.Struct]) -> dict[str, Spec]:
    """The keys of a section. A field whose annotation carries no kind is not a key."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(kind):
        carried = getattr(hints[field.name], "__metadata__", ())
        if not carried:
            continue
        default = None if field.required else field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found[field.name] = Spec(field.name, carried[0], carried[1], default, field.required)
    return found


def nearest(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A cure for a misspelt word: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known) or 'none'}" if otherwise is None else otherwise


S = TypeVar("S", bound=msgspec.Struct)


class Reader:
    """Turns tables of a parsed file into structs; knows the line of each key."""

    def __init__(self, text: str, name: str, base: Path) -> None:
        self._lines = lines(text)
        self._name = name
        self._base = base
        self.origins: dict[str, str] = {}

    def line(self, path: tuple[str, ...]) -> int:
        """Line of a key, or of the nearest table above it; 0: none."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 0

    def error(self, path: tuple[str, ...], what: str, cure: str) -> ConfigError:
        """An error at a key."""
        line = self.line(path)
        return ConfigError(f"{self._name}{f':{line}' if line else ''}: {what}; {cure}")

    def struct(self, kind: type[S], table: Any, path: tuple[str, ...]) -> S:
        """A section from its table.

        Raises:
            ConfigError: a key is unknown or missing, or a value cannot be used.
        """
        where = f"[{'.'.join(path)}]"
        if not isinstance(table, dict):
            raise self.error(path, f"{path[-1]} is {table!r}", f"write a table {where}")
        specs = fields(kind)
        values: dict[str, Any] = {}
        for key, value in table.items():
            at = (*path, key)
            if key not in specs:
                raise self.error(at, f"{where} {key} is not a setting", nearest(key, specs))
            spec = specs[key]
            if spec.kind.item is not None:
                read = self.struct if spec.kind.single else self.named
                values[key] = read(spec.kind.item, value, at)
                continue
            try:
                values[key] = spec.kind.parse(value, self._base)
            except ValueError as error:
                raise self.error(at, f"{where} {key} is {error}".partition(";")[0], _cure(error)) from None
            line = self.line(at)
            self.origins[".".join(at)] = f"{Path(self._name).name}:{line}" if line else Path(self._name).name
        for key, spec in specs.items():
            if spec.required and key not in values:
                raise self.error(path, f"{where} has no {key}", f"add {key} = …, {spec.help}")
        if "folder" in {field.name for field in msgspec.structs.fields(kind)}:
            values["folder"] = self._base
        return kind(**values)

    def named(self, kind: type[S], table: Any, path: tuple[str, ...]) -> dict[str, S]:
        """A section with a table for each name."""
        if not isinstance(table, dict):
            raise self.error(path, f"{path[-1]} is {table!r}", f"write tables [{'.'.join(path)}.NAME]")
        return {name: self.struct(kind, value, (*path, name)) for name, value in table.items()}


def _cure(error: ValueError) -> str:
    return str(error).partition("; ")[2]


_HEADER = re.compile(r"\s*\[\s*(?P<name>[^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(
    r"""\s*(?P<name>(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def lines(text: str) -> dict[tuple[str, ...], int]:
    """Line (from 1) of each table and key of a TOML text: good enough to point at, never to parse with."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := _HEADER.match(line):
            table = _parts(match["name"])
            found.setdefault(table, number)
        elif match := _KEY.match(line):
            found.setdefault((*table, *_parts(match["name"])), number)
    return found


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(name))
