"""A scripted model server on loopback that speaks the providers' real wire protocols, streaming and usage included.

It is no model: it answers from a script (see :mod:`holdfast.testing.model_script`) and says so in every answer's
headers. In a
test::

    with ModelServer([{"match": "invoice", "category": "approved"}]) as server:
        ...  # ANTHROPIC_BASE_URL=server.url, any key

As a command, ``python -m holdfast.testing.model_server --port 0 --script FILE`` prints its address as the first line
and ends with its stdin's or on SIGTERM. From another process ``GET /scripted/log`` shows the requests and ``POST
/scripted/release`` opens a gate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h11
import msgspec

from holdfast.errors import ConfigError
from holdfast.testing import model_wire as wire
from holdfast.testing.model_script import Figures, Reply, Request, Rule, Script, load

__all__ = ["Figures", "ModelServer", "Reply", "Request", "Rule", "Script", "load"]

MAX_BODY = 32 << 20
NAME = "holdfast-scripted-model"


class ModelServer:
    """The server, in a thread of its own. ``script`` as for :class:`~holdfast.testing.model_script.Script`, or one."""

    def __init__(
        self,
        script: Script | Sequence[Rule | Mapping[str, Any]] | Callable[[Request], Reply | None] = (),
        *,
        key: str = "",
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self._script = script if isinstance(script, Script) else Script(script)
        self._key = key
        self._address = (host, port)
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._waiting: Counter[str] = Counter()
        self._open: set[str] = set()
        self._answered: Counter[int] = Counter()
        self.connections = 0
        """Connections taken so far."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[str, asyncio.Event] = {}
        self._ended = threading.Event()
        self._finish: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self.url = ""
        """Base address of both protocols; set once started."""

    # --- what a test asks ---

    @property
    def requests(self) -> list[Request]:
        """The model calls so far, in order of arrival."""
        with self._changed:
            return list(self._requests)

    @property
    def statuses(self) -> Counter[int]:
        """How many model calls were answered with each HTTP status; 0: broken off."""
        with self._changed:
            return Counter(self._answered)

    def wait_for(self, count: int, timeout: float = 60.0) -> list[Request]:
        """The first model calls, once so many have arrived.

        Raises:
            TimeoutError: fewer came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} model calls came within {timeout:g} s")
            return list(self._requests)

    def wait_answered(self, count: int, timeout: float = 60.0) -> Counter[int]:
        """The statuses, once so many model calls were answered or broken off.

        Raises:
            TimeoutError: fewer were.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._answered.total() >= count, timeout):
                raise TimeoutError(f"{self._answered.total()} of {count} calls were answered within {timeout:g} s")
            return Counter(self._answered)

    def wait_held(self, gate: str, count: int, timeout: float = 60.0) -> None:
        """Wait until so many calls are held at a gate.

        Raises:
            TimeoutError: fewer are.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting[gate] >= count, timeout):
                raise TimeoutError(f"{self._waiting[gate]} of {count} calls were held at {gate!r} within {timeout:g} s")

    def release(self, gate: str) -> None:
        """Open a gate for all calls that it holds and all that come."""
        with self._changed:
            self._open.add(gate)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self._gate(gate).set())

    # --- start and end ---

    def start(self) -> ModelServer:
        """Listen; returns once ``url`` is known.

        Raises:
            ConfigError: the port cannot be had.
        """
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=NAME, daemon=True)
        self._thread.start()
        ready.wait()
        if self._fault is not None:
            host, port = self._address
            raise ConfigError(f"the model server cannot listen on {host}:{port}: {self._fault}; choose another port")
        return self

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._loop is not None and self._finish is not None and not self._ended.is_set():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish.set)
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        finally:
            self._ended.set()
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._finish = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            self.connections += 1
            try:
                await _Connection(self, reader, writer).run()
            except (OSError, asyncio.CancelledError):
                return
            finally:
                connections.discard(task)
                writer.transport.abort()

        try:
            listener = await asyncio.start_server(accept, *self._address, backlog=1024, limit=1 << 20)
        except OSError as error:
            self._fault = error
            return
        host, port = listener.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        ready.set()
        await self._finish.wait()
        listener.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    # --- what a connection asks ---

    def _gate(self, name: str) -> asyncio.Event:
        gate = self._gates.setdefault(name, asyncio.Event())
        if name in self._open:
            gate.set()
        return gate

    async def hold(self, gate: str) -> None:
        """Wait at a gate (within the server's loop)."""
        event = self._gate(gate)
        self._count(gate, 1)
        try:
            await event.wait()
        finally:
            self._count(gate, -1)

    def _count(self, gate: str, by: int) -> None:
        with self._changed:
            self._waiting[gate] += by
            self._changed.notify_all()

    def take(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[Request, Reply | None]:
        """Record a model call and choose its reply."""
        with self._changed:
            request = wire.read(len(self._requests) + 1, path, headers, body)
            self._requests.append(request)
            self._changed.notify_all()
        if not request.key or (self._key and request.key != self._key):
            return request, Reply(error=401, message="invalid x-api-key")
        return request, self._script.reply(request)

    def answered(self, status: int) -> None:
        """Count an answer."""
        with self._changed:
            self._answered[status] += 1
            self._changed.notify_all()

    def control(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to a request of the control paths; None when there is no such path."""
        if (method, path) == ("GET", "/scripted/log"):
            with self._changed:
                log = [
                    {
                        "number": r.number,
                        "protocol": r.protocol,
                        "operation": r.operation,
                        "last": r.last,
                        "body": r.body,
                    }
                    for r in self._requests
                ]
                return {"scripted": True, "requests": log, "held": dict(self._waiting)}
        if (method, path) == ("POST", "/scripted/release"):
            self.release(str(body.get("gate", "")))
            return {"scripted": True}
        return None


class _Connection:
    def __init__(self, server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)
        self._counted = True

    async def run(self) -> None:
        while True:
            try:
                head, body = await self._receive()
            except h11.RemoteProtocolError:
                return
            if head is None or not await self._handle(head, body):
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _receive(self) -> tuple[h11.Request | None, bytes]:
        head, body = None, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(1 << 16))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    return None, b""
            elif isinstance(event, h11.EndOfMessage):
                return head, bytes(body)
            else:
                return None, b""

    async def _handle(self, head: h11.Request, raw: bytes) -> bool:
        method, path = head.method.decode(), head.target.decode()
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
        try:
            body = msgspec.json.decode(raw) if raw else {}
        except msgspec.DecodeError:
            body = None
        protocol = wire.PATHS.get(path.partition("?")[0]) if method == "POST" else None
        if protocol is None:
            known = self._server.control(method, path, body if isinstance(body, dict) else {})
            message = "the scripted model server has no such path"
            await self._json(200 if known else 404, known or wire.error("", 404, "", message))
            return True
        if not isinstance(body, dict):
            await self._json(400, wire.error(protocol, 400, "", "the body is not a JSON object"))
            return True
        request, reply = self._server.take(path, headers, body)
        self._counted = False
        try:
            await self._answer(request, reply)
        finally:
            finished = self._counted
            if not finished:
                self._count(0)
        return finished

    def _count(self, status: int) -> None:
        # Before the last bytes leave: who has the answer finds it counted.
        self._counted = True
        self._server.answered(status)

    async def _answer(self, request: Request, reply: Reply | None) -> None:
        if reply is None:
            reply = Reply(error=400, message="the script has no rule for this request")
        if reply.gate:
            await self._server.hold(reply.gate)
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.fault == "hang":
            await self._reader.read()
        elif reply.fault == "disconnect":
            return
        elif reply.error:
            message = reply.message or "scripted refusal"
            extra = [("retry-after", reply.retry_after)] if reply.retry_after else []
            await self._json(reply.error, wire.error(request.protocol, reply.error, reply.error_type, message), extra)
        elif request.stream:
            await self._stream(request, reply)
        else:
            await self._whole(request, reply)

    async def _whole(self, request: Request, reply: Reply) -> None:
        if reply.fault == "malformed":
            await self._json(200, {"scripted": "not of the protocol"})
            return
        body = msgspec.json.encode(wire.whole(request, wire.speak(request, reply)))
        if not reply.fault:
            await self._json(200, body)
            return
        await self._head(200, "application/json", len(body))
        await self._send(h11.Data(data=body[: len(body) // 2]))
        if reply.fault == "stall":
            await self._reader.read()

    async def _stream(self, request: Request, reply: Reply) -> None:
        frames = list(wire.events(request, wire.speak(request, reply), reply.chunk))
        if reply.fault:
            del frames[len(frames) // 2 :]
        if reply.fault == "malformed":
            frames.append(b"event: message\ndata: {not json\n\n")
        elif reply.fault == "stream_error":
            kind = reply.error_type or "overloaded_error"
            data = msgspec.json.encode(wire.error(request.protocol, 529, kind, reply.message or "scripted"))
            frames.append(b"event: error\ndata: " + data + b"\n\n")
        broken = reply.fault in ("cut", "stall")
        await self._head(200, "text/event-stream; charset=utf-8", None)
        for number, frame in enumerate(frames, 1):
            if number == len(frames) and not broken:
                self._count(200)
            await self._send(h11.Data(data=frame))
            if reply.pause:
                await asyncio.sleep(reply.pause)
        if reply.fault == "stall":
            await self._reader.read()
        elif not broken:
            await self._send(h11.EndOfMessage())

    async def _json(self, status: int, body: bytes | Mapping[str, Any], extra: Sequence[tuple[str, str]] = ()) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        if not self._counted:
            self._count(status)
        await self._head(status, "application/json", len(data), extra)
        await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def _head(self, status: int, kind: str, length: int | None, extra: Sequence[tuple[str, str]] = ()) -> None:
        headers = [("content-type", kind), ("server", NAME), *extra]
        headers.append(("transfer-encoding", "chunked") if length is None else ("content-length", str(length)))
        await self._send(h11.Response(status_code=status, headers=headers))

    async def _send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a script file until stdin ends or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.testing.model_server", description=__doc__)
    parser.add_argument("--script", type=Path, required=True, help="JSON file of rules")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--key", default="", help="the only key that is accepted; empty: any")
    options = parser.parse_args(argv)
    try:
        server = ModelServer(load(options.script), port=options.port, key=options.key).start()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(server.url, flush=True)
    print("This is a scripted model server, not a model.", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.buffer.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
