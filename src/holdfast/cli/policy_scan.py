"""``holdfast policy scan``: lines in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from holdfast.policy.scan import Scan


class _Line(msgspec.Struct):
    text: str


_DECODER = msgspec.json.Decoder(_Line)


def lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a stream, without their ends; bytes that are no UTF-8 count as one unknown character each."""
    for line in stream:
        yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "replace")


def text_of(line: str) -> str:
    """What a line holds: the ``text`` of a JSON object, otherwise the line itself."""
    if line.lstrip().startswith("{"):
        try:
            return _DECODER.decode(line).text
        except msgspec.DecodeError:
            return line
    return line


def render(found: Scan) -> str:
    """The findings as one line of JSON."""
    result: dict[str, object] = {
        "findings": [
            {"type": one.type, "start": one.start, "end": one.end, "confidence": round(one.confidence, 2)}
            | ({"via": one.via} if one.via else {})
            for one in found.findings
        ]
    }
    if found.opaque:
        result["opaque"] = [{"start": blob.start, "end": blob.end, "why": blob.how} for blob in found.opaque]
    return msgspec.json.encode(result).decode()
