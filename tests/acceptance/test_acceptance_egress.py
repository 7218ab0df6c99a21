"""What leaves a boundary: through the proxy alone, decided, recorded, and never twice by accident."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.testing.upstream import Upstream

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
    import os
    import subprocess
    import urllib.request
    from holdfast import agent, workflow, DeniedError

    @agent(name="reacher")
    class Reacher:
        @workflow
        def main(self, ctx):
            return ctx.call(getattr(self, ctx.input.how), ctx.input.get("url", ""))

        def get(self, ctx, url):
            response = ctx.http.get(url)
            return [response.status_code, response.json()["method"]]

        def post_twice(self, ctx, url):
            return [ctx.http.post(url, json={"a": 1}).json()["n"] for _ in range(2)]

        def denied(self, ctx, url):
            try:
                ctx.http.get(url)
            except DeniedError as error:
                return [error.rule, str(error)]

        def urllib(self, ctx, url):
            with urllib.request.urlopen(url, timeout=60) as answer:
                return [answer.status, answer.read().decode()]

        def urllib_denied(self, ctx, url):
            try:
                urllib.request.urlopen(url, timeout=60)
            except urllib.error.HTTPError as error:
                return [error.code, error.read().decode()]

        def curl(self, ctx, url):
            command = ["curl", "-sS", "--max-time", "60", "-d", "x=1", "-w", "%{http_code}", url]
            done = subprocess.run(command, capture_output=True, text=True)
            return [done.returncode, done.stdout, done.stderr]

        def straight(self, ctx, url):
            import socket
            host, _, port = url.partition(":")
            try:
                socket.create_connection((host, int(port)), timeout=5)
            except OSError as error:
                return type(error).__name__
            return "reached"

        def variables(self, ctx, url):
            return {name: value for name, value in os.environ.items() if "proxy" in name.lower() or "CA" in name}
"""
LIST = """
    - id: where-to
      category: egress_allowlist
      with: {{hosts: ["{authority}"]}}
"""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    one = Upstream()
    yield one
    one.close()


@pytest.fixture
def place(lab: Any, upstream: Upstream) -> Any:
    lab.write("reacher.py", AGENT)
    lab.settings(f'[egress]\nallow_private = ["{upstream.authority}"]\n')
    return lab


def reach(place: Any, upstream: Upstream, how: str, path: str = "/", *, listed: bool = True, **options: Any) -> Any:
    policies = LIST.format(authority=upstream.authority) if listed else ""
    url = options.pop("url", f"http://{upstream.authority}{path}")
    run = place.submit("reacher.py:Reacher", {"how": how, "url": url}, policies=policies, **options)
    view = place.drive(run)
    assert view.status == "completed", (view.error, place.kinds(run))
    place.verify()
    return view.output, run


def test_ctx_http_reaches_what_is_listed_and_the_record_says_so(place: Any, upstream: Upstream) -> None:
    output, run = reach(place, upstream, "get", "/x?y=1")
    assert output == [200, "GET"]
    assert [request[:2] for request in upstream.requests] == [("GET", "/x?y=1")]
    intents = [event for event in place.events(run, "intent") if event.data["action"]["kind"] == "http"]
    (intent,) = intents
    assert intent.data["action"]["host"] == upstream.authority
    assert intent.data["parent"] == "get.1/http"
    (outcome,) = [event for event in place.events(run, "outcome") if event.data["id"] == intent.data["action"]["id"]]
    assert outcome.data["exchange"]["status"] == 200
    assert outcome.data["exchange"]["address"] == "127.0.0.1"


def test_equal_requests_are_two_effects(place: Any, upstream: Upstream) -> None:
    output, _ = reach(place, upstream, "post_twice")
    assert output == [1, 2]


def test_nothing_is_reachable_without_a_list(place: Any, upstream: Upstream) -> None:
    output, run = reach(place, upstream, "denied", listed=False)
    assert output[0] == "egress"
    assert "no egress_allowlist applies" in output[1]
    assert upstream.requests == []
    assert any(event.data["verdict"]["rule"] == "egress" for event in place.events(run, "verdict"))


def test_what_is_private_needs_the_operators_word_too(place: Any, upstream: Upstream) -> None:
    place.settings("")
    output, _ = reach(place, upstream, "denied")
    assert output[0] == "ssrf"
    assert upstream.requests == []


def test_any_library_inside_finds_the_proxy(place: Any, upstream: Upstream) -> None:
    output, _ = reach(place, upstream, "urllib", "/lib")
    assert output[0] == 200
    assert upstream.requests[0][:2] == ("GET", "/lib")
    output, _ = reach(place, upstream, "urllib_denied", url="http://else.example/")
    assert output[0] == 403
    assert '"rule":"where-to"' in output[1]
    assert upstream.authority in output[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_program_that_the_code_starts_finds_the_proxy(place: Any, upstream: Upstream) -> None:
    output, _ = reach(place, upstream, "curl", "/curl")
    assert output[0] == 0, output
    assert output[1].endswith("200")
    assert upstream.requests[0][0] == "POST"
    assert upstream.requests[0][3] == b"x=1"


def test_there_is_no_other_way(place: Any, upstream: Upstream) -> None:
    output, _ = reach(place, upstream, "straight", url=upstream.authority)
    assert output in ("ConnectionRefusedError", "OSError")
    assert upstream.requests == []
