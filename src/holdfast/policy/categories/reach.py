"""What can be reached: hosts, addresses, files."""

from __future__ import annotations

import ipaddress
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, fits, fits_any
from holdfast.policy.scan import strings

_REFUSALS = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)
Host = Annotated[str, StringConstraints(pattern=r"^(\*|(\*\.)?[A-Za-z0-9\[\]:._-]+)(:\d{1,5})?$", max_length=260)]
Method = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3,16}$")]


class EgressAllowlistParams(Params):
    """Parameters of egress_allowlist."""

    hosts: tuple[Host, ...] = Field(
        description="hosts that may be reached: `api.example`, `*.example` (below it, not itself), with `:port` where "
        "it is not the scheme's own"
    )
    methods: tuple[Method, ...] | None = Field(default=None, description="methods that may be used; left out: all")
    paths: tuple[Pattern, ...] | None = Field(default=None, description="paths or patterns; left out: all")


class EgressAllowlist(Category):
    """Where requests may go."""

    name = "egress_allowlist"
    family = "reach"
    summary = "Lets requests go only to listed hosts, with listed methods and paths."
    params = EgressAllowlistParams
    gates = ("http",)
    default_gates = ("http",)
    verdicts = _REFUSALS
    controls = ("pci-dss:1.3.2", "soc2:CC6.6", "hipaa:164.312(e)(1)")
    example = """\
id: where-to
category: egress_allowlist
with: {hosts: [api.bank.example, "*.internal.example:8443"], methods: [GET, POST]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look host, method and path up."""
        params, host = rule.params, action.host.rstrip(".").lower()
        if not host:
            return Breach(reason="the request names no host", outcome=Outcome.DENY)
        used = {"host": host, "method": action.method}
        if not any(_same(pattern, host) for pattern in params.hosts):
            return Breach(reason=f"{host} is not on the list of hosts", facts=used)
        if params.methods is not None and action.method not in params.methods:
            return Breach(reason=f"{action.method or 'no method'} to {host} is not on the list of methods", facts=used)
        if params.paths is not None:
            path = normal_path(action.path or "/")
            if path is None or not fits_any(params.paths, path):
                return Breach(reason=f"the path at {host} is not on the list", facts=used)
        return None


def _same(pattern: str, host: str) -> bool:
    pattern = pattern.lower()
    if pattern == "*":
        return True
    # A wildcard stands for one or more whole labels and never reaches over the port.
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def normal_path(path: str) -> str | None:
    """The path that a server would take it for; None when it hides where it leads."""
    plain = path
    for _ in range(3):
        decoded = unquote(plain)
        if decoded == plain:
            break
        plain = decoded
    else:
        return None
    plain = plain.replace("\\", "/")
    if "\0" in plain or any(ord(char) < 32 for char in plain):
        return None
    parts = posixpath.normpath(plain)
    return parts if not (parts == ".." or parts.startswith(("../", "/.."))) else None


_METADATA = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_LOCAL = (".localhost", ".svc", ".local", ".internal", ".intranet", ".home.arpa", ".localdomain")
# As browsers and libraries read them: any slashes, or none, after a scheme; only the authority, so that a URL within
# another's query is seen as well.
_URL = re.compile(
    r"(?i)(?:\b(?P<scheme>https?|ftp|wss?|gopher|file|dict|ldaps?|redis|jar|sftp|tftp|netdoc):[/\\]{0,8}|(?<![:\w/\\])[/\\]{2})"
    r"(?P<host>[^\s\"'<>/\\?#]{0,260})"
)
_FOREIGN = frozenset({"file", "gopher", "dict", "jar", "netdoc"})


class SsrfGuardParams(Params):
    """Parameters of ssrf_guard."""

    allow: tuple[Host, ...] = Field(default=(), description="private hosts that may be reached, as `127.0.0.1:8080`")
    resolved: bool = Field(
        default=True, description="whether a name is refused as long as the node has not said what it resolves to"
    )
    urls: bool = Field(default=True, description="whether URLs in the arguments of tools are looked at as well")


class SsrfGuard(Category):
    """Nothing private is reached by way of a request."""

    name = "ssrf_guard"
    family = "reach"
    summary = "Refuses requests to private, local and metadata addresses, however they are written or resolved."
    params = SsrfGuardParams
    gates = ("http", "tool")
    default_gates = ("http", "tool")
    verdicts = _REFUSALS
    controls = ("soc2:CC6.6", "pci-dss:6.2.4", "pci-dss:1.4.2")
    example = """\
id: nothing-private
category: ssrf_guard
with: {allow: ["127.0.0.1:8080"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at the host, at what it resolves to, and at every URL."""
        params = rule.params
        if action.kind == "http":
            if not action.host:
                return Breach(reason="the request names no host", outcome=Outcome.DENY)
            return _judge(action.host, params, action.addresses, resolved=params.resolved)
        if params.urls:
            for host in _hosts(action.args):
                found = _judge(host, params, (), resolved=False)
                if found is not None:
                    return found
        return None


