"""Events: their kinds and their canonical bytes, fixed at the time of writing.

An event is at once the checkpoint and the audit record. Its bytes are JSON with sorted keys, only text, integers,
booleans, null, lists and objects: RFC 8785 form. The leaf of an event is SHA-256(0x00 ‖ bytes) (RFC 9162); ``prev`` is
the leaf of the event before it in its stream, ``index`` its place in its tenant's log. Payloads stand apart:
``payloads`` maps a role to SHA-256(nonce ‖ payload).
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any

import msgspec

VERSION = 1
GENESIS = "0" * 64
"""``prev`` of a stream's first event."""


class Kind(enum.StrEnum):
    """Every kind of event. ``data`` of each is described where it is folded (:mod:`holdfast.journal.fold`)."""

    RUN_CREATED = "run.created"
    RUN_REFUSED = "run.refused"
    RUN_CLAIMED = "run.claimed"
    RUN_STARTED = "run.started"
    INTENT = "intent"
    OUTCOME = "outcome"
    VERDICT = "verdict"
    """A verdict that led to no intent: denied, or waiting for approval."""
    ATTEMPT_FAILED = "attempt.failed"
    WAIT = "wait"
    """An approval, question, signal, timer or child is waited for."""
    INBOX = "inbox"
    """An item of the inbox was consumed."""
    SAMPLE = "sample"
    LOG = "log"
    RUN_SUSPENDED = "run.suspended"
    RUN_CONTINUED = "run.continued"
    RUN_DIVERGED = "run.diverged"
    RUN_IN_DOUBT = "run.in_doubt"
    RUN_RESOLVED = "run.resolved"
    RUN_UNDOING = "run.undoing"
    """A kill ends the run, and its compensable effects are undone first."""
    WORKER_LOST = "worker.lost"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_DENIED = "run.denied"
    RUN_TERMINATED = "run.terminated"
    RUN_KILLED = "run.killed"
    TENANT_CREATED = "tenant.created"
    DEPLOYMENT_PINNED = "deployment.pinned"
    BUNDLE_PINNED = "bundle.pinned"
    GLASS_ASKED = "glass.asked"
    """What these hold is said where they are folded (:mod:`holdfast.policy.glass`)."""
    GLASS_JOINED = "glass.joined"
    GLASS_CLOSED = "glass.closed"
    GLASS_REVIEWED = "glass.reviewed"
    KILL_ISSUED = "kill.issued"
    KILL_LIFTED = "kill.lifted"
    SECRET_SET = "secret.set"  # noqa: S105
    SECRET_REMOVED = "secret.removed"  # noqa: S105


class Witness(enum.StrEnum):
    """Who saw the fact."""

    NODE = "node"
    BOUNDARY = "boundary"
    IN_PROCESS = "in-process"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it stands in the journal."""

    v: int
    tenant: str
    stream: str
    seq: int
    """Place in the stream, from 1."""
    index: int
    """Place in the tenant's log, from 0."""
    epoch: int
    """Of the stream's owner when it wrote this."""
    kind: str
    at: int
    """Microseconds since the Unix epoch, by the writer's clock."""
    clock_error: int
    """Bound of that clock's error in microseconds; -1: unknown."""
    node: str
    witness: str
    principal: str
    auth: str
    """How the principal was authenticated: ``peer-uid:N``, ``system``, …"""
    prev: str
    data: dict[str, Any]
    payloads: dict[str, str]


_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """Canonical bytes of an event."""
    return _encoder.encode(event)


def decode(data: bytes) -> Event:
    """The event of canonical bytes.

    Raises:
        msgspec.DecodeError: they are not an event's.
    """
    return _decoder.decode(data)


def leaf(data: bytes) -> str:
    """Leaf hash (RFC 9162, 2.1.1) of an event's bytes, in hex."""
    return hashlib.sha256(b"\x00" + data).hexdigest()


def commitment(nonce: bytes, payload: bytes) -> str:
    """Salted commitment to a payload: SHA-256(nonce ‖ payload), in hex."""
    return hashlib.sha256(nonce + payload).hexdigest()
