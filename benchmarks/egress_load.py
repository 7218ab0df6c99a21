"""A load generator: a fixed request on so many connections, answers counted by their length. One protocol, no tasks."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from typing import Any

import uvloop

LEAST = 100
"""Answers that a block has at least, however long it takes."""


class Line(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last one is complete."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._got = 0
        self._size = 0
        self._at = 0.0
        self.head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def ask(self) -> None:
        self._got, self.head = 0, b""
        self._at = time.perf_counter()
        self.transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if not self._got:
            self.head = data[:12]
        if not self._size:
            self.head += data
            end = self.head.find(b"\r\n\r\n", 12)
            if end < 0:
                return
            if b" 200" not in data[:16]:
                raise SystemExit(f"not what was asked for: {data[:300]!r}")
            at = self.head.lower().find(b"content-length:")
            length = int(self.head[at + 15 : self.head.find(b"\r\n", at)])
            # The answers are all alike; what differs (a date) has the same length each time.
            self._size = end + 4 - 12 + length
            self._got = len(self.head) - 12
        else:
            self._got += len(data)
        if self._got >= self._size:
            self._load.done(time.perf_counter() - self._at)
            if self._load.going:
                self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.going:
            print(json.dumps({"error": f"a connection was lost: {exc}"}), flush=True)
            raise SystemExit(1)


class Load:
    """Requests for a time."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.going = True
        self.times: list[float] = []

    def done(self, took: float) -> None:
        self.times.append(took)


async def tunnel(port: int, site: str, line: Line, context: ssl.SSLContext) -> None:
    """A TLS connection through CONNECT."""
    loop = asyncio.get_running_loop()
    raw = socket.create_connection(("127.0.0.1", port), 30)
    raw.sendall(f"CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n".encode())
    raw.setblocking(False)
    answer = await loop.sock_recv(raw, 1024)
    if not (b" 200" in answer[:16] and answer.endswith(b"\r\n\r\n")):
        raise SystemExit(f"not a tunnel: {answer!r}")
    await loop.create_connection(lambda: line, sock=raw, ssl=context, server_hostname=site.partition(":")[0])


async def run(spec: dict[str, Any]) -> dict[str, Any]:
    """One block: how many a second, and how long one took."""
    load = Load(spec["request"].encode())
    loop = asyncio.get_running_loop()
    lines = []
    for _ in range(spec["connections"]):
        line = Line(load)
        if spec.get("site"):
            await tunnel(spec["port"], spec["site"], line, ssl.create_default_context(cafile=spec["cafile"]))
        else:
            await loop.create_connection(lambda line=line: line, "127.0.0.1", spec["port"])
        lines.append(line)
    # The first answers (connections upstream, caches) do not count.
    for line in lines:
        line.ask()
    await asyncio.sleep(spec["seconds"] * 0.2)
    warm = len(load.times)
    began = time.perf_counter()
    while len(load.times) - warm < LEAST or time.perf_counter() - began < spec["seconds"]:
        await asyncio.sleep(spec["seconds"] / 10)
    took = time.perf_counter() - began
    times = sorted(load.times[warm:])
    load.going = False
    for line in lines:
        line.transport.abort()
    return {"rate": len(times) / took, "p50": times[len(times) // 2] * 1e3, "count": len(load.times)}


def main() -> None:
    """Read one spec a line from stdin, answer each with one line."""
    for line in sys.stdin:
        print(json.dumps(uvloop.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
