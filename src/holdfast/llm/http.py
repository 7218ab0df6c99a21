"""One attempt of a model call over HTTP: dial, send, read, each within its time, and an account of what has left.

The provider modules say what to send and what the answer means; here is only the transport. It follows no redirect,
uses no proxy of the environment, bounds what it reads, and knows whether the request's bytes may have reached the
provider.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.llm import sse
from holdfast.llm.base import BeforeDial, LLMFailure

if TYPE_CHECKING:
    import ssl

    import httpx

MAX_BODY = 32 << 20
"""Bytes of one answer, streamed or not, at most."""
MAX_ERROR = 64 << 10
"""Bytes that are read of an error's body."""
MAX_RETRY_AFTER_US = 3_600_000_000
"""A provider that asks for a longer pause than this is asked again after it."""

OnEvent = Callable[[sse.Event], Awaitable[None]]


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one attempt, in seconds, beside its overall time-out."""

    connect: float = 10.0
    """Until the connection is open and, for https, secured. Nothing of the request has left by then."""
    send: float = 5.0
    """From the first to the last byte of the request: the dial's deadline, which a lease has to outlast."""
    stall: float = 60.0
    """Between two pieces of an answer."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. ``body`` is empty when it was streamed."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    streamed: bool = False


class Transport:
    """Connections to one provider, kept alive between calls. Belongs to the event loop that first uses it."""

    def __init__(self, name: str, base_url: str, timing: Timing, env: Mapping[str, str]) -> None:
        self.name = name
        self.base_url = base_url
        self._timing = timing
        self._env = env
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def post(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        timeout: float,
        before_dial: BeforeDial,
        on_event: OnEvent | None,
    ) -> Answer:
        """Send a JSON body. Events of a streamed answer go to ``on_event``; without it, streams are not expected.

        Raises:
            LLMFailure: no answer within the time or bounds; ``sent`` says whether the request may have arrived.
        """
        client = await self._open()
        import httpx

        attempt = _Attempt(self, timeout, before_dial)
        try:
            async with asyncio.timeout_at(attempt.overall) as timer:
                attempt.start(timer)
                request = client.stream(
                    "POST",
                    self.base_url + path,
                    headers={**headers, "content-type": "application/json", "accept-encoding": "identity"},
                    content=body,
                    extensions={"trace": attempt.trace},
                )
                async with request as response:
                    return await self._read(response, attempt, on_event)
        except TimeoutError:
            if not attempt.expired:
                raise
            raise attempt.late() from None
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as error:
            raise self._broken(error, attempt) from None

    async def _read(self, response: httpx.Response, attempt: _Attempt, on_event: OnEvent | None) -> Answer:
        headers = {name.lower(): value for name, value in response.headers.items()}
        status = response.status_code
        ok = 200 <= status < 300
        if ok and on_event and headers.get("content-type", "").lower().startswith("text/event-stream"):
            await self._stream(response, attempt, on_event)
            return Answer(status=status, headers=headers, streamed=True)
        body = bytearray()
        attempt.piece()
        async for chunk in response.aiter_bytes():
            attempt.piece()
            body += chunk
            if not ok and len(body) >= MAX_ERROR:
                break
            if len(body) > MAX_BODY:
                raise self._too_large()
        return Answer(status=status, headers=headers, body=bytes(body))

    async def _stream(self, response: httpx.Response, attempt: _Attempt, on_event: OnEvent) -> None:
        parser, size = sse.Parser(), 0
        attempt.piece()
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > MAX_BODY:
                raise self._too_large()
            try:
                events = parser.feed(chunk)
            except ValueError as error:
                raise LLMFailure(f"{self.name} sent what cannot be read: {error}", retryable=False, sent=True) from None
            attempt.paused()
            for event in events:
                await on_event(event)
            attempt.piece()

    async def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    # The import and the certificates take 0.2 s: not on the event loop.
                    self._client = await asyncio.to_thread(self._build)
        return self._client

    def _build(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - one timer for every phase, in _Attempt
            verify=_tls(self.base_url, self._env),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=20.0),
            headers={"user-agent": "holdfast"},
        )

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _too_large(self) -> LLMFailure:
        return LLMFailure(f"{self.name} sent more than {MAX_BODY} bytes; lower max_tokens", retryable=False, sent=True)

    def _unreachable(self, error: Exception) -> LLMFailure:
        if "CERTIFICATE" in str(error).upper():
            return LLMFailure(
                f"the certificate of {self.base_url} does not verify; set SSL_CERT_FILE to its authority",
                retryable=False,
                sent=False,
            )
        return LLMFailure(
            f"{self.name} cannot be reached at {self.base_url}: {_cause(error)}", retryable=True, sent=False
        )

    def _broken(self, error: Exception, attempt: _Attempt) -> LLMFailure:
        # The library's own words may quote a header, so only the kind of fault is told.
        kind = type(error).__name__
        if kind == "LocalProtocolError":
            return LLMFailure(
                f"the request to {self.name} cannot be sent: a header is not valid", retryable=False, sent=False
            )
        where = "in the middle of its answer" if attempt.phase == "read" else "before it answered"
        return LLMFailure(
            f"{self.name} at {self.base_url} broke the connection {where} ({kind})", retryable=True, sent=attempt.sent
        )


class _Attempt:
    """Where an attempt stands, and the one timer that ends it when its phase takes too long."""

    def __init__(self, transport: Transport, timeout: float, before_dial: BeforeDial) -> None:
        self._name = transport.name
        self._limits = transport._timing
        self._before_dial = before_dial
        self._now = asyncio.get_running_loop().time
        self._timeout = timeout
        self._timer: asyncio.Timeout | None = None
        self.overall = self._now() + timeout
        self.phase = "connect"
        self.sent = False

    def start(self, timer: asyncio.Timeout) -> None:
        self._timer = timer
        self._until(self._limits.connect)

    @property
    def expired(self) -> bool:
        """Whether this attempt's own timer ended it, and not something that it called."""
        return self._timer is not None and self._timer.expired()

    def _until(self, seconds: float) -> None:
        assert self._timer is not None
        self._timer.reschedule(min(self.overall, self._now() + seconds))

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's account of its steps: the only place that is after connecting and before the first byte."""
        if event.endswith("send_request_headers.started"):
            dial = max(0.0, min(self._limits.send, self.overall - self._now()))
            self._before_dial(dial)
            self.phase, self.sent = "send", True
            self._until(dial)
        elif self.phase == "send" and not self.expired and event.endswith(("send_request_body.complete", ".failed")):
            self.phase = "wait"
            self._until(self._timeout)

    def piece(self) -> None:
        """A piece of the answer came: the next one may take as long as a stall is allowed."""
        self.phase = "read"
        self._until(self._limits.stall)

    def paused(self) -> None:
        """The receiver of the text is at work: its time is no stall of the provider's."""
        self._until(self._timeout)

    def late(self) -> LLMFailure:
        if self.phase == "connect":
            what, sent = "could not be reached", False
        elif self.phase == "send":
            what, sent = "did not take the request", True
        elif self.phase == "wait":
            what, sent = "did not answer", True
        else:
            what, sent = "stopped in the middle of its answer and did not go on", True
        limit = {"connect": self._limits.connect, "send": self._limits.send, "read": self._limits.stall}.get(
            self.phase, self._timeout
        )
        seconds = self._timeout if self._now() >= self.overall else limit
        return LLMFailure(f"{self._name} {what} within {seconds:g} s", retryable=True, sent=sent, timeout=True)


