"""One way out: whose it is, what it may, and the connections that belong to it."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any

from holdfast.egress.base import Body, Door, Dressed, Guard, Limits, Outfitter, Refused, RequestHead
from holdfast.egress.http2_upstream import Http2Sender
from holdfast.egress.stream import Stream, Sweeper
from holdfast.egress.tls import Authority, UpstreamTls
from holdfast.egress.upstream import Http1Sender, Key, Pool, Sender, connect


class Outlet:
    """What a channel's connections share. A run has one; so has a client of the forward proxy.

    ``pool`` is the tenant's: idle upstream connections pass between the runs of a tenant and never beyond it.
    ``authority`` is the run's: without it, TLS cannot be inspected and is refused where that is asked for.
    ``upstream_tls`` says how upstreams are verified; the tenant's, for making one takes long.
    """

    def __init__(
        self,
        *,
        door: Door,
        guard: Guard,
        pool: Pool,
        sweeper: Sweeper,
        outfitter: Outfitter | None = None,
        limits: Limits | None = None,
        authority: Authority | None = None,
        upstream_tls: UpstreamTls | None = None,
        bases: Mapping[str, str] | None = None,
        encoded_slashes: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.guard = guard
        self.pool = pool
        self.sweeper = sweeper
        self.outfitter = outfitter
        self.limits = limits or Limits()
        self.authority = authority
        self.bases = dict(bases or {})
        self.encoded_slashes = encoded_slashes
        self._upstream_tls = upstream_tls or UpstreamTls()
        self.clients: set[Stream] = set()
        self.upstreams: set[Stream] = set()
        self.stopped = False

    async def dress(self, ticket: Any, head: RequestHead, body: Body) -> Dressed:
        """The request with credentials; as it is where nobody adds any."""
        if self.outfitter is None:
            return Dressed(head=head, body=body.data)
        return await self.outfitter.dress(ticket, head, body)

    def check_secret(self, head: RequestHead, dressed: Dressed, addresses: tuple[str, ...]) -> None:
        """A credential leaves the machine under TLS only.

        Raises:
            Refused: it would not.
        """
        if not dressed.secret:
            return
        outside = head.scheme != "https" and not all(ipaddress.ip_address(address).is_loopback for address in addresses)
        if outside:
            raise Refused("a credential is not sent over plain http; use https", kind="credential_over_http")

    def kept(self, head: RequestHead) -> Sender | None:
        """An idle connection for a request."""
        sender = self.pool.take(_key(head), self.loop.time())
        if sender is not None:
            sender.limits = self.limits
            self.upstreams.add(sender.stream)
        return sender

    def keep(self, head: RequestHead, sender: Sender) -> None:
        """An exchange is over: keep its connection for the next one, or close it."""
        self.upstreams.discard(sender.stream)
        self.pool.give(_key(head), sender, self.loop.time())

    def drop(self, sender: Sender, why: str) -> None:
        """End an exchange's connection."""
        self.upstreams.discard(sender.stream)
        sender.abort(why)

    async def dial(self, head: RequestHead, addresses: tuple[str, ...], seconds: float) -> Sender:
        """A new connection.

        Raises:
            DialError: none could be made.
        """
        http2 = head.version == "2"
        context = self._upstream_tls.context(http2=http2) if head.scheme == "https" else None
        stream, address = await self.connect(head, addresses, seconds, context)
        if http2 and context is not None and stream.chosen_protocol == "h2":
            return Http2Sender(stream, self.limits, address)
        return Http1Sender(stream, self.limits, address)

    async def connect(
        self, head: RequestHead, addresses: tuple[str, ...], seconds: float, context: ssl.SSLContext | None
    ) -> tuple[Stream, str]:
        """A new connection without HTTP, and the address that it goes to.

        Raises:
            DialError: none could be made.
        """
        stream, address = await connect(
            addresses,
            head.port,
            seconds=seconds,
            loop=self.loop,
            sweeper=self.sweeper,
            context=context,
            host=head.host,
        )
        self.upstreams.add(stream)
        if self.stopped:
            stream.abort("stopped")
        return stream, address

    def stop(self) -> None:
        """End every connection at once; exchanges under way report ``stopped``."""
        self.stopped = True
        for stream in [*self.upstreams, *self.clients]:
            stream.abort("stopped")


def _key(head: RequestHead) -> Key:
    return head.scheme, head.host, head.port, head.version == "2"
