"""Server-sent events, as both providers stream their answers (WHATWG HTML, section 9.2.6). Pure: bytes in, events
out."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT = 4 << 20
"""Bytes of one event, at most."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its type (``message`` when the stream names none) and its data lines joined by line feeds."""

    name: str
    data: str


class Parser:
    """Cuts a byte stream into events, however the stream was chunked."""

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._tail = b""
        self._after_cr = False
        self._started = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that ``chunk`` completes.

        Raises:
            ValueError: an event is larger than the limit.
        """
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        data = self._tail + chunk
        if not self._started:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._tail = data
                return []
            self._started = True
            data = data.removeprefix(_BOM)
        lines = _LINE_END.split(data)
        self._tail = lines.pop()
        self._after_cr = data.endswith(b"\r")
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        if self._size + len(self._tail) > self._limit:
            raise ValueError(f"a streamed event is larger than {self._limit} bytes")
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(self._name or "message", "\n".join(self._data)))
            self._name, self._data, self._size = "", [], 0
            return
        self._size += len(line)
        if self._size > self._limit:
            raise ValueError(f"a streamed event is larger than {self._limit} bytes")
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if field == b"data":
            self._data.append(text)
        elif field == b"event":
            self._name = text
