"""An agent hunts for the secret that is added to its requests: in what comes back, and in all that it can reach."""

from __future__ import annotations

import base64
import binascii
import html
import json
import os
import quopri
import shutil
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from holdfast import config
from holdfast.egress import credentials
from holdfast.egress.bindings import binding
from holdfast.egress.scrub import Secrets
from holdfast.egress.spellings import ENCODINGS
from holdfast.node.service import Service
from holdfast.node.views import Principal, RunView
from holdfast.sandbox import registry

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]
ALICE = Principal(name="alice", auth="token", roles=())
SECRET = 'k<3y&"R-9f7Qz/+w2LmX'

SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "reversed": lambda text: text[::-1].encode(),
    "base64": lambda text: base64.b64encode(b"user:" + text.encode()),
    "hex": lambda text: binascii.hexlify(text.encode()),
    "decimal": lambda text: json.dumps(list(text.encode())).encode(),
    "utf-16": lambda text: text.encode("utf-16-le"),
    "url": lambda text: quote(text, safe="").encode(),
    "json": lambda text: "".join(f"\\u{ord(char):04x}" for char in text).encode(),
    "html": lambda text: html.escape(text).encode(),
    "quoted-printable": lambda text: "".join(f"={ord(char):02X}" for char in text).encode(),
}
READS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "reversed": lambda data: data[::-1],
    "base64": lambda data: base64.b64decode(data + b"==", validate=False),
    "hex": lambda data: bytes.fromhex(data.decode("ascii", "ignore")),
    "decimal": lambda data: bytes(json.loads(data)),
    "utf-16": lambda data: data.decode("utf-16-le", "ignore").encode(),
    "url": lambda data: data,
    "json": lambda data: json.loads(b'"' + data + b'"').encode(),
    "html": lambda data: html.unescape(data.decode()).encode(),
    "quoted-printable": quopri.decodestring,
}
"""How an attacker reads each spelling again."""

AGENT = """
    import os
    from holdfast import agent, workflow

    @agent(name="hunter")
    class Hunter:
        @workflow
        def main(self, ctx):
            return ctx.call(self.hunt, ctx.input.url, ctx.input.other, ctx.input.spellings)

        def hunt(self, ctx, url, other, spellings):
            seen = {}
            for name in spellings:
                seen[name] = ctx.http.get(f"{url}/{name}").content.decode("latin-1")
            for how in ("header", "error", "redirect"):
                answer = ctx.http.get(f"{url}/{how}", headers={"authorization": "Bearer holdfast-secret-bank"})
                seen[how] = repr(dict(answer.headers)) + answer.text
            seen["elsewhere"] = ctx.http.get(f"{other}/plain").text
            seen["followed"] = ctx.http.get(f"{url}/redirect", follow_redirects=True).text
            seen["environment"] = repr(dict(os.environ))
            seen["files"] = files()
            ctx.http.get(f"{other}/hold")
            return seen

    def files():
        found = []
        places = [os.getcwd(), "/code", "/etc", "/tmp", "/run", "/var"]
        for top in places + [f"/proc/{name}" for name in os.listdir("/proc") if name.isdigit()]:
            for folder, names, inside in os.walk(top):
                names[:] = [name for name in names if name not in ("task", "map_files", "net", "fd")]
                for name in inside:
                    try:
                        file = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK)
                    except OSError:
                        continue
                    try:
                        found.append(os.read(file, 1 << 16).decode("latin-1"))
                    except OSError:
                        pass
                    finally:
                        os.close(file)
        return [text for text in found if "9f" + "7Qz" in text or "zQ7" + "f9" in text]
"""


