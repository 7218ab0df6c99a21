"""Which addresses may be dialled: every address of a name is held against an explicit table before one of them is.

Python's ``is_global`` calls NAT64, 6to4 and IPv4-compatible addresses global, so it is not asked. The tables follow the
IANA special-purpose registries (RFC 6890 and what came after) and the clouds' documentation of their metadata services.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from holdfast.egress import target
from holdfast.egress.base import Refused
from holdfast.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str], Awaitable[list[str]]]
"""Gives the addresses of a name; raises OSError where there is none."""

_DENIED_4: Final = tuple(
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")
"""All that is assigned for use between networks; what is outside needs no table."""
_DENIED_6: Final = tuple(
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "protocol assignments and Teredo"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.169.254/32",  # AWS, Google Cloud, Azure, Oracle, DigitalOcean, OpenStack, Hetzner and others
        "169.254.170.2/32",  # AWS ECS task credentials
        "169.254.170.23/32",  # AWS EKS pod identity
        "169.254.169.253/32",  # AWS resolver
        "169.254.169.123/32",  # AWS time
        "169.254.0.23/32",  # Tencent Cloud
        "169.254.10.10/32",  # Tencent Cloud
        "169.254.42.42/32",  # Scaleway
        "168.63.129.16/32",  # Azure wire server, in public space
        "100.100.100.200/32",  # Alibaba Cloud
        "192.0.0.192/32",  # Oracle Cloud (classic)
        "192.80.8.124/32",  # Equinix Metal, in public space
        "fd00:ec2::254/128",  # AWS
        "fd00:ec2::23/128",  # AWS EKS pod identity
        "fd00:ec2::253/128",  # AWS resolver
        "fd20:ce::254/128",  # Google Cloud
        "fd00:42::42/128",  # Scaleway
        "fe80::a9fe:a9fe/128",  # OpenStack, and others over link-local IPv6
    )
)
"""What hands out credentials of the machine: no setting makes these reachable."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)

_CACHE_S: Final = 30.0
_CACHE_MAX: Final = 1024
_LOOKUP_S: Final = 10.0
_OWN_S: Final = 30.0


def problem(address: Address) -> str:
    """Why an address may not be dialled; empty when it may. Embedded IPv4 addresses count as what they lead to."""
    if any(address in network for network in _METADATA if network.version == address.version):
        return "cloud metadata"
    if isinstance(address, ipaddress.IPv4Address):
        return next((what for network, what in _DENIED_4 if address in network), "")
    if address.scope_id is not None:
        return "an address with a zone"
    if address in _NAT64:
        inner = problem(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return f"NAT64 of {inner}" if inner else ""
    if address not in _GLOBAL_6:
        return _outside(address)
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "ISATAP"
    return next((what for network, what in _DENIED_6 if address in network), "")


def _outside(address: ipaddress.IPv6Address) -> str:
    if address.ipv4_mapped is not None:
        return f"IPv4-mapped ({problem(address.ipv4_mapped) or 'write it as IPv4'})"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address in _UNIQUE_LOCAL:
        return "private"
    return "not a global address"


_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")


def is_metadata(address: Address) -> bool:
    """Whether it is a cloud's metadata service, NAT64 and mapped spellings included."""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None and address in _NAT64:
            mapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if mapped is not None:
            return is_metadata(mapped)
    return any(address in network for network in _METADATA if network.version == address.version)


def exceptions(entries: Iterable[str]) -> tuple[tuple[Network, int], ...]:
    """The networks and ports of ``allow_private``: ``10.1.2.3:8080``, ``10.0.0.0/24:443``, ``[::1]:8080``; without a
    port all ports (0).

    Raises:
        ConfigError: an entry is something else.
    """
    found = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry.strip())
        try:
            if match is None:
                raise ValueError
            network = ipaddress.ip_network(f"{match['six'] or match['four']}{match['prefix'] or ''}")
            port = int(match["port"] or 0)
            if port > 65535:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"allow_private: {entry!r} is not ADDRESS:PORT or NETWORK/BITS:PORT; write [::1]:8080 for IPv6"
            ) from None
        found.append((network, port))
    return tuple(found)


_ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+))(?P<prefix>/[0-9]{1,3})?(?::(?P<port>[0-9]{1,5}))?"
)


