"""A connection to a PostgreSQL server, opened with a credential that the agent never sees.

The server's name is resolved by the tenant's guard and the checked address is dialled. Beyond this machine the
connection is encrypted and the server's certificate is verified; there is no downgrade.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable

from holdfast.egress.base import Guard, Refused
from holdfast.egress.oauth import is_loopback
from holdfast.egress.pgwire import SSL_REQUEST, Scram, WireError, md5, message, startup

TIMEOUT = 15.0
"""Seconds for the whole of it."""
MAX_MESSAGE = 1 << 20
"""Bytes of one message of a server before it is ready, at most."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[str, int], Awaitable[Streams]]
"""Opens a connection to a checked address and port."""


class Server:
    """A server that took the credential: its streams, and what it said up to ReadyForQuery."""

    def __init__(self, streams: Streams, hello: bytes, key: bytes) -> None:
        self.reader, self.writer = streams
        self.hello = hello
        """ParameterStatus, BackendKeyData and ReadyForQuery, as they came."""
        self.key = key
        """What a cancel request names: process and secret (8 bytes); empty: the server gave none."""


async def dial(address: str, port: int) -> Streams:
    """Open a TCP connection."""
    return await asyncio.open_connection(address, port)


async def read(reader: asyncio.StreamReader, limit: int = MAX_MESSAGE) -> tuple[bytes, bytes]:
    """The next message: its kind and payload.

    Raises:
        WireError: it is too long.
        asyncio.IncompleteReadError: the other side closed.
    """
    head = await reader.readexactly(5)
    size = int.from_bytes(head[1:], "big") - 4
    if not 0 <= size <= limit:
        raise WireError(f"a message of {size} bytes is too long")
    return head[:1], await reader.readexactly(size)


async def connect(
    host: str,
    port: int,
    user: str,
    password: str,
    parameters: dict[str, str],
    guard: Guard,
    *,
    context: ssl.SSLContext | None = None,
    dial: Dial = dial,
) -> Server:
    """Open a session.

    Raises:
        Refused: the server may not be dialled, cannot be reached, is not who it says, or refuses the credential.
    """
    address = (await guard.addresses(host, port))[0]
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await dial(address, port)
            try:
                if not is_loopback(host):
                    await _encrypt(reader, writer, host, context or ssl.create_default_context())
                writer.write(startup({**parameters, "user": user}))
                return await _prove((reader, writer), user, password)
            except BaseException:
                writer.close()
                raise
    except WireError as error:
        raise _refused(host, str(error)) from None
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise _refused(host, f"it cannot be reached ({type(error).__name__})") from None


async def _encrypt(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, context: ssl.SSLContext
) -> None:
    writer.write(struct.pack(">II", 8, SSL_REQUEST))
    if await reader.readexactly(1) != b"S":
        raise WireError("it offers no encryption, and a password is not sent without")
    try:
        await writer.start_tls(context, server_hostname=host)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or type(error).__name__
        raise WireError(f"its certificate is not accepted ({reason})") from None


async def _prove(streams: Streams, user: str, password: str) -> Server:
    reader, writer = streams
    scram: Scram | None = None
    hello, key = b"", b""
    ready = False
    while True:
        kind, payload = await read(reader)
        if kind == b"E":
            # Its words may tell an agent about accounts and rules that are none of its business.
            raise WireError("it refuses the credential, or the database" if not ready else "it broke off")
        if kind == b"R":
            code = int.from_bytes(payload[:4], "big")
            if code == 0:
                if scram is not None and not scram.checked:
                    raise WireError("it did not prove that it knows the password")
                ready = True
            elif code == 3:
                writer.write(message(b"p", password.encode() + b"\0"))
            elif code == 5:
                writer.write(message(b"p", md5(user, password, payload[4:8])))
            elif code == 10 and Scram.MECHANISM in payload[4:].split(b"\0"):
                scram = Scram(password)
                writer.write(message(b"p", scram.first()))
            elif code == 11 and scram is not None:
                writer.write(message(b"p", scram.final(payload[4:])))
            elif code == 12 and scram is not None:
                scram.check(payload[4:])
            else:
                raise WireError(f"it asks for a proof of another kind (code {code})")
        elif kind in b"SKNZ" and ready:
            hello += message(kind, payload)
            if kind == b"K":
                key = payload
            if kind == b"Z":
                return Server(streams, hello, key)
            if len(hello) > MAX_MESSAGE:
                raise WireError("it says too much before it is ready")
        elif kind not in b"NS":
            raise WireError(f"it sent {kind!r} before it was ready")


def _refused(host: str, why: str) -> Refused:
    return Refused(f"the database at {host} cannot be used: {why}.", kind="database", rule="database", status=502)
