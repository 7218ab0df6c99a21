"""The ways in which a server may hand a secret back, and a server that does."""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import urllib.parse
from collections.abc import Callable

Spell = Callable[[str], bytes]


def _each(template: str) -> Spell:
    """Every byte written by a template."""
    return lambda secret: "".join(template.format(byte) for byte in secret.encode()).encode()


def _within(alphabet: Callable[[bytes], bytes], before: int) -> Spell:
    """base64 of a text that holds the secret after so many other bytes."""
    return lambda secret: alphabet(b"\xa7?>"[:before] + secret.encode() + b"\x00?\xff")


def _quoted(secret: str) -> str:
    return urllib.parse.quote(secret, safe="")


def _json(secret: str) -> str:
    return json.dumps(secret)[1:-1]


SPELLINGS: dict[str, tuple[str, Spell]] = {
    "as it is": ("plain", str.encode),
    "in capitals": ("plain", lambda secret: secret.encode().upper()),
    "percent, where needed": ("url", lambda secret: _quoted(secret).encode()),
    "percent, everything": ("url", _each("%{:02X}")),
    "percent, twice": ("url", lambda secret: _quoted(_quoted(secret)).encode()),
    "a form": ("url", lambda secret: urllib.parse.quote_plus(secret).encode()),
    "JSON": ("json", lambda secret: _json(secret).encode()),
    "JSON in JSON": ("json", lambda secret: _json(_json(secret)).encode()),
    "JSON, all escaped": ("json", lambda secret: "".join(f"\\u{ord(char):04x}" for char in secret).encode()),
    "C escapes": ("json", _each("\\x{:02x}")),
    "HTML": ("html", lambda secret: html.escape(secret).encode("ascii", "xmlcharrefreplace")),
    "HTML, all decimal": ("html", lambda secret: "".join(f"&#{ord(char)};" for char in secret).encode()),
    "HTML, all hex": ("html", lambda secret: "".join(f"&#x{ord(char):04X};" for char in secret).encode()),
    "quoted-printable": ("quoted-printable", _each("={:02X}")),
    "reversed": ("reversed", lambda secret: secret[::-1].encode()),
    "hex": ("hex", lambda secret: secret.encode().hex().encode()),
    "hex, capitals and colons": ("hex", lambda secret: secret.encode().hex(":").upper().encode()),
    "a list of numbers": ("decimal", lambda secret: json.dumps(list(secret.encode())).encode()),
    "a tight list of numbers": ("decimal", lambda secret: str(list(secret.encode())).replace(" ", "").encode()),
    "UTF-16, little": ("utf-16", lambda secret: secret.encode("utf-16-le")),
    "UTF-16, big": ("utf-16", lambda secret: secret.encode("utf-16-be")),
    "base64 of its own": ("base64", lambda secret: base64.b64encode(secret.encode())),
    "base64 with line breaks": ("base64", lambda secret: base64.encodebytes(b"x" * 50 + secret.encode())),
    "base64 in a URL": ("base64", lambda secret: _quoted(base64.b64encode(secret.encode()).decode()).encode()),
} | {
    f"base64{name}, {before} before": ("base64", _within(alphabet, before))
    for name, alphabet in (("", base64.b64encode), ("url", base64.urlsafe_b64encode))
    for before in range(3)
}
"""Name to what has to recognise it (:data:`holdfast.egress.spellings.ENCODINGS`), and how it is written."""

FRAMINGS = ("whole", "chunked", "gzip", "event", "error", "header", "redirect")
"""How :class:`Reflector` sends it."""


class Reflector:
    """Answers ``/FRAMING/NUMBER`` with what it got in a header, in the spelling of that number."""

    def __init__(self, header: str, elsewhere: Callable[[], str] = lambda: "/") -> None:
        self.header = header.lower()
        self.elsewhere = elsewhere
        """Where a redirect leads."""
        self.got: list[str] = []
        """What was in the header, request by request; empty: nothing."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        while True:
            raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in raw[1:-2])}
            await reader.readexactly(int(fields.get("content-length", "0")))
            secret = fields.get(self.header, "")
            self.got.append(secret)
            _, framing, number = raw[0].split(" ")[1].partition("?")[0].split("/")[-3:]
            await self._answer(writer, framing, list(SPELLINGS.values())[int(number)][1](secret))

    async def _answer(self, writer: asyncio.StreamWriter, framing: str, text: bytes) -> None:
        body = b'{"you sent": ">>' + text + b'<<"}'
        status, more = "200 OK", b""
        if framing == "header":
            # What a header cannot hold comes in the body.
            clean = b" ".join(text.split())
            more = b"X-You-Sent: " + clean + b"\r\n" if clean.isascii() and b"\0" not in clean else b""
        elif framing == "redirect":
            status = "302 Found"
            place = f"{self.elsewhere()}?key={urllib.parse.quote_from_bytes(text)}"
            more = f"Location: {place}\r\n".encode()
        elif framing == "error":
            status = "500 Internal Server Error"
        elif framing == "gzip":
            body, more = gzip.compress(body), b"Content-Encoding: gzip\r\n"
        elif framing == "event":
            body, more = b"event: said\ndata: " + body + b"\n\n", b"Content-Type: text/event-stream\r\n"
        head = f"HTTP/1.1 {status}\r\n".encode() + more
        if framing in ("chunked", "event"):
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 3):
                piece = body[at : at + 3]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
