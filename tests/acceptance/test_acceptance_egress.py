"""What leaves a boundary: through the proxy alone, decided, recorded, and never twice by accident."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.node import door
from holdfast.node.egress import OWN_LOOPBACK
from holdfast.sandbox.levels import level as level_of
from holdfast.testing.upstream import Upstream

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

AGENT = """
    import os
    import subprocess
    import urllib.request
    from holdfast import agent, workflow, DeniedError, StepError

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

        def reflect(self, ctx, url):
            answer = ctx.http.get(url, headers={"authorization": "Bearer of my own", "x-own": "1"})
            return [answer.json()["headers"], dict(os.environ)]

        def payments(self, ctx, url):
            method = ctx.input.get("method", "POST")
            return [ctx.http.request(method, url, json={"n": n}).json()["n"] for n in range(2)]

        def then_pays(self, ctx, url):
            said = ctx.http.get(url).json()["body"]
            try:
                return ctx.tool("pay", amount=7)
            except DeniedError as error:
                return [error.rule]

        def asks_model(self, ctx, url):
            request = {"model": "scripted-1", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
            answers = []
            for _ in range(3):
                try:
                    answers.append(ctx.http.post(url, json=request).json()["content"][0]["text"])
                except DeniedError as error:
                    answers.append(f"{error.rule}: {error}")
            return answers

        def wavers(self, ctx, url):
            ctx.http.post(url, json={"attempt": ctx.attempt})
            return ctx.http.post(url, json={"attempt": "last"}).json()["n"]

        def connects(self, ctx, url):
            found = [ctx.tool("book", account="a b", amount=7), ctx.tool("look", account="x", since="today")]
            for name, args in (("book", {"account": "", "amount": 1}), ("book", {"account": "a", "amount": "7"}),
                               ("gone", {})):
                try:
                    found.append(ctx.tool(name, **args))
                except StepError as error:
                    found.append(str(error))
            return found

        async def at_once(self, ctx, url):
            async def one(n):
                return (await ctx.http.get(f"{url}?n={n}")).status_code
            import asyncio
            return list(await asyncio.gather(*(one(n) for n in range(5))))
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


def test_requests_of_an_async_step_run_side_by_side(place: Any, upstream: Upstream) -> None:
    output, _ = reach(place, upstream, "at_once")
    assert output == [200] * 5


@pytest.mark.parametrize("how", ["get", "urllib"])
def test_tls_is_opened_at_the_proxy_and_verified_beyond(place: Any, tmp_path: Path, how: str) -> None:
    upstream = Upstream(tls=tmp_path)
    try:
        egress = f'[egress]\nallow_private = ["{upstream.authority}"]\n'
        place.settings(egress)
        url = f"https://{upstream.authority}/tls"
        run = place.submit(
            "reacher.py:Reacher", {"how": how, "url": url}, policies=LIST.format(authority=upstream.authority)
        )
        assert place.drive(run).status == "failed", "nobody vouches for the server"
        assert upstream.requests == []
        place.settings(egress + f'roots = ["{tmp_path}/authority.pem"]\n')
        output, run = reach(place, upstream, how, url=url)
        assert output[0] == 200
        assert [request[:2] for request in upstream.requests] == [("GET", "/tls")]
        (intent,) = [event for event in place.events(run, "intent") if event.data["action"]["kind"] == "http"]
        assert intent.data["action"]["path"] == "/tls", "what is inside TLS is decided and recorded"
    finally:
        upstream.close()


def test_a_credential_is_added_outside_and_never_comes_back(place: Any, upstream: Upstream) -> None:
    secret = "s3cr3t-Token-0123456789"
    done = place.cli("secrets", "set", "bank", "--host", upstream.authority, "--as", "bearer", stdin=secret)
    assert done.returncode == 0, done.stderr
    output, run = reach(place, upstream, "reflect")
    headers, environ = output
    assert upstream.requests[0][2]["authorization"] == f"Bearer {secret}"
    assert upstream.requests[0][2]["x-own"] == "1"
    assert secret not in str(output)
    assert "of my own" not in str(headers)
    assert secret not in str(environ)
    (intent,) = [event for event in place.events(run, "intent") if event.data["action"]["kind"] == "http"]
    assert intent.data["action"]["credential"] == "bank"
    assert secret.encode() not in (place.home / "holdfast.db").read_bytes()


ASKING = (
    LIST
    + """
    - id: ask-first
      category: require_approval
      gates: [http]
      when: action.method == "POST"
      with: {{approvers: ["role:controller"]}}
"""
)


def test_a_request_that_waits_for_people_is_held_then_the_run_is_suspended(
    place: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HOLD_S", 0.3)
    policies = ASKING.format(authority=upstream.authority)
    url = f"http://{upstream.authority}/pay"
    run = place.submit("reacher.py:Reacher", {"how": "post_twice", "url": url}, policies=policies)
    for already in range(2):
        assert place.drive(run).status == "suspended"
        assert len(upstream.requests) == already
        (wait,) = place.view(run).pending
        with place.service() as service:
            service.answer(wait.id, True, principal=place.person)
    view = place.drive(run)
    assert (view.status, view.output) == ("completed", [1, 2])
    place.verify()


def killed_at(place: Any, upstream: Upstream, kind: str, name: str, how: str, **given: Any) -> str:
    """Start a run on a node that dies after the commit of an event; gives the run."""
    run = ""
    halting = ["-m", "holdfast.testing.halt", str(place.home), "KILL", kind, name, "1"]
    with place.serving(halting) as node:
        url = f"http://{upstream.authority}/pay"
        policies = LIST.format(authority=upstream.authority)
        run = place.submit("reacher.py:Reacher", {"how": how, "url": url, **given}, policies=policies)
        node.wait(timeout=90)
    return str(run)


def test_a_step_that_runs_again_is_served_what_was_answered(place: Any, upstream: Upstream) -> None:
    # Two intents and their outcomes lie between: the step's, the first request's, the second's.
    run = killed_at(place, upstream, "intent", f"POST {upstream.authority}", "payments", method="POST")
    assert upstream.requests == []
    view = place.drive(run)
    assert view.status == "in_doubt", "whether the first had left, nobody here knows"
    with place.service() as service:
        service.resolve(run, "done", b'{"n": 41}', principal=place.person)
    view = place.drive(run)
    assert (view.status, view.output) == ("completed", [41, 1])
    assert [request[3] for request in upstream.requests] == [b'{"n": 1}']
    place.verify()


def test_code_that_takes_another_way_than_its_effects_stops(place: Any, upstream: Upstream) -> None:
    run = killed_at(place, upstream, "outcome", "", "wavers")
    assert [request[3] for request in upstream.requests] == [b'{"attempt": 1}']
    view = place.drive(run)
    assert view.status == "suspended"
    assert "does not hold" in view.error
    assert len(upstream.requests) == 1, "nothing more was sent"
    place.verify()


def test_what_may_be_sent_again_is(place: Any, upstream: Upstream) -> None:
    run = killed_at(place, upstream, "intent", f"PUT {upstream.authority}", "payments", method="PUT")
    view = place.drive(run)
    assert (view.status, view.output) == ("completed", [1, 2])
    place.verify()


def test_a_receiver_that_heeds_keys_gets_the_same_one_again(place: Any, upstream: Upstream) -> None:
    place.settings(f'[egress]\nallow_private = ["{upstream.authority}"]\nidempotency = ["127.0.0.1"]\n')
    run = killed_at(place, upstream, "outcome", "", "payments", method="POST")
    assert len(upstream.requests) == 1
    view = place.drive(run)
    assert (view.status, view.output) == ("completed", [1, 2]), "the first answer came from the record"
    keys = [request[2]["idempotency-key"] for request in upstream.requests]
    assert len(set(keys)) == 2
    place.verify()


def test_an_irreversible_request_without_an_answer_is_in_doubt(place: Any, upstream: Upstream) -> None:
    run = place.submit(
        "reacher.py:Reacher",
        {"how": "payments", "url": f"http://{upstream.authority}/drop"},
        policies=LIST.format(authority=upstream.authority),
    )
    assert place.drive(run).status == "in_doubt"
    assert len(upstream.requests) == 1
    with place.service() as service:
        service.resolve(run, "retry", b"null", principal=place.person)
    assert place.drive(run).status == "in_doubt"
    assert len(upstream.requests) == 2
    place.verify()


def test_what_came_over_the_network_is_untrusted(place: Any, upstream: Upstream) -> None:
    place.write("bank.py", "def pay(amount):\n    return amount\n")
    settings = f'[egress]\nallow_private = ["{upstream.authority}"]\n[connectors.pay]\ncall = "bank.py:pay"\n'
    place.settings(settings)
    policies = LIST.format(authority=upstream.authority)
    url = f"http://{upstream.authority}/"
    run = place.submit("reacher.py:Reacher", {"how": "then_pays", "url": url}, policies=policies)
    assert place.drive(run).output == 7
    taint = """
    - id: no-orders
      category: untrusted_taint
      with: {sinks: ["tool:pay"]}
    """
    run = place.submit("reacher.py:Reacher", {"how": "then_pays", "url": url}, policies=policies + taint)
    assert place.drive(run).output == ["no-orders"]
    place.verify()


def test_model_calls_through_the_proxy_are_priced_and_bounded(place: Any, model_server: Callable[..., Any]) -> None:
    server = model_server([{"text": "one"}, {"text": "two"}, {"text": "three"}])
    authority = server.url.removeprefix("http://")
    place.settings(f'[egress]\nallow_private = ["{authority}"]\n' + place.model)
    done = place.cli(
        "secrets", "set", "llm", "--host", authority, "--as", "header:x-api-key", stdin="sk-test-acceptance"
    )
    assert done.returncode == 0, done.stderr
    budget = """
    - id: ceiling
      category: budget_usd
      with: {limit: 0.00232, window: run}
    """
    policies = LIST.format(authority=authority) + budget
    url = f"http://{authority}/v1/messages"
    run = place.submit("reacher.py:Reacher", {"how": "asks_model", "url": url}, policies=policies)
    view = place.drive(run)
    assert view.status == "completed", view.error
    assert view.output[0] == "one"
    assert view.output[-1].startswith("ceiling: ")
    answered = [event for event in place.events(run, "outcome") if event.data.get("usage")]
    assert len(answered) == len(server.requests) < 3
    assert view.cost_nano == sum(event.data["cost"] for event in answered) > 0
    assert all(event.data["prices"] for event in answered)
    place.verify()


def test_a_connector_may_be_an_endpoint(place: Any, upstream: Upstream) -> None:
    place.write("book.json", '{"properties": {"amount": {"type": "integer"}}, "required": ["amount"]}')
    place.settings(f"""
        [connectors.book]
        url = "http://{upstream.authority}/accounts/{{account}}/entries"
        schema = "book.json"
        effect = "idempotent"
        [connectors.look]
        url = "http://{upstream.authority}/accounts/{{account}}"
        method = "GET"
        effect = "pure"
        [connectors.gone]
        url = "http://{upstream.authority}/status/404"
    """)
    secret = "s3cr3t-Token-0123456789"
    done = place.cli("secrets", "set", "bank", "--host", upstream.authority, "--as", "bearer", stdin=secret)
    assert done.returncode == 0, done.stderr
    output, run = reach(place, upstream, "connects", listed=False)
    book, look, unfilled, unfit, gone = output
    assert json.loads(book["body"]) == {"amount": 7}
    assert book["headers"]["authorization"] == "Bearer [redacted]"
    assert look["method"] == "GET"
    assert "book needs account" in unfilled
    assert "amount breaks the rule type of book.json" in unfit
    assert "gone answered 404" in gone
    methods = [request[:2] for request in upstream.requests]
    assert methods == [
        ("POST", "/accounts/a%20b/entries"), ("GET", "/accounts/x?since=today"), ("POST", "/status/404")
    ]  # fmt: skip
    assert all(request[2]["authorization"] == f"Bearer {secret}" for request in upstream.requests)
    keys = [event.data["key"] for event in place.events(run, "intent") if event.data["action"]["kind"] == "tool"]
    assert [request[2]["idempotency-key"] for request in upstream.requests] == [keys[0], keys[1], keys[-1]]


def test_an_endpoint_that_is_none_is_refused_with_its_line(place: Any) -> None:
    place.settings('[connectors.book]\nurl = "http://{host}/x"\n')
    done = place.cli("runs", "list")
    assert done.returncode == 2
    assert "is not http(s)://HOST/" in done.stderr


@pytest.mark.parametrize("level", ["process", "landlock", "container", "gvisor"])
def test_every_level_has_the_same_way_out(place: Any, upstream: Upstream, level: str) -> None:
    found = asyncio.run(level_of(level).probe())
    if not found.available:
        pytest.skip(f"{level} cannot be had here: {found.reason}")
    output, _ = reach(place, upstream, "get", "/x", isolation=level)
    assert output == [200, "GET"]
    if level in OWN_LOOPBACK:
        output, _ = reach(place, upstream, "urllib", "/lib", isolation=level)
        assert output[0] == 200
