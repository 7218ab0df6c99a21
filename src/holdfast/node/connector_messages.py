"""What a node and its connector process say to each other over their socket pair: msgpack behind a four-byte length.

Both sides are the operator's, yet what a connector sends is bounded and validated as anything else from another
process.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

import msgspec

from holdfast.errors import ProtocolError

VERSION = 1
MAX_FRAME = 24 << 20
"""Bytes of one message: arguments and a result of the largest recorded value, for an undo."""

_HEADER = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Setup(_Message, frozen=True, tag="setup"):
    """The first message to the process: what to import, as ``file.py:function`` below its working directory."""

    version: int
    targets: tuple[str, ...]


class Invoke(_Message, frozen=True, tag="invoke"):
    """Call a target."""

    id: int
    target: str
    args: bytes
    """JSON object."""
    key: str
    """Idempotency key."""
    dial_by: int
    """CLOCK_BOOTTIME in microseconds: a call that did not start by then does not start."""
    result: bytes = b""
    """JSON of what is to be undone; empty for a plain call."""


class Cancel(_Message, frozen=True, tag="cancel"):
    """Nobody waits for this call any more, or its time is up."""

    id: int


class Ready(_Message, frozen=True, tag="ready"):
    """Everything is imported. ``faults`` says of a target why it cannot be called."""

    version: int
    faults: dict[str, str]


class Result(_Message, frozen=True, tag="result"):
    """It returned."""

    id: int
    value: bytes


class Failure(_Message, frozen=True, tag="failure"):
    """It did not return."""

    id: int
    message: str
    sent: bool
    """Whether the callable was entered."""
    retryable: bool = False
    timeout: bool = False
    trace: str = ""
    """Places without values, for the node's log."""


class Stuck(_Message, frozen=True, tag="stuck"):
    """A cancelled call cannot be ended: it runs in a thread."""

    id: int


ToHost = Setup | Invoke | Cancel
FromHost = Ready | Result | Failure | Stuck

host_decoder: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)
node_decoder: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)

M = TypeVar("M")


def frame(message: ToHost | FromHost) -> bytes:
    """The bytes of one message.

    Raises:
        ProtocolError: it is larger than a frame may be.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a connector's message of {len(body)} bytes; at most {MAX_FRAME} are allowed")
    return _HEADER.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
    """The next message; None at the end of the stream.

    Raises:
        ProtocolError: it is too large or does not decode.
    """
    try:
        (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if not 0 < size <= MAX_FRAME:
            raise ProtocolError(f"a connector's message of {size} bytes; 1 to {MAX_FRAME} are allowed")
        return decoder.decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"a connector's message does not decode: {error}") from None
