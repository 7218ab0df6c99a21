"""AWS's binary event stream (``application/vnd.amazon.eventstream``), as Bedrock answers. Pure: bytes in, messages out.

A message is its total length and its headers' length (4 bytes each, big-endian), the CRC-32 of those, the headers, the
payload, and the CRC-32 of all before. https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
MAX_MESSAGE = 16 << 20
"""Bytes of one message, at most (the service's own limit is 16 MiB)."""
_PRELUDE = struct.Struct(">III")
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value, by type; 6 and 7 carry their length."""


class Message(NamedTuple):
    """One message: its text headers, and its payload."""

    headers: dict[str, str]
    payload: bytes


class Parser:
    """Cuts a byte stream into messages, however the stream was chunked."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that ``chunk`` completes.

        Raises:
            ValueError: a checksum or a length is wrong.
        """
        buffer = self._buffer
        buffer += chunk
        messages = []
        while len(buffer) >= _PRELUDE.size:
            total, head, check = _PRELUDE.unpack_from(buffer)
            if zlib.crc32(buffer[:8]) != check:
                raise ValueError("an event stream's prelude does not match its checksum")
            if not 16 + head <= total <= self._limit:
                raise ValueError(f"an event stream's message of {total} bytes is too long or too short")
            if len(buffer) < total:
                break
            if zlib.crc32(buffer[: total - 4]) != int.from_bytes(buffer[total - 4 : total], "big"):
                raise ValueError("an event stream's message does not match its checksum")
            messages.append(Message(_headers(bytes(buffer[12 : 12 + head])), bytes(buffer[12 + head : total - 4])))
            del buffer[:total]
        return messages


def encode(headers: dict[str, str], payload: bytes) -> bytes:
    """A message's bytes."""
    head = b"".join(
        bytes([len(name.encode())]) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack(">I", zlib.crc32(body))


def _headers(data: bytes) -> dict[str, str]:
    found = {}
    at = 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            name, kind = data[at + 1 : end].decode("utf-8", "replace"), data[end]
            at = end + 1
            if kind in (6, 7):
                size = int.from_bytes(data[at : at + 2], "big")
                at += 2
            else:
                size = _SIZES[kind]
            if at + size > len(data):
                raise IndexError
            if kind == 7:
                found[name] = data[at : at + size].decode("utf-8", "replace")
            at += size
    except (IndexError, KeyError):
        raise ValueError("an event stream's headers are malformed") from None
    return found
