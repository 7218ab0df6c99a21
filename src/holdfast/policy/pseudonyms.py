"""Pseudonyms: tokens in place of values, the same for one value of one tenant, and back again at the boundary.

A token is an HMAC-SHA-256 of type and value under the tenant's key, cut to 80 bits: without the key it cannot be
computed or tested, and two tenants never share one. The way back is not in the token: whoever made it keeps what it
stood for. Deciding needs no key: a verdict only says that a stretch becomes a pseudonym.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

_TOKEN = re.compile(r"<([A-Z][A-Z0-9_]{1,39}):([a-z2-7]{16})>")
_LEAST_KEY = 16


class Pseudonyms:
    """Tokens of one tenant under one key."""

    __slots__ = ("_key", "known")

    def __init__(self, key: bytes, tenant: str) -> None:
        """Derive the tenant's own key.

        Raises:
            ValueError: the key is shorter than 16 bytes.
        """
        if len(key) < _LEAST_KEY:
            raise ValueError(f"a key for pseudonyms needs at least {_LEAST_KEY} bytes")
        self.known: dict[str, str] = {}
        """What the tokens that were made here stood for: what :meth:`restore` needs, and what must stay outside."""
        self._key = hmac.digest(key, b"pseudonym\0" + tenant.encode(), hashlib.sha256)

    def token(self, kind: str, value: str) -> str:
        """``<TYPE:token>``. Separators and capitals of a value make no difference."""
        plain = "".join(char for char in value.casefold() if char.isalnum() or char in "@._+")
        if kind != "EMAIL_ADDRESS":
            plain = "".join(char for char in plain if char.isalnum())
        mac = hmac.digest(self._key, f"{kind}\0{plain}".encode(), hashlib.sha256)
        token = f"<{kind}:{base64.b32encode(mac[:10]).decode().lower()}>"
        self.known.setdefault(token, value)
        return token

    def restored(self, value: Any) -> Any:
        """A value with the tokens in all its texts turned back."""
        if isinstance(value, str):
            return self.restore(value) if "<" in value else value
        if isinstance(value, Mapping):
            return {key: self.restored(item) for key, item in value.items()}
        return [self.restored(item) for item in value] if isinstance(value, list | tuple) else value

    def restore(self, text: str) -> str:
        """The text with tokens turned back into what they stood for; unknown ones stay."""
        return _TOKEN.sub(lambda match: self.known.get(match[0], match[0]), text)
