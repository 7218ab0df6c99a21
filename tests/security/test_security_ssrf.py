"""No spelling of an address and no answer of a name server leads to anything that is not public."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from holdfast.egress.base import Refused, RequestHead
from holdfast.egress.guard import TenantGuard, is_metadata, problem
from holdfast.egress.outlet import Outlet
from holdfast.egress.proxy import listen_tcp
from holdfast.egress.stream import Stream, Sweeper
from holdfast.egress.upstream import DialError, Pool
from holdfast.errors import ConfigError
from holdfast.testing.egress import WAIT_S, NotingDoor, in_loop

TARGETS = ("127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.5.4", "0.0.0.0", "100.100.100.200")
PUBLIC = "93.184.215.14"


def spellings_of(address: str) -> list[str]:
    """One IPv4 address in every way in which some parser reads it."""
    a, b, c, d = (int(part) for part in address.split("."))
    number = (a << 24) | (b << 16) | (c << 8) | d
    tail = (b << 16) | (c << 8) | d
    low, high = f"{c:02x}{d:02x}", f"{a:02x}{b:02x}"
    swapped = f"{(c << 8 | d) ^ 0xFFFF:04x}"
    return [
        address,
        str(number),
        hex(number),
        hex(number).upper().replace("X", "x"),
        f"0X{number:08X}",
        f"0{number:o}",
        f"{a}.{tail}",
        f"{a}.{b}.{(c << 8) | d}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0x{a:x}.{tail}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"000{a:o}.000{b:o}.000{c:o}.000{d:o}",
        f"{a}.0x{b:x}.0{c:o}.{d}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{address}.",
        f"{address}..",
        f"{a + 256}.{b}.{c}.{d}",
        f"[::ffff:{address}]",
        f"[::ffff:{high}:{low}]",
        f"[0:0:0:0:0:ffff:{high}:{low}]",
        f"[::{address}]",
        f"[::{high}:{low}]",
        f"[64:ff9b::{address}]",
        f"[64:ff9b::{high}:{low}]",
        f"[64:ff9b:1::{high}:{low}]",
        f"[2002:{high}:{low}::1]",
        f"[2001:0:4136:e378:8000:63bf:{(a << 8 | b) ^ 0xFFFF:04x}:{swapped}]",
        f"[2a00:1450::5efe:{high}:{low}]",
        f"[::ffff:0:{high}:{low}]",
        f"[{address}]",
        f"{PUBLIC}@{address}",
        f"user:pw@{address}",
        address.replace(".", "%2e"),
        address.replace(".", "。"),
        "".join(chr(0xFF10 + int(ch)) if ch.isdigit() else ch for ch in address),
        f"{address}%00.example",
        f"{address}\\@{PUBLIC}",
        f"{address}#@{PUBLIC}",
    ]


OTHERS = [
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "sub.localhost", "[localhost]", "ip6-localhost",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "[::1%lo]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]",
    "[fd00:ec2::254]", "[fd00:ec2::23]", "[fd20:ce::254]", "[fd00:42::42]", "[fe80::a9fe:a9fe]", "[fec0::1]",
    "[ff02::1]", "[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[2001:20::1]", "[4000::1]", "[::7f00:1]",
    "[0000::1]", "[::1]]", "[[::1]]", "[::1", "::1", "0", "0x0", "00", "0.0", "127", "127.1", "127.0.1", "0x7f.1",
    "0177.1", "127.1.", "①②⑦.⓪.⓪.①", "ⓛocalhost", "loc%61lhost", "168.63.129.16", "192.0.0.192", "192.0.0.8",
    "192.80.8.124", "192.88.99.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "100.64.0.1",
    "metadata.google.internal", "metadata", "instance-data", "rebound.example", "mixed.example", "mapped.example",
    "nat64.example", "sixtofour.example", "zone.example", "kubernetes.default.svc", "host.docker.internal",
    "127.0.0.1.nip.example", "-.example", "a..example", ".example", "example..", "exa mple", "x" * 64 + ".example",
    "127.0.0.1:80", "127.0.0.1,93.184.215.14", "http://127.0.0.1", "//127.0.0.1", "\t127.0.0.1", "xn--a.127.0.0.1",
    "1.0x7f000001", "0x", "0x.0x.0x.0x", "08.8.8.8", "0xa9.0xfe.0xa9.0xfe", "0xA9FEA9FE", "2852039166", "[::a9fe:a9fe]",
]  # fmt: skip
SPELLINGS = list(dict.fromkeys([spelling for target in TARGETS for spelling in spellings_of(target)] + OTHERS))

NAMES = {
    "rebound.example": ["127.0.0.1"],
    "mixed.example": [PUBLIC, "10.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "sixtofour.example": ["2002:7f00:1::1"],
    "zone.example": ["fe80::1%lo"],
    "metadata.google.internal": ["169.254.169.254"],
    "metadata": ["169.254.169.254"],
    "instance-data": ["169.254.169.254"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "host.docker.internal": ["172.17.0.1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
}


async def libc(name: str) -> list[str]:
    """What getaddrinfo makes of a name without asking anybody: it reads every spelling of inet_aton as an address."""
    if name in NAMES:
        return NAMES[name]
    if "localhost" in name:
        return ["127.0.0.1", "::1"]
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return [PUBLIC]
    return [str(entry[4][0]) for entry in found]


class Dials(Outlet):
    """Notes who would be dialled, and dials nobody."""

    dialled: list[str]

    async def connect(self, head: RequestHead, addresses: tuple[str, ...], *_: object) -> tuple[Stream, str]:  # type: ignore[override]
        self.dialled += addresses
        raise DialError("connect_failed", "not in this test")


@contextlib.asynccontextmanager
async def proxy(guard: TenantGuard) -> AsyncIterator[tuple[Dials, int]]:
    outlet = Dials(door=NotingDoor(), guard=guard, pool=Pool(), sweeper=Sweeper())
    outlet.dialled = []
    listener = await listen_tcp("127.0.0.1", 0, outlet)
    try:
        yield outlet, listener.port
    finally:
        await listener.close()


async def ask(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    async with asyncio.timeout(WAIT_S):
        answer = await reader.read()
    writer.close()
    return answer


def is_forbidden(text: str) -> bool:
    """By Python's own tables, not the guard's."""
    address = ipaddress.ip_address(text)
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner += [found for found in (address.ipv4_mapped, address.sixtofour) if found is not None]
        inner += list(address.teredo or ())
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return any(not one.is_global or one.is_multicast or one.is_reserved for one in inner[:1]) or any(
        one.is_private or one.is_loopback or one.is_link_local for one in inner[1:]
    )


def test_enough_spellings() -> None:
    assert len(SPELLINGS) >= 150


@in_loop
async def test_no_spelling_reaches_what_is_not_public() -> None:
    async with proxy(TenantGuard(resolver=libc)) as (outlet, port):
        for spelling in SPELLINGS:
            host = spelling.encode()
            for raw in (
                b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (host, host),
                b"GET http://%b:8080/ HTTP/1.1\r\nHost: %b:8080\r\nConnection: close\r\n\r\n" % (host, host),
                b"CONNECT %b:443 HTTP/1.1\r\nConnection: close\r\n\r\n" % host,
                b"GET http://%b/ HTTP/1.0\r\n\r\n" % host,
            ):
                if raw.startswith(b"CONNECT"):
                    outlet.door.answer = _passthrough  # type: ignore[attr-defined]
                answer = await ask(port, raw)
                outlet.door.answer = None  # type: ignore[attr-defined]
                assert answer[9:10] in (b"4", b"5"), (spelling, answer)
                wrong = [address for address in outlet.dialled if is_forbidden(address)]
                assert not wrong, (spelling, wrong)


def _passthrough(_: object) -> object:
    from holdfast.egress.base import Go

    return Go(ticket=1, tls="passthrough")


class RebindingServer(asyncio.DatagramProtocol):
    """A name server whose answer for a name changes with every question."""

    def __init__(self, answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked = 0
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        question = data[12:]
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + ipaddress.IPv4Address(address).packed
            for address in addresses
        )
        assert self.transport is not None
        self.transport.sendto(head + question + records, addr)


async def look_up(port: int, name: str) -> list[str]:
    """One question to a name server on loopback (RFC 1035)."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\x01\0\x01"
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.connect(("127.0.0.1", port))
        await loop.sock_sendall(line, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + question)
        answer = await loop.sock_recv(line, 512)
    count = struct.unpack(">H", answer[6:8])[0]
    records = answer[12 + len(question) :]
    return [str(ipaddress.IPv4Address(records[16 * n + 12 : 16 * n + 16])) for n in range(count)]


