"""Signed notes and checkpoints: a log's head as text that other tools can check.

Formats: C2SP signed-note (https://c2sp.org/signed-note) and tlog-checkpoint (https://c2sp.org/tlog-checkpoint), with
Ed25519 signatures (RFC 8032, signature type 0x01). Pure: keys come from the caller.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from urllib.parse import quote

import msgspec

from holdfast.errors import AuditError

ED25519 = b"\x01"
"""Signature type of Ed25519 in a key hash."""
MAX_NOTE = 64 << 10
"""Bytes of a note, at most: what is read may have been written by anyone."""

_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)

Sign = Callable[[bytes], bytes]
"""Ed25519 signature (64 bytes) of a message."""
Check = Callable[[bytes, bytes], bool]
"""Whether a signature (second) of a message (first) is good."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Head of a log: whose, how many events, and the root over all of them."""

    origin: str
    size: int
    root: bytes


class Signature(msgspec.Struct, frozen=True):
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A note taken apart. Nothing in it is to be believed before :func:`verified` said so."""

    text: str
    signatures: tuple[Signature, ...]


def origin(home: str, tenant: str) -> str:
    """Name of a tenant's log on a home: the first line of its checkpoints and the name of its key."""
    return f"holdfast/{home}/{quote(tenant, safe='')}"


def key_id(name: str, public: bytes) -> bytes:
    """Key hash: SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key), its first four bytes."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def checkpoint_text(head: Checkpoint) -> str:
    """The text of a checkpoint that is signed."""
    if _NAME.fullmatch(head.origin) is None:
        raise ValueError(f"{head.origin!r} cannot name a log: no spaces, no plus")
    return f"{head.origin}\n{head.size}\n{base64.b64encode(head.root).decode()}\n"


def sign_checkpoint(head: Checkpoint, public: bytes, sign: Sign) -> bytes:
    """A checkpoint as a signed note; the key's name is the origin."""
    text = checkpoint_text(head)
    line = base64.b64encode(key_id(head.origin, public) + sign(text.encode())).decode()
    return f"{text}\n— {head.origin} {line}\n".encode()


def parse(data: bytes) -> Note:
    """Take a note apart.

    Raises:
        AuditError: it is not a signed note; says what is wrong with it.
    """
    if len(data) > MAX_NOTE:
        raise AuditError(f"a note of {len(data)} bytes is not read; at most {MAX_NOTE}")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise AuditError("a note must be UTF-8 text") from None
    if any(ord(char) < 0x20 and char != "\n" for char in whole):
        raise AuditError("a note must not hold control characters")
    body, blank, tail = whole.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise AuditError("a note ends with a blank line and signature lines; they are missing")
    return Note(text=body + "\n", signatures=tuple(_signature(line) for line in tail[:-1].split("\n")))


def parse_checkpoint(text: str) -> Checkpoint:
    """The head that a note's text states.

    Raises:
        AuditError: it is not a checkpoint's text; says which line.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise AuditError("a checkpoint has the lines origin, size and root, none of them empty")
    if _SIZE.fullmatch(lines[1]) is None:
        raise AuditError(f"the size of a checkpoint is a number, not {lines[1][:40]!r}")
    root = _base64(lines[2])
    if root is None or len(root) != 32:
        raise AuditError("the root of a checkpoint is the Base64 of 32 bytes")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=root)


def verified(note: Note, name: str, public: bytes, check: Check) -> bool:
    """Whether the key (``name``, ``public``) signed the note. Signatures of other keys are ignored, as the format asks;
    a bad signature beside a good one of the same key fails the note.
    """
    wanted = key_id(name, public)
    mine = [item for item in note.signatures if item.name == name and item.key_id == wanted]
    text = note.text.encode()
    return bool(mine) and all(check(text, item.signature) for item in mine)


def _signature(line: str) -> Signature:
    head, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    blob = _base64(encoded)
    if head != "—" or _NAME.fullmatch(name) is None or blob is None or len(blob) < 5:
        raise AuditError("a signature line of a note is an em dash, the key's name and Base64; one is not")
    return Signature(name=name, key_id=blob[:4], signature=blob[4:])


def _base64(text: str) -> bytes | None:
    """Strict Base64: also what decodes but would be written otherwise is refused, so that one head has one text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None
