"""The transport: what counts as sent, what is bounded, what a cancellation leaves."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.llm import http
from holdfast.llm.base import LLMFailure
from holdfast.llm.http import Timing, clean, retry_after_us
from holdfast.testing.model_server import ModelServer, Rule

KEY = "sk-test-0123456789"


@pytest.fixture
def closed() -> Iterator[str]:
    """An address that refuses connections: bound, not listening."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{own.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address whose connections are taken by the kernel and never answered or read."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen(16)
        yield f"127.0.0.1:{own.getsockname()[1]}"


def test_refused_is_not_sent(run: Any, caller: Any, closed: str) -> None:
    async def body(call: Any) -> None:
        with pytest.raises(LLMFailure, match="cannot be reached at http://127") as caught:
            await call.call()
        failure = caught.value
        assert (failure.retryable, failure.sent, failure.timeout) == (True, False, False)
        assert call.dials == []

    run(caller("anthropic", f"http://{closed}"), body)


def test_a_connection_that_does_not_come_is_not_sent(run: Any, caller: Any, silent: str) -> None:
    """The other side never answers the TLS handshake."""

    async def body(call: Any) -> None:
        with pytest.raises(LLMFailure, match=r"could not be reached within 0.2 s") as caught:
            await call.call()
        failure = caught.value
        assert (failure.retryable, failure.sent, failure.timeout) == (True, False, True)
        assert call.dials == []

    run(caller("anthropic", f"https://{silent}", Timing(connect=0.2)), body)


def test_a_request_that_is_not_taken_counts_as_sent(run: Any, caller: Any, silent: str) -> None:
    async def body(call: Any) -> None:
        with pytest.raises(LLMFailure, match=r"did not take the request within 0.3 s") as caught:
            await call.call(text="x" * (24 << 20))
        failure = caught.value
        assert (failure.retryable, failure.sent, failure.timeout) == (True, True, True)
        assert call.dials == [0.3]

    run(caller("anthropic", f"http://{silent}", Timing(send=0.3)), body)


def test_a_node_that_may_not_send_sends_nothing(run: Any, caller: Any) -> None:
    class Fenced(Exception):
        pass

    def refuse(seconds: float) -> None:
        raise Fenced

    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            for _ in range(3):
                with pytest.raises(Fenced):
                    await call.call(before_dial=refuse)
            assert server.requests == []
            assert (await call.call()).text == "ok"

        run(caller("anthropic", server.url), body)
        assert len(server.requests) == 1


def test_a_time_out_of_the_callers_own_is_not_taken_for_the_providers(run: Any, caller: Any) -> None:
    def late(seconds: float) -> None:
        raise TimeoutError("the lease")

    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(TimeoutError, match="the lease"):
                await call.call(before_dial=late)

        run(caller("anthropic", server.url), body)


def test_each_phase_has_its_limit() -> None:
    """A receiver that takes its time is no stall of the provider's, and nothing outlasts the whole."""

    async def body() -> None:
        dials: list[float] = []
        transport = http.Transport("anthropic", "http://x", Timing(connect=10, send=5, stall=20), {})
        async with asyncio.timeout(3600) as timer:
            attempt = http._Attempt(transport, 300.0, dials.append)
            start = asyncio.get_running_loop().time()
            attempt._now, attempt.overall = (lambda: start), start + 300
            attempt.start(timer)
            limits = [timer.when()]
            for step in ("http11.send_request_headers.started", "http11.send_request_body.complete"):
                await attempt.trace(step, {})
                limits.append(timer.when())
            attempt.piece()
            limits.append(timer.when())
            attempt.paused()
            limits.append(timer.when())
        assert limits == [start + 10, start + 5, start + 300, start + 20, start + 300]
        assert (dials, attempt.sent) == ([5], True)

    asyncio.run(body())


def test_cancelling_closes_the_connection(run: Any, caller: Any) -> None:
    with ModelServer([Rule(fault="hang")]) as server:

        async def body(call: Any) -> None:
            task = asyncio.create_task(call.call())
            await asyncio.to_thread(server.wait_for, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.wait_answered, 1) == {0: 1}

        run(caller("anthropic", server.url), body)


def test_connections_are_kept(run: Any, caller: Any) -> None:
    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            for _ in range(5):
                await call.call()

        run(caller("anthropic", server.url), body)
        assert server.connections == 1


def test_a_hundred_calls_at_once(run: Any, caller: Any) -> None:
    with ModelServer([Rule(text="ok", gate="all")]) as server:

        async def body(call: Any) -> None:
            tasks = [asyncio.create_task(call.call()) for _ in range(100)]
            await asyncio.to_thread(server.wait_held, "all", 100)
            server.release("all")
            answers = await asyncio.gather(*tasks)
            assert [answer.text for answer in answers] == ["ok"] * 100

        run(caller("anthropic", server.url), body)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_bounded(
    run: Any, caller: Any, provider: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 5000)
    with ModelServer([Rule(text="word " * 2000)]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match="more than 5000 bytes") as caught:
                await call.call(stream=stream, max_tokens=100_000)
            assert (caught.value.retryable, caught.value.sent) == (False, True)

        run(caller(provider, server.url), body)


def test_the_body_of_an_error_is_bounded(run: Any, caller: Any, provider: str) -> None:
    with ModelServer([Rule(error=400, message="x" * 1_000_000)]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match="answered 400") as caught:
                await call.call()
            assert len(str(caught.value)) < 500

        run(caller(provider, server.url), body)


def test_the_key_is_in_no_log_and_no_repr(
    run: Any, caller: Any, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), ModelServer([Rule(error=500)]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure) as caught:
                await call.call(text="the payload")
            shown = f"{caught.value!r} {call.llm!r} {vars(call.llm)}"
            assert KEY not in shown.replace(repr(call.llm._env), "")

        run(caller(provider, server.url), body)
    assert KEY not in caplog.text
    assert "the payload" not in caplog.text


def test_no_proxy_of_the_environment_is_used(
    run: Any, caller: Any, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{closed}")
    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            assert (await call.call()).text == "ok"

        run(caller("anthropic", server.url), body)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """An https address with a certificate that nobody vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    file = tmp_path / "own.pem"
    file.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    context.wrap_socket(connection, server_side=True).close()
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_certificate_that_does_not_verify(run: Any, caller: Any, stranger: str) -> None:
    async def body(call: Any) -> None:
        with pytest.raises(LLMFailure, match="set SSL_CERT_FILE") as caught:
            await call.call()
        assert (caught.value.retryable, caught.value.sent) == (False, False)

    run(caller("anthropic", stranger), body)


@pytest.mark.parametrize(
    ("headers", "us"),
    [
        ({}, 0),
        ({"retry-after": "2"}, 2_000_000),
        ({"retry-after": "1.5"}, 1_500_000),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "1e400"}, 3_600_000_000),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40_000_000),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:40 GMT"}, 0),
        ({"retry-after": "Thu, 99 Foo"}, 0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 250_000),
        ({"retry-after-ms": "x"}, 0),
    ],
)
def test_retry_after(headers: dict[str, str], us: int) -> None:
    assert retry_after_us(headers, now=60.0) == us


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\n\tb\x1b[31m", "a b [31m"),
        (f"key {KEY}!", "key [key]!"),
        (None, ""),
        (["x"], ""),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_clean(text: Any, shown: str) -> None:
    assert clean(text, KEY) == shown