@in_loop
async def test_rebinding_name_server_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("holdfast.egress.guard.time.monotonic", lambda: now[0])
    loop = asyncio.get_running_loop()
    turns = [[PUBLIC], ["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["169.254.169.254"], [PUBLIC], ["0.0.0.0"]]
    transport, server = await loop.create_datagram_endpoint(lambda: RebindingServer(turns), local_addr=("127.0.0.1", 0))
    dns = transport.get_extra_info("sockname")[1]
    guard = TenantGuard(resolver=lambda name: look_up(dns, name))
    raw = b"GET http://rebind.example/ HTTP/1.1\r\nHost: rebind.example\r\nConnection: close\r\n\r\n"
    async with proxy(guard) as (outlet, port):
        answers = []
        for _ in turns:
            # Asked twice: what was checked is what is dialled, whatever the server would say by then.
            answers.append([(await ask(port, raw))[9:12] for _ in range(2)])
            now[0] += 31
        assert answers == [[b"502"] * 2, [b"403"] * 2, [b"403"] * 2, [b"403"] * 2, [b"502"] * 2, [b"403"] * 2]
        assert set(outlet.dialled) == {PUBLIC}
        assert server.asked == len(turns)
    transport.close()


@in_loop
async def test_redirect_is_a_request_of_its_own() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")

    from holdfast.testing.egress import rig

    async with rig(handler=handler) as r:
        host = r.upstream.authority.encode()
        answer = await r.send(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (host, host))
        assert b"302" in answer
        assert b"location: http://169.254.169.254/" in answer
        assert len(r.door.requests) == 1


@in_loop
async def test_exceptions_are_exact_and_never_cover_metadata() -> None:
    guard = TenantGuard(
        allow_private=["127.0.0.1:8080", "10.0.0.0/8", "169.254.0.0/16", "[fd00:ec2::]/32", "[::1]:9000"],
        resolve={"db.example": ["10.1.2.3"], "meta.example": ["169.254.169.254"]},
        resolver=libc,
    )
    assert await guard.addresses("127.0.0.1", 8080) == ("127.0.0.1",)
    assert await guard.addresses("::1", 9000) == ("::1",)
    assert await guard.addresses("db.example", 5432) == ("10.1.2.3",)
    for host, port in (
        ("127.0.0.1", 8081),
        ("127.0.0.2", 8080),
        ("::1", 8080),
        ("::ffff:127.0.0.1", 8080),
        ("169.254.169.254", 80),
        ("meta.example", 80),
        ("fd00:ec2::254", 80),
        ("192.168.0.1", 80),
    ):
        with pytest.raises(Refused):
            await guard.addresses(host, port)


@in_loop
async def test_own_addresses_are_not_public() -> None:
    guard = TenantGuard(own=lambda: frozenset({ipaddress.ip_address(PUBLIC)}), resolver=libc)
    with pytest.raises(Refused, match="this machine"):
        await guard.addresses(PUBLIC, 80)


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "2a00:1450:4001::1"])
def test_public_addresses_are_let_through(text: str) -> None:
    assert problem(ipaddress.ip_address(text)) == ""


@pytest.mark.parametrize("text", ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16"])
def test_metadata_is_known_in_every_spelling(text: str) -> None:
    assert is_metadata(ipaddress.ip_address(text))


@pytest.mark.parametrize("entry", ["localhost:80", "10.0.0.0/33", "10.0.0.1:0x50", "10.0.0.1:70000", "", "*"])
def test_exception_that_cannot_be_read_is_an_error(entry: str) -> None:
    with pytest.raises(ConfigError, match="allow_private"):
        TenantGuard(allow_private=[entry])
