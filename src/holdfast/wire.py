"""The broker's messages and framing: what a worker and its node say to each other over one channel.

A frame is a four-byte big-endian length and one msgpack message. Messages are tagged structs; the two directions have
their own unions, so neither side can be made to act on a message of its own kind. A value is canonical JSON bytes
(see :mod:`holdfast.values`); one that does not fit into a frame travels ahead as :class:`Blob` parts and is named by
its number. Calls are multiplexed by ``id``, which the worker counts up from 1; ``scope`` names the enclosing call
(0: the workflow itself), from which the node derives every step id: a worker cannot choose one.

The worker is untrusted. Everything here is bounded, and a message that does not decode ends the channel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from holdfast.errors import ProtocolError

VERSION = 1
MAX_FRAME = 1 << 20
"""Bytes in one frame, at most."""
BLOB_PART = 256 << 10
"""Bytes of one part of a large value."""
INLINE_VALUE = 512 << 10
"""A value up to this size travels in its message, a larger one as a blob."""
MAX_OPEN_CALLS = 4096
"""Calls that may be open at once on one channel."""
MAX_BLOBS = 64
"""Blobs that may be under way at once on one channel."""
WINDOW = 256
"""Chunks of one stream that the node sends ahead of the worker's credit."""

_HEADER = struct.Struct(">I")


class _Message(msgspec.Struct, frozen=True, array_like=True, omit_defaults=False):
    pass


class Value(msgspec.Struct, frozen=True, array_like=True):
    """A JSON value: its bytes, or the number of the blob that carries them."""

    data: bytes = b""
    blob: int = 0


class Retry(msgspec.Struct, frozen=True, array_like=True):
    """How often, and how long apart, something is tried."""

    attempts: int = 1
    backoff_us: int = 1_000_000
    factor: float = 2.0
    max_backoff_us: int = 60_000_000


# --- worker to node -----------------------------------------------------------------------------


class Ready(_Message, frozen=True, tag="ready"):
    """The first message: the interpreter is up and the channel open."""

    version: int
    pid: int
    python: str


class Loaded(_Message, frozen=True, tag="loaded"):
    """The author's code is imported. ``effects`` maps each ``@tool`` to its class and undo's name."""

    agent: str
    workflow: str
    effects: dict[str, tuple[str, str]] = {}


class Call(_Message, frozen=True, tag="call"):
    """Open a step: ask whether its body may run, or what it returned the last time."""

    id: int
    scope: int
    kind: str
    """step, decision or tool (an author's ``@tool``)."""
    name: str
    args: Value
    effect: str = "pure"
    undo: str = ""
    retry: Retry = Retry()
    timeout_us: int = 0


class Close(_Message, frozen=True, tag="close"):
    """The body ended. After ``error`` the worker waits for Go (another attempt) or Fault."""

    id: int
    value: Value = Value()
    error: str = ""
    """Empty: it returned. Otherwise the exception's type name."""
    message: str = ""
    code: str = ""
    """Code of the HoldfastError that left the body; empty for the author's own exception."""
    rule: str = ""


class Branch(_Message, frozen=True, tag="branch"):
    """A branch of ``gather``: a scope of its own, so that ids do not depend on scheduling. No reply."""

    id: int
    scope: int
    group: int
    """Counts the gathers of the enclosing scope from 1."""
    index: int


class Llm(_Message, frozen=True, tag="llm"):
    """A model call: ``request`` is the JSON of :class:`holdfast.llm.base.LLMRequest`, the reply that of LLMResponse."""

    id: int
    scope: int
    operation: str
    request: Value
    stream: bool = False
    retry: Retry = Retry(attempts=3)
    timeout_us: int = 120_000_000


class Tool(_Message, frozen=True, tag="tool"):
    """A connector's call: ``args`` is an object, the reply what it returned."""

    id: int
    scope: int
    name: str
    args: Value
    retry: Retry = Retry()
    timeout_us: int = 60_000_000


class Approve(_Message, frozen=True, tag="approve"):
    """Wait for people. ``what`` is shown to them, bound by digest. Reply: {"approved", "by": [], "reason", "state"}."""

    id: int
    scope: int
    what: Value
    approvers: tuple[str, ...] = ()
    quorum: int = 1
    ttl_us: int = 86_400_000_000
    on_expiry: str = "deny"
    escalate_to: tuple[str, ...] = ()
    verb: str = "approve"  # or declassify: ``what`` is then {"label", "reason"}


class Ask(_Message, frozen=True, tag="ask"):
    """Wait for a person's free answer: the reply. Fault (timeout) when none came in time."""

    id: int
    scope: int
    question: Value
    ttl_us: int = 0


