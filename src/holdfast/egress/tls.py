"""TLS interception: a certificate authority for each run, whose key never leaves the node's memory, and its leaves.

Keys are ECDSA P-256. A leaf is made once for each host and shared by the run's connections.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast.egress.base import Refused
from holdfast.errors import ConfigError

LEAVES: Final = 256
"""Leaves that are kept; a run that reaches more hosts gets the oldest anew."""
_LIFE: Final = datetime.timedelta(days=30)
_SKEW: Final = datetime.timedelta(days=1)
"""Clocks inside a boundary may be off."""


class Authority:
    """The certificate authority of one run. :attr:`pem` goes into the boundary; the key stays in this object."""

    def __init__(self, name: str = "run") -> None:
        """``name`` tells authorities apart in a client's error messages."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Holdfast egress, {name}"[:64])])
        now = datetime.datetime.now(datetime.UTC)
        public = self._key.public_key()
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        # One key for all leaves of a run: whoever holds it could read this run's own traffic, and nobody but us does.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()

    def context(self, host: str) -> ssl.SSLContext:
        """The server side of an intercepted connection to ``host``: a ClientHello that names another is refused."""
        known = self._contexts.get(host)
        if known is not None:
            self._contexts.move_to_end(host)
            return known
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.sni_callback = _only(host)
        # Python takes keys from files only: one in memory, gone when it is closed.
        with _memory_file(self._leaf(host) + self._leaf_key_pem()) as path:
            context.load_cert_chain(path)
        self._contexts[host] = context
        if len(self._contexts) > LEAVES:
            self._contexts.popitem(last=False)
        return context

    def _leaf(self, host: str) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        try:
            subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            subject = x509.DNSName(host)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
            .issuer_name(self._name)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _LIFE - _SKEW)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _leaf_key_pem(self) -> bytes:
        return self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def upstream_context(extra_roots: tuple[str, ...] = ()) -> ssl.SSLContext:
    """How upstreams are verified: TLS 1.2 or later, the chain and the name. Roots are those of ``SSL_CERT_FILE`` of the
    node or certifi's, and ``extra_roots`` (PEM files).

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.create_default_context(
        cafile=os.environ.get("SSL_CERT_FILE") or certifi.where(), capath=os.environ.get("SSL_CERT_DIR") or None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in extra_roots:
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"egress roots: {path} is no PEM file of certificates ({error})") from None
    return context


class UpstreamTls:
    """The contexts of one tenant's upstream connections: two, for one says by ALPN what it speaks."""

    def __init__(self, make: Callable[[], ssl.SSLContext] = upstream_context) -> None:
        """``make`` gives a new context each time (:func:`upstream_context` with the tenant's roots)."""
        self._make = make
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def context(self, *, http2: bool) -> ssl.SSLContext:
        """The context for a connection that offers HTTP/2, or one that does not.

        Raises:
            ConfigError: the roots cannot be used.
        """
        context = self._contexts.get(http2)
        if context is None:
            context = self._make()
            context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
            self._contexts[http2] = context
        return context


def _only(host: str) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int | None]:
    def check(_: ssl.SSLObject, named: str | None, __: ssl.SSLContext) -> int | None:
        # No name at all is what clients of addresses send, and old clients of names.
        return None if named is None or named.lower() == host else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    return check


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def hello_name(data: bytes) -> str | None:
    """The server name in a ClientHello (RFC 8446, 4.1.2); empty where it names none, None while more is needed.

    Raises:
        Refused: it is no ClientHello, it is malformed, or its true name is encrypted (ECH).
    """
    hello = b""
    at = 0
    while True:
        record = data[at : at + 5]
        if record and (record[0] != 0x16 or (len(record) > 1 and record[1] != 3)):
            raise _no_hello("it does not begin with a TLS handshake")
        if len(record) < 5:
            return None
        length = int.from_bytes(record[3:5], "big")
        if not 0 < length <= 16_384 or at > MAX_HELLO:
            raise _no_hello("a record of impossible length")
        hello += data[at + 5 : at + 5 + length]
        if hello and hello[0] != 1:
            raise _no_hello("it is not a ClientHello")
        if len(hello) >= 4 and len(hello) >= 4 + int.from_bytes(hello[1:4], "big"):
            return _name_in(hello[4 : 4 + int.from_bytes(hello[1:4], "big")])
        if len(data) < at + 5 + length:
            return None
        at += 5 + length


MAX_HELLO: Final = 65_536


def _name_in(hello: bytes) -> str:
    try:
        at = 2 + 32
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 1 + hello[at]
        end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 2
        found: str | None = None
        if end > len(hello):
            raise IndexError
        while at < end:
            kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
            content = hello[at + 4 : at + 4 + length]
            at += 4 + length
            if at > end:
                raise IndexError
            if kind == 0xFE0D:
                raise _no_hello("its server name is encrypted (ECH); turn that off for this client")
            if kind == 0:
                size = int.from_bytes(content[3:5], "big")
                if found is not None or content[2] != 0 or len(content) != size + 5:
                    raise _no_hello("its server name is malformed")
                found = content[5:].decode("ascii").lower()
    except (IndexError, UnicodeDecodeError):
        raise _no_hello("it is malformed") from None
    return found or ""


def _no_hello(why: str) -> Refused:
    return Refused(f"the tunnel's ClientHello is refused: {why}", kind="tls", status=400)
