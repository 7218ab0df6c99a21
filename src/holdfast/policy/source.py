"""YAML with positions: every value knows the line that it came from, so that an error can name it.

Scalars follow YAML 1.2's core schema: ``off``, ``on``, ``yes`` and ``no`` are text (``mode: off`` is a mode, not
false), and a fraction stays the decimal number that was written.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import yaml

from holdfast.errors import PolicyFileError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 64
_MAX_BRACKETS = 4 * MAX_DEPTH
_BRACKET = re.compile(r"[\[\]{}]")

Place = tuple[str | int, ...]
"""Where a value stands: keys and list indexes from the top."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong in a file."""

    file: str
    line: int
    key: str
    message: str
    """What is wrong and the cure."""

    def __str__(self) -> str:
        at = f"{self.file}:{self.line}" if self.line else self.file
        return f"{at}: {self.key}: {self.message}" if self.key else f"{at}: {self.message}"


def refuse(problems: list[Problem]) -> PolicyFileError:
    """The error for a file's problems: the first one, and how many more there are."""
    more = f" (and {len(problems) - 1} more; holdfast policy lint shows all)" if len(problems) > 1 else ""
    return PolicyFileError(f"{problems[0]}{more}")


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A file's value and the line of each part of it."""

    file: str
    value: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """The line of a value, or of the nearest thing around it that the file holds."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def problem(self, place: Place, message: str) -> Problem:
        """A problem at a place."""
        return Problem(file=self.file, line=self.line(place), key=spell(place), message=message)


def spell(place: Place) -> str:
    """A place as people write it: ``policies[2].with.limit``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        PolicyFileError: missing, unreadable, too large, not YAML, a key given twice.
    """
    return parse(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a policy file, and one more than there may be where it is too large.

    Raises:
        PolicyFileError: missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PolicyFileError(f"{path}: the policy file does not exist; correct the path, or leave it out") from None
    except OSError as error:
        raise PolicyFileError(f"{path}: the policy file cannot be read: {error.strerror}") from None


def parse(data: bytes, file: str) -> Document:
    """The document of a file's bytes.

    Raises:
        PolicyFileError: too large, not UTF-8 YAML, a key given twice.
    """
    if len(data) > MAX_BYTES:
        raise refuse(
            [Problem(file=file, line=0, key="", message=f"larger than {MAX_BYTES} bytes; split it into several files")]
        )
    try:
        text = data.decode("utf-8-sig")
        if _brackets(text) > _MAX_BRACKETS:
            raise refuse(
                [Problem(file=file, line=1, key="", message="brackets are nested too deep; simplify the file")]
            )
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise refuse([Problem(file=file, line=1, key="", message="the file is not UTF-8; save it as UTF-8")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        cause = error.problem or error.context or "not YAML"
        message = f"not YAML: {cause}; check the indentation and the quotes around here"
        raise refuse([Problem(file=file, line=mark.line + 1 if mark else 1, key="", message=message)]) from None
    except (yaml.YAMLError, RecursionError):
        raise refuse(
            [Problem(file=file, line=1, key="", message="not YAML that can be read; check it with an editor")]
        ) from None
    if node is None:
        raise refuse([Problem(file=file, line=1, key="", message="the file is empty; start with: version: 1")])
    builder = _Builder(file)
    value = builder.build(node, (), 0)
    return Document(file=file, value=value, lines=builder.lines)


def _brackets(text: str) -> int:
    """How deep brackets are nested, seen without quotes and comments: enough to keep the parser from taking minutes."""
    depth = deepest = 0
    for mark in _BRACKET.findall(text):
        depth = depth + 1 if mark in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to set them


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$"), list("-+.0123456789")
)


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._count = 0
        self.lines: dict[Place, int] = {}

    def build(self, node: yaml.Node, place: Place, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            raise self._refused(
                line, place, f"more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}; simplify the file"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, place, line)

    def _mapping(self, node: yaml.MappingNode, place: Place, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(line, place, "a key must be text")
            name = key.value
            if name in result:
                raise self._refused(line, (*place, name), "the key is given twice; remove one")
            self.lines[(*place, name)] = line
            result[name] = self.build(value, (*place, name), depth + 1)
        return result

    def _scalar(self, node: yaml.Node, place: Place, line: int) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        try:
            if kind == "str":
                return text
            if kind == "bool":
                return text == "true"
            if kind == "null":
                return None
            if kind == "int":
                return int(text)
            if kind == "float":
                return Decimal(text)
        except ValueError:
            raise self._refused(line, place, f"not a number: {text[:40]}") from None
        raise self._refused(line, place, f"the tag {node.tag} has no meaning here; remove it")

    def _refused(self, line: int, place: Place, message: str) -> PolicyFileError:
        return refuse([Problem(file=self._file, line=line, key=spell(place), message=message)])