class Signal(_Message, frozen=True, tag="signal"):
    """Send a signal to another run of the same tenant. Reply: whether that run was there to take it."""

    id: int
    scope: int
    run: str
    name: str
    data: Value


class WaitSignal(_Message, frozen=True, tag="wait_signal"):
    """Wait for a signal by name: its data is the reply. A ``timeout_us`` of 0 waits for ever; else Fault (timeout)."""

    id: int
    scope: int
    name: str
    timeout_us: int = 0


class Sleep(_Message, frozen=True, tag="sleep"):
    """Wait for a while."""

    id: int
    scope: int
    duration_us: int


class Sample(_Message, frozen=True, tag="sample"):
    """Something that replay must see again: now (microseconds), random (seed below 2**53), uuid, a patch's version."""

    id: int
    scope: int
    what: str
    name: str = ""
    highest: int = 0


class Spawn(_Message, frozen=True, tag="spawn"):
    """Start a child run. Replies with its run id at once; :class:`Join` waits for it."""

    id: int
    scope: int
    target: str
    """``module:Class`` of the same deployment."""
    workflow: str
    input: Value
    budget_nano: int = 0
    """A ceiling for the child, in nano-dollars; 0: only the policies' own."""
    authority: tuple[str, ...] | None = None  # what the child may do; None: what its parent may


class Join(_Message, frozen=True, tag="join"):
    """Wait for a child run's output."""

    id: int
    scope: int
    run: str


class Memory(_Message, frozen=True, tag="memory"):
    """Lasting key-value memory of the agent (per tenant and agent): get (null: none), set, delete, keys (by prefix)."""

    id: int
    scope: int
    operation: str
    key: str = ""
    value: Value = Value()


class File(_Message, frozen=True, tag="file"):
    """Artefacts: read, write, list (by prefix), delete, collect (from the workspace). Bytes travel as they are."""

    id: int
    scope: int
    operation: str
    name: str = ""
    data: Value = Value()


class Balance(_Message, frozen=True, tag="balance"):
    """What is left of the run's budgets, recorded. Reply: {"usd_nano", "tokens"}; null where nothing limits it."""

    id: int
    scope: int


class Compensate(_Message, frozen=True, tag="compensate"):
    """Undo the compensable effects so far. Reply: [{"kind": "tool" or "connector", "name": the undo's, "args": {},
    "result"}], latest first; the worker calls each, gated and recorded like any other."""

    id: int
    scope: int


class Continue(_Message, frozen=True, tag="continue"):
    """Start the workflow anew with another input and an empty history, in the same run."""

    id: int
    input: Value


class Log(_Message, frozen=True, tag="log"):
    """A line of the author's log, or printed (fields: {"stream"}). No reply. A replay says its lines again."""

    level: str
    message: str
    fields: Value = Value()


class Idle(_Message, frozen=True, tag="idle"):
    """Every branch is blocked on a parked call: the process is not needed."""

    waiting: tuple[int, ...]


class Cancel(_Message, frozen=True, tag="cancel"):
    """The worker no longer wants the answer of ``id``."""

    id: int


class Credit(_Message, frozen=True, tag="credit"):
    """The worker took ``count`` chunks of stream ``id``; the node may send as many more."""

    id: int
    count: int


class Done(_Message, frozen=True, tag="done"):
    """The workflow returned."""

    value: Value


class Failed(_Message, frozen=True, tag="failed"):
    """The workflow raised. ``code`` is the code of a HoldfastError, otherwise empty."""

    error: str
    """The exception's type name."""
    message: str
    trace: str = ""
    code: str = ""
    rule: str = ""


# --- both ways ----------------------------------------------------------------------------------


class Blob(_Message, frozen=True, tag="blob"):
    """A part of a large value, in order."""

    number: int
    data: bytes
    last: bool


# --- node to worker -----------------------------------------------------------------------------


class Begin(_Message, frozen=True, tag="begin"):
    """Load this and run it. Answers :class:`Ready`."""

    version: int
    run: str
    tenant: str
    root: str
    """Folder of the code inside the boundary; the first entry of ``sys.path``."""
    target: str
    """``module:Class``, or ``relative/file.py:Class`` below ``root``."""
    workflow: str
    """Empty: the only one."""
    input: Value
    settings: dict[str, str] = {}


class Go(_Message, frozen=True, tag="go"):
    """The body of ``id`` may run. ``key`` is its idempotency key."""

    id: int
    attempt: int
    key: str