def retry_after_us(headers: Mapping[str, str], now: float | None = None) -> int:
    """The pause that a provider asks for, in microseconds; 0 when it names none. ``now`` is Unix time, for dates.

    RFC 9110, section 10.2.3 (seconds or a date); ``retry-after-ms`` is OpenAI's finer form.
    """
    wait = 0.0
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        elif (text := headers.get("retry-after", "").strip()) and text[0] in "0123456789.":
            wait = float(text)
        elif text:
            at = email.utils.parsedate_to_datetime(text).timestamp()
            wait = at - (time.time() if now is None else now)
    except (ValueError, OverflowError):
        return 0
    if not wait > 0:
        return 0
    return int(min(wait * 1_000_000, MAX_RETRY_AFTER_US))


def refused(name: str, answer: Answer, message: str, key_name: str, *, final: bool = False) -> LLMFailure:
    """The failure that an HTTP status means. ``final`` marks one that waiting cannot cure although its status
    suggests it."""
    status = answer.status
    if status in (401, 403):
        return LLMFailure(f"{name} refused the key ({status}): check {key_name}", retryable=False, sent=True)
    if 300 <= status < 400:
        return LLMFailure(
            f"{name} redirects ({status}), which is not followed; set the base URL to where the service is",
            retryable=False,
            sent=True,
        )
    if status == 404:
        message += "; check the model's name and the base URL"
    retryable = (status in (408, 409, 425, 429) or status >= 500) and not final
    return LLMFailure(
        f"{name} answered {status}: {message}",
        retryable=retryable,
        sent=True,
        retry_after_us=retry_after_us(answer.headers) if retryable else 0,
    )


def clean(text: Any, secret: str, limit: int = 300) -> str:
    """A provider's words for an error message: one line, bounded, without the key."""
    if not isinstance(text, str):
        return ""
    if secret:
        text = text.replace(secret, "[key]")
    line = "".join(char if char.isprintable() else " " for char in text[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def as_object(data: bytes | str) -> dict[str, Any] | None:
    """A JSON object; None when it is anything else."""
    try:
        loaded = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def as_dict(value: Any) -> dict[str, Any]:
    """A member that should be an object; an empty one when it is not."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """A member that should be a short text; empty when it is not."""
    return value[:200] if isinstance(value, str) else ""


def _cause(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return clean(text, "", 120)


def _tls(base_url: str, env: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    if base_url.startswith("http:"):
        # Never used; an empty one trusts nobody and spares reading the authorities.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    import certifi

    return ssl.create_default_context(
        cafile=env.get("SSL_CERT_FILE") or certifi.where(), capath=env.get("SSL_CERT_DIR") or None
    )