def _hosts(args: Any) -> Iterator[str]:
    for _, text, _ in strings(args):
        for match in _URL.finditer(text):
            if (match["scheme"] or "").lower() in _FOREIGN:
                yield ":"
            elif match["host"]:
                yield match["host"].rpartition("@")[2]


def _judge(host: str, params: Any, addresses: tuple[str, ...], *, resolved: bool) -> Breach | None:
    if any(_same(pattern, host.lower()) for pattern in params.allow):
        return None
    name = _name(host)
    if not name or any(mark in name for mark in "@/\\ ") or name.startswith(":"):
        return Breach(reason="a URL reaches for something that is no host", facts={"host": host[:80]})
    literal = _address(name)
    if literal is None and (name in _METADATA or name == "localhost" or name.endswith(_LOCAL)):
        return Breach(reason=f"{name} is a local name", facts={"host": name})
    known = [literal] if literal is not None else [_address(one) for one in addresses]
    if not known and resolved:
        return Breach(reason=f"nobody has said what {name} resolves to", facts={"host": name})
    for one in known:
        if one is None or not _public(one):
            reason = f"{name} is a private address" if literal is not None else f"{name} leads to a private address"
            return Breach(reason=reason, facts={"host": name})
    return None


def _name(host: str) -> str:
    # Resolvers take compatibility forms of digits, letters and dots for the plain ones.
    host = unicodedata.normalize("NFKC", unquote(host)).strip().lower().replace("\u3002", ".")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return (host.partition(":")[0] if host.count(":") == 1 and host != ":" else host).rstrip(".")


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> Address | None:
    """An address in any spelling that ``inet_aton`` takes: dotted, with fewer parts, octal, hexadecimal."""
    text = text.partition("%")[0].rstrip(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    parts = text.split(".")
    if not 1 <= len(parts) <= 4 or not all(re.fullmatch(r"0x[0-9a-f]+|\d+", part) for part in parts):
        return None
    try:
        numbers = [
            int(part, 16) if part.startswith("0x") else int(part, 8) if len(part) > 1 and part[0] == "0" else int(part)
            for part in parts
        ]
    except ValueError:
        return None
    last = numbers.pop()
    if any(number > 255 for number in numbers) or last >= 256 ** (4 - len(numbers)):
        return None
    value = last + sum(number << (8 * (3 - index)) for index, number in enumerate(numbers))
    return ipaddress.IPv4Address(value)


_SHARED = ipaddress.ip_network("100.64.0.0/10")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _public(inner)
    elif address in _SHARED:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class PathGuardParams(Params):
    """Parameters of path_guard."""

    allow: tuple[Pattern, ...] = Field(
        default=("*",), min_length=1, description="paths or patterns that may be touched; `*` reaches over slashes"
    )
    deny: tuple[Pattern, ...] = Field(
        default=(
            "/etc/*", "/proc/*", "/sys/*", "/dev/*", "/root/*", "/boot/*", "/var/run/*", "*/.ssh/*", ".ssh/*",
            "*/.aws/*", ".aws/*", "*/.git/*", ".git/*", "*.env", "*/.netrc", ".netrc", "*.pem", "*.key",
            "*_rsa", "*/.kube/*",
        ),
        description="paths or patterns that may not; they win",
    )  # fmt: skip
    read_only: bool = Field(default=False, description="whether nothing may be written or deleted at all")
    arguments: tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...] = Field(
        default=("path", "file", "filename", "name", "source", "destination"),
        description="arguments of files and tools that hold a path",
    )


class PathGuard(Category):
    """Which files may be touched."""

    name = "path_guard"
    family = "reach"
    summary = "Lets only listed paths be touched, after undoing escapes, links and steps upwards; never credentials."
    params = PathGuardParams
    gates = ("file", "tool")
    default_gates = ("file",)
    verdicts = _REFUSALS
    controls = ("soc2:CC6.1", "pci-dss:7.2.1", "hipaa:164.312(a)(1)")
    example = """\
id: only-reports
category: path_guard
with: {allow: ["reports/*"]}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare every path."""
        params = rule.params
        if params.read_only and action.kind == "file" and action.name not in ("read", "list", "stat"):
            return Breach(reason=f"files may only be read, not {action.name}", facts={"operation": action.name})
        paths = [action.path] if action.path else []
        for name in params.arguments:
            if name in action.args:
                paths += [text for _, text, in_key in strings(action.args[name]) if not in_key]
        if not paths and action.kind == "file":
            return Breach(reason="the action names no file", outcome=Outcome.DENY)
        for path in paths:
            plain = normal_path(path)
            if plain is None or plain.startswith("~") or re.match(r"(?i)[a-z]:|//|file:", plain):
                return Breach(reason="a path leads out of where it starts, or hides where it leads")
            if fits_any(params.deny, plain) or fits_any(params.deny, plain.lower()):
                return Breach(reason="a path is on the list of those that nobody touches")
            if not any(fits(pattern, plain) for pattern in params.allow):
                return Breach(reason="a path is not on the list")
        return None
