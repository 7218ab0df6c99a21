"""A server on loopback that writes down what reaches it and answers as its path says.

``/status/N`` answers with that status, ``/empty…`` with nothing, ``/hold…`` only once :attr:`Upstream.hold` is set,
``/drop…`` never: the connection is closed. Every other answer is JSON and holds what was sent, headers included.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Upstream:
    """Started at once; :attr:`requests` holds (method, path, headers, body) of everything that arrived.

    ``tls``: a folder; the server then speaks TLS for ``localhost`` and 127.0.0.1, and its authority's certificate is
    ``authority.pem`` there.
    """

    def __init__(self, tls: Path | None = None) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answered = threading.Event()
        self.hold = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream.requests.append((self.command, self.path, dict(self.headers), body))
                if self.path.startswith("/hold"):
                    upstream.hold.wait(60)
                if self.path.startswith("/drop"):
                    self.close_connection = True
                    return
                status = int(self.path.rpartition("/status/")[2]) if "/status/" in self.path else 200
                said = {"n": len(upstream.requests), "method": self.command, "body": body.decode()}
                answer = json.dumps(said | {"headers": dict(self.headers)}).encode()
                answer = b"" if self.path.startswith("/empty") else answer
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
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = _context(tls).wrap_socket(self._server.socket, server_side=True)
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


def _context(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "authority.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context
