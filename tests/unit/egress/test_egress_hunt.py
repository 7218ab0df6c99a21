"""An agent hunts for the secret that its requests carry, through the real engine, and finds it nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from holdfast.egress.base import Refused
from holdfast.egress.bindings import binding
from holdfast.egress.credentials import Credentials, placeholder
from holdfast.egress.oauth import Tokens
from holdfast.egress.scrub import MARK, Secrets
from holdfast.egress.spellings import ENCODINGS
from holdfast.egress.vault import Vault, set_secret
from holdfast.journal.base import Draft, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.testing.clock import FakeClock
from holdfast.testing.egress import WAIT_S, Upstream, rig
from holdfast.testing.reflect import FRAMINGS, SPELLINGS, Reflector

SECRET = 'sk-live_4f+Q/9aZ"x=7Kp2&Lm~'
CLOCK = FakeClock()

AGENT = r"""
import http.client, json, os, sys, urllib.parse

proxy = urllib.parse.urlsplit(os.environ["HTTP_PROXY"])
seen = [json.dumps(dict(os.environ)).encode(), open("/proc/self/environ", "rb").read()]


def ask(method, url):
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=60)
    connection.request(method, url, headers={"X-Api-Key": os.environ["API_KEY"], "Authorization": "Bearer mine"})
    answer = connection.getresponse()
    seen.append(repr(answer.getheaders()).encode() + b"\n" + answer.read())
    connection.close()
    return answer


for url in json.loads(os.environ["URLS"]):
    for method in ("GET", "POST"):
        answer = ask(method, url)
        if answer.getheader("location"):
            ask("GET", answer.getheader("location"))
with open("seen", "wb") as file:
    file.write(b"\n".join(seen))
print("hunted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store("sqlite", tmp_path / "home")
    draft = Draft(kind=Kind.TENANT_CREATED, at=CLOCK.now())
    opened.create_tenant(Tenant(name="acme", region="eu", created_at=1), draft, "cli")
    yield opened
    opened.close()


class LoopbackGuard:
    """Everything is this machine, also what has a name."""

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        if host in ("127.0.0.1", "bank.example"):
            return ("127.0.0.1",)
        raise Refused(f"{host} is not to be reached", kind="ssrf")


def outfitter(store: SqlStore, encodings: tuple[str, ...] = ENCODINGS) -> Credentials:
    secrets = functools.partial(Secrets, encodings=encodings)
    return Credentials(Vault(store, "acme"), "books", Tokens(LoopbackGuard()), CLOCK, secrets)


def bind(store: SqlStore, *hosts: str) -> None:
    for number, host in enumerate(hosts):
        bound = binding("header:X-Api-Key", host, agent="books")
        set_secret(store, CLOCK, "acme", f"bank-{number}", bound, SECRET.encode(), principal="ada", auth="token")


def leaks(data: bytes) -> list[str]:
    """The spellings in which the secret is in some bytes."""
    return [name for name, (_, spell) in SPELLINGS.items() if spell(SECRET).strip() in data]


def memory_of(pid: int) -> bytes:
    """What a process has written to its memory."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if not rights.startswith("rw") or "[v" in line:
                continue
            start, end = (int(edge, 16) for edge in span.split("-"))
            # A region may have gone since the list was made.
            with contextlib.suppress(OSError):
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"".join(found)


async def hunt(store: SqlStore, folder: Path) -> tuple[bytes, bytes, Reflector, Reflector]:
    own, elsewhere = Reflector("x-api-key"), Reflector("x-api-key")
    async with Upstream(elsewhere) as other, rig(handler=own, guard=LoopbackGuard(), outfitter=outfitter(store)) as r:
        bind(store, r.upstream.authority, f"bank.example:{r.upstream.port}")
        own.elsewhere = lambda: f"http://{other.authority}/whole/0"
        urls = [f"http://{r.upstream.authority}/{framing}/{at}" for framing in FRAMINGS for at in range(len(SPELLINGS))]
        urls += [
            f"http://{other.authority}/whole/0",
            f"http://bank.example:{r.upstream.port}/whole/0",
            f"http://metadata.internal:{r.upstream.port}/whole/0",
        ]
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", AGENT),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=folder,
            env={
                "HTTP_PROXY": f"http://127.0.0.1:{r.port}",
                "API_KEY": placeholder("bank-0"),
                "URLS": json.dumps(urls),
                "PATH": os.environ["PATH"],
            },
        )
        assert agent.stdin is not None
        assert agent.stdout is not None
        try:
            async with asyncio.timeout(WAIT_S * 2):
                assert await agent.stdout.readline() == b"hunted\n"
            memory = memory_of(agent.pid)
        finally:
            agent.stdin.close()
            await agent.wait()
    return memory, (folder / "seen").read_bytes(), own, elsewhere


def test_an_agent_that_hunts_for_the_secret_finds_it_nowhere(store: SqlStore, tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    memory, seen, own, elsewhere = uvloop.run(hunt(store, folder))
    # Every request to the bound host carried it, and no other did.
    assert set(own.got) == {SECRET}
    assert len(own.got) == 2 * len(FRAMINGS) * len(SPELLINGS)
    assert set(elsewhere.got) == {""}
    assert seen.count(MARK) >= len(own.got)
    assert b"plain http" in seen
    assert leaks(seen) == []
    assert placeholder("bank-0").encode() in memory
    assert leaks(memory) == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_without_any_one_encoding_the_hunt_succeeds(store: SqlStore, encoding: str) -> None:
    """The twin: what the hunt does not find is there to be found."""
    left = tuple(one for one in ENCODINGS if one != encoding)

    async def look() -> None:
        async with rig(handler=Reflector("x-api-key"), guard=LoopbackGuard(), outfitter=outfitter(store, left)) as r:
            bind(store, r.upstream.authority)
            seen = b""
            for at, (needs, _) in enumerate(SPELLINGS.values()):
                if needs == encoding:
                    host = r.upstream.authority
                    request = f"GET http://{host}/whole/{at} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                    seen += await r.send(request.encode())
            assert leaks(seen) != []

    uvloop.run(look())