class Echo:
    """Hands back the credential that it got, spelt as the path says; in pieces of a few bytes."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.held = threading.Event()
        self.got: list[str] = []
        self.elsewhere = ""
        echo = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                given = self.headers.get("x-key", "")
                echo.got.append(given)
                name = self.path.strip("/")
                if name == "hold":
                    echo.held.set()
                    echo.hold.wait(120)
                spelt = SPELLINGS.get(name, SPELLINGS["plain"])(given)
                self.send_response({"error": 500, "redirect": 302}.get(name, 200))
                if name == "header":
                    self.send_header("x-echo", given)
                if name == "redirect":
                    self.send_header("location", f"{echo.elsewhere}/plain?k={quote(given, safe='')}")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for at in range(0, len(spelt), 3):
                    piece = spelt[at : at + 3]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.authority = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers() -> Iterator[tuple[Echo, Echo]]:
    bank, other = Echo(), Echo()
    bank.elsewhere = f"http://{other.authority}"
    yield bank, other
    bank.close()
    other.close()


def hunt(folder: Path, bank: Echo, other: Echo, spellings: list[str], meanwhile: Callable[[Path], None]) -> RunView:
    """Run the hunter; ``meanwhile`` is called with the home when it has all that it could get."""
    (folder / "hunter.py").write_text(textwrap.dedent(AGENT))
    listed = f'["{bank.authority}", "{other.authority}"]'
    (folder / "policy.yaml").write_text(
        "version: 1\npolicies:\n  - {id: where-to, category: egress_allowlist, with: {hosts: " + listed + "}}\n"
    )
    (folder / config.FILE).write_text(f"[egress]\nallow_private = {listed}\n")
    home = folder / "home"
    with Service.open(config.load(home, cwd=folder), home) as service:
        bound = binding("header:x-key", bank.authority)
        service.set_secret("default", "bank", bound, SECRET.encode(), principal=ALICE)
        given = {"url": f"http://{bank.authority}", "other": f"http://{other.authority}", "spellings": spellings}
        target = f"{folder}/hunter.py:Hunter"
        run = service.submit(
            target, json.dumps(given).encode(), principal=ALICE, policy_files=(folder / "policy.yaml",)
        )

        def look() -> None:
            other.held.wait(120)
            try:
                meanwhile(home)
            finally:
                other.hold.set()

        looking = threading.Thread(target=look)
        looking.start()
        view = service.drive(run)
        other.held.set()
        looking.join(120)
    assert view.status == "completed", view.error
    assert bank.got
    assert set(bank.got) == {SECRET}
    assert set(other.got) == {""}
    return view


def spelt(found: dict[str, str], name: str) -> bool:
    """Whether an attacker reads the secret out of what came back in one spelling."""
    data = found[name].encode("latin-1")
    try:
        return SECRET.encode() in data or SECRET.encode() in READS[name](data) or SPELLINGS[name](SECRET) in data
    except (ValueError, UnicodeDecodeError):
        return False


def test_every_spelling_is_tried() -> None:
    assert set(SPELLINGS) == set(READS) == set(ENCODINGS)
    assert all(spelt({name: SPELLINGS[name](SECRET).decode("latin-1")}, name) for name in ENCODINGS)


def test_a_hunter_finds_nothing_anywhere(tmp_path: Path, servers: tuple[Echo, Echo]) -> None:
    looked: list[int] = []

    def memory(home: Path) -> None:
        """The whole memory of every process inside, as only the host's root can read it."""
        for entry in registry.entries(home):
            for pid in registry.search([entry])[entry.id]:
                looked.append(scan(pid))

    view = hunt(tmp_path, *servers, list(ENCODINGS), memory if os.geteuid() == 0 else lambda _: None)
    found = view.output
    assert [name for name in ENCODINGS if spelt(found, name)] == []
    for name in ("header", "error", "redirect", "elsewhere", "followed", "environment", "files"):
        assert "9f7Qz" not in str(found[name]), name
    assert found["files"] == []
    if os.geteuid() == 0:
        assert looked
        assert sum(looked) > 1 << 20, "memory was read"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert base64.b64encode(SECRET.encode()) not in data, path


def scan(pid: int) -> int:
    """Read a process's memory; gives how many bytes there were.

    Raises:
        AssertionError: the secret is in it.
    """
    size = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            span, rights = line.split()[:2]
            if "r" not in rights or "[v" in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                mem.seek(start)
                data = mem.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            size += len(data)
            assert b"9f7Qz" not in data or SECRET.encode() not in data, line
    return size


@pytest.mark.parametrize("removed", ENCODINGS)
def test_without_one_scrubber_the_hunter_finds_it(
    tmp_path: Path, servers: tuple[Echo, Echo], monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    left = [name for name in ENCODINGS if name != removed]

    def weaker(texts: tuple[str, ...]) -> Secrets:
        return Secrets(texts, left)

    whole = credentials.Credentials

    def leaky(*args: Any, **kwargs: Any) -> credentials.Credentials:
        return whole(*args, **{**kwargs, "secrets": weaker})

    monkeypatch.setattr(credentials, "Credentials", leaky)
    view = hunt(tmp_path, *servers, [removed], lambda _: None)
    assert spelt(view.output, removed)
