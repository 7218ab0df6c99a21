"""The way out: what governing each request costs, beside nginx, mitmproxy and a plain aiohttp proxy.

One nginx is every proxy's upstream: a call of a model, 2 KB out, 0.7 KB back. Blocks of each proxy follow each other in
turns, so that whatever else the machine does meets all of them alike; ratios are medians over the turns. A proxy's CPU
time per request is printed beside its rate: a busy machine changes it less.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import HERE

PROXIES = Path(os.environ.get("HOLDFAST_BENCH_PROXIES", HERE.parent / ".venv-proxies" / "bin"))
"""Where mitmproxy and aiohttp are."""
TARGETS = {
    "governed": 0.35,
    "mitmproxy": 15.0,
    "nginx": 1.3,
    "commits": 2.5,
    "volatile_ms": 0.2,
    "tls": 1500.0,
    "stream_ms": 0.5,
    "rss_mb": 80.0,
}
ANSWER = {
    "id": "msg_01", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "The transaction matches the invoice; nothing speaks against it. " * 6}],
    "usage": {"input_tokens": 512, "output_tokens": 96, "cache_read_input_tokens": 0},
}  # fmt: skip
QUESTION = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 1024,
    "messages": [{"role": "user", "content": json.dumps(common.PAYLOAD) + " Is this transaction in order? " * 40}],
}
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type application/json; keepalive_requests 100000000;
  client_body_buffer_size 64k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port} backlog=1024; listen 127.0.0.1:{tls} ssl backlog=1024;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
    location / {{ return 200 '{answer}'; }} }}
}}
"""
REVERSE = """
daemon off; worker_processes 1; pid {folder}/reverse.pid; error_log {folder}/reverse.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;
  client_body_temp_path {folder}/b2; proxy_temp_path {folder}/p2; fastcgi_temp_path {folder}/f2;
  uwsgi_temp_path {folder}/u2; scgi_temp_path {folder}/s2;
  upstream up {{ server 127.0.0.1:{port}; keepalive 128; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{own} backlog=1024;
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until something listens."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


class Bench:
    """The upstream, the proxies and the load generator."""

    def __init__(self, where: Path) -> None:
        import trustme

        self.where = where
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.ports: dict[str, int] = {}
        roots = trustme.CA()
        roots.cert_pem.write_to_path(str(where / "roots.pem"))
        issued = roots.issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(where / "server.pem"))
        self.upstream, self.tls = free_port(), free_port()
        answer = json.dumps(ANSWER).replace("'", "")
        self.answer = len(answer)
        self._nginx("upstream", NGINX.format(folder=where, port=self.upstream, tls=self.tls, answer=answer))
        wait_for(self.upstream)
        self._load = self._start("load", [sys.executable, "-m", "benchmarks.egress_load"])
        body = json.dumps(QUESTION)
        self._head = (
            "User-Agent: bench/1\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nAnthropic-Version: 2023-06-01\r\n"
            f"Content-Type: application/json\r\nX-Api-Key: placeholder\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )

    def _nginx(self, name: str, text: str) -> None:
        path = self.where / f"{name}.conf"
        path.write_text(text)
        self.processes[name] = subprocess.Popen(
            ["nginx", "-p", str(self.where), "-c", str(path)], stderr=subprocess.DEVNULL, text=True
        )

    def _start(self, name: str, command: list[str], **more: Any) -> subprocess.Popen[str]:
        log = (self.where / f"{name}.log").open("w")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HERE.parent, **more
        )
        self.processes[name] = process
        return process

    def ours(self, mode: str) -> None:
        """Start the engine."""
        folder = self.where / mode
        folder.mkdir()
        command = [sys.executable, "-m", "benchmarks.egress_proxy", mode, str(folder), str(self.where / "roots.pem")]
        self.ports[mode] = int(self._said(self._start(mode, command)).split()[0])

    def peers(self) -> None:
        """Start the others."""
        self.ports["nginx"] = free_port()
        self._nginx("nginx", REVERSE.format(folder=self.where, port=self.upstream, own=self.ports["nginx"]))
        wait_for(self.ports["nginx"])
        if not (PROXIES / "mitmdump").exists():
            raise SystemExit(f"no mitmproxy in {PROXIES}; run: make bench")
        script = str(HERE / "peers" / "aiohttp_proxy.py")
        self.ports["aiohttp"] = int(self._said(self._start("aiohttp", [str(PROXIES / "python"), script])))
        self.ports["mitmproxy"] = free_port()
        home = self.where / "mitmproxy-home"
        options = ["--set", f"confdir={home}", "-q", "--listen-host", "127.0.0.1", "-p", str(self.ports["mitmproxy"])]
        self._start("mitmproxy", [str(PROXIES / "mitmdump"), *options])
        wait_for(self.ports["mitmproxy"])

    @staticmethod
    def _said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{process.args!r} ended; its log says why")
        return line

    def load(self, name: str, connections: int, seconds: float, *, tls: bool = False) -> dict[str, float]:
        """One block through a proxy (``direct``: none)."""
        site = f"localhost:{self.tls}" if tls else f"127.0.0.1:{self.upstream}"
        plain = name in ("direct", "nginx")
        where = "/v1/messages" if plain or tls else f"http://{site}/v1/messages"
        spec = {
            "port": self.upstream if name == "direct" else self.ports[name],
            "connections": connections,
            "seconds": seconds,
            "request": f"POST {where} HTTP/1.1\r\nHost: {site}\r\n{self._head}",
        }
        if tls:
            spec |= {"site": site, "cafile": str(self.where / name / "authority.pem")}
        before = self._cpu(name)
        assert self._load.stdin is not None
        self._load.stdin.write(json.dumps(spec) + "\n")
        self._load.stdin.flush()
        found = json.loads(self._said(self._load))
        if "error" in found:
            raise SystemExit(f"{name}: {found['error']}")
        found["cpu_us"] = (self._cpu(name) - before) / found["count"] * 1e6
        return dict(found)

    def _cpu(self, name: str) -> float:
        """Seconds of CPU that a proxy has used, its workers included."""
        main = self.processes["upstream" if name == "direct" else name].pid
        found = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        total = 0
        for pid in (str(main), *found):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def rss(self, name: str) -> float:
        """Resident memory of a process, in MB."""
        for line in Path(f"/proc/{self.processes[name].pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def close(self) -> None:
        """End what was started."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """All of it, for a block."""
    with common.folder("egress") as where:
        found = Bench(where)
        try:
            for mode in ("bare", "governed", "volatile"):
                found.ours(mode)
            found.peers()
            yield found
        finally:
            found.close()


def commits(where: Path, seconds: float) -> float:
    """p50 of one raw commit of the bytes that a request commits, in milliseconds."""
    from holdfast.journal.sqlite import PRAGMAS

    link = sqlite3.connect(where / "raw.db", isolation_level=None)
    for pragma in PRAGMAS:
        link.execute(f"PRAGMA {pragma}")
    link.execute("CREATE TABLE IF NOT EXISTS raw (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    data, times, until = os.urandom(6144), [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        link.execute("INSERT INTO raw (data) VALUES (?)", (data,))
        times.append(time.perf_counter() - began)
    link.close()
    return median(times) * 1e3


async def _stream_server() -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(length[0] if length else 0)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"9\r\ndata: 1\n\n\r\n"
                )
                await asyncio.sleep(0.005)
                writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, int(server.sockets[0].getsockname()[1])


async def first_bytes(bench: Bench, rounds: int) -> dict[str, float]:
    """p50 from the request to the first event of a stream, in milliseconds."""
    server, port = await _stream_server()
    found: dict[str, list[float]] = {}
    lines: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    for name in ("direct", "bare", "governed"):
        lines[name] = await asyncio.open_connection("127.0.0.1", port if name == "direct" else bench.ports[name])
    for number in range(rounds):
        for name, (reader, writer) in lines.items():
            where = "/v1/stream" if name == "direct" else f"http://127.0.0.1:{port}/v1/stream"
            body = json.dumps({"n": number})
            writer.write(
                f"POST {where} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            began = time.perf_counter()
            await reader.readuntil(b"data: 1\n\n")
            found.setdefault(name, []).append(time.perf_counter() - began)
            await reader.readuntil(b"0\r\n\r\n")
    for _, writer in lines.values():
        writer.close()
    server.close()
    return {name: median(times) * 1e3 for name, times in found.items()}


def crowd(bench: Bench, name: str, count: int) -> float:
    """Memory of a proxy while so many connections are open, each of which has carried a request."""
    bench.load(name, count, 3.0)
    held = []
    site = f"127.0.0.1:{bench.upstream}"
    for _ in range(count):
        line = socket.create_connection(("127.0.0.1", bench.ports[name]), 30)
        line.sendall(f"POST http://{site}/v1/messages HTTP/1.1\r\nHost: {site}\r\n{bench._head}".encode())
        held.append(line)
    for line in held:
        line.recv(65_536)
    found = bench.rss(name)
    for line in held:
        line.close()
    return found


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    if shutil.which("nginx") is None:
        raise SystemExit("this benchmark needs nginx: apt-get install nginx-light")
    seconds, turns = (0.5, 2) if options.quick else (2.0, 5)
    result: dict[str, Any] = {"machine": common.machine()}
    names = ("direct", "nginx", "bare", "governed", "volatile", "aiohttp", "mitmproxy")
    with bench() as b:
        rates: dict[str, list[float]] = {name: [] for name in names}
        alone: dict[str, list[float]] = {name: [] for name in names}
        used: dict[str, list[float]] = {name: [] for name in names}
        raw, secure = [], []
        for _ in range(turns):
            for name in names:
                block = b.load(name, 32, seconds)
                rates[name].append(block["rate"])
                used[name].append(block["cpu_us"])
                if name in ("direct", "bare", "governed", "volatile"):
                    alone[name].append(b.load(name, 1, seconds / 2)["p50"])
            raw.append(commits(b.where, seconds / 2))
            secure.append(b.load("bare", 32, seconds, tls=True)["rate"])
        result["rss"] = crowd(b, "bare", 1000)
        result["stream"] = asyncio.run(first_bytes(b, 20 if options.quick else 200))

    def ratio(above: str, below: str) -> float:
        return median(a / c for a, c in zip(rates[above], rates[below], strict=True))

    result["rates"] = {name: median(found) for name, found in rates.items()}
    result["p50_ms"] = {name: median(found) for name, found in alone.items() if found}
    result["cpu_us"] = {name: median(found) for name, found in used.items()}
    result["commit_ms"] = median(raw)
    added = [(g - d) / c for g, d, c in zip(alone["governed"], alone["direct"], raw, strict=True)]
    volatile = [v - d for v, d in zip(alone["volatile"], alone["direct"], strict=True)]
    stream = result["stream"]["governed"] - result["stream"]["direct"] - result["commit_ms"]
    found = {
        "governed": ratio("governed", "bare"),
        "mitmproxy": ratio("governed", "mitmproxy"),
        "aiohttp": ratio("governed", "aiohttp"),
        "nginx": ratio("nginx", "bare"),
        "commits": median(added),
        "volatile_ms": median(volatile),
        "tls": median(secure),
        "stream_ms": stream,
        "rss_mb": result["rss"],
    }
    result |= {"ratios": found, "targets": TARGETS}
    rows: list[tuple[object, ...]] = [
        (f"{name}, 32 connections", f"{rate:,.0f} req/s, {result['cpu_us'][name]:.0f} µs of CPU", "", "")
        for name, rate in result["rates"].items()
    ]

    def row(what: str, key: str, shown: str, target: str, met: bool) -> None:
        rows.append((what, shown.format(found[key]), target, common.verdict(met)))

    row("governed / ungoverned", "governed", "{:.2f}", "≥ 0.35", found["governed"] >= TARGETS["governed"])
    row("governed / mitmproxy", "mitmproxy", "{:.1f}", "≥ 15", found["mitmproxy"] >= TARGETS["mitmproxy"])
    rows.append(("governed / aiohttp", f"{found['aiohttp']:.1f}", "", ""))
    row("nginx / ungoverned", "nginx", "{:.2f}", "≤ 1.3", found["nginx"] <= TARGETS["nginx"])
    row("added p50, in raw commits", "commits", "{:.2f}", "≤ 2.5", found["commits"] <= TARGETS["commits"])
    row("added p50 without durability", "volatile_ms", "{:.3f} ms", "≤ 0.2", found["volatile_ms"] <= 0.2)
    row("TLS opened, 32 connections", "tls", "{:,.0f} req/s", "≥ 1,500", found["tls"] >= TARGETS["tls"])
    row("stream's first byte beyond a commit", "stream_ms", "{:.3f} ms", "≤ 0.5", found["stream_ms"] <= 0.5)
    row(
        "memory of the engine at 1,000 connections", "rss_mb", "{:.0f} MB", "≤ 80", found["rss_mb"] <= TARGETS["rss_mb"]
    )
    common.report("egress: the way out", result, rows, options.json)


if __name__ == "__main__":
    main()