class Reply(_Message, frozen=True, tag="reply"):
    """The outcome of ``id``, fresh or recorded."""

    id: int
    value: Value
    replayed: bool = False


class Chunk(_Message, frozen=True, tag="chunk"):
    """A piece of text of stream ``id``; the :class:`Reply` ends it."""

    id: int
    text: str


class Parked(_Message, frozen=True, tag="parked"):
    """``id`` waits for a person, a signal, a child or a timer: it counts for :class:`Idle`."""

    id: int


class Fault(_Message, frozen=True, tag="fault"):
    """``id`` failed: raised in the author's code as the error of that ``code``."""

    id: int
    code: str
    message: str
    rule: str = ""


FromWorker = (
    Ready | Loaded | Call | Close | Branch | Llm | Tool | Approve | Ask | Signal | WaitSignal | Sleep | Sample | Spawn
    | Join | Memory | File | Balance | Compensate | Continue | Log | Idle | Cancel | Credit | Done | Failed | Blob
)  # fmt: skip
FromNode = Begin | Go | Reply | Chunk | Parked | Fault | Blob

worker_decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
node_decoder: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M")


def frame(message: FromWorker | FromNode) -> bytes:
    """The bytes of one message on the channel.

    Raises:
        ProtocolError: the message is larger than a frame may be.
    """
    body = _encoder.encode(message)
    size = len(body)
    if size > MAX_FRAME:
        raise ProtocolError(f"a message of {size} bytes does not fit into a frame of {MAX_FRAME}; send a blob")
    return size.to_bytes(4, "big") + body


class Deframer:
    """Cuts a byte stream into frames. Pure: bytes in, message bodies out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes as they came from the channel."""
        self._buffer += data

    def __iter__(self) -> Iterator[bytes]:
        """The bodies of all whole frames so far, each once, also when the loop over them is left early.

        Raises:
            ProtocolError: a frame announces more than MAX_FRAME bytes, or none.
        """
        buffer = self._buffer
        start, end = 0, len(buffer)
        try:
            while end - start >= 4:
                (size,) = _HEADER.unpack_from(buffer, start)
                if not 0 < size <= MAX_FRAME:
                    raise ProtocolError(f"a frame of {size} bytes; 1 to {MAX_FRAME} are allowed")
                if end - start - 4 < size:
                    break
                start += 4 + size
                yield bytes(buffer[start - size : start])
        finally:
            del buffer[:start]

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)


class BlobReader:
    """Puts the parts of large values together, within bounds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: dict[int, bytearray] = {}
        self._whole: dict[int, bytes] = {}
        self._held = 0

    def add(self, part: Blob) -> None:
        """Take a part.

        Raises:
            ProtocolError: more blobs or bytes than may be under way at once.
        """
        if part.number in self._whole or part.number <= 0:
            raise ProtocolError(f"blob {part.number} was sent twice or has no number")
        held = self._parts.setdefault(part.number, bytearray())
        held += part.data
        self._held += len(part.data)
        if len(self._parts) + len(self._whole) > MAX_BLOBS or self._held > self._limit:
            raise ProtocolError(f"large values under way exceed {MAX_BLOBS} or {self._limit} bytes together")
        if part.last:
            self._whole[part.number] = bytes(self._parts.pop(part.number))

    def take(self, value: Value) -> bytes:
        """The bytes of a value, from its message or from its blob, which is then forgotten.

        Raises:
            ProtocolError: the blob did not arrive before the message that names it.
        """
        if not value.blob:
            return value.data
        data = self._whole.pop(value.blob, None)
        if data is None:
            raise ProtocolError(f"blob {value.blob} was named before it was sent")
        self._held -= len(data)
        return data


def pack(data: bytes, number: int) -> tuple[list[Blob], Value]:
    """A value ready to send: the blob parts that go ahead (none when it is small) and its reference."""
    if len(data) <= INLINE_VALUE:
        return [], Value(data)
    cuts = range(0, len(data), BLOB_PART)
    return [Blob(number, data[at : at + BLOB_PART], at + BLOB_PART >= len(data)) for at in cuts], Value(b"", number)


def decode(decoder: msgspec.msgpack.Decoder[M], body: bytes) -> M:
    """Decode one frame's body.

    Raises:
        ProtocolError: it is not a message of this direction; says what was wrong, never the content.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:  # ValueError: no UTF-8
        raise ProtocolError(f"a message does not decode: {error}") from None


def describe(message: Any) -> str:
    """The tag of a message, for errors and logs."""
    return str(type(message).__struct_config__.tag)
