"""``ctx.http``: requests through the egress proxy, in the shape of httpx.

Nothing here is trusted: what may leave, and with which credential, is decided and added outside.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import http.client
import json as jsonlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

from holdfast.agent.egress import scope_here, way
from holdfast.errors import DeniedError, StepError, StepTimeout, UsageError

DENIED = "x-holdfast-rule"
"""Header of an answer that the proxy itself gave: the rule's id. The proxy takes it out of all others."""
REFUSED = 403
"""Its status when a policy or the guard refused; any other says that the exchange failed."""
TIMEOUT = 60.0
MAX_REDIRECTS = 20

Params = Mapping[str, Any] | Sequence[tuple[str, Any]]


class HTTPStatusError(StepError):
    """``raise_for_status`` found an answer of 400 or above."""

    code = "http_status"

    def __init__(self, message: str, response: Response) -> None:
        super().__init__(message)
        self.response = response


class Headers(Mapping[str, str]):
    """Headers by name, whatever its case; several of one name are joined with commas."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        self._joined: dict[str, str] = {}
        for name, value in pairs:
            key = name.lower()
            self._joined[key] = f"{self._joined[key]}, {value}" if key in self._joined else value

    def __getitem__(self, name: str) -> str:
        return self._joined[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)

    def get_list(self, name: str) -> list[str]:
        """Every value of a name."""
        return [value for key, value in self._pairs if key.lower() == name.lower()]


class Response:
    """An answer, read whole."""

    def __init__(self, method: str, url: str, status: int, reason: str, headers: Headers, content: bytes) -> None:
        self.method = method
        self.url = url
        self.status_code = status
        self.reason_phrase = reason
        self.headers = headers
        self.content = content

    @property
    def text(self) -> str:
        """The body as text, in the charset that it names, else UTF-8."""
        kind = self.headers.get("content-type", "")
        _, _, charset = kind.lower().partition("charset=")
        try:
            return self.content.decode(charset.split(";")[0].strip(' "') or "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            StepError: it is none.
        """
        try:
            return jsonlib.loads(self.content)
        except ValueError:
            raise StepError(f"the answer of {self.method} {self.url} is no JSON") from None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    @property
    def is_error(self) -> bool:
        """Whether the status is 4xx or 5xx."""
        return self.status_code >= 400

    @property
    def is_redirect(self) -> bool:
        """Whether it says where else to ask."""
        return self.status_code in (301, 302, 303, 307, 308) and "location" in self.headers

    def raise_for_status(self) -> Response:
        """This answer.

        Raises:
            HTTPStatusError: its status is 400 or above.
        """
        if self.is_error:
            raise HTTPStatusError(f"{self.method} {self.url} answered {self.status_code} {self.reason_phrase}", self)
        return self

    def __repr__(self) -> str:
        return f"<Response [{self.status_code} {self.reason_phrase}]>"