class SystemResolver:
    """Asks the operating system, in threads of its own: one tenant's slow names hold up no other's."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="resolver")

    async def __call__(self, name: str) -> list[str]:
        """The addresses of a name."""
        ask = functools.partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
        async with asyncio.timeout(_LOOKUP_S):
            found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(entry[4][0]) for entry in found]


class TenantGuard:
    """The guard of one tenant: names are resolved once, every address is checked, checked addresses are dialled."""

    def __init__(
        self,
        *,
        allow_private: Iterable[str] = (),
        resolve: Mapping[str, Iterable[str]] | None = None,
        resolver: Resolver | None = None,
        own: Callable[[], frozenset[Address]] | None = None,
    ) -> None:
        """``resolve``: addresses that stand for a name instead of what DNS says; they are checked like any other.

        Raises:
            ConfigError: an entry cannot be read.
        """
        self._allowed = exceptions(allow_private)
        self._overrides = {name.lower(): tuple(given) for name, given in (resolve or {}).items()}
        self._resolver = resolver or SystemResolver()
        self._own = own or own_addresses
        self._cache: dict[str, tuple[float, tuple[Address, ...]]] = {}
        self._checked: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """See :meth:`holdfast.egress.base.Guard.addresses`."""
        now = time.monotonic()
        known = self._checked.get((host, port))
        if known is not None and known[0] > now:
            return known[1]
        found = await self.look_up(host)
        for address in found:
            self.check(address, host, port)
        texts = tuple([str(address) for address in found])
        if len(self._checked) >= _CACHE_MAX:
            self._checked.clear()
        self._checked[host, port] = (now + _CACHE_S, texts)
        return texts

    async def look_up(self, host: str) -> tuple[Address, ...]:
        """The addresses of a name, unchecked.

        Raises:
            Refused: there is no such name, or it is not written as names are.
        """
        return await self._look_up(target.host_name(f"[{host}]" if ":" in host else host))

    def check(self, address: Address, host: str, port: int) -> None:
        """Hold one address against the tables and the tenant's exceptions.

        Raises:
            Refused: it may not be dialled.
        """
        why = problem(address) or ("an address of this machine" if address in self._own() else "")
        if not why:
            return
        if not is_metadata(address) and any(
            address.version == network.version and address in network and allowed in (0, port)
            for network, allowed in self._allowed
        ):
            return
        raise Refused(
            f"{host} leads to {why}; nothing private is reachable unless the operator names it in egress.allow_private",
            kind="ssrf",
        )

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        literal = _address(host)
        if literal is not None:
            return (literal,)
        override = self._overrides.get(host)
        if override is not None:
            return tuple([ipaddress.ip_address(given) for given in override])
        now = time.monotonic()
        known = self._cache.get(host)
        if known is not None and known[0] > now:
            return known[1]
        try:
            texts = await self._resolver(host)
        except (OSError, TimeoutError, UnicodeError):
            texts = []
        found = tuple(dict.fromkeys(_parsed(text, host) for text in texts))
        if not found:
            raise Refused(f"the name {host} does not resolve", kind="unresolved", status=502)
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[host] = (now + _CACHE_S, found)
        return found


class OperatorGuard:
    """The guard of what the operator named by address: private places too, but no cloud's metadata service."""

    def __init__(self, tenant: TenantGuard) -> None:
        self._tenant = tenant

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """See :meth:`holdfast.egress.base.Guard.addresses`."""
        found = await self._tenant.look_up(host)
        if any(is_metadata(address) for address in found):
            raise Refused(f"{host} leads to cloud metadata, which nothing may reach", kind="ssrf")
        return tuple([str(address) for address in found])


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _parsed(text: str, host: str) -> Address:
    address = _address(text)
    if address is None:
        raise Refused(f"{host} leads to an address with a zone", kind="ssrf")
    return address


_own: tuple[float, frozenset[Address]] = (0.0, frozenset())


def own_addresses() -> frozenset[Address]:
    """The addresses of this machine: what listens on them may trust whoever is local. Linux; read anew at times."""
    global _own
    now = time.monotonic()
    if not _own[1] or now - _own[0] > _OWN_S:
        _own = (now, _read_own())
    return _own[1]


def _read_own() -> frozenset[Address]:
    found: set[Address] = set()
    try:
        # In the trie a local address is the line above "/32 host LOCAL".
        last = ""
        for line in Path("/proc/net/fib_trie").read_text("ascii").splitlines():
            if line.endswith("/32 host LOCAL"):
                found.add(ipaddress.IPv4Address(last))
            last = line.rpartition("-- ")[2]
        for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines():
            found.add(ipaddress.IPv6Address(int(line.split()[0], 16)))
    except (OSError, ValueError):
        # What cannot be read here is still refused where it is private, as nearly all of it is.
        return frozenset(found)
    return frozenset(found)
