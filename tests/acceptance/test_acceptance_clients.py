"""Real clients inside a boundary, unchanged: libraries and programs find their way out, and nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.testing.upstream import Upstream

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    one = Upstream()
    yield one
    one.close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A server of files: a git repository, a Python index and an npm registry, with one small package each."""
    root = tmp_path / "mirror"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    authority = f"127.0.0.1:{server.server_port}"
    git_repository(root, tmp_path)
    python_index(root)
    npm_registry(root, authority)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield authority
    server.shutdown()
    server.server_close()
    thread.join(30)


def git_repository(root: Path, scratch: Path) -> None:
    if shutil.which("git") is None:
        return
    work = scratch / "work"
    work.mkdir()
    (work / "ledger.txt").write_text("a=1")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=work, check=True, capture_output=True)
    bare = root / "books.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True, capture_output=True)
    subprocess.run(["git", "update-server-info"], cwd=bare, check=True, capture_output=True)


def python_index(root: Path) -> None:
    folder = root / "simple" / "ledgerly"
    folder.mkdir(parents=True)
    wheel = folder / "ledgerly-1.0-py3-none-any.whl"
    files = {
        "ledgerly.py": b"a = 1\n",
        "ledgerly-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: ledgerly\nVersion: 1.0\n",
        "ledgerly-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={digest(data)},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("ledgerly-1.0.dist-info/RECORD", record + "ledgerly-1.0.dist-info/RECORD,,\n")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def npm_registry(root: Path, authority: str) -> None:
    folder = root / "npm"
    folder.mkdir()
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, data in (
            ("package/package.json", json.dumps({"name": "ledgerly", "version": "1.0.0"}).encode()),
            ("package/index.js", b"a=1"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    (folder / "ledgerly.tgz").write_bytes(held.getvalue())
    dist = {
        "tarball": f"http://{authority}/npm/ledgerly.tgz",
        "integrity": "sha512-" + base64.b64encode(hashlib.sha512(held.getvalue()).digest()).decode(),
    }
    about = {"name": "ledgerly", "version": "1.0.0", "dist": dist}
    page = {"name": "ledgerly", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}
    (folder / "ledgerly").write_text(json.dumps(page))


def use(lab: Any, authority: str, *which: str, settings: str = "") -> dict[str, Any]:
    """Run the clients inside a boundary from which one place can be reached."""
    shutil.copy(Path(__file__).with_name("clients_agent.py"), lab.folder)
    lab.settings(f'[egress]\nallow_private = ["{authority}"]\n' + settings)
    policies = f"""
    - id: where-to
      category: egress_allowlist
      with: {{hosts: ["{authority}"]}}
    """
    given = {"which": list(which), "url": f"http://{authority}"}
    view = lab.run("clients_agent.py:Clients", given, policies=policies)
    assert view.status == "completed", view.error
    lab.verify()
    return dict(view.output)


def test_python_libraries(lab: Any, upstream: Upstream) -> None:
    which = ("requests", "httpx", "aiohttp", "urllib")
    found = use(lab, upstream.authority, *which)
    assert [json.loads(found[name]) for name in which[:3]] == [{"a": 1}] * 3
    assert found["urllib"] == "a=1"
    assert [request[1] for request in upstream.requests] == [f"/{name}" for name in which]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(lab: Any, upstream: Upstream) -> None:
    assert use(lab, upstream.authority, "curl") == {"curl": "a=1"}


def test_boto3_is_signed_anew_with_the_keys_that_it_never_saw(lab: Any, upstream: Upstream) -> None:
    keys = json.dumps({"access_key_id": "AKIAREAL", "secret_access_key": "the-real-key-0123456789"})
    done = lab.cli("secrets", "set", "aws", "--host", upstream.authority, "--as", "sigv4", stdin=keys)
    assert done.returncode == 0, done.stderr
    assert use(lab, upstream.authority, "boto3") == {"boto3": "put"}
    (request,) = upstream.requests
    assert request[:2] == ("PUT", "/empty/ledger.txt")
    authorization = {name.lower(): value for name, value in request[2].items()}["authorization"]
    assert "Credential=AKIAREAL/" in authorization
    assert "AKIAEXAMPLE" not in str(request)


def test_the_model_providers_own_libraries(lab: Any, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "one"}])
    authority = server.url.removeprefix("http://")
    key = "sk-test-acceptance"
    for name, inject, path in (
        ("llm", "header:x-api-key", "/v1/messages"),
        ("openai", "bearer", "/v1/chat/completions"),
    ):
        done = lab.cli("secrets", "set", name, "--host", authority, "--path", path, "--as", inject, stdin=key)
        assert done.returncode == 0, done.stderr
    found = use(lab, authority, "anthropic", "anthropic_stream", "openai", settings=lab.model)
    assert found == dict.fromkeys(("anthropic", "anthropic_stream", "openai"), "one")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git(lab: Any, mirror: str) -> None:
    assert use(lab, mirror, "git") == {"git": "a=1"}


def test_pip(lab: Any, mirror: str) -> None:
    assert use(lab, mirror, "pip") == {"pip": ["ledgerly.py"]}


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm(lab: Any, mirror: str) -> None:
    assert use(lab, mirror, "npm") == {"npm": "a=1"}
