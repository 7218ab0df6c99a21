"""Signatures of policy files: one line beside the file, over its SHA-256, by an Ed25519 key (RFC 8032).

``FILE.sig`` holds ``holdfast-policy-v1 KEYNAME SIGNATURE`` (base64). What is signed is ``holdfast-policy-v1``, a line
break, the file's SHA-256 in hex, and a line break: a signature of one purpose says nothing in another.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from holdfast.errors import PolicyFileError
from holdfast.values import sha256

SUFFIX = ".sig"
PURPOSE = "holdfast-policy-v1"
_MAX_BYTES = 4096


class Verifier(Protocol):
    """A public key."""

    @property
    def name(self) -> str:
        """What the key is called."""

    def check(self, message: bytes, signature: bytes) -> bool:
        """Whether the key's owner signed the message."""


def message(data: bytes) -> bytes:
    """What is signed for a file of these bytes."""
    return f"{PURPOSE}\n{sha256(data)}\n".encode()


def signature(data: bytes, name: str, sign: Callable[[bytes], bytes]) -> str:
    """The text of ``FILE.sig`` for a file of these bytes, signed by the key of that name."""
    return f"{PURPOSE} {name} {base64.b64encode(sign(message(data))).decode()}\n"


def signer(path: Path, data: bytes, trusted: Sequence[Verifier], *, required: bool) -> str:
    """The name of the trusted key that signed a file; empty when none did and none had to.

    Raises:
        PolicyFileError: it is required and missing, or a signature is there and does not hold.
    """
    beside = path.with_name(path.name + SUFFIX)
    cure = f"sign it: holdfast policy sign {path} --key KEY"
    try:
        with beside.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        if required:
            raise PolicyFileError(
                f"{path}: the file is not signed, and [policy] require_signed is on; {cure}"
            ) from None
        return ""
    except OSError as error:
        raise PolicyFileError(f"{beside}: the signature cannot be read: {error.strerror}; make it readable") from None
    if not trusted and not required:
        return ""
    parts = text.split()
    if len(parts) != 3 or parts[0] != PURPOSE:
        raise PolicyFileError(f"{beside}: it is no signature of a policy file; {cure}")
    key = next((one for one in trusted if one.name == parts[1]), None)
    if key is None:
        raise PolicyFileError(
            f"{path}: it is signed by {parts[1]}, which is none of [policy] trusted_keys; add that key, or sign it anew"
        )
    try:
        signed = base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError):
        signed = b""
    if not key.check(message(data), signed):
        raise PolicyFileError(
            f"{path}: the file is not what {parts[1]} signed; it was changed since. Look why, then {cure}"
        )
    return key.name