class HTTP:
    """``ctx.http`` of a ``def``."""

    __slots__ = ()

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | str | None = None,
        data: Params | None = None,
        json: Any = None,
        timeout: float = TIMEOUT,
        follow_redirects: bool = False,
    ) -> Response:
        """Send a request and read its answer. Each redirect that is followed is a request of its own to the gate.

        Args:
            params: joined to the URL's query. content: the body as it is. data: a form. json: a value.
            timeout: seconds in which each next piece of the answer must come.

        Raises:
            DeniedError: a policy denied it; ``rule`` is the policy's id.
            StepTimeout: no answer, or its next piece, within ``timeout``.
            StepError: it cannot be sent, or its answer broke off.
        """
        body, kind = _body(content, data, json)
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if kind and "content-type" not in sent:
            sent["content-type"] = kind
        method, url = method.upper(), _with_params(url, params)
        for _ in range(MAX_REDIRECTS):
            response = _exchange(method, url, sent, body, timeout)
            if not (follow_redirects and response.is_redirect):
                return response
            url = urljoin(url, response.headers["location"])
            if response.status_code == 303 or (response.status_code in (301, 302) and method == "POST"):
                method, body = "GET", None
                sent.pop("content-type", None)
        raise StepError(f"more than {MAX_REDIRECTS} redirects were followed, the last to {urlsplit(url).netloc}")

    def get(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("HEAD", url, **options)

    def options(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("OPTIONS", url, **options)

    def post(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("PUT", url, **options)

    def patch(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Any) -> Response:
        """As :meth:`request`."""
        return self.request("DELETE", url, **options)


class AsyncHTTP:
    """``ctx.http`` of an ``async def``: as :class:`HTTP`, awaited."""

    __slots__ = ("_sync",)

    def __init__(self) -> None:
        self._sync = HTTP()

    async def request(self, method: str, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await _in_thread(functools.partial(self._sync.request, method, url, **options))

    async def get(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("GET", url, **options)

    async def head(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("HEAD", url, **options)

    async def options(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("OPTIONS", url, **options)

    async def post(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("POST", url, **options)

    async def put(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("PUT", url, **options)

    async def patch(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("PATCH", url, **options)

    async def delete(self, url: str, **options: Any) -> Response:
        """As :meth:`HTTP.request`."""
        return await self.request("DELETE", url, **options)


async def _in_thread(work: Callable[[], Response]) -> Response:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, context.run, work)


def _body(content: bytes | str | None, data: Params | None, json: Any) -> tuple[bytes | None, str]:
    if sum(one is not None for one in (content, data, json)) > 1:
        raise UsageError("a request has one body: give content, data or json")
    if json is not None:
        return jsonlib.dumps(json, ensure_ascii=False, allow_nan=False).encode(), "application/json"
    if data is not None:
        return urlencode(data, doseq=True).encode(), "application/x-www-form-urlencoded"
    if isinstance(content, str):
        return content.encode(), "text/plain; charset=utf-8"
    return content, ""


def _with_params(url: str, params: Params | None) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url[:200]!r} is no http or https URL")
    if not params:
        return url
    query = "&".join(filter(None, (parts.query, urlencode(params, doseq=True))))
    return urlunsplit((*parts[:3], query, ""))


def _exchange(method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float) -> Response:
    """One request over a connection of its own, in absolute form: the proxy speaks TLS with whom it is for."""
    url = urlunsplit((*urlsplit(url)[:4], ""))
    connection = http.client.HTTPConnection("proxy", timeout=timeout)
    connection.sock = socket.socket(fileno=way().dial(scope_here()))
    connection.sock.settimeout(timeout)
    try:
        connection.request(
            method, url, body, {**headers, "accept-encoding": headers.get("accept-encoding", "identity")}
        )
        answer = connection.getresponse()
        content = answer.read()
    except TimeoutError:
        raise StepTimeout(f"{method} {_shown(url)} did not answer within {timeout:g} s") from None
    except (ValueError, http.client.InvalidURL):
        raise UsageError(
            f"the request to {urlsplit(url).netloc} cannot be sent: a character of its URL or headers is not allowed"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise StepError(f"{method} {_shown(url)} broke off ({type(error).__name__})") from None
    finally:
        connection.close()
    found = Headers(answer.getheaders())
    if DENIED in found:
        if answer.status == REFUSED:
            raise DeniedError(_reason(content), found[DENIED])
        raise StepError(f"{method} {_shown(url)}: {_reason(content)}")
    return Response(method, url, answer.status, answer.reason, found, content)


def _shown(url: str) -> str:
    """A URL without its query, which may hold what is nobody's business."""
    return urlunsplit((*urlsplit(url)[:3], "", ""))


def _reason(content: bytes) -> str:
    try:
        return str(jsonlib.loads(content)["error"]["reason"])
    except (ValueError, KeyError, TypeError):
        return "the egress proxy denied the request"
