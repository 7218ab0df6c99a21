"""Where a secret may go: what is written, what it covers, and which of several wins."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.egress.base import Refused, RequestHead
from holdfast.egress.bindings import binding, check_name, check_value, of_record, pick, sensitive, shown
from holdfast.errors import UsageError


def head(url: str = "https://api.example.com/v1/things", method: str = "GET") -> RequestHead:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    name, _, port = authority.partition(":")
    return RequestHead(
        method=method,
        scheme=scheme,
        host=name,
        port=int(port or {"http": 80, "https": 443}[scheme]),
        path=slash + path or "/",
    )


@pytest.mark.parametrize(
    ("host", "url", "covered"),
    [
        ("api.example.com", "https://api.example.com/", True),
        ("API.Example.com.", "https://api.example.com/", True),
        ("api.example.com", "https://api.example.com:8443/", False),
        ("api.example.com", "http://api.example.com/", True),
        ("api.example.com", "http://api.example.com:443/", False),
        ("api.example.com:8443", "https://api.example.com:8443/", True),
        ("api.example.com:8443", "https://api.example.com/", False),
        ("api.example.com", "https://api.example.com.evil.net/", False),
        ("api.example.com", "https://evil-api.example.com/", False),
        ("*.example.com", "https://api.example.com/", True),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evilexample.com/", False),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/", True),
    ],
)
def test_hosts(host: str, url: str, covered: bool) -> None:
    assert binding("bearer", host).covers(head(url)) is covered


@pytest.mark.parametrize(
    ("methods", "path", "method", "url", "covered"),
    [
        ((), "", "DELETE", "https://h.io/x", True),
        (("get", "POST"), "", "POST", "https://h.io/x", True),
        (("GET",), "", "POST", "https://h.io/x", False),
        (("GET",), "", "get", "https://h.io/x", False),
        ((), "/v1/*", "GET", "https://h.io/v1/a/b", True),
        ((), "/v1/*", "GET", "https://h.io/v2/a", False),
        ((), "/v1/a", "GET", "https://h.io/v1/a", True),
        ((), "/v1/a", "GET", "https://h.io/v1/ab", False),
        ((), "/v1/a", "GET", "https://h.io/v1/%61", False),
    ],
)
def test_methods_and_paths(methods: tuple[str, ...], path: str, method: str, url: str, covered: bool) -> None:
    assert binding("bearer", "h.io", methods=methods, path=path).covers(head(url, method)) is covered


@pytest.mark.parametrize(
    ("inject", "host", "more"),
    [
        ("cookie", "h.io", {}),
        ("header", "h.io", {}),
        ("header:", "h.io", {}),
        ("header:NAME", "h.io", {}),
        ("header:X Y", "h.io", {}),
        ("header:Host", "h.io", {}),
        ("header:Transfer-Encoding", "h.io", {}),
        ("query:a=b", "h.io", {}),
        ("bearer", "https://h.io", {}),
        ("bearer", "h.io/v1", {}),
        ("bearer", "user@h.io", {}),
        ("bearer", "*", {}),
        ("bearer", "*.com", {}),
        ("bearer", "a.*.com", {}),
        ("bearer", "", {}),
        ("bearer", "h.io:0", {}),
        ("bearer", "h.io:99999", {}),
        ("bearer", "[::1]x", {}),
        ("postgres", "*.h.io", {}),
        ("bearer", "h.io", {"path": "v1"}),
        ("bearer", "h.io", {"methods": ("GET POST",)}),
    ],
)
def test_what_cannot_be_meant_is_refused(inject: str, host: str, more: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        binding(inject, host, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a" * 64, "a\n", "é"])
def test_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_a_record_holds_a_binding_and_gives_it_back() -> None:
    bound = binding("header:X-Api-Key", "*.h.io:8443", methods=("get",), path="/v1/*", agent="books-*")
    assert of_record(msgspec.json.decode(msgspec.json.encode(shown(bound)))) == bound
    assert of_record(shown(binding("bearer", "[::1]:5000"))).covers(
        RequestHead(method="GET", scheme="http", host="::1", port=5000)
    )


class TestPick:
    def test_the_most_specific_wins(self) -> None:
        held = [
            ("any", binding("bearer", "*.example.com")),
            ("host", binding("bearer", "api.example.com")),
            ("path", binding("bearer", "api.example.com", path="/v1/*")),
            ("longer", binding("bearer", "api.example.com", path="/v1/th*")),
            ("exact", binding("bearer", "api.example.com", path="/v1/things")),
            ("method", binding("bearer", "api.example.com", path="/v1/things", methods=("GET",))),
            ("agent", binding("bearer", "api.example.com", path="/v1/things", methods=("GET",), agent="a")),
        ]
        for count in range(1, len(held) + 1):
            for order in (held[:count], held[:count][::-1]):
                assert pick(order, head()) == held[count - 1][0]

    def test_two_alike_are_ambiguous(self) -> None:
        held = [("one", binding("bearer", "api.example.com")), ("two", binding("basic", "api.example.com"))]
        with pytest.raises(Refused, match="one and two"):
            pick(held, head())

    def test_alike_does_not_matter_where_a_third_is_more_specific(self) -> None:
        held = [
            ("one", binding("bearer", "api.example.com")),
            ("two", binding("basic", "api.example.com")),
            ("three", binding("basic", "api.example.com", path="/v1/things")),
        ]
        assert pick(held, head()) == "three"

    def test_a_second_host_gets_nothing(self) -> None:
        held = [("one", binding("bearer", "api.example.com")), ("db", binding("postgres", "db.example.com"))]
        assert pick(held, head("https://other.example.com/v1/things")) is None
        assert pick(held, head("https://db.example.com/")) is None
        database = RequestHead(method="CONNECT", scheme="postgres", host="db.example.com", port=5432, path="/books")
        assert pick(held, database) == "db"
        assert pick([("one", binding("bearer", "db.example.com:5432"))], database) is None


class TestValues:
    @pytest.mark.parametrize(
        ("inject", "value"),
        [
            ("bearer", b"short"),
            ("bearer", b"x" * 8193),
            ("bearer", b"two\nlines-of-text"),
            ("bearer", b"caf\xc3\xa9-caf\xc3\xa9"),
            ("bearer", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7"),
            ("bearer", b"tab\tand-more"),
            ("basic", b"no-colon-in-here"),
            ("basic", b":password-only"),
            ("basic", b"username-only:"),
            ("postgres", b"no-colon-in-here"),
            ("sigv4", b"only-one-part"),
            ("sigv4", b'{"access_key_id": "AKIDEXAMPLE"}'),
            ("sigv4", b'{"access_key_id": "AKIDEXAMPLE", "secret_access_key": "long-enough", "typo": 1}'),
            ("oauth", b"not-json-at-all"),
            ("oauth", b'{"token_url": "https://x/t", "client_id": "a", "client_secret": "short"}'),
        ],
    )
    def test_what_is_no_such_secret_is_refused_without_repeating_it(self, inject: str, value: bytes) -> None:
        with pytest.raises(UsageError) as caught:
            check_value(binding(inject, "h.io"), value)
        assert value.decode("latin-1") not in str(caught.value)

    def test_the_line_end_is_no_part_of_it(self) -> None:
        assert check_value(binding("bearer", "h.io"), b"a-good-token\r\n") == b"a-good-token"

    def test_what_must_not_come_back(self) -> None:
        def of(inject: str, value: bytes) -> tuple[str, ...]:
            bound = binding(inject, "h.io")
            return sensitive(bound, check_value(bound, value))

        assert of("header:x", b"a-good-token") == ("a-good-token",)
        assert of("basic", b"ada:lovelace-1815") == (
            "ada:lovelace-1815",
            "lovelace-1815",
            "YWRhOmxvdmVsYWNlLTE4MTU=",
        )
        assert of("sigv4", b"AKIDEXAMPLE:wJalrXUtnFEMI:a-session-token") == ("wJalrXUtnFEMI", "a-session-token")
        assert of("oauth", b'{"token_url": "https://x/t", "client_id": "me", "client_secret": "long-enough"}') == (
            "long-enough",
            "bWU6bG9uZy1lbm91Z2g=",
        )
