"""PostgreSQL's frontend/backend protocol, version 3: messages, and how a client proves who it is. Pure.

https://www.postgresql.org/docs/current/protocol-message-formats.html; SCRAM-SHA-256 is RFC 5802 and RFC 7677.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
import unicodedata
from typing import NamedTuple

VERSION = 196_608
SSL_REQUEST = 80_877_103
GSS_REQUEST = 80_877_104
CANCEL_REQUEST = 80_877_102
MAX_STARTUP = 10_000
"""Bytes of a client's first message, as the server has it."""


class WireError(Exception):
    """The other side broke the protocol."""


class Startup(NamedTuple):
    """A client's first message: its code, and what follows."""

    code: int
    rest: bytes

    def parameters(self) -> dict[str, str]:
        """The parameters of a real startup.

        Raises:
            WireError: they are malformed.
        """
        parts = self.rest.split(b"\0")
        if parts[-2:] != [b"", b""] or len(parts) % 2:
            raise WireError("the startup message is malformed")
        try:
            words = [part.decode() for part in parts[:-2]]
        except UnicodeDecodeError:
            raise WireError("the startup message is no text") from None
        return dict(zip(words[::2], words[1::2], strict=True))


def message(kind: bytes, payload: bytes = b"") -> bytes:
    """A message's bytes."""
    return kind + struct.pack(">I", len(payload) + 4) + payload


def startup(parameters: dict[str, str]) -> bytes:
    """A client's first message."""
    words = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in parameters.items())
    return struct.pack(">II", len(words) + 9, VERSION) + words + b"\0"


def error(severity: str, code: str, text: str, detail: str = "") -> bytes:
    """An ErrorResponse. ``code`` is an SQLSTATE."""
    fields = {"S": severity, "V": severity, "C": code, "M": text, "D": detail}
    payload = b"".join(
        name.encode() + value.replace("\0", "").encode() + b"\0" for name, value in fields.items() if value
    )
    return message(b"E", payload + b"\0")


def fields(payload: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse."""
    return {part[:1].decode(): part[1:].decode("utf-8", "replace") for part in payload.split(b"\0") if part}


def text(data: bytes, start: int = 0) -> tuple[str, int]:
    """A zero-terminated text, and where it ends.

    Raises:
        WireError: there is none.
    """
    end = data.find(b"\0", start)
    if end < 0:
        raise WireError("a text does not end")
    try:
        return data[start:end].decode(), end + 1
    except UnicodeDecodeError:
        raise WireError("a text is not UTF-8") from None


class Bound(NamedTuple):
    """A Bind: which statement, and with which values (text, or hex of binary ones, None for null)."""

    portal: str
    statement: str
    values: list[str | None]


def bound(payload: bytes) -> Bound:
    """What a Bind binds.

    Raises:
        WireError: it is malformed.
    """
    try:
        portal, at = text(payload)
        statement, at = text(payload, at)
        (count,) = struct.unpack_from(">H", payload, at)
        formats = struct.unpack_from(f">{count}H", payload, at + 2)
        at += 2 + 2 * count
        (count,) = struct.unpack_from(">H", payload, at)
        at += 2
        values: list[str | None] = []
        for number in range(count):
            (size,) = struct.unpack_from(">i", payload, at)
            at += 4
            if size < 0:
                values.append(None)
                continue
            if at + size > len(payload):
                raise WireError("a value does not end")
            binary = bool(formats) and formats[0 if len(formats) == 1 else number] == 1
            raw = payload[at : at + size]
            values.append(raw.hex() if binary else raw.decode("utf-8", "replace"))
            at += size
    except (struct.error, IndexError):
        raise WireError("a Bind is malformed") from None
    return Bound(portal, statement, values)


def md5(user: str, password: str, salt: bytes) -> bytes:
    """The answer to AuthenticationMD5Password."""
    inner = hashlib.md5(password.encode() + user.encode(), usedforsecurity=False).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode() + b"\0"


class Scram:
    """The client's side of SCRAM-SHA-256, without channel binding."""

    MECHANISM = b"SCRAM-SHA-256"

    def __init__(self, password: str, nonce: str = "") -> None:
        self._password = unicodedata.normalize("NFKC", password).encode()
        self._nonce = nonce or secrets.token_urlsafe(18)
        self._bare = f"n=,r={self._nonce}"
        self._proof = b""
        self.checked = False
        """Whether the server has proved itself."""

    def first(self) -> bytes:
        """The payload of SASLInitialResponse."""
        data = f"n,,{self._bare}".encode()
        return self.MECHANISM + b"\0" + struct.pack(">I", len(data)) + data

    def final(self, challenge: bytes) -> bytes:
        """The payload of SASLResponse.

        Raises:
            WireError: the server's challenge is not one for us.
        """
        said = _attributes(challenge)
        nonce, rounds = said.get("r", ""), said.get("i", "")
        if not nonce.startswith(self._nonce) or nonce == self._nonce or not rounds.isdigit():
            raise WireError("the server's challenge is malformed")
        if not 4096 <= int(rounds) <= 1_000_000:
            raise WireError("the server asks for a number of rounds that is not reasonable")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(said.get("s", "")), int(rounds))
        key = hmac.digest(salted, b"Client Key", "sha256")
        without = f"c=biws,r={nonce}"
        signed = f"{self._bare},{challenge.decode()},{without}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        self._proof = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return f"{without},p={base64.b64encode(proof).decode()}".encode()

    def check(self, last: bytes) -> None:
        """Make sure that the server knows the password too.

        Raises:
            WireError: it does not.
        """
        given = base64.b64decode(_attributes(last).get("v", ""))
        if not self._proof or not hmac.compare_digest(given, self._proof):
            raise WireError("the server could not prove that it knows the password")
        self.checked = True


def _attributes(data: bytes) -> dict[str, str]:
    return {part[:1]: part[2:] for part in data.decode("utf-8", "replace").split(",") if part[1:2] == "="}
