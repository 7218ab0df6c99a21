"""The relay: a listener on the boundary's own loopback that hands every connection on to the egress proxy.

One thread, no copy of what it carries beyond a buffer in each direction. It knows nothing of HTTP: what may pass is
decided outside. Programs find it through the proxy variables of the environment, which every child inherits.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
from _thread import start_new_thread

from holdfast.agent.egress import Way
from holdfast.errors import StepError

BUFFER = 64 << 10
BACKLOG = 128
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)
_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")
_TRUST = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "npm_config_cafile",
)


def start(way: Way) -> int:
    """Listen on the loopback of this network namespace and relay from now on; gives the port.

    Raises:
        OSError: this boundary allows no socket of its own.
    """
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    port: int = listener.getsockname()[1]
    start_new_thread(Relay(listener, way).run, ())
    return port


def tell(port: int, authority: str = "") -> None:
    """Put the way out into the environment: proxy variables and, where there is one, the file with the run's
    certificate authority, under every name that common runtimes read."""
    url = f"http://127.0.0.1:{port}"
    for name in _PROXY:
        os.environ[name] = url
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ""
    # Node's own fetch does not look at the variables unless it is told to.
    os.environ["NODE_USE_ENV_PROXY"] = "1"
    if authority:
        for name in _TRUST:
            os.environ[name] = authority


class _Half:
    """One direction of a connection: from where, to where, and what the other side has not taken yet."""

    __slots__ = ("done", "held", "sink", "source")

    def __init__(self, source: _socket.socket, sink: _socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = b""
        self.done = False


class Relay:
    """Everything that is under way, driven by one thread."""

    def __init__(self, listener: _socket.socket, way: Way) -> None:
        self._listener = listener
        self._way = way
        self._poll = select.poll()
        self._halves: dict[int, tuple[_Half, _Half]] = {}
        """Descriptor to the half that reads from it and the half that writes to it."""

    def run(self) -> None:
        """Relay until the process ends."""
        listening = self._listener.fileno()
        self._poll.register(listening, select.POLLIN)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == listening:
                    self._accept()
                elif descriptor in self._halves:
                    self._serve(descriptor, events)

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        client = _socket.socket(fileno=descriptor)
        client.setblocking(False)
        try:
            proxy = _socket.socket(fileno=self._way.dial())
        except StepError:
            client.close()
            return
        proxy.setblocking(False)
        out, back = _Half(client, proxy), _Half(proxy, client)
        self._halves[client.fileno()] = (out, back)
        self._halves[proxy.fileno()] = (back, out)
        self._watch(client)
        self._watch(proxy)

    def _watch(self, sock: _socket.socket) -> None:
        reads, writes = self._halves[sock.fileno()]
        wanted = 0
        if not reads.done and not reads.held:
            wanted |= select.POLLIN
        if writes.held:
            wanted |= select.POLLOUT
        # A socket that is registered for nothing still reports its hang-up, again and again.
        if wanted:
            self._poll.register(sock.fileno(), wanted)
        else:
            self._ignore(sock)

    def _ignore(self, sock: _socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(sock.fileno())

    def _serve(self, descriptor: int, events: int) -> None:
        reads, writes = self._halves[descriptor]
        try:
            if writes.held:
                self._flush(writes)
            # A hang-up is seen by reading, after whatever came before it.
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not reads.done and not reads.held:
                self._move(reads)
            elif events & select.POLLERR:
                raise OSError(errno.ECONNRESET, "reset")
        except OSError:
            self._close(reads)
            return
        if reads.done and writes.done:
            self._close(reads)
            return
        self._watch(reads.source)
        self._watch(reads.sink)

    def _move(self, half: _Half) -> None:
        try:
            half.held = half.source.recv(BUFFER)
        except OSError as error:
            if error.errno in _AGAIN:
                return
            raise
        if half.held:
            self._flush(half)
        else:
            half.done = True
            half.sink.shutdown(_socket.SHUT_WR)

    def _flush(self, half: _Half) -> None:
        try:
            half.held = half.held[half.sink.send(half.held) :]
        except OSError as error:
            if error.errno not in _AGAIN:
                raise

    def _close(self, half: _Half) -> None:
        for sock in (half.source, half.sink):
            self._halves.pop(sock.fileno(), None)
            self._ignore(sock)
            sock.close()
