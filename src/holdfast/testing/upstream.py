"""A server on loopback that writes down what reaches it and answers as its path says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream:
    """Started at once; :attr:`requests` holds (method, path, headers, body) of everything that arrived."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answered = threading.Event()
        self.hold = threading.Event()
        """Paths that begin with ``/hold`` are answered once it is set."""
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream.requests.append((self.command, self.path, dict(self.headers), body))
                if self.path.startswith("/hold"):
                    upstream.hold.wait(60)
                status = int(self.path.rpartition("/status/")[2]) if "/status/" in self.path else 200
                said = {"n": len(upstream.requests), "method": self.command, "body": body.decode()}
                answer = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)
                upstream.answered.set()

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)
